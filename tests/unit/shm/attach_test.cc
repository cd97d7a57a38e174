// The attach protocol with real processes: indices, death, orderly end, loader restart, bad messages.
#include "shm/attach.h"

#include <poll.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <set>

#include "shm/lease.h"
#include "shm/run_directory.h"
#include "tests/unit/shm/child.h"
#include "tests/unit/shm/hidden_proc.h"
#include "tests/unit/shm/pool_fixture.h"

using namespace stoker;
using namespace stoker::test;
using Kind = AttachEvent::Kind;

namespace {

constexpr Duration kSoon = std::chrono::seconds(30);  ///< reached only when something is broken

struct Stack {
  std::string directory;
  PoolSpec spec;
  NameGuard guard;
  Pool pool;
  std::optional<AttachServer> server;

  explicit Stack(const std::string& label)
      : directory(make_directory()),
        spec(small_spec(label)),
        guard(spec.name),
        pool(take(Pool::create_or_adopt(spec))) {
    start();
  }
  ~Stack() { std::filesystem::remove_all(directory); }
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;

  static std::string make_directory() {
    char text[] = "/tmp/stoker-test-XXXXXX";
    REQUIRE(::mkdtemp(text) != nullptr);
    return text;
  }
  [[nodiscard]] std::string socket() const { return loader_socket_path(directory); }
  void start() {
    server.emplace(take(AttachServer::create(pool, {.socket_path = socket(),
                                                    .pool_name = spec.name,
                                                    .weights_name = spec.name + ".weights",
                                                    .checkpoint_fingerprint = 0x1234})));
  }
  /// The loader dies and comes back: a new server on the same (adopted) pool.
  void restart() {
    server.reset();
    pool = take(Pool::create_or_adopt(spec));
    REQUIRE(pool.adopted());
    start();
  }
  /// Polls until `count` events have come.
  std::vector<AttachEvent> events(std::size_t count) {
    std::vector<AttachEvent> all;
    for (int turn = 0; turn < 1000 && all.size() < count; ++turn)
      for (const AttachEvent& event : server->poll(std::chrono::seconds(1))) all.push_back(event);
    REQUIRE(all.size() == count);
    return all;
  }
  AttachEvent event() { return events(1).front(); }
  [[nodiscard]] ProcessState state(unsigned index) const {
    return static_cast<ProcessState>(pool.process(index).state.load());
  }
};

/// A worker process under command: says its index ('A' + i) once attached, or '!' when it cannot.
///   'd' detach and exit 0 · 'q' exit 0 without a goodbye · 'c' close the connection, live on · 'r' reattach
///   'l' lease expert 0 · '?' say '1' when the loader is alive, else '0' · 'b' ring the doorbell
int worker(const std::string& socket, const std::string& pool_name, const Link& link) {
  auto client = AttachClient::attach(socket, kSoon);
  if (!client) {
    link.say('!');
    return static_cast<int>(client.error().code);
  }
  auto pool = Pool::attach(pool_name);
  if (!pool) return 99;
  const unsigned index = client->grant().index;
  LeaseTable leases(*pool, index);
  link.say(static_cast<char>('A' + index));
  for (;;) {
    switch (link.hear()) {
      case 'd':
        client->detach();
        return 0;
      case 'q':
        ::_exit(0);
      case 'c':
        ::shutdown(client->fd(), SHUT_RDWR);
        link.say('.');
        break;
      case 'l':
        link.say(leases.try_lease(ExpertKey{0}) ? '.' : '!');
        break;
      case 'b':
        client->ring_doorbell();
        link.say('.');
        break;
      case '?':
        link.say(client->alive() ? '1' : '0');
        break;
      case 'r': {
        auto again = AttachClient::reattach(socket, index, kSoon);
        if (again) *client = *std::move(again);
        link.say(again ? static_cast<char>('A' + client->grant().index) : '!');
        break;
      }
      default:
        return 98;
    }
  }
}

std::unique_ptr<Child> start_worker(const Stack& stack) {
  return std::make_unique<Child>(
      [&](const Link& link) { return worker(stack.socket(), stack.spec.name, link); });
}

/// Lets the server work until the child has said something, and returns it with the events until then.
char hear_while_polling(Stack& stack, const Child& child, std::vector<AttachEvent>* events = nullptr) {
  for (int turn = 0; turn < 30000 && !child.spoke(); ++turn)
    for (const AttachEvent& event : stack.server->poll(std::chrono::milliseconds(1)))
      if (events != nullptr) events->push_back(event);
  return child.hear();
}

/// A raw connection, for messages no client would send.
UniqueFd raw_connection(const std::string& path) {
  UniqueFd fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  REQUIRE(::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
  return fd;
}

/// Sends bytes and returns the server's answer as the client understands it.
Error answer_to(Stack& stack, const void* bytes, std::size_t size) {
  const UniqueFd fd = raw_connection(stack.socket());
  REQUIRE(::send(fd.get(), bytes, size, 0) == static_cast<ssize_t>(size));
  std::array<std::byte, 1024> reply;
  for (int turn = 0; turn < 1000; ++turn) {
    CHECK(stack.server->poll(std::chrono::milliseconds(10)).empty());
    const ssize_t got = ::recv(fd.get(), reply.data(), reply.size(), MSG_DONTWAIT);
    if (got < 0) continue;
    auto grant = parse_attach_reply({reply.data(), static_cast<std::size_t>(got)});
    REQUIRE_FALSE(grant);
    return grant.error();
  }
  FAIL("no answer");
  return {};
}

}  // namespace

TEST_CASE("sixteen processes attach, the seventeenth is refused, a freed index is given again") {
  Stack stack("sixteen");
  std::map<unsigned, std::unique_ptr<Child>> workers;
  for (unsigned i = 0; i < kProcessMax; ++i) {
    auto child = start_worker(stack);
    const AttachEvent event = stack.event();
    CHECK(event.kind == Kind::attached);
    CHECK(event.pid == static_cast<std::uint32_t>(child->pid()));
    CHECK(child->hear() == static_cast<char>('A' + event.process));
    CHECK(stack.state(event.process) == ProcessState::attached);
    workers[event.process] = std::move(child);
  }
  REQUIRE(workers.size() == kProcessMax);
  {
    const auto seventeenth = start_worker(stack);
    std::vector<AttachEvent> events;
    CHECK(hear_while_polling(stack, *seventeenth, &events) == '!');
    CHECK(events.empty());
    CHECK(seventeenth->join() == static_cast<int>(Errc::busy));
  }
  workers[9]->kill_now();
  const AttachEvent death = stack.event();
  CHECK(death.kind == Kind::died);
  CHECK(death.process == 9);
  {  // dead, but not reclaimed: not free yet
    const auto early = start_worker(stack);
    CHECK(hear_while_polling(stack, *early) == '!');
  }
  reclaim_process(stack.pool, 9);
  const auto successor = start_worker(stack);
  CHECK(stack.event().process == 9);
  CHECK(successor->hear() == static_cast<char>('A' + 9));
}

TEST_CASE("SIGKILL is noticed, and reclaim drops the leases") {
  Stack stack("sigkill");
  fill_slot(stack.pool, SlotId{0}, ExpertKey{0});
  auto child = start_worker(stack);
  const unsigned index = stack.event().process;
  static_cast<void>(child->hear());
  child->say('l');
  CHECK(child->hear() == '.');
  CHECK(stack.server->poll(Duration::zero()).empty());
  child->kill_now();
  const AttachEvent event = stack.event();
  CHECK(event.kind == Kind::died);
  CHECK(stack.state(index) == ProcessState::dead);
  CHECK(reclaim_process(stack.pool, index) == 1);
  CHECK(stack.state(index) == ProcessState::free);
  CHECK(stack.server->poll(Duration::zero()).empty());
}

TEST_CASE("an orderly detach is told from a death") {
  Stack stack("detach");
  auto polite = start_worker(stack);
  CHECK(stack.event().kind == Kind::attached);
  static_cast<void>(polite->hear());
  polite->say('d');
  CHECK(polite->join() == 0);  // goodbye and end may arrive together
  CHECK(stack.event().kind == Kind::detached);

  auto rude = start_worker(stack);
  CHECK(stack.event().kind == Kind::attached);
  static_cast<void>(rude->hear());
  rude->say('q');
  CHECK(rude->join() == 0);
  CHECK(stack.event().kind == Kind::died);
}

TEST_CASE("a closed connection is no death: the process keeps its index and may come back") {
  Stack stack("hangup");
  auto child = start_worker(stack);
  const unsigned index = stack.event().process;
  static_cast<void>(child->hear());
  child->say('c');
  CHECK(hear_while_polling(stack, *child) == '.');
  CHECK(stack.server->poll(std::chrono::milliseconds(1)).empty());
  CHECK(stack.state(index) == ProcessState::attached);
  child->say('r');
  std::vector<AttachEvent> events;
  CHECK(hear_while_polling(stack, *child, &events) == static_cast<char>('A' + index));
  if (events.empty()) events.push_back(stack.event());
  CHECK(events.front().kind == Kind::reattached);
  child->kill_now();
  CHECK(stack.event().kind == Kind::died);
}

TEST_CASE("a restarted loader knows who lives, who died, and takes the living back at their index") {
  Stack stack("restart");
  fill_slot(stack.pool, SlotId{0}, ExpertKey{0});
  auto a = start_worker(stack);
  const unsigned index_a = stack.event().process;
  static_cast<void>(a->hear());
  auto b = start_worker(stack);
  const unsigned index_b = stack.event().process;
  static_cast<void>(b->hear());
  a->say('l');
  CHECK(a->hear() == '.');
  a->say('?');
  CHECK(a->hear() == '1');
  stack.server.reset();
  a->say('?');
  CHECK(a->hear() == '0');
  b->kill_now();
  stack.restart();
  CHECK(stack.server->inherited() == std::vector<unsigned>{index_a});
  const AttachEvent death = stack.event();
  CHECK(death.kind == Kind::died);
  CHECK(death.process == index_b);
  CHECK(reclaim_process(stack.pool, index_b) == 0);
  CHECK(census(stack.pool).leased == 1);  // a's lease lives through it
  a->say('r');
  CHECK(stack.event().kind == Kind::reattached);
  CHECK(a->hear() == static_cast<char>('A' + index_a));
  a->say('b');
  CHECK(a->hear() == '.');
  pollfd bell{.fd = stack.server->doorbell_fd(), .events = POLLIN, .revents = 0};
  CHECK(::poll(&bell, 1, 0) == 1);  // the new loader's doorbell
  a->kill_now();
  CHECK(stack.event().kind == Kind::died);
  CHECK(reclaim_process(stack.pool, index_a) == 1);
}

TEST_CASE("a restarted loader that cannot judge a living worker leaves it its leases") {
  Stack stack("unjudged");
  fill_slot(stack.pool, SlotId{0}, ExpertKey{0});
  auto child = start_worker(stack);
  const unsigned index = stack.event().process;
  static_cast<void>(child->hear());
  child->say('l');
  CHECK(child->hear() == '.');
  stack.server.reset();
  {
    const auto hidden = HiddenProc::make();
    if (!hidden) {
      WARN("skipped: needs the right to mount over /proc");
      return;
    }
    stack.restart();
    CHECK(stack.server->inherited() == std::vector<unsigned>{index});
    CHECK(stack.server->poll(Duration::zero()).empty());
    child->say('r');
    CHECK(stack.event().kind == Kind::reattached);
    CHECK(child->hear() == static_cast<char>('A' + index));
  }
  CHECK(census(stack.pool).leased == 1);
  child->kill_now();  // its end is still noticed
  CHECK(stack.event().kind == Kind::died);
  CHECK(reclaim_process(stack.pool, index) == 1);
}

TEST_CASE("a process that /proc does not show is not let in") {
  Stack stack("hidden");
  AttachRequest request;
  request.prefix.kind = static_cast<std::uint32_t>(AttachKind::attach);
  {
    const auto hidden = HiddenProc::make();
    if (!hidden) {
      WARN("skipped: needs the right to mount over /proc");
      return;
    }
    const Error error = answer_to(stack, &request, sizeof request);
    CHECK(error.code == Errc::invalid);  // final, unlike peer_gone
    CHECK(error.message.find("cannot read /proc/" + std::to_string(::getpid())) != std::string::npos);
    CHECK(error.message.find("hidepid") != std::string::npos);
  }
  for (unsigned i = 0; i < kProcessMax; ++i) CHECK(stack.state(i) == ProcessState::free);
  auto child = start_worker(stack);
  CHECK(stack.event().kind == Kind::attached);
}

TEST_CASE("a process of another pid namespace is not let in") {
  Stack stack("namespace");
  stack.server.reset();
  const Child loader([&](const Link& link) {
    if (::unshare(CLONE_NEWPID) != 0) return link.say('-'), 0;
    if (::fork() != 0) return ::pause();
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    auto server = AttachServer::create(
        stack.pool, {.socket_path = stack.socket(), .pool_name = stack.spec.name, .weights_name = "w"});
    link.say(server ? '+' : '!');
    for (; server;) static_cast<void>(server->poll(kSoon));
    return 0;
  });
  const char said = loader.hear();
  if (said == '-') {
    WARN("skipped: needs the right to make a pid namespace");
    return;
  }
  REQUIRE(said == '+');
  const auto refused = AttachClient::attach(stack.socket(), kSoon);
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == Errc::invalid);
  CHECK(refused.error().message.find("another pid namespace") != std::string::npos);
}

