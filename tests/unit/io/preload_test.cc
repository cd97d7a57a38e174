// Bringing experts back in the background, in virtual time: in order, and out of the way of demands and
// hints.
#include "io-worker/preload.h"

#include <catch2/catch.hpp>

#include "tests/unit/io/loader_rig.h"

using namespace stoker;
using namespace stoker::test;

TEST_CASE("an idle loader brings everything back, in disk order, within the bytes in flight") {
  Rig rig;
  const Preload& preload = rig.preload();
  rig.run(400ms);
  CHECK(preload.finished());
  CHECK(preload.restored() == kExperts);
  CHECK(rig.ready() == kExperts);
  CHECK(rig.engine->most == 3);  // of 4: a demand must find room
  CHECK(std::is_sorted(rig.engine->offsets.begin(), rig.engine->offsets.end()));
  CHECK(rig.engine->offsets.size() == kExperts);
  CHECK(rig.counters().warm_planned == kExperts);
  CHECK(rig.counters().warm_fills == kExperts);
  CHECK(rig.counters().hint_fills + rig.counters().demand_fills + rig.counters().hints_wasted == 0);
}

TEST_CASE("chunks go by value, experts in a chunk by place") {
  std::vector<std::vector<Extent>> extents;
  const std::uint32_t count = Preload::kChunk + 10;
  for (std::uint32_t e = 0; e < count; ++e)
    extents.push_back({{FileId{e % 2}, std::uint64_t{count - e} * 4096, 4096, 0}});
  const auto plan = ExpertPlan::from_extents(1, 4096, 4096, extents, std::vector<ExpertParts>(count));
  WarmManifest manifest;
  for (std::uint32_t e = count; e-- > 0;) manifest.push_back({ExpertKey{e}, 1, 0});
  Preload preload(manifest, plan, Preload::kChunk + 4);
  REQUIRE(preload.planned() == Preload::kChunk + 4);  // the last 6 have no room
  std::vector<std::uint32_t> keys;
  while (!preload.all_started()) keys.push_back(preload.take_next().value);
  const std::uint32_t last = count - 1;  // 521, the most valuable; odd ones are in file 1
  CHECK(keys[0] == last - 1);
  CHECK(keys[1] == last - 3);
  CHECK(keys[Preload::kChunk / 2] == last);
  CHECK(keys[Preload::kChunk - 1] == last - (Preload::kChunk - 2));
  CHECK(std::vector(keys.end() - 4, keys.end()) == std::vector<std::uint32_t>{8, 6, 9, 7});
}

TEST_CASE("a demand waits for the reads in flight at most, and none is started before it is served") {
  Duration alone{};
  {
    Rig rig;
    alone = rig.serve(rig.demand(60));
  }
  for (int at = 0; at < 16; ++at) {
    Rig rig;
    rig.preload(60);
    rig.run(5ms + at * 337us);
    const auto in_flight = static_cast<int>(rig.engine->in_flight());
    const std::size_t submitted = rig.engine->offsets.size();
    CHECK(rig.serve(rig.demand(60)) <= alone + in_flight * kRead + kOverhead);
    // The demand's own read was the next one, and the only one.
    REQUIRE(rig.engine->offsets.size() >= submitted + 1);
    CHECK(rig.engine->offsets[submitted] == Rig::offset_of(60));
    CHECK(rig.engine->offsets.size() <= submitted + 2);  // the last turn may have started one after serving
  }
}

TEST_CASE("between demands one expert at a time comes back; after a silence the device is used again") {
  Rig rig;
  const Preload& preload = rig.preload(250);
  rig.run(3ms);
  (void)rig.serve(rig.demand(251));
  while (preload.reading() > 1) rig.run(10us);
  rig.engine->most = 0;
  for (int i = 0; i < 10; ++i) {
    rig.run(2ms);
    CHECK(rig.serve(rig.demand(251)) < kRead);  // resident
  }
  CHECK(rig.engine->most == 1);
  CHECK(preload.restored() > 10);
  CHECK_FALSE(preload.finished());
  rig.run(kPreloadQuiet + 400ms);
  CHECK(rig.engine->most == 3);
  CHECK(preload.finished());
}

TEST_CASE("hints go first") {
  Rig rig;
  rig.preload(50);
  rig.run(3ms);
  std::vector<LoaderHint> hints(3);
  for (std::uint32_t i = 0; i < 3; ++i) {
    hints[i].expert = ExpertKey{55 + i};
    hints[i].step = 1;
  }
  rig.loader->push_hints(hints);
  const std::size_t submitted = rig.engine->offsets.size();
  rig.run(10ms);
  for (std::size_t i = 0; i < hints.size(); ++i)
    CHECK(rig.engine->offsets[submitted + i] == Rig::offset_of(hints[i].expert.value));
  CHECK(rig.counters().hint_fills == 3);
}

TEST_CASE("nothing is evicted for it") {
  Rig rig(8);
  const Preload& preload = rig.preload(8);
  for (std::uint32_t e = 40; e < 44; ++e) (void)rig.serve(rig.demand(e));
  rig.run(400ms);
  CHECK(preload.finished());
  CHECK(rig.ready() == 8);
  CHECK(rig.counters().evictions == 0);
  CHECK(preload.restored() < 8);
}

TEST_CASE("a demand for an expert on its way joins the read") {
  Rig rig;
  const Preload& preload = rig.preload();
  rig.run(kRead * 5 / 2);
  const std::uint32_t coming =
      kExperts - 1 - static_cast<std::uint32_t>(rig.engine->offsets.back() / kExpertBytes);
  REQUIRE(preload.reading() > 0);
  CHECK(rig.serve(rig.demand(coming)) <= 3 * kRead + kOverhead);
  rig.run(kPreloadQuiet + 400ms);
  CHECK(preload.finished());
  CHECK(preload.restored() == kExperts);
  CHECK(rig.engine->offsets.size() == kExperts);  // each was read once
  CHECK(rig.counters().hints_promoted == 0);
  CHECK(rig.counters().demand_fills == 1);
}

TEST_CASE("an expert that cannot be read is left out") {
  Rig rig(kExperts, {{FileId{0}, Rig::offset_of(7), 10, 0}});
  const Preload& preload = rig.preload();
  rig.run(400ms);
  CHECK(preload.finished());
  CHECK(preload.restored() == kExperts - 1);
  CHECK(rig.ready() == kExperts - 1);
}

TEST_CASE("with room for one expert in flight it works, one at a time") {
  Rig rig(kExperts, {}, 1);
  const Preload& preload = rig.preload();
  rig.run(400ms);
  CHECK(preload.finished());
  CHECK(rig.engine->most == 1);
}
