// The simulator itself: every fault it can inject does what it says, and nothing else goes wrong.
#include "io-worker/sim_engine.h"

#include <algorithm>
#include <array>

#include "tests/conformance/engine_rig.h"

namespace stoker {
namespace {

constexpr std::size_t kFileBytes = (4 << 20) + 100;
constexpr std::uint32_t kReadBytes = 64 << 10;

/// A simulated file, its memory, and one engine.
struct World {
  explicit World(SimOptions options, std::size_t depth = 16)
      : content(test::pattern(kFileBytes, 3)),
        memory(16 << 20),
        kernel(std::make_shared<SimKernel>(
            clock, std::vector{sim_file("shard-1", content), sim_file("shard-2", content)},
            std::move(options))),
        engine(std::make_unique<SimEngine>(kernel, EngineOptions{.depth = depth})) {}

  void submit(std::uint64_t offset, std::uint64_t tag, std::uint32_t length = kReadBytes,
              std::uint32_t file = 0) {
    const ReadOp op{.file = FileId(file),
                    .offset = offset,
                    .target = memory.data() + tag * kReadBytes,
                    .length = length,
                    .tag = tag};
    REQUIRE(engine->submit({&op, 1}) == 1);
  }
  Completion reap() {
    Completion done;
    REQUIRE(engine->reap({&done, 1}, std::chrono::hours(1)) == 1);
    return done;
  }
  std::int64_t read(std::uint64_t offset, std::uint32_t length = kReadBytes) {
    submit(offset, 0, length);
    return reap().result;
  }
  /// How many of the bytes differ from the file at this offset.
  std::size_t differing(std::uint64_t offset, std::uint64_t tag, std::size_t bytes) const {
    std::size_t count = 0;
    for (std::size_t i = 0; i < bytes; ++i)
      if (memory.data()[tag * kReadBytes + i] != content[offset + i]) ++count;
    return count;
  }

