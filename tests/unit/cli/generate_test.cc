#include "cli/generate.h"

#include <stdlib.h>

#include <array>
#include <catch2/catch.hpp>
#include <filesystem>
#include <thread>

#include "daemons/common/messages.h"
#include "daemons/common/zmq_socket.h"

using namespace stoker;
using namespace stoker::cli;
using namespace std::chrono_literals;

namespace {

/// A worker that answers every request with the same message.
class FakeWorker {
 public:
  explicit FakeWorker(wire::ServerMessage answer) : answer_(encode(answer)) {
    std::string name = (std::filesystem::temp_directory_path() / "stoker-cli-XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    run_dir = name;
    auto context = ZmqContext::make();
    REQUIRE(context.has_value());
    context_.emplace(*std::move(context));
    auto router = ZmqSocket::bind(*context_, ZmqRole::router, worker_socket(run_dir), {});
    REQUIRE(router.has_value());
    router_.emplace(*std::move(router));
    thread_ = std::thread([this] { answer_one(); });
  }
  FakeWorker(const FakeWorker&) = delete;
  FakeWorker& operator=(const FakeWorker&) = delete;
  ~FakeWorker() {
    thread_.join();
    std::filesystem::remove_all(run_dir);
  }
  std::string run_dir;

 private:
  void answer_one() {
    for (;;) {
      const auto message = router_->receive();
      if (message && *message) {
        const std::array<std::string_view, 2> parts{(*message)->front(), answer_};
        static_cast<void>(router_->send(parts));
        return;
      }
      std::array items{PollItem{.socket = &*router_}};
      static_cast<void>(wait_readable(items, 1s));
    }
  }
  std::string answer_;
  std::optional<ZmqContext> context_;
  std::optional<ZmqSocket> router_;
  std::thread thread_;
};

}  // namespace

TEST_CASE("an error about the whole connection ends the request") {
  FakeWorker worker(error_message("", error_code::kSlowClient, "answers waited; send it again"));
  const SteadyClock clock;
  auto interrupts = Interrupts::open();
  REQUIRE(interrupts.has_value());
  auto client = WorkerClient::connect(worker.run_dir, clock);
  REQUIRE(client.has_value());
  wire::GenerateRequest request;
  request.set_id("r");
  request.set_prompt("hello");
  const auto outcome = generate(*client, request, {}, *interrupts, std::nullopt, clock);
  REQUIRE_FALSE(outcome.has_value());
  CHECK(outcome.error().code == Errc::busy);
  CHECK(outcome.error().text() == "answers waited; send it again (request r)");
}

TEST_CASE("every error code has its kind of failure") {
  CHECK(errc_of(error_code::kSlowClient) == Errc::busy);
  CHECK(errc_of(error_code::kQueueFull) == Errc::busy);
  CHECK(errc_of(error_code::kShuttingDown) == Errc::peer_gone);
  CHECK(errc_of(error_code::kDeviceLost) == Errc::device_lost);
  CHECK(errc_of("of a later version") == Errc::io);
}
