// Who and what the attach server turns away, without harm to those it serves.
#include <sched.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#include "tests/unit/shm/attach_rig.h"
#include "tests/unit/shm/hidden_proc.h"

using namespace stoker;
using namespace stoker::test;
using Kind = AttachEvent::Kind;

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
