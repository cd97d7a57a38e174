// The attach protocol with real processes: indices, death, orderly end, loader restart.
#include <poll.h>

#include <map>

#include "tests/unit/shm/attach_rig.h"
#include "tests/unit/shm/hidden_proc.h"

using namespace stoker;
using namespace stoker::test;
using Kind = AttachEvent::Kind;

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
