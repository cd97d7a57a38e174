#include "daemons/worker/server.h"

#include <signal.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <semaphore>

#include "daemons/common/messages.h"
#include "tests/unit/daemons/intake_rig.h"

using namespace stoker;
using namespace stoker::test;
using namespace std::chrono_literals;

namespace {

class Directory {
 public:
  Directory() {
    std::string name = (std::filesystem::temp_directory_path() / "stoker-server-XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  Directory(const Directory&) = delete;
  Directory& operator=(const Directory&) = delete;
  ~Directory() { std::filesystem::remove_all(path_); }
  [[nodiscard]] std::string socket() const { return path_ + "/worker.sock"; }

 private:
  std::string path_;
};

/// Fewer than the worker's, so that a client that does not read is noticed soon.
constexpr int kQueue = 1000;

template <class T>
T take_value(Result<T> result) {
  REQUIRE(result.has_value());
  return *std::move(result);
}

/// For the server's patience at a stop, which must not run out because the machine is busy.
class PatientClock final : public Clock {
 public:
  [[nodiscard]] Duration now() const override { return Duration(now_.load()); }
  void advance(Duration by) { now_ += by.count(); }

 private:
  std::atomic<Duration::rep> now_ = 0;
};

/// What must be there before any thread starts: signals are blocked then, as in the worker.
struct Before {
  StopSignals signals = take_value(StopSignals::make());
  std::counting_semaphore<> steps{0};
};

enum class Steps : std::uint8_t { freely, one_by_one };

/// A server on a thread of its own. SIGTERM ends it.
struct Harness : Before, IntakeRig {
  /// `one_by_one`: each step waits for steps.release().
  explicit Harness(Steps how = Steps::freely, IntakeLimits limits = {})
      : IntakeRig(limits,
                  [this, how] {
                    if (how == Steps::one_by_one) steps.acquire();
                  }),
        server(
            take_value(ZmqSocket::bind(
                context, ZmqRole::router, directory.socket(),
                {.receive_bytes_max = limits::kClientMessageBytes, .send_queue = kQueue, .linger_ms = 1000})),
            loop, intake, [] { return std::string("{\"fine\": true}"); }, patience),
        thread([this] { served = server.run(signals); }) {}
  ~Harness() {
    door.open();
    steps.release(kQueue);
    stop();
  }
  Harness(const Harness&) = delete;
  Harness& operator=(const Harness&) = delete;

  void stop() {
    if (!thread.joinable()) return;
    ::kill(::getpid(), SIGTERM);
    thread.join();
  }

  PatientClock patience;
  Directory directory;
  ZmqContext context = take_value(ZmqContext::make());
  Server server;
  Result<Server::End> served = Server::End::unfinished;
  std::thread thread;
};

class TestClient {
 public:
  explicit TestClient(const Harness& h)
      : socket_(take_value(
            ZmqSocket::connect(h.context, ZmqRole::dealer, h.directory.socket(), {.receive_queue = 1}))) {}
  void send(const wire::ClientMessage& message) {
    const std::string bytes = encode(message);
    const std::array<std::string_view, 1> parts{bytes};
    REQUIRE(socket_.send(parts) == SendOutcome::sent);
  }
  void ask(const wire::GenerateRequest& request) {
    wire::ClientMessage message;
    *message.mutable_generate() = request;
    send(message);
  }
  /// The next message, however long it takes.
  wire::ServerMessage hear() {
    for (;;) {
      const auto parts = socket_.receive();
      REQUIRE(parts.has_value());
      if (*parts) return take_value(decode_server((*parts)->back()));
      std::array items{PollItem{.socket = &socket_}};
      REQUIRE(wait_readable(items, 1s).has_value());
    }
  }
  /// The next message of this kind.
  template <class Is>
  wire::ServerMessage hear(Is is) {
    for (;;)
      if (wire::ServerMessage message = hear(); is(message)) return message;
  }

 private:
  ZmqSocket socket_;
};

bool is_done(const wire::ServerMessage& m) { return m.has_done(); }
bool is_error(const wire::ServerMessage& m) { return m.has_error(); }
bool is_token(const wire::ServerMessage& m) { return m.has_token(); }
bool is_status(const wire::ServerMessage& m) { return m.has_status(); }

}  // namespace

TEST_CASE("a prompt that takes long to tokenise delays nobody's tokens and no status") {
  Harness h(Steps::one_by_one);
  TestClient running(h), slow(h), curious(h);
  running.ask(generate("endless", "text", 90'000));
  h.steps.release();
  static_cast<void>(running.hear(is_token));
  slow.ask(generate("long", kHold));
  h.door.wait_for_arrival();
  for (int i = 0; i < 20; ++i) {
    h.steps.release();
    static_cast<void>(running.hear(is_token));
  }
  wire::ClientMessage question;
  question.mutable_status();
  curious.send(question);
  CHECK(curious.hear(is_status).status().json() == "{\"fine\": true}");
  wire::ClientMessage cancel;
  cancel.mutable_cancel()->set_id("long");
  slow.send(cancel);
  CHECK(slow.hear(is_done).done().finish_reason() == "cancelled");  // the builder still stands at the door
  cancel.mutable_cancel()->set_id("endless");
  running.send(cancel);
  wire::ServerMessage last;
  for (; !last.has_done(); last = running.hear()) h.steps.release();
  CHECK(last.done().finish_reason() == "cancelled");
}

TEST_CASE("a client that did not read learns what became of its requests once it reads again") {
  Harness h;
  TestClient stopped(h), other(h);
  wire::GenerateRequest request = generate("loud", "text", 90'000);
  request.set_raw_logits_of_steps(true);  // 2 KB each: they fill the socket's buffers and then the queue
  stopped.ask(request);
  while (h.loop.status().requests_cancelled == 0) std::this_thread::yield();
  other.ask(generate("r", "text"));  // nobody else is disturbed
  CHECK(other.hear(is_done).done().finish_reason() == "length");
  const wire::ErrorEvent error = stopped.hear(is_error).error();
  CHECK(error.id().empty());
  CHECK(error.code() == "slow_client");
  stopped.ask(generate("again", "text"));
  const auto last = stopped.hear([](const wire::ServerMessage& m) { return m.has_done() || m.has_error(); });
  CHECK(last.done().id() == "again");  // told once, and served as before
  CHECK(last.done().finish_reason() == "length");
}

TEST_CASE("what the server cannot take is refused at once") {
  Harness h(Steps::freely, {.requests = 1});
  TestClient client(h);
  client.ask(generate("long", kHold));
  h.door.wait_for_arrival();
  client.ask(generate("r", "text"));
  const wire::ErrorEvent error = client.hear(is_error).error();
  CHECK(error.id() == "r");
  CHECK(error.code() == "queue_full");
  h.door.open();
  CHECK(client.hear(is_done).done().id() == "long");
}

TEST_CASE("a stop does not wait for a builder for ever, and says so") {
  Harness h;
  TestClient client(h);
  client.ask(generate("building", kHold));
  h.door.wait_for_arrival();
  ::kill(::getpid(), SIGTERM);
  CHECK(client.hear(is_error).error().code() == "shutting_down");
  h.patience.advance(1h);
  h.thread.join();
  CHECK(h.served == Server::End::unfinished);
}

TEST_CASE("a stop answers every request, wherever it is") {
  Harness h(Steps::one_by_one);
  TestClient client(h);
  client.ask(generate("running", "text", 90'000));
  h.steps.release();
  static_cast<void>(client.hear(is_token));
  client.ask(generate("building", kHold));
  h.door.wait_for_arrival();
  client.ask(generate("waiting", "text"));
  for (SchedulerStatus now; now.queued < 2;) {
    now = {};
    h.intake.add_to(now);
  }
  ::kill(::getpid(), SIGTERM);
  std::set<std::string> told;
  for (int i = 0; i < 2; ++i) told.insert(client.hear(is_error).error().id());
  CHECK(told == std::set<std::string>{"building", "waiting"});  // neither step nor builder have moved
  h.steps.release();
  while (told.size() < 3) {
    const wire::ErrorEvent error = client.hear(is_error).error();
    CHECK(error.code() == "shutting_down");
    told.insert(error.id());
  }
  CHECK(told == std::set<std::string>{"running", "building", "waiting"});
  h.door.open();
  h.thread.join();
  CHECK(h.served == Server::End::complete);
}
