#include <catch2/catch.hpp>

#include "daemons/loader/warm_start.h"
#include "shm/usage.h"
#include "tests/unit/checkpoint/scratch.h"
#include "tests/unit/shm/pool_fixture.h"

using namespace stoker;
using namespace std::chrono_literals;
using test::take;

namespace {
constexpr WarmShape kShape{.fingerprint = 0x1234, .layers = 2, .experts_per_layer = 16};

std::string path_for(const std::string& setting, const std::string& state, const std::string& model = "/m") {
  Config config;
  config.warm_manifest = setting;
  config.state_dir = state;
  return take(warm_manifest_path(config, model));
}
}  // namespace

TEST_CASE("where the manifest is") {
  CHECK(path_for("off", "/state").empty());
  CHECK(path_for("auto", "").empty());
  CHECK(path_for("/x/y", "").compare("/x/y") == 0);
  CHECK(path_for("./y", "/state") == "./y");
  const std::string automatic = path_for("auto", "/state");
  CHECK(automatic.starts_with("/state/warm/"));
  CHECK(automatic == path_for("auto", "/state"));
  CHECK(automatic != path_for("auto", "/state", "/other"));
  const test::ScratchDir scratch;
  CHECK(path_for("auto", "/s", scratch / ".") == path_for("auto", "/s", scratch / "./."));
  Config config;
  config.warm_manifest = "atuo";
  CHECK_FAILS(warm_manifest_path(config, "/m"), Errc::invalid, "\"atuo\" is neither");
}

TEST_CASE("the writer keeps a recent manifest while it runs, and writes the last one at its end") {
  const test::ScratchDir scratch;
  const std::string path = scratch / "warm/m";
  Pool pool = take(Pool::create_or_adopt(test::small_spec("warm-writer")));
  const test::NameGuard guard(test::unique_name("warm-writer"));
  const auto holds = [&](std::size_t count) {
    const auto manifest = read_warm_manifest(path, kShape);
    return manifest && manifest->size() == count;
  };
  {
    WarmWriter writer(pool, kShape, path, 1ms);
    test::fill_slot(pool, SlotId{0}, ExpertKey{7});
    while (!holds(1)) {
    }
    test::fill_slot(pool, SlotId{1}, ExpertKey{9});
    while (!holds(2)) {
    }
    std::filesystem::remove(path);  // unchanged: not written again
  }
  CHECK_FALSE(std::filesystem::exists(path));
  {
    WarmWriter writer(pool, kShape, path, 1h);
    test::fill_slot(pool, SlotId{2}, ExpertKey{1});
    CHECK_FALSE(std::filesystem::exists(path));
  }
  CHECK(holds(3));
}

TEST_CASE("a pool in which nothing happened does not replace an older manifest") {
  const test::ScratchDir scratch;
  test::spill(scratch / "m", "older");
  Pool pool = take(Pool::create_or_adopt(test::small_spec("warm-idle")));
  const test::NameGuard guard(test::unique_name("warm-idle"));
  { WarmWriter writer(pool, kShape, scratch / "m", 1ms); }
  CHECK(test::slurp(scratch / "m") == "older");
}

TEST_CASE("a directory that cannot be written is no reason to stop") {
  Pool pool = take(Pool::create_or_adopt(test::small_spec("warm-nowhere")));
  const test::NameGuard guard(test::unique_name("warm-nowhere"));
  test::fill_slot(pool, SlotId{0}, ExpertKey{7});
  { WarmWriter writer(pool, kShape, "/proc/nowhere/m", 1ms); }
  SUCCEED();
}