TEST_CASE("nobody can take over another process's index") {
  Stack stack("takeover");
  auto child = start_worker(stack);
  const unsigned index = stack.event().process;
  static_cast<void>(child->hear());
  AttachRequest request;
  request.prefix.kind = static_cast<std::uint32_t>(AttachKind::reattach);
  for (const std::uint32_t wanted : {index, index + 1}) {
    request.index = wanted;
    const Error error = answer_to(stack, &request, sizeof request);
    CHECK(error.code == Errc::layout);
    CHECK(error.message.find("attach again") != std::string::npos);
  }
  child->say('?');
  CHECK(child->hear() == '1');
}

TEST_CASE("malformed messages are answered, dropped, and disturb nobody") {
  Stack stack("malformed");
  auto child = start_worker(stack);
  static_cast<void>(stack.event());
  static_cast<void>(child->hear());
  AttachRequest request;
  request.prefix.kind = static_cast<std::uint32_t>(AttachKind::attach);
  std::array<char, 4096> big{};
  std::memcpy(big.data(), &request, sizeof request);
  SECTION("one byte") { CHECK(answer_to(stack, "x", 1).code == Errc::invalid); }
  SECTION("too short") { CHECK(answer_to(stack, &request, sizeof request - 1).code == Errc::invalid); }
  SECTION("too long") { CHECK(answer_to(stack, big.data(), sizeof request + 1).code == Errc::invalid); }
  SECTION("much too long") { CHECK(answer_to(stack, big.data(), big.size()).code == Errc::invalid); }
  SECTION("wrong magic") {
    request.prefix.magic ^= 1U;
    CHECK(answer_to(stack, &request, sizeof request).code == Errc::invalid);
  }
  SECTION("unknown kind") {
    request.prefix.kind = 9;
    CHECK(answer_to(stack, &request, sizeof request).code == Errc::invalid);
  }
  SECTION("index out of range") {
    request.prefix.kind = static_cast<std::uint32_t>(AttachKind::reattach);
    request.index = kProcessMax;
    CHECK(answer_to(stack, &request, sizeof request).code == Errc::invalid);
  }
  SECTION("other version: both are named") {
    request.prefix.version = 77;
    const Error error = answer_to(stack, &request, sizeof request);
    CHECK(error.code == Errc::layout);
    CHECK(error.message.find("version 77") != std::string::npos);
    CHECK(error.message.find("version " + std::to_string(kAttachVersion)) != std::string::npos);
  }
  SECTION("other layout") {
    request.prefix.layout_hash ^= 1U;
    CHECK(answer_to(stack, &request, sizeof request).code == Errc::layout);
  }
  SECTION("detach by somebody who never attached") {
    request.prefix.kind = static_cast<std::uint32_t>(AttachKind::detach);
    const UniqueFd fd = raw_connection(stack.socket());
    REQUIRE(::send(fd.get(), &request, sizeof request, 0) == sizeof request);
    CHECK(stack.server->poll(std::chrono::milliseconds(10)).empty());
  }
  child->say('?');
  CHECK(child->hear() == '1');
  child->say('d');
  CHECK(child->join() == 0);
  CHECK(stack.event().kind == Kind::detached);
}

