#include "daemons/gateway/worker_link.h"

#include <condition_variable>
#include <cstdlib>
#include <filesystem>
#include <map>

#include "daemons/common/endpoints.h"
#include "daemons/common/limits.h"
#include "daemons/common/messages.h"
#include "daemons/common/zmq_socket.h"
#include "daemons/gateway/api_error.h"
#include "tests/unit/gateway/rig.h"
#include "tests/unit/shm/child.h"

using namespace stoker;
using namespace stoker::gateway;
using namespace std::chrono_literals;

namespace {

class RunDirectory {
 public:
  RunDirectory() {
    std::string name = (std::filesystem::temp_directory_path() / "stoker-link-XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path = name;
  }
  RunDirectory(const RunDirectory&) = delete;
  RunDirectory& operator=(const RunDirectory&) = delete;
  ~RunDirectory() { std::filesystem::remove_all(path); }
  std::string path;
};

/// What the link delivered, by request.
class Inbox {
 public:
  void put(const std::string& id, wire::ServerMessage message) {
    const std::lock_guard lock(mutex_);
    messages_[id].push_back(std::move(message));
    came_.notify_all();
  }
  /// The next message about `id`, however long it takes (the test's time limit is the limit).
  wire::ServerMessage next(const std::string& id) {
    std::unique_lock lock(mutex_);
    came_.wait(lock, [&] { return !messages_[id].empty(); });
    wire::ServerMessage message = std::move(messages_[id].front());
    messages_[id].erase(messages_[id].begin());
    return message;
  }
  std::size_t waiting(const std::string& id) {
    const std::lock_guard lock(mutex_);
    return messages_[id].size();
  }

 private:
  std::mutex mutex_;
  std::condition_variable came_;
  std::map<std::string, std::vector<wire::ServerMessage>> messages_;
};

/// A worker that says what the test tells it to. Status requests are answered aside.
class FakeWorker {
 public:
  explicit FakeWorker(const std::string& run_dir)
      : context_(value_of(ZmqContext::make())),
        socket_(value_of(
            ZmqSocket::bind(context_, ZmqRole::router, endpoint::worker(run_dir),
                            {.receive_bytes_max = static_cast<std::int64_t>(limits::kClientMessageBytes),
                             .linger_ms = 1000}))) {}

  /// The next message but for status requests.
  wire::ClientMessage hear() {
    for (;;)
      if (wire::ClientMessage message = take(); !message.has_status()) return message;
  }
  /// Until a status request has been answered.
  void hear_status() {
    while (!take().has_status()) {
    }
  }
  void say(const wire::ServerMessage& message) {
    const std::string bytes = encode(message);
    const std::array<std::string_view, 2> parts{client_, bytes};
    static_cast<void>(socket_.send(parts));
  }
  void say_text(const std::string& id, const std::string& text) {
    wire::ServerMessage message;
    message.mutable_token()->set_id(id);
    message.mutable_token()->set_text(text);
    say(message);
  }
  void say_done(const std::string& id) {
    wire::ServerMessage message;
    message.mutable_done()->set_id(id);
    say(message);
  }

