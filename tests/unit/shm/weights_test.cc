// The resident weights' segment: complete or nothing, read-only for workers.
#include "shm/weights_segment.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cstring>

#include "shm/segment.h"
#include "tests/unit/shm/child.h"
#include "tests/unit/shm/pool_fixture.h"

using namespace stoker;
using namespace stoker::test;

namespace {
struct WeightsGuard {
  std::string name;
  ~WeightsGuard() { WeightsSegment::unlink(name); }
};
}  // namespace

TEST_CASE("a worker sees the weights only when they are complete") {
  const WeightsGuard guard{unique_name("weights")};
  CHECK(WeightsSegment::attach(guard.name, 1).error().code == Errc::missing);
  auto loader = take(WeightsSegment::create_or_adopt(guard.name, 10001, 1, false));
  CHECK_FALSE(loader.complete());
  REQUIRE(loader.writable().size() == 10001);
  CHECK(reinterpret_cast<std::uintptr_t>(loader.writable().data()) % 4096 == 0);
  std::memset(loader.writable().data(), 0x21, 10001);
  CHECK(WeightsSegment::attach(guard.name, 1).error().code == Errc::missing);
  loader.mark_complete();
  const auto worker = take(WeightsSegment::attach(guard.name, 1));
  CHECK(worker.complete());
  REQUIRE(worker.image().size() == 10001);
  CHECK(worker.image()[10000] == std::byte{0x21});
  const auto other = WeightsSegment::attach(guard.name, 2);
  REQUIRE_FALSE(other);
  CHECK(other.error().code == Errc::layout);
}

TEST_CASE("complete weights are adopted, anything else is made anew") {
  const WeightsGuard guard{unique_name("adopt-weights")};
  {
    auto loader = take(WeightsSegment::create_or_adopt(guard.name, 9000, 1, false));
    loader.writable()[0] = std::byte{9};
    SECTION("same") {
      loader.mark_complete();
      auto next = take(WeightsSegment::create_or_adopt(guard.name, 9000, 1, false));
      CHECK(next.complete());
      CHECK(next.image()[0] == std::byte{9});
    }
    SECTION("incomplete: a new object, so that late reads land in the old one") {
      auto next = take(WeightsSegment::create_or_adopt(guard.name, 9000, 1, false));
      CHECK_FALSE(next.complete());
      loader.writable()[1] = std::byte{7};
      CHECK(next.image()[0] == std::byte{0});
      CHECK(next.image()[1] == std::byte{0});
    }
    SECTION("other fingerprint, size or mode") {
      loader.mark_complete();
      CHECK_FALSE(take(WeightsSegment::create_or_adopt(guard.name, 9000, 2, false)).complete());
      CHECK_FALSE(take(WeightsSegment::create_or_adopt(guard.name, 9001, 2, false)).complete());
      CHECK_FALSE(take(WeightsSegment::create_or_adopt(guard.name, 9001, 2, true)).complete());
    }
  }
}

TEST_CASE("a worker that writes into the weights dies, and nobody else") {
  const WeightsGuard guard{unique_name("readonly")};
  auto loader = take(WeightsSegment::create_or_adopt(guard.name, 100, 1, false));
  loader.mark_complete();
  Child child([&](const Link&) {
    ::signal(SIGSEGV, [](int) { ::_exit(42); });
    auto mine = WeightsSegment::attach(guard.name, 1);
    if (!mine) return 1;
    const_cast<std::byte&>(mine->image()[0]) = std::byte{1};
    return 0;
  });
  CHECK(child.join() == 42);
  CHECK(loader.image()[0] == std::byte{0});
}

TEST_CASE("damaged weights are refused") {
  const WeightsGuard guard{unique_name("damaged-weights")};
  take(WeightsSegment::create_or_adopt(guard.name, 20000, 1, false)).mark_complete();
  const std::string path = "/dev/shm/" + guard.name;
  SECTION("truncated") { REQUIRE(::truncate(path.c_str(), 8192) == 0); }
  SECTION("shorter than the header") { REQUIRE(::truncate(path.c_str(), 8) == 0); }
  SECTION("empty") { REQUIRE(::truncate(path.c_str(), 0) == 0); }
  SECTION("longer") { REQUIRE(::truncate(path.c_str(), 1 << 20) == 0); }
  const auto worker = WeightsSegment::attach(guard.name, 1);
  REQUIRE_FALSE(worker);
  CHECK(worker.error().code == Errc::corrupt);
}

TEST_CASE("weights that cannot fit leave nothing behind") {
  const WeightsGuard guard{unique_name("huge-weights")};
  const auto weights = WeightsSegment::create_or_adopt(guard.name, 1ULL << 45, 1, false);
  REQUIRE_FALSE(weights);
  CHECK(weights.error().code == Errc::no_memory);
  CHECK(::access(("/dev/shm/" + guard.name).c_str(), F_OK) != 0);
}