TEST_CASE("idle connections lock nobody out") {
  Stack stack("idle");
  std::vector<UniqueFd> idle;
  for (int i = 0; i < 60; ++i) {
    idle.push_back(raw_connection(stack.socket()));
    CHECK(stack.server->poll(Duration::zero()).empty());
  }
  auto child = start_worker(stack);
  CHECK(stack.event().kind == Kind::attached);
  CHECK(child->hear() == 'A');
}

TEST_CASE("a client that leaves before the answer leaves no process behind") {
  Stack stack("impatient");
  AttachRequest request;
  request.prefix.kind = static_cast<std::uint32_t>(AttachKind::attach);
  {
    Child impatient([&](const Link&) {
      UniqueFd fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
      sockaddr_un address{};
      address.sun_family = AF_UNIX;
      std::memcpy(address.sun_path, stack.socket().c_str(), stack.socket().size() + 1);
      if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) return 1;
      return ::send(fd.get(), &request, sizeof request, 0) == sizeof request ? 0 : 2;
    });
    CHECK(impatient.join() == 0);
  }
  for (int turn = 0; turn < 10; ++turn)
    for (const AttachEvent& event : stack.server->poll(std::chrono::milliseconds(10)))
      if (event.kind == Kind::died) reclaim_process(stack.pool, event.process);
  for (unsigned i = 0; i < kProcessMax; ++i) CHECK(stack.state(i) == ProcessState::free);
}