 private:
  template <class T>
  static T value_of(Result<T> result) {
    if (!result) std::abort();  // the fake also runs in a child process, without the test's macros
    return *std::move(result);
  }
  /// The next message; answers it if it asks for the status.
  wire::ClientMessage take() {
    auto parts = value_of(socket_.receive());
    while (!parts) {
      std::array items{PollItem{.socket = &socket_}};
      static_cast<void>(wait_readable(items, 1s));
      parts = value_of(socket_.receive());
    }
    client_ = parts->front();
    wire::ClientMessage message = value_of(parse_client(parts->back()));
    if (message.has_status()) {
      wire::ServerMessage status;
      status.mutable_status()->set_json("{\"n\": " + std::to_string(++statuses_) + "}");
      say(status);
    }
    return message;
  }
  ZmqContext context_;
  ZmqSocket socket_;
  std::string client_;
  int statuses_ = 0;
};

struct Desk {
  explicit Desk(const std::string& run_dir)
      : link(run_dir, clock,
             [this](const std::string& id, wire::ServerMessage m) { inbox.put(id, std::move(m)); }) {
    REQUIRE(link.start().has_value());
  }
  std::string ask(const std::string& prompt) {
    wire::GenerateRequest request;
    request.set_prompt(prompt);
    return link.submit(request);
  }
  SteadyClock clock;
  Inbox inbox;
  WorkerLink link;
};

}  // namespace

TEST_CASE("link: without a worker every request is answered, and there is no status") {
  const RunDirectory directory;
  Desk desk(directory.path);
  CHECK(desk.link.status() == nullptr);
  std::set<std::string> ids;
  for (int i = 0; i < 20; ++i) ids.insert(desk.ask("a"));
  CHECK(ids.size() == 20);
  for (const std::string& id : ids) {
    const wire::ServerMessage answer = desk.inbox.next(id);
    CHECK(answer.error().code() == kWorkerGone);
    CHECK(answer.error().id() == id);
  }
  desk.link.cancel("nothing of the kind");
}

TEST_CASE("link: requests, answers, cancels and status") {
  const RunDirectory directory;
  FakeWorker worker(directory.path);
  Desk desk(directory.path);
  const std::string first = desk.ask("one"), second = desk.ask("two");
  CHECK(first != second);
  const wire::ClientMessage heard = worker.hear();
  CHECK(heard.generate().id() == first);
  CHECK(heard.generate().prompt() == "one");
  CHECK(validate(heard).has_value());
  CHECK(worker.hear().generate().id() == second);
  worker.say_text("of somebody else", "x");
  worker.say_text("", "x");  // a message without id that is no error is nobody's
  worker.say_text(second, "b");
  worker.say_text(first, "a");
  CHECK(desk.inbox.next(first).token().text() == "a");
  CHECK(desk.inbox.next(second).token().text() == "b");
  desk.link.cancel(first);
  CHECK(worker.hear().cancel().id() == first);
  while (!desk.link.status()) std::this_thread::yield();  // it was asked before the cancel
  CHECK(desk.link.status()->starts_with("{\"n\": "));
  worker.say_done(first);
  CHECK(desk.inbox.next(first).has_done());
  worker.say_text(first, "late");  // it is over
  worker.say_text(second, "c");
  CHECK(desk.inbox.next(second).token().text() == "c");
  CHECK(desk.inbox.waiting(first) == 0);
}

TEST_CASE("link: an error without id ends all requests, once") {
  const RunDirectory directory;
  FakeWorker worker(directory.path);
  Desk desk(directory.path);
  const std::string first = desk.ask("one"), second = desk.ask("two");
  static_cast<void>(worker.hear());
  static_cast<void>(worker.hear());
  worker.say(error_message("", error_code::kSlowClient, "too slow"));
  for (const std::string& id : {first, second}) {
    const wire::ServerMessage answer = desk.inbox.next(id);
    CHECK(answer.error().code() == error_code::kSlowClient);
    CHECK(answer.error().message() == "too slow");
  }
  worker.say_done(first);
  const std::string third = desk.ask("three");  // served as before
  CHECK(worker.hear().generate().id() == third);
  worker.say_done(third);
  CHECK(desk.inbox.next(third).has_done());
  CHECK(desk.inbox.waiting(first) == 0);
}

TEST_CASE("link: a request that is too large is refused, others are not disturbed") {
  const RunDirectory directory;
  FakeWorker worker(directory.path);
  Desk desk(directory.path);
  const std::string large = desk.ask(std::string(limits::kClientMessageBytes, 'x'));
  const std::string small = desk.ask("y");
  CHECK(desk.inbox.next(large).error().code() == error_code::kInvalidRequest);
  CHECK(worker.hear().generate().id() == small);
  worker.say_done(small);
  CHECK(desk.inbox.next(small).has_done());
}

TEST_CASE("link: what is open when the worker dies is answered, and the next worker is found") {
  const RunDirectory directory;
  stoker::test::Child child([&](const stoker::test::Link& parent) {
    FakeWorker worker(directory.path);
    parent.say('r');
    const std::string id = worker.hear().generate().id();
    worker.say_text(id, "last words");
    static_cast<void>(worker.hear());
    parent.say('h');
    static_cast<void>(parent.hear());
    return 0;
  });
  REQUIRE(child.hear() == 'r');
  Desk desk(directory.path);
  const std::string first = desk.ask("one");
  CHECK(desk.inbox.next(first).token().text() == "last words");
  const std::string second = desk.ask("two");
  REQUIRE(child.hear() == 'h');
  child.kill_now();
  for (const std::string& id : {first, second}) CHECK(desk.inbox.next(id).error().code() == kWorkerGone);
  while (desk.link.status()) std::this_thread::yield();

  FakeWorker next(directory.path);
  next.hear_status();  // the link has found it
  const std::string id = desk.ask("again");
  CHECK(next.hear().generate().id() == id);
  next.say_done(id);
  CHECK(desk.inbox.next(id).has_done());
}

TEST_CASE("link: the end answers what is open") {
  const RunDirectory directory;
  FakeWorker worker(directory.path);
  Inbox seen;
  std::string id;
  {
    SteadyClock clock;
    WorkerLink link(directory.path, clock,
                    [&](const std::string& i, wire::ServerMessage m) { seen.put(i, std::move(m)); });
    REQUIRE(link.start().has_value());
    wire::GenerateRequest request;
    request.set_prompt("x");
    id = link.submit(request);
    while (worker.hear().generate().id() != id) {
    }
  }
  CHECK(seen.waiting(id) == 1);
  CHECK(seen.next(id).error().code() == kWorkerGone);
}
