// The warm manifest: what is written comes back; what is damaged, foreign or hostile does not.
#include "io-worker/warm_manifest.h"

#include <sys/stat.h>
#include <xxhash.h>

#include <catch2/catch.hpp>
#include <cstring>

#include "shm/usage.h"
#include "tests/unit/checkpoint/scratch.h"
#include "tests/unit/shm/pool_fixture.h"

using namespace stoker;
using test::take;

namespace {

constexpr WarmShape kShape{.fingerprint = 0xABCDEF, .layers = 2, .experts_per_layer = 16};

WarmExpert expert(std::uint32_t key, float frequency = 1, std::uint32_t age = 0) {
  return {.expert = ExpertKey{key}, .frequency = frequency, .age = age};
}

const WarmManifest kManifest{expert(31, 12.5F, 0), expert(0, 3, 7), expert(5, 0, 0)};

/// With a checksum that fits, so that what is behind it is looked at.
std::string sealed(std::string bytes) {
  bytes.resize(bytes.size() - 8);
  const std::uint64_t sum = XXH3_64bits(bytes.data(), bytes.size());
  bytes.append(reinterpret_cast<const char*>(&sum), sizeof sum);
  return bytes;
}

template <class T>
std::string with(std::size_t offset, T value) {
  std::string bytes = encode_warm_manifest(kManifest, kShape);
  std::memcpy(bytes.data() + offset, &value, sizeof value);
  return sealed(bytes);
}

std::vector<std::uint32_t> keys(const WarmManifest& manifest) {
  std::vector<std::uint32_t> out;
  for (const WarmExpert& e : manifest) out.push_back(e.expert.value);
  return out;
}

}  // namespace

TEST_CASE("what is encoded comes back") {
  CHECK(take(parse_warm_manifest(encode_warm_manifest(kManifest, kShape), kShape)) == kManifest);
  CHECK(take(parse_warm_manifest(encode_warm_manifest({}, kShape), kShape)).empty());
}

TEST_CASE("a torn or altered manifest is refused, whichever byte it is") {
  const std::string good = encode_warm_manifest(kManifest, kShape);
  for (std::size_t length = 0; length < good.size(); ++length)
    CHECK_FAILS(parse_warm_manifest(good.substr(0, length), kShape), Errc::corrupt, "");
  for (std::size_t i = 0; i < good.size(); ++i) {
    std::string bad = good;
    bad[i] = static_cast<char>(bad[i] ^ 0x10);
    CHECK_FAILS(parse_warm_manifest(bad, kShape), Errc::corrupt, "");
  }
  CHECK_FAILS(parse_warm_manifest(good + "x", kShape), Errc::corrupt, "checksum");
}

TEST_CASE("a manifest of another checkpoint is refused") {
  const std::string bytes = encode_warm_manifest(kManifest, kShape);
  for (const WarmShape& other :
       {WarmShape{1, 2, 16}, WarmShape{kShape.fingerprint, 4, 16}, WarmShape{kShape.fingerprint, 2, 8}})
    CHECK_FAILS(parse_warm_manifest(bytes, other), Errc::invalid, "another checkpoint");
}

TEST_CASE("impossible content is refused even with a right checksum") {
  CHECK_FAILS(parse_warm_manifest(with(32, 32U), kShape), Errc::corrupt, "no expert 32");
  CHECK_FAILS(parse_warm_manifest(with(32, 0xFFFFFFFFU), kShape), Errc::corrupt, "no expert");
  CHECK_FAILS(parse_warm_manifest(with(32, 0U), kShape), Errc::corrupt, "twice");
  CHECK_FAILS(parse_warm_manifest(with(36, -1.0F), kShape), Errc::corrupt, "history");
  CHECK_FAILS(parse_warm_manifest(with(36, std::numeric_limits<float>::quiet_NaN()), kShape), Errc::corrupt,
              "history");
  CHECK_FAILS(parse_warm_manifest(with(40, 0x80000000U), kShape), Errc::corrupt, "history");
  CHECK_FAILS(parse_warm_manifest(with(24, std::uint64_t{4}), kShape), Errc::corrupt, "names 4");
  CHECK_FAILS(parse_warm_manifest(with(24, ~std::uint64_t{0}), kShape), Errc::corrupt, "names");
}