  std::vector<std::byte> content;
  test::SharedMemory memory;
  ManualClock clock;
  std::shared_ptr<SimKernel> kernel;
  std::unique_ptr<SimEngine> engine;
};

SimOptions only(double SimFaults::*fault, double probability = 1) {
  SimOptions options;
  options.faults.*fault = probability;
  return options;
}

TEST_CASE("sim: the same seed gives the same history, another seed another one", "[sim]") {
  const auto history = [](std::uint64_t seed) {
    SimOptions options{.seed = seed};
    options.faults = {.short_aligned = 0.1, .again = 0.1, .io_error = 0.1, .reorder = 0.3};
    World world(options);
    std::vector<std::int64_t> trace;
    for (std::uint64_t round = 0; round < 20; ++round) {
      for (std::uint64_t i = 0; i < 16; ++i) world.submit(i * kReadBytes, i);
      for (int i = 0; i < 16; ++i) {
        const Completion done = world.reap();
        trace.insert(trace.end(),
                     {static_cast<std::int64_t>(done.tag), done.result, world.clock.now().count()});
      }
    }
    return trace;
  };
  CHECK(history(5) == history(5));
  CHECK(history(5) != history(6));
}

TEST_CASE("sim: reads finish out of order", "[sim]") {
  World world(only(&SimFaults::reorder, 0.5));
  std::vector<std::uint64_t> order;
  for (std::uint64_t i = 0; i < 16; ++i) world.submit(i * kReadBytes, i);
  for (int i = 0; i < 16; ++i) order.push_back(world.reap().tag);
  CHECK(!std::is_sorted(order.begin(), order.end()));
  std::sort(order.begin(), order.end());
  for (std::uint64_t i = 0; i < 16; ++i) CHECK(order[i] == i);
  CHECK(world.kernel->counts().reordered > 0);
}

TEST_CASE("sim: short reads, aligned and not, deliver exactly what they say", "[sim]") {
  const bool aligned = GENERATE(true, false);
  World world(only(aligned ? &SimFaults::short_aligned : &SimFaults::short_unaligned));
  bool some_unaligned = false;
  for (int i = 0; i < 50; ++i) {
    std::memset(world.memory.data(), 0, kReadBytes);
    const std::int64_t result = world.read(kReadBytes);
    REQUIRE(result > 0);
    REQUIRE(result < kReadBytes);
    const auto bytes = static_cast<std::size_t>(result);
    if (bytes % kDirectAlign != 0) some_unaligned = true;
    CHECK(world.differing(kReadBytes, 0, bytes) == 0);
    CHECK(std::all_of(world.memory.data() + bytes, world.memory.data() + kReadBytes,
                      [](std::byte b) { return b == std::byte{0}; }));
  }
  CHECK(some_unaligned == !aligned);
}

TEST_CASE("sim: EAGAIN comes in bursts and passes", "[sim]") {
  SimOptions options = only(&SimFaults::again, 0.2);
  options.faults.again_burst = 3;
  World world(options);
  int run = 0, longest = 0, good = 0;
  for (int i = 0; i < 200; ++i) {
    const std::int64_t result = world.read(0);
    CHECK((result == -EAGAIN || result == kReadBytes));
    run = result == -EAGAIN ? run + 1 : 0;
    longest = std::max(longest, run);
    good += result > 0 ? 1 : 0;
  }
  CHECK(longest >= 3);
  CHECK(good > 0);
}

TEST_CASE("sim: bad ranges fail for as long as they should", "[sim]") {
  SimOptions options;
  options.bad_ranges = {{.file = FileId(0), .offset = 1 << 20, .length = 4096, .failures = 2},
                        {.file = FileId(0), .offset = 2 << 20, .length = 4096, .failures = 0}};
  World world(options);
  const std::uint64_t transient = (1 << 20) - kReadBytes + 4096;  // touches one page of the range
  CHECK(world.read(transient - 4096) == kReadBytes);              // ends where it begins
  CHECK(world.read(transient) == -EIO);
  CHECK(world.read(transient) == -EIO);
  CHECK(world.read(transient) == kReadBytes);
  for (int i = 0; i < 20; ++i) CHECK(world.read(2 << 20) == -EIO);
  CHECK(world.read((2 << 20) + 4096) == kReadBytes);
  world.submit(2 << 20, 1, kReadBytes, 1);  // the other file is well
  CHECK(world.reap().result == kReadBytes);
}

TEST_CASE("sim: a file truncated after open", "[sim]") {
  World world({});
  world.kernel->truncate(FileId(0), (1 << 20) + 10);
  CHECK(world.kernel->engine_files()[0].bytes == kFileBytes);
  CHECK(world.read((1 << 20) - 4096) == 4096 + 10);
  CHECK(world.read((1 << 20) + 4096) == 0);
}

TEST_CASE("sim: misdirected reads bring another place's bytes", "[sim]") {
  World world(only(&SimFaults::misdirected));
  std::size_t wrong = 0;
  for (int i = 0; i < 20; ++i) {
    CHECK(world.read(0) == kReadBytes);
    wrong += world.differing(0, 0, kReadBytes) > 0 ? 1U : 0U;
  }
  CHECK(wrong == world.kernel->counts().misdirected);
  CHECK(wrong > 0);
}

TEST_CASE("sim: a bit flip is one bit", "[sim]") {
  World world(only(&SimFaults::bit_flip));
  for (int i = 0; i < 20; ++i) {
    CHECK(world.read(0) == kReadBytes);
    REQUIRE(world.differing(0, 0, kReadBytes) == 1);
    const auto [at, in_file] =
        std::mismatch(world.memory.data(), world.memory.data() + kReadBytes, world.content.begin());
    const auto difference = std::to_integer<unsigned>(*at ^ *in_file);
    CHECK((difference & (difference - 1)) == 0);
  }
}

TEST_CASE("sim: part of the data lands before the completion", "[sim]") {
  World world(only(&SimFaults::early_landing));
  std::size_t partial = 0;
  for (std::uint64_t i = 0; i < 16; ++i) world.submit(i * kReadBytes, i);
  while (world.engine->in_flight() > 0) {
    world.kernel->advance_to(world.kernel->next_event());
    for (std::uint64_t i = 0; i < 16; ++i) {
      const std::size_t differing = world.differing(i * kReadBytes, i, kReadBytes);
      partial += differing > 0 && differing < kReadBytes / 2 ? 1U : 0U;
    }
    std::array<Completion, 16> done;
    world.engine->reap(done, Duration::zero());
  }
  CHECK(partial > 0);
  for (std::uint64_t i = 0; i < 16; ++i) CHECK(world.differing(i * kReadBytes, i, kReadBytes) == 0);
}

TEST_CASE("sim: stuck and held reads", "[sim]") {
  World world(only(&SimFaults::stuck));
  world.submit(0, 0);
  Completion done;
  CHECK(world.engine->reap({&done, 1}, std::chrono::seconds(29)) == 0);
  CHECK(world.engine->reap({&done, 1}, std::chrono::seconds(2)) == 1);

  World held({});
  held.kernel->hold();
  held.submit(0, 0);
  CHECK(held.engine->reap({&done, 1}, std::chrono::hours(10)) == 0);
  CHECK(held.engine->in_flight() == 1);
  held.kernel->release();
  CHECK(held.engine->reap({&done, 1}, Duration::zero()) == 1);
  CHECK(done.result == kReadBytes);
}

TEST_CASE("sim: reads of a crashed engine land late, and in_flight knows", "[sim]") {
  SimOptions options;
  options.faults.lost_at_crash = 0.25;
  options.faults.early_landing = 0;
  World world(options);
  for (std::uint64_t i = 0; i < 16; ++i) world.submit(i * kReadBytes, i);
  world.engine->crash();
  world.engine.reset();
  const std::size_t left = world.kernel->in_flight(FileId(0));
  const std::uint64_t lost = world.kernel->counts().lost_at_crash;
  CHECK(left > 0);
  CHECK(lost > 0);
  CHECK(left + lost == 16);
  CHECK(world.kernel->in_flight(FileId(1)) == 0);

  // A successor that did not wait would find the old reads in its memory.
  std::fill_n(world.memory.data(), 16 * kReadBytes, std::byte{0xEE});
  SimEngine successor(world.kernel, {.depth = 1});
  CHECK(successor.in_flight() == 0);
  world.kernel->advance(std::chrono::milliseconds(139));
  CHECK(world.kernel->in_flight() == 0);
  std::size_t landed = 0;
  for (std::uint64_t i = 0; i < 16; ++i)
    landed += world.differing(i * kReadBytes, i, kReadBytes) == 0 ? 1U : 0U;
  CHECK(landed == left);
  CHECK(world.kernel->counts().late_landings == left);
  Completion done;
  CHECK(successor.reap({&done, 1}, std::chrono::seconds(1)) ==
        0);  // no completions for somebody else's reads
}

TEST_CASE("sim: two engines on one kernel get their own completions", "[sim]") {
  World world({});
  SimEngine other(world.kernel, {.depth = 4});
  world.submit(0, 1);
  const ReadOp op{
      .file = FileId(1), .offset = 4096, .target = world.memory.data(), .length = 4096, .tag = 77};
  REQUIRE(other.submit({&op, 1}) == 1);
  std::array<Completion, 4> done;
  REQUIRE(other.reap(done, std::chrono::seconds(1)) == 1);
  CHECK(done[0].tag == 77);
  CHECK(world.reap().tag == 1);
}

TEST_CASE("sim: bandwidth and latency are those asked for", "[sim]") {
  SimOptions options{
      .latency = std::chrono::milliseconds(3), .latency_jitter = {}, .bytes_per_second = kReadBytes * 1e3};
  options.faults.early_landing = 0;
  World world(options);
  world.read(0);
  CHECK(world.clock.now() == std::chrono::milliseconds(4));  // 3 latency + 1 transfer
  for (std::uint64_t i = 0; i < 10; ++i) world.submit(i * kReadBytes, i);
  for (int i = 0; i < 10; ++i) world.reap();
  CHECK(world.clock.now() == std::chrono::milliseconds(4 + 3 + 10));  // latencies overlap, transfers do not
}

}  // namespace
}  // namespace stoker