TEST_CASE("other users may not attach") {
  if (::geteuid() != 0) {
    WARN("skipped: needs root to become another user");
    return;
  }
  Stack stack("users");
  struct stat status {};
  REQUIRE(::stat(stack.socket().c_str(), &status) == 0);
  CHECK((status.st_mode & 07777U) == 0600U);
  const auto attempt = [&] {
    return std::make_unique<Child>([&](const Link& link) {
      if (::setgid(65534) != 0 || ::setuid(65534) != 0) return 99;
      return worker(stack.socket(), stack.spec.name, link);
    });
  };
  REQUIRE(::chmod(stack.directory.c_str(), 0755) == 0);
  auto kept_out = attempt();  // by the socket's mode
  CHECK(hear_while_polling(stack, *kept_out) == '!');
  REQUIRE(::chmod(stack.socket().c_str(), 0666) == 0);
  auto refused = attempt();  // by the credentials
  CHECK(hear_while_polling(stack, *refused) == '!');
  CHECK(refused->join() == static_cast<int>(Errc::invalid));
}

TEST_CASE("clear errors when there is no loader, or a place it cannot be") {
  const auto none = AttachClient::attach("/tmp/stoker-no-such-dir/loader.sock", kSoon);
  REQUIRE_FALSE(none);
  CHECK(none.error().code == Errc::missing);
  Stack stack("errors");
  const std::string path = stack.socket();
  stack.server.reset();
  const UniqueFd stale(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  REQUIRE(::bind(stale.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
  CHECK(AttachClient::attach(path, kSoon).error().code == Errc::missing);  // a socket nobody listens on
  stack.start();                                                           // which the next loader replaces
  auto child = start_worker(stack);
  CHECK(stack.event().kind == Kind::attached);

  AttachServerOptions options{
      .socket_path = stack.directory + "/" + std::string(120, 'x'), .pool_name = "p", .weights_name = "w"};
  const auto too_long = AttachServer::create(stack.pool, options);
  REQUIRE_FALSE(too_long);
  CHECK(too_long.error().message.find("--run-dir") != std::string::npos);
  CHECK(AttachClient::attach(options.socket_path, kSoon).error().code == Errc::invalid);
  options.socket_path = stack.directory + "/file";
  ::close(::open(options.socket_path.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
  CHECK(AttachServer::create(stack.pool, options).error().code == Errc::invalid);
}

TEST_CASE("a loader that does not answer is reported, not waited for") {
  Stack stack("mute");
  const auto client = AttachClient::attach(stack.socket(), std::chrono::milliseconds(50));  // nobody polls
  REQUIRE_FALSE(client);
  CHECK(client.error().code == Errc::peer_gone);
}

TEST_CASE("replies are checked like requests") {
  AttachReply reply;
  reply.prefix.kind = static_cast<std::uint32_t>(AttachKind::granted);
  reply.index = 3;
  std::memcpy(reply.pool_name.data(), "p", 2);
  std::memcpy(reply.weights_name.data(), "w", 2);
  const auto parse = [&] { return parse_attach_reply(std::as_bytes(std::span(&reply, 1))); };
  CHECK(parse()->index == 3);
  SECTION("index") { reply.index = kProcessMax; }
  SECTION("a name with a path in it") { std::memcpy(reply.pool_name.data(), "../x", 5); }
  SECTION("an empty name") { reply.weights_name[0] = 0; }
  SECTION("kind") { reply.prefix.kind = 2; }
  SECTION("magic") { reply.prefix.magic = 1; }
  SECTION("refused, with text that is not terminated and a status that is none") {
    reply.prefix.kind = static_cast<std::uint32_t>(AttachKind::refused);
    reply.status = 1000;
    reply.text.fill('t');
    CHECK(parse().error().message.size() < 400);
  }
  REQUIRE_FALSE(parse());
  CHECK(parse().error().code == Errc::invalid);
  CHECK_FALSE(parse_attach_reply(std::as_bytes(std::span(&reply, 1)).first(30)));
}