TEST_CASE("files: made with their directories, replaced as a whole, private") {
  const test::ScratchDir scratch;
  const std::string path = scratch / "state/warm/0123";
  CHECK_FAILS(read_warm_manifest(path, kShape), Errc::missing, "open");
  for (const WarmManifest& manifest : {kManifest, WarmManifest{expert(3)}}) {
    REQUIRE(write_warm_manifest(path, encode_warm_manifest(manifest, kShape)));
    CHECK(take(read_warm_manifest(path, kShape)) == manifest);
  }
  struct stat status {};
  REQUIRE(::stat(path.c_str(), &status) == 0);
  CHECK((status.st_mode & 0777) == 0600);
  REQUIRE(::stat((scratch / "state/warm").c_str(), &status) == 0);
  CHECK((status.st_mode & 0777) == 0700);
  const auto files = std::filesystem::directory_iterator(scratch / "state/warm");
  CHECK(std::distance(begin(files), end(files)) == 1);  // no temporary file stays
  CHECK_FAILS(write_warm_manifest("/proc/nowhere/x", "y"), Errc::io, "/proc/nowhere");
}

TEST_CASE("files that are no manifest are not read") {
  const test::ScratchDir scratch;
  test::spill(scratch / "huge", std::string(1000, 'x'));
  CHECK_FAILS(read_warm_manifest(scratch / "huge", kShape), Errc::corrupt, "at most 424");
  CHECK_FAILS(read_warm_manifest(scratch / ".", kShape), Errc::invalid, "regular");
  REQUIRE(::mkfifo((scratch / "fifo").c_str(), 0600) == 0);
  CHECK_FAILS(read_warm_manifest(scratch / "fifo", kShape), Errc::invalid, "regular");
}

TEST_CASE("collected: residents by score, then what was used and went; never a guess nobody used") {
  Pool pool = take(Pool::create_or_adopt(test::small_spec("warm-collect")));
  const test::NameGuard guard(test::unique_name("warm-collect"));
  const auto use = [&](std::uint32_t key, float frequency, std::uint32_t step) {
    pool.experts()[key].usage.store(pack_usage({frequency, step}));
  };
  pool.header().step.store(100);
  test::fill_slot(pool, SlotId{0}, ExpertKey{7});
  test::fill_slot(pool, SlotId{1}, ExpertKey{20});
  test::fill_slot(pool, SlotId{2}, ExpertKey{9});  // resident by a prefill: never used
  test::fill_slot(pool, SlotId{3}, ExpertKey{11}, SlotOrigin::hint_unused);
  use(7, 2, 90);
  use(20, 2, 100);
  use(3, 500, 100);
  use(4, 1, 1);
  const WarmManifest manifest = collect_warm(pool, kShape);
  CHECK(keys(manifest) == std::vector<std::uint32_t>{20, 7, 9, 3, 4});
  CHECK(manifest[1] == expert(7, 2, 10));
  CHECK(manifest[4] == expert(4, 1, 99));

  // A new pool counts its steps from 0: scores are as they were.
  Pool fresh = take(Pool::create_or_adopt(test::small_spec("warm-fresh")));
  const test::NameGuard fresh_guard(test::unique_name("warm-fresh"));
  fresh.experts()[3].usage.store(pack_usage({1, 0}));
  restore_usage(fresh, manifest);
  CHECK(fresh.experts()[7].usage.load() == pack_usage({2, 0U - 10}));
  CHECK(fresh.experts()[3].usage.load() == pack_usage({1, 0}));  // has a history of its own
  CHECK(fresh.experts()[9].usage.load() == 0);
  const WarmManifest again = collect_warm(fresh, kShape);
  CHECK(keys(again) == std::vector<std::uint32_t>{20, 3, 7, 4});
  CHECK(again[2] == expert(7, 2, 10));
}
