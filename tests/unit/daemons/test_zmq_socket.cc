#include <sys/stat.h>

#include <array>
#include <catch2/catch.hpp>
#include <cstdlib>
#include <filesystem>

#include "daemons/common/zmq_socket.h"

using namespace stoker;
using namespace std::chrono_literals;

namespace {

class SocketDir {
 public:
  SocketDir() {
    std::string name = (std::filesystem::temp_directory_path() / "stoker-zmq-XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  SocketDir(const SocketDir&) = delete;
  SocketDir& operator=(const SocketDir&) = delete;
  ~SocketDir() { std::filesystem::remove_all(path_); }
  std::string operator/(const char* name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

/// Waits for a message, however long the machine takes (the test's own time limit ends a hang).
std::vector<std::string> receive(ZmqSocket& socket) {
  for (;;) {
    auto message = socket.receive();
    REQUIRE(message.has_value());
    if (*message) return **message;
    std::array items{PollItem{.socket = &socket}};
    REQUIRE(wait_readable(items, 1s).has_value());
  }
}

mode_t mode_of(const std::string& path) {
  struct stat info {};
  REQUIRE(::stat(path.c_str(), &info) == 0);
  return info.st_mode & 0777;
}

}  // namespace

TEST_CASE("a router answers its client and notices when it is gone") {
  const SocketDir dir;
  const auto context = ZmqContext::make();
  REQUIRE(context.has_value());
  auto router = ZmqSocket::bind(*context, ZmqRole::router, dir / "w.sock", {});
  REQUIRE(router.has_value());
  std::string client;
  {
    auto dealer = ZmqSocket::connect(*context, ZmqRole::dealer, dir / "w.sock", {});
    REQUIRE(dealer.has_value());
    const std::array<std::string_view, 1> ask{"ask"};
    REQUIRE(dealer->send(ask) == SendOutcome::sent);
    const auto message = receive(*router);
    REQUIRE(message.size() == 2);
    client = message[0];
    CHECK(message[1] == "ask");
    const std::array<std::string_view, 2> answer{client, "answer"};
    CHECK(router->send(answer) == SendOutcome::sent);
    CHECK(receive(*dealer) == std::vector<std::string>{"answer"});
  }
  const std::array<std::string_view, 2> late{client, "late"};
  for (;;) {
    const auto outcome = router->send(late);
    REQUIRE(outcome.has_value());
    if (*outcome == SendOutcome::peer_gone) break;
    std::array items{PollItem{.socket = &*router}};
    REQUIRE(wait_readable(items, 10ms).has_value());
  }
  const std::array<std::string_view, 2> unknown{"nobody", "x"};
  CHECK(router->send(unknown) == SendOutcome::peer_gone);
}

TEST_CASE("socket files are private unless the group is let in") {
  const SocketDir dir;
  const auto context = ZmqContext::make();
  const auto own = ZmqSocket::bind(*context, ZmqRole::pull, dir / "own.sock", {});
  const auto shared = ZmqSocket::bind(*context, ZmqRole::pull, dir / "group.sock", {.group_access = true});
  REQUIRE(own.has_value());
  REQUIRE(shared.has_value());
  CHECK(mode_of(dir / "own.sock") == 0600);
  CHECK(mode_of(dir / "group.sock") == 0660);
}

TEST_CASE("a path that no socket can have is refused with both numbers") {
  const auto context = ZmqContext::make();
  const auto socket = ZmqSocket::bind(*context, ZmqRole::pull, "/" + std::string(150, 'd') + "/x.sock", {});
  REQUIRE_FALSE(socket.has_value());
  CHECK(socket.error().message.find("158") != std::string::npos);
  CHECK(socket.error().message.find("107") != std::string::npos);
  CHECK_FALSE(ZmqSocket::bind(*context, ZmqRole::pull, "/nonexistent-directory/x.sock", {}).has_value());
}

TEST_CASE("a full or absent peer does not block the sender") {
  const SocketDir dir;
  const auto context = ZmqContext::make();
  auto push = ZmqSocket::connect(*context, ZmqRole::push, dir / "nobody.sock", {.send_queue = 2});
  REQUIRE(push.has_value());
  const std::array<std::string_view, 1> part{"hint"};
  int sent = 0;
  while (push->send(part) == SendOutcome::sent && sent < 100) ++sent;
  CHECK(sent < 100);
}
