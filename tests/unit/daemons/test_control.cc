#include <poll.h>
#include <sys/eventfd.h>

#include <array>
#include <catch2/catch.hpp>
#include <csignal>
#include <cstdlib>
#include <filesystem>

#include "daemons/common/messages.h"
#include "daemons/loader/control.h"

using namespace stoker;
using namespace std::chrono_literals;

namespace {

void await(int fd) {
  pollfd item{.fd = fd, .events = POLLIN, .revents = 0};
  while (::poll(&item, 1, 1000) == 0) {
  }
}

std::uint64_t drain(int fd) {
  std::uint64_t count = 0;
  return ::read(fd, &count, sizeof count) == static_cast<ssize_t>(sizeof count) ? count : 0;
}

void ring(int fd) {
  const std::uint64_t one = 1;
  REQUIRE(::write(fd, &one, sizeof one) == static_cast<ssize_t>(sizeof one));
}

}  // namespace

TEST_CASE("hints, attach events and stop signals ring the loader's doorbell") {
  std::string dir = (std::filesystem::temp_directory_path() / "stoker-control-XXXXXX").string();
  REQUIRE(::mkdtemp(dir.data()) != nullptr);
  const UniqueFd doorbell(::eventfd(0, EFD_NONBLOCK)), attach(::eventfd(0, EFD_NONBLOCK));
  auto signals = StopSignals::make();
  REQUIRE(signals.has_value());
  auto control = Control::start(*signals, {.hints_path = dir + "/hints.sock",
                                           .doorbell_fd = doorbell.get(),
                                           .attach_fd = attach.get(),
                                           .layers = 4,
                                           .experts_per_layer = 8});
  REQUIRE(control.has_value());

  // A hint in range, one beyond the layers, one beyond the experts; before them a message that is no hint.
  const auto context = ZmqContext::make();
  auto push = ZmqSocket::connect(*context, ZmqRole::push, dir + "/hints.sock", {.linger_ms = 1000});
  wire::HintBatch batch;
  batch.set_step(77);
  batch.set_process(2);
  batch.set_reads_max(5);
  for (const auto& [layer, expert] : {std::pair{3U, 5U}, std::pair{4U, 5U}, std::pair{3U, 8U}}) {
    batch.add_hints()->set_layer(layer);
    batch.mutable_hints()->rbegin()->set_expert(expert);
    batch.mutable_hints()->rbegin()->set_confidence(0.5F);
  }
  for (const std::string& bytes : {std::string("\xFF\xFF garbage"), encode(batch)}) {
    const std::array<std::string_view, 1> parts{bytes};
    while (*push->send(parts) != SendOutcome::sent) std::this_thread::yield();  // until it has connected
  }
  await(doorbell.get());
  CHECK(drain(doorbell.get()) > 0);
  std::vector<LoaderHint> hints;
  (*control)->take_hints(hints);
  REQUIRE(hints.size() == 1);
  CHECK(hints[0].expert.value == 3 * 8 + 5);
  CHECK(hints[0].step == 77);
  CHECK(hints[0].process == 2);
  CHECK(hints[0].batch_reads == 5);
  (*control)->take_hints(hints);
  CHECK(hints.empty());

  // Each stir of the attach socket rings, although nobody here drains it.
  for (int i = 0; i < 3; ++i) {
    ring(attach.get());
    await(doorbell.get());
    CHECK(drain(doorbell.get()) > 0);
  }
  CHECK_FALSE((*control)->stop_requested());
  ::kill(::getpid(), SIGTERM);
  await(doorbell.get());
  CHECK((*control)->stop_requested());
  control->reset();
  CHECK_FALSE(std::filesystem::exists(dir + "/hints.sock"));
  std::filesystem::remove_all(dir);
}
