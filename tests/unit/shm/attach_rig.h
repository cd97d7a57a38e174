// An attach server on a small pool, worker processes under command, and raw connections to it.
#pragma once

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <catch2/catch.hpp>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "shm/attach.h"
#include "shm/attach_messages.h"
#include "shm/lease.h"
#include "shm/run_directory.h"
#include "tests/unit/shm/child.h"
#include "tests/unit/shm/pool_fixture.h"

namespace stoker::test {

inline constexpr Duration kSoon = std::chrono::seconds(30);  ///< reached only when something is broken

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
inline int worker(const std::string& socket, const std::string& pool_name, const Link& link) {
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

inline std::unique_ptr<Child> start_worker(const Stack& stack) {
  return std::make_unique<Child>(
      [&](const Link& link) { return worker(stack.socket(), stack.spec.name, link); });
}

/// Lets the server work until the child has said something, and returns it with the events until then.
inline char hear_while_polling(Stack& stack, const Child& child, std::vector<AttachEvent>* events = nullptr) {
  for (int turn = 0; turn < 30000 && !child.spoke(); ++turn)
    for (const AttachEvent& event : stack.server->poll(std::chrono::milliseconds(1)))
      if (events != nullptr) events->push_back(event);
  return child.hear();
}

/// A raw connection, for messages no client would send.
inline UniqueFd raw_connection(const std::string& path) {
  UniqueFd fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  REQUIRE(::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
  return fd;
}

/// Sends bytes and returns the server's answer as the client understands it.
inline Error answer_to(Stack& stack, const void* bytes, std::size_t size) {
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

}  // namespace stoker::test
