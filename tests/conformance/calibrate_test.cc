#include "io-worker/calibrate.h"

#include "io-worker/sim_engine.h"
#include "tests/conformance/engine_rig.h"

namespace stoker {
namespace {

constexpr std::uint32_t kReadBytes = 1 << 20;

/// A simulated disk on which a read takes `latency` + 1 ms of transfer.
struct Disk {
  explicit Disk(Duration latency, SimOptions options = {}) : memory(16 * kReadBytes) {
    options.latency = latency;
    options.latency_jitter = {};
    options.bytes_per_second = kReadBytes * 1e3;
    kernel = std::make_shared<SimKernel>(clock, std::vector{sim_file("shard", test::pattern(32 << 20, 1))},
                                         options);
    files = kernel->engine_files();
    engine = std::make_unique<SimEngine>(kernel, EngineOptions{.depth = 16});
  }
  Result<Calibration> calibrate_with(CalibrateOptions options) {
    return calibrate(*engine, files, memory.span(), options, clock);
  }
  test::SharedMemory memory;
  ManualClock clock;
  std::shared_ptr<SimKernel> kernel;
  std::vector<EngineFile> files;
  std::unique_ptr<SimEngine> engine;
};

constexpr CalibrateOptions kLong{
    .read_bytes = kReadBytes, .bytes_max = 4096_MiB, .time_max = std::chrono::seconds(100), .seed = 1};

TEST_CASE("calibration finds the depth that hides the latency", "[calibrate]") {
  // With latency 3 and transfer 1, four reads in flight keep the disk busy; without latency one does.
  Disk far(std::chrono::milliseconds(3));
  const auto deep = far.calibrate_with(kLong);
  REQUIRE(deep);
  CHECK(deep->best_bytes_in_flight == 4 * kReadBytes);
  CHECK(deep->bytes_per_second == Approx(kReadBytes * 1e3).epsilon(0.02));
  REQUIRE(deep->points.size() == 5);
  CHECK(deep->points[0].bytes_per_second == Approx(kReadBytes * 1e3 / 4).epsilon(0.02));
  CHECK(deep->direct);

  Disk near(Duration::zero());
  const auto shallow = near.calibrate_with(kLong);
  REQUIRE(shallow);
  CHECK(shallow->best_bytes_in_flight == kReadBytes);
}

TEST_CASE("calibration stays inside its budget", "[calibrate]") {
  Disk disk(std::chrono::milliseconds(3));
  REQUIRE(disk.calibrate_with(
      {.read_bytes = kReadBytes, .bytes_max = 64_MiB, .time_max = std::chrono::hours(1)}));
  CHECK(disk.kernel->counts().reads <= 64 + 3 * (1 + 2 + 4 + 8 + 16));  // in each of three rounds
  Disk slow(std::chrono::milliseconds(3));
  REQUIRE(slow.calibrate_with(
      {.read_bytes = kReadBytes, .bytes_max = 4096_MiB, .time_max = std::chrono::milliseconds(200)}));
  CHECK(slow.clock.now() <= std::chrono::milliseconds(200 + 3 * 5 * (3 + 16)));
}

TEST_CASE("calibration uses no more scratch and depth than there is", "[calibrate]") {
  Disk disk(std::chrono::milliseconds(3));
  const auto points = [&](std::size_t reads) {
    return calibrate(*disk.engine, disk.files, disk.memory.span().first(reads * kReadBytes), kLong,
                     disk.clock);
  };
  const auto three = points(3);
  REQUIRE(three);
  CHECK(three->points.size() == 2);  // 1 and 2
  const auto none = points(0);
  REQUIRE(!none);
  CHECK(none.error().code == Errc::invalid);
}

TEST_CASE("calibration reports a disk error and leaves nothing in flight", "[calibrate]") {
  SimOptions options;
  options.bad_ranges = {{.file = FileId(0), .offset = 0, .length = 32_MiB}};
  Disk disk(std::chrono::milliseconds(1), options);
  const auto result = disk.calibrate_with(kLong);
  REQUIRE(!result);
  CHECK(result.error().code == Errc::io);
  CHECK(result.error().os_errno == EIO);
  CHECK(result.error().message.find("shard at offset") != std::string::npos);
  CHECK(disk.engine->in_flight() == 0);
}

TEST_CASE("a probe refuses what cannot be measured", "[calibrate]") {
  Disk disk(std::chrono::milliseconds(1));
  const auto measure = [&](ReadProbe probe) {
    return measure_random_reads(*disk.engine, disk.files, disk.memory.span(), probe, disk.clock);
  };
  CHECK(!measure({.read_bytes = kReadBytes, .depth = 0}));
  CHECK(!measure({.read_bytes = kReadBytes, .depth = 17}));
  CHECK(!measure({.read_bytes = 1000, .depth = 1}));
  CHECK(!measure({.read_bytes = 0, .depth = 1}));
  CHECK(!measure({.read_bytes = 64 << 20, .depth = 1}));
  disk.files[0].bytes = kReadBytes - 1;
  CHECK(!measure({.read_bytes = kReadBytes, .depth = 1}));
}

TEST_CASE("calibration of real storage gives a bandwidth", "[calibrate]") {
  test::Rig<test::Pread> rig(16);
  const SteadyClock clock;
  const auto result = calibrate(*rig.engine, rig.files, rig.memory.span(),
                                {.read_bytes = kReadBytes, .bytes_max = 64_MiB}, clock);
  REQUIRE(result);
  CHECK(result->points.size() == 5);
  CHECK(result->bytes_per_second > 0);
  CHECK(result->best_bytes_in_flight % kReadBytes == 0);
  CHECK(rig.engine->in_flight() == 0);
}

}  // namespace
}  // namespace stoker
