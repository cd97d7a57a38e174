// One suite for every IoEngine: what engine.h promises.
#include "io-worker/engine.h"

#include <algorithm>
#include <numeric>
#include <set>
#include <thread>

#include "tests/conformance/engine_rig.h"

namespace stoker {
namespace {

using test::Pread;
using test::Rig;
using test::Sim;
using test::Uring;

constexpr std::uint32_t kExpertBytes = 3 << 20;

TEMPLATE_TEST_CASE("a read brings exactly the file's bytes", "[engine]", Uring, Pread, Sim) {
  Rig<TestType> rig;
  if (!rig.usable()) return;
  rig.memory.data()[8192 + 8191] = std::byte{0x5A};
  rig.memory.data()[8192 + 8192 + 4096] = std::byte{0xA5};
  CHECK(rig.engine->in_flight() == 0);
  CHECK(rig.engine->capacity() == 32);
  CHECK(rig.read(rig.op(4096, 8192, 8192 + 4096, 99)) == 8192);
  CHECK(rig.equal(8192 + 4096, 4096, 8192));
  CHECK(rig.memory.data()[8192 + 4095] == std::byte{0});            // nothing before the target
  CHECK(rig.memory.data()[8192 + 8192 + 4096] == std::byte{0xA5});  // and nothing after
  CHECK(rig.engine->in_flight() == 0);
}

TEMPLATE_TEST_CASE("many reads finish in any order, each once, with its own tag", "[engine]", Uring, Pread,
                   Sim) {
  Rig<TestType> rig;
  if (!rig.usable()) return;
  std::vector<ReadOp> ops;
  for (std::size_t i = 0; i < 32; ++i)
    ops.push_back(rig.op((31 - i) * 262144, 262144, i * 262144, 0xFFFF'FFFF'0000'0000 + i));
  rig.submit_all(ops);
  CHECK(rig.engine->in_flight() == 32);
  std::set<std::uint64_t> tags;
  for (const Completion& done : rig.reap(32)) {
    CHECK(done.result == 262144);
    tags.insert(done.tag);
  }
  CHECK(tags.size() == 32);
  CHECK(*tags.begin() == 0xFFFF'FFFF'0000'0000);
  CHECK(*tags.rbegin() == 0xFFFF'FFFF'0000'001F);
  for (std::size_t i = 0; i < 32; ++i) CHECK(rig.equal(i * 262144, (31 - i) * 262144, 262144));
}

TEMPLATE_TEST_CASE("a full engine takes a prefix and says so", "[engine]", Uring, Pread, Sim) {
  const std::size_t depth = GENERATE(as<std::size_t>(), 1, 5, 8);
  Rig<TestType> rig(depth);
  if (!rig.usable()) return;
  std::vector<ReadOp> ops;
  for (std::size_t i = 0; i < 12; ++i) ops.push_back(rig.op(i * 4096, 4096, i * 4096, i));
  CHECK(rig.engine->submit({}) == 0);
  CHECK(rig.engine->submit(ops) == depth);
  CHECK(rig.engine->in_flight() == depth);
  CHECK(rig.engine->submit(std::span(ops).subspan(depth)) == 0);  // finished but not reaped still counts

  std::set<std::uint64_t> tags;
  std::size_t submitted = depth;
  std::vector<Completion> done(12);
  while (tags.size() < 12) {
    const std::size_t before = rig.engine->in_flight();
    const std::size_t got = rig.engine->reap(done, test::kForever);
    CHECK(rig.engine->in_flight() == before - got);
    for (std::size_t i = 0; i < got; ++i) CHECK(tags.insert(done[i].tag).second);
    submitted += rig.engine->submit(std::span(ops).subspan(submitted));
    CHECK(rig.engine->in_flight() <= depth);
  }
  CHECK(rig.engine->in_flight() == 0);
  CHECK(rig.equal(0, 0, 12 * 4096));
}

TEMPLATE_TEST_CASE("the end of the file: short by the missing bytes, then 0", "[engine]", Uring, Pread, Sim) {
  Rig<TestType> rig;
  if (!rig.usable()) return;
  const std::uint64_t tail = align_down(test::kRigFileBytes, kDirectAlign);
  CHECK(rig.read(rig.op(tail, 4096, 0, 1)) == 1234);
  CHECK(rig.equal(0, tail, 1234));
  CHECK(rig.read(rig.op(tail - 8192, 65536, 0, 2)) == 8192 + 1234);
  CHECK(rig.equal(0, tail - 8192, 8192 + 1234));
  CHECK(rig.read(rig.op(tail + 4096, 4096, 0, 3)) == 0);
  CHECK(rig.read(rig.op(std::uint64_t{1} << 40, 4096, 0, 4)) == 0);
}

TEMPLATE_TEST_CASE("reads that make no sense complete with an error", "[engine]", Uring, Pread, Sim) {
  Rig<TestType> rig(4);
  if (!rig.usable()) return;
  ReadOp no_file = rig.op(0, 4096, 0, 1);
  no_file.file = FileId(1);
  CHECK(rig.read(no_file) == -EBADF);
  no_file.file = FileId(kNone);
  CHECK(rig.read(no_file) == -EBADF);
  CHECK(rig.read(rig.op(0, 0, 0, 2)) == -EINVAL);
  CHECK(rig.read(rig.op(align_down(~std::uint64_t{0}, 4096), 4096, 0, 3)) == -EINVAL);
  CHECK(rig.read(rig.op((std::uint64_t{1} << 63) - 4096, 4096, 0, 4)) == -EINVAL);
  CHECK(rig.read({.file = FileId(0), .offset = 0, .target = nullptr, .length = 4096, .tag = 5}) == -EINVAL);

  // They count as in flight until reaped, and good reads beside them are not harmed.
  rig.submit_all({rig.op(0, 4096, 0, 6), no_file, rig.op(4096, 4096, 4096, 7), no_file});
  CHECK(rig.engine->in_flight() == 4);
  CHECK(rig.engine->submit(std::span(&no_file, 1)) == 0);
  const auto done = rig.reap(4);
  CHECK(std::count_if(done.begin(), done.end(), [](const Completion& c) { return c.result == 4096; }) == 2);
  CHECK(std::count_if(done.begin(), done.end(), [](const Completion& c) { return c.result == -EBADF; }) == 2);
  CHECK(rig.equal(0, 0, 8192));
}

TEMPLATE_TEST_CASE("O_DIRECT wants aligned reads", "[engine]", Uring, Pread, Sim) {
  Rig<TestType> rig;
  if (!rig.usable()) return;
  if (!rig.files[0].direct) {
    WARN("skipped: no O_DIRECT in the temporary folder nor here");
    return;
  }
  CHECK(rig.read(rig.op(512, 4096, 0, 1)) == -EINVAL);
  CHECK(rig.read(rig.op(0, 4095, 0, 2)) == -EINVAL);
  CHECK(rig.read(rig.op(0, 4096, 64, 3)) == -EINVAL);
}

TEMPLATE_TEST_CASE("buffered files may be read anywhere", "[engine]", Uring, Pread) {
  Rig<TestType> rig;
  if (!rig.usable()) return;
  rig.engine.reset();
  rig.files[0] = {.fd = UniqueFd(::open(rig.file.path().c_str(), O_RDONLY | O_CLOEXEC)),
                  .path = rig.file.path(),
                  .bytes = test::kRigFileBytes,
                  .direct = false};
  auto engine = TestType::make(rig.files, {.depth = 2}, nullptr);
  REQUIRE(engine);
  rig.engine = std::move(*engine);
  CHECK(rig.read(rig.op(12345, 777, 333, 1)) == 777);
  CHECK(rig.equal(333, 12345, 777));
}

TEMPLATE_TEST_CASE("waiting: poll, time-out, and an empty result buffer", "[engine]", Uring, Pread, Sim) {
  Rig<TestType> rig;
  if (!rig.usable()) return;
  std::array<Completion, 4> done;
  CHECK(rig.engine->reap(done, Duration::zero()) == 0);
  const SteadyClock steady;
  const Duration begin = steady.now();
  const Duration virtual_begin = rig.clock.now();
  CHECK(rig.engine->reap(done, std::chrono::milliseconds(15)) == 0);
  const Duration waited = TestType::kReal ? steady.now() - begin : rig.clock.now() - virtual_begin;
  CHECK(waited >= std::chrono::milliseconds(15));

  rig.submit_all({rig.op(0, 4096, 0, 1)});
  CHECK(rig.engine->reap({}, test::kForever) == 0);
  CHECK(rig.engine->in_flight() == 1);
  // A poll never waits, but sooner or later it sees the read.
  std::size_t got = 0;
  while (got == 0) {
    got = rig.engine->reap(done, Duration::zero());
    rig.clock.advance(std::chrono::microseconds(10));
  }
  CHECK(got == 1);
  CHECK(done[0].result == 4096);
}

TEMPLATE_TEST_CASE("a ring of the doorbell ends a wait, and only one", "[engine]", Uring, Pread, Sim) {
  Rig<TestType> rig;
  if (!rig.usable()) return;
  std::array<Completion, 4> done;
  for (int round = 0; round < 3; ++round) {  // it is armed again every time
    rig.ring();
    rig.ring();
    CHECK(rig.engine->reap(done, test::kForever) == 0);
    const Duration before = SteadyClock().now();
    CHECK(rig.engine->reap(done, std::chrono::milliseconds(2)) == 0);  // returns by time-out
    if constexpr (!std::is_same_v<TestType, Sim>)
      CHECK(SteadyClock().now() - before >= std::chrono::milliseconds(2));
  }
  // Reads go on as usual beside it.
  rig.ring();
  CHECK(rig.read(rig.op(0, 4096, 0, 1)) == 4096);
}

TEMPLATE_TEST_CASE("the doorbell rung by another thread ends a wait under way", "[engine]", Uring, Pread) {
  Rig<TestType> rig;
  if (!rig.usable()) return;
  std::array<Completion, 4> done;
  for (int round = 0; round < 20; ++round) {
    std::thread ringer([&] { rig.ring(); });
    CHECK(rig.engine->reap(done, test::kForever) == 0);
    ringer.join();
  }
}

TEMPLATE_TEST_CASE("an engine without a doorbell", "[engine]", Uring, Pread, Sim) {
  Rig<TestType> rig;
  if (!rig.usable()) return;
  auto engine = TestType::make(rig.files, {.depth = 2}, rig.kernel);
  REQUIRE(engine);
  std::array<Completion, 2> done;
  const ReadOp op = rig.op(8192, 4096, 0, 3);
  CHECK((*engine)->submit(std::span(&op, 1)) == 1);
  CHECK((*engine)->reap(done, test::kForever) == 1);
  CHECK(done[0].result == 4096);
}

TEMPLATE_TEST_CASE("after the destructor nothing writes to the targets", "[engine]", Uring, Pread, Sim) {
  Rig<TestType> rig;
  if (!rig.usable()) return;
  for (int round = 0; round < 8; ++round) {
    std::vector<ReadOp> ops;
    for (std::size_t i = 0; i < 16; ++i) ops.push_back(rig.op(i << 20, 1 << 20, i << 20, i));
    rig.submit_all(ops);
    if (round % 2 == 1) rig.reap(5);
    rig.engine.reset();
    const std::span<std::byte> targets = rig.memory.span().first(16 << 20);
    std::fill(targets.begin(), targets.end(), std::byte{0xEE});

    // The same file again, elsewhere: late data would have ample time to land.
    auto next = TestType::make(rig.files, {.depth = 16, .doorbell_fd = rig.doorbell.get()}, rig.kernel);
    REQUIRE(next);
    rig.engine = std::move(*next);
    for (ReadOp& op : ops) op.target += 16 << 20;
    rig.submit_all(ops);
    rig.reap(16);
    CHECK(std::all_of(targets.begin(), targets.end(), [](std::byte b) { return b == std::byte{0xEE}; }));
  }
}

TEMPLATE_TEST_CASE("expert-sized reads into a shared mapping", "[engine]", Uring, Pread, Sim) {
  const bool registered = GENERATE(true, false);
  Rig<TestType> rig(8, registered);
  if (!rig.usable()) return;
  std::vector<ReadOp> ops;
  for (std::size_t i = 0; i < 5; ++i)
    ops.push_back(rig.op(i * kExpertBytes + i * 4096, kExpertBytes, i * kExpertBytes, i));
  rig.submit_all(ops);
  for (const Completion& done : rig.reap(5)) CHECK(done.result == kExpertBytes);
  for (std::size_t i = 0; i < 5; ++i)
    CHECK(rig.equal(i * kExpertBytes, i * kExpertBytes + i * 4096, kExpertBytes));
}

TEMPLATE_TEST_CASE("thousands of random reads equal the file", "[engine]", Uring, Pread, Sim) {
  constexpr std::size_t kPlaceBytes = 256 << 10;
  constexpr std::size_t kReads = 4000;
  Rig<TestType> rig(24);
  if (!rig.usable()) return;
  std::mt19937_64 random(2024);
  std::vector<ReadOp> ops(24);
  std::vector<std::size_t> idle(24);
  std::iota(idle.begin(), idle.end(), std::size_t{0});
  std::vector<Completion> done(24);
  std::size_t started = 0, finished = 0, wrong = 0;
  while (finished < kReads) {
    while (!idle.empty() && started < kReads) {
      const std::size_t place = idle.back();
      const std::uint64_t offset = random() % (test::kRigFileBytes / 4096) * 4096;
      const auto length = static_cast<std::uint32_t>((1 + random() % (kPlaceBytes / 4096)) * 4096);
      ops[place] = rig.op(offset, length, place * kPlaceBytes, place);
      REQUIRE(rig.engine->submit(std::span(&ops[place], 1)) == 1);
      idle.pop_back();
      ++started;
    }
    const std::size_t got = rig.engine->reap(done, test::kForever);
    for (std::size_t i = 0; i < got; ++i) {
      const ReadOp& op = ops[done[i].tag];
      const auto expected = std::min<std::uint64_t>(op.length, test::kRigFileBytes - op.offset);
      const bool right = done[i].result == static_cast<std::int64_t>(expected) &&
                         rig.equal(done[i].tag * kPlaceBytes, op.offset, expected);
      wrong += right ? 0 : 1;
      idle.push_back(done[i].tag);
      ++finished;
    }
  }
  CHECK(wrong == 0);
  CHECK(rig.engine->in_flight() == 0);
}

TEMPLATE_TEST_CASE("an engine made on one thread serves another", "[engine]", Uring, Pread, Sim) {
  Rig<TestType> rig;
  if (!rig.usable()) return;
  std::int64_t result = 0;
  std::thread owner([&] {
    const ReadOp op = rig.op(4096, 4096, 0, 1);
    std::array<Completion, 1> done;
    if (rig.engine->submit(std::span(&op, 1)) == 1 && rig.engine->reap(done, test::kForever) == 1)
      result = done[0].result;
    rig.engine.reset();  // the owner destroys it
  });
  owner.join();
  CHECK(result == 4096);
}

TEMPLATE_TEST_CASE("options that make no sense are refused", "[engine]", Uring, Pread) {
  const Rig<TestType> rig;
  if (!rig.usable()) return;
  for (const std::size_t depth : {std::size_t{0}, kEngineDepthMax + 1}) {
    const auto engine = TestType::make(rig.files, {.depth = depth}, nullptr);
    REQUIRE(!engine);
    CHECK(engine.error().code == Errc::invalid);
    CHECK(engine.error().message.find("depth " + std::to_string(depth)) != std::string::npos);
  }
  CHECK(TestType::make(rig.files, {.depth = kEngineDepthMax}, nullptr).has_value());
}

TEST_CASE("io_uring: targets in, across and outside registered pieces", "[engine]") {
  Rig<Uring> rig;
  if (!rig.usable()) return;
  CHECK(rig.engine->describe().find("registered buffers") != std::string::npos);
  // Register only [8 MiB, 24 MiB): reads before it, across both its ends, and inside must all be right.
  rig.engine.reset();
  auto engine =
      make_uring_engine(rig.files, {.depth = 8, .registered = rig.memory.span().subspan(8 << 20, 16 << 20)});
  REQUIRE(engine);
  rig.engine = std::move(*engine);
  for (const std::size_t mib : {0U, 7U, 8U, 15U, 21U, 22U, 24U, 30U}) {
    const std::size_t at = mib << 20;
    CHECK(rig.read(rig.op(8192, kExpertBytes, at, at)) == kExpertBytes);
    CHECK(rig.equal(at, 8192, kExpertBytes));
  }
}

TEST_CASE("engines describe themselves", "[engine]") {
  const Rig<Pread> pread;
  CHECK(pread.engine->describe() == "pread (4 threads)");
  const Rig<Sim> sim;
  CHECK(sim.engine->describe() == "simulated (seed 1)");
  const Rig<Uring> uring(4, false);
  if (uring.usable()) CHECK(uring.engine->describe().find("plain buffers: none given") != std::string::npos);
}

}  // namespace
}  // namespace stoker
