// Which expert comes into device memory, who goes for it, and that copies under way are left alone.
#include "gpu-worker/cuda/vram_cache.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <initializer_list>
#include <iterator>
#include <map>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "tests/unit/model/count_allocations.h"

using namespace stoker;

namespace {

constexpr LayerId kLayer{0};

std::vector<ExpertId> ids(std::initializer_list<int> values) {
  std::vector<ExpertId> out;
  for (const int value : values) out.push_back(ExpertId{static_cast<std::uint16_t>(value)});
  return out;
}

/// One event as the worker plays it; copies are complete at once. Gives who was found.
std::vector<ExpertId> play(VramCache& cache, LayerId layer, const std::vector<ExpertId>& event) {
  std::vector<ExpertId> found, elsewhere;
  for (const ExpertId expert : event) (cache.find(layer, expert) ? found : elsewhere).push_back(expert);
  for (const ExpertId expert : elsewhere) {
    if (!cache.wants(layer, expert)) continue;
    if (const auto slot = cache.admit(layer, expert, event)) cache.filled(*slot);
  }
  return found;
}

std::vector<ExpertId> step(VramCache& cache, std::initializer_list<int> event) {
  cache.begin_step();
  return play(cache, kLayer, ids(event));
}

bool holds(const VramCache& cache, int expert) {
  return cache.peek(kLayer, ExpertId{static_cast<std::uint16_t>(expert)}).has_value();
}

constexpr VramCacheOptions kSoon{.second_touch_within = 8};

}  // namespace

TEST_CASE("slots are dealt out evenly over the layers") {
  VramCache cache(3, 8, 7);
  std::vector<std::vector<std::uint32_t>> slots(3);
  for (std::uint16_t layer = 0; layer < 3; ++layer)
    for (std::uint16_t expert = 0; expert < 8; ++expert)
      if (const auto slot = cache.admit(LayerId{layer}, ExpertId{expert}, {})) slots[layer].push_back(*slot);
  CHECK(slots == std::vector<std::vector<std::uint32_t>>{{0, 1}, {2, 3}, {4, 5, 6}});
  CHECK(cache.slots() == 7);
  CHECK(cache.filling() == 7);
}

TEST_CASE("less slots than layers: some have none, and nothing is wanted there") {
  VramCache cache(4, 8, 2);
  int with = 0;
  for (std::uint16_t layer = 0; layer < 4; ++layer) {
    const bool wants = cache.wants(LayerId{layer}, ExpertId{1});
    CHECK(cache.admit(LayerId{layer}, ExpertId{1}, {}).has_value() == wants);
    with += wants ? 1 : 0;
  }
  CHECK(with == 2);
  VramCache none(4, 8, 0);
  CHECK_FALSE(none.find(kLayer, ExpertId{0}));
  CHECK_FALSE(none.wants(kLayer, ExpertId{0}));
  CHECK_FALSE(none.admit(kLayer, ExpertId{0}, {}));
}

TEST_CASE("an expert is found when its copy is complete, and gone when it failed") {
  VramCache cache(1, 8, 2);
  const auto event = ids({3});
  CHECK_FALSE(cache.find(kLayer, ExpertId{3}));
  const auto slot = cache.admit(kLayer, ExpertId{3}, event);
  REQUIRE(slot);
  CHECK_FALSE(cache.find(kLayer, ExpertId{3}));
  CHECK_FALSE(cache.wants(kLayer, ExpertId{3}));         // on its way
  CHECK_FALSE(cache.admit(kLayer, ExpertId{3}, event));  // no second copy
  CHECK((cache.filling() == 1 && cache.resident() == 0));
  cache.abandon(*slot);
  CHECK((cache.filling() == 0 && cache.resident() == 0));
  CHECK(cache.wants(kLayer, ExpertId{3}));
  const auto again = cache.admit(kLayer, ExpertId{3}, event);
  REQUIRE(again == slot);
  cache.filled(*again);
  CHECK(cache.find(kLayer, ExpertId{3}) == slot);
  CHECK_FALSE(cache.wants(kLayer, ExpertId{3}));
  const VramCacheCounters& c = cache.counters();
  CHECK((c.hits == 1 && c.misses == 2 && c.admissions == 2 && c.evictions == 0 && c.abandoned == 1));
}

TEST_CASE("by choice: a copy that failed leaves a free slot") {
  VramCache cache(1, 8, 1, kSoon);
  cache.find(kLayer, ExpertId{0});
  const auto slot = cache.admit(kLayer, ExpertId{0}, {});
  REQUIRE(slot);
  cache.find(kLayer, ExpertId{1});
  CHECK_FALSE(cache.wants(kLayer, ExpertId{1}));
  cache.abandon(*slot);
  CHECK(cache.wants(kLayer, ExpertId{1}));
}

TEST_CASE("by choice: free slots take everything; after that an expert must come back soon") {
  VramCache cache(1, 16, 2, kSoon);
  step(cache, {0, 1});
  CHECK((holds(cache, 0) && holds(cache, 1)));
  step(cache, {2});  // first touch
  CHECK_FALSE(holds(cache, 2));
  for (int i = 0; i < 8; ++i) step(cache, {0});
  step(cache, {2});  // nine steps later
  CHECK_FALSE(holds(cache, 2));
  for (int i = 0; i < 7; ++i) step(cache, {0});
  step(cache, {2});  // eight steps later
  CHECK(holds(cache, 2));
  CHECK_FALSE(holds(cache, 1));
  CHECK(cache.counters().evictions == 1);
}

TEST_CASE("two touches in one step are one") {
  VramCache cache(1, 16, 1, kSoon);
  step(cache, {0});
  cache.begin_step();
  cache.find(kLayer, ExpertId{5});
  cache.find(kLayer, ExpertId{5});
  CHECK_FALSE(cache.wants(kLayer, ExpertId{5}));
}

TEST_CASE("the older goes; used in the same step, the one with less uses") {
  VramCache cache(1, 16, 3);
  step(cache, {0, 1});
  step(cache, {0, 2});
  step(cache, {5});  // 1 is oldest
  CHECK((holds(cache, 0) && holds(cache, 2) && holds(cache, 5) && !holds(cache, 1)));
  step(cache, {6});  // 0 and 2 are as old, 2 was used once
  CHECK((holds(cache, 0) && holds(cache, 5) && holds(cache, 6) && !holds(cache, 2)));
}

TEST_CASE("many uses outweigh a little recency, not a lot") {
  VramCache cache(1, 16, 2);
  for (int i = 0; i < 8; ++i) step(cache, {0});
  step(cache, {1});
  step(cache, {2});  // 0 is older than 1 by a step and has 8 uses
  CHECK((holds(cache, 0) && holds(cache, 2) && !holds(cache, 1)));
  for (int i = 0; i < 20; ++i) step(cache, {2});
  step(cache, {4});
  CHECK((holds(cache, 2) && holds(cache, 4) && !holds(cache, 0)));
}

TEST_CASE("age counts squared, and old uses fade") {
  VramCache squared(1, 16, 2);
  for (int i = 0; i < 3; ++i) step(squared, {0});
  step(squared, {});
  step(squared, {1});
  step(squared, {2});  // 0: 3 uses / 4^2, 1: 1 use / 2^2
  CHECK((!holds(squared, 0) && holds(squared, 1)));

  VramCache fading(1, 16, 2);
  for (int i = 0; i < 20; ++i) step(fading, {0});
  for (int i = 0; i < 1000; ++i) fading.begin_step();
  for (int i = 0; i < 4; ++i) step(fading, {1});
  for (int i = 0; i < 999; ++i) fading.begin_step();
  step(fading, {2});  // 0: 20 uses * .13 / 2005^2, 1: 4 uses * .37 / 1001^2
  CHECK((!holds(fading, 0) && holds(fading, 1)));
}

TEST_CASE("members of the event and slots that are filling are spared") {
  VramCache cache(1, 16, 2);
  step(cache, {0, 1});
  cache.begin_step();
  const auto event = ids({0, 1, 2});
  play(cache, kLayer, event);
  CHECK((holds(cache, 0) && holds(cache, 1) && !holds(cache, 2)));

  cache.begin_step();
  const auto slot = cache.admit(kLayer, ExpertId{3}, ids({1, 3}));  // 0 must go, used as lately as 1
  REQUIRE(slot);
  CHECK((!holds(cache, 0) && holds(cache, 1)));
  const VramCacheCounters before = cache.counters();
  CHECK_FALSE(cache.admit(kLayer, ExpertId{4}, ids({1, 4})));  // 1 is in the event, 3 is filling
  CHECK(cache.counters().admissions == before.admissions);
  CHECK(holds(cache, 1));
  cache.filled(*slot);
  CHECK(holds(cache, 3));
}

TEST_CASE("the gap between the last two uses tells who is hot") {
  VramCache cache(1, 8, 2);
  CHECK(cache.last_gap(kLayer, ExpertId{0}) == kNone);
  step(cache, {0, 1});
  CHECK(cache.last_gap(kLayer, ExpertId{0}) == kNone);
  step(cache, {0});
  CHECK(cache.last_gap(kLayer, ExpertId{0}) == 1);
  step(cache, {});
  step(cache, {0, 1});
  CHECK(cache.last_gap(kLayer, ExpertId{0}) == 2);
  CHECK(cache.last_gap(kLayer, ExpertId{1}) == 3);
}

TEST_CASE("layers do not take each other's slots") {
  VramCache cache(2, 8, 4);
  cache.begin_step();
  play(cache, LayerId{0}, ids({0, 1}));
  for (int i = 0; i < 6; ++i) play(cache, LayerId{1}, ids({i}));
  CHECK((holds(cache, 0) && holds(cache, 1)));
}

TEST_CASE("peek leaves no trace") {
  VramCache cache(1, 8, 2);
  step(cache, {0});
  step(cache, {1});
  cache.begin_step();
  CHECK(cache.peek(kLayer, ExpertId{0}));
  CHECK(cache.counters().hits == 0);
  step(cache, {2});
  CHECK_FALSE(holds(cache, 0));
}

TEST_CASE("clear empties it and forgets") {
  VramCache cache(1, 8, 2, kSoon);
  step(cache, {0, 1});
  step(cache, {2});
  cache.clear();
  CHECK((cache.resident() == 0 && !holds(cache, 0)));
  step(cache, {3, 4});
  CHECK((holds(cache, 3) && holds(cache, 4)));
  step(cache, {2});  // its touch from before does not count
  CHECK_FALSE(holds(cache, 2));
}

namespace {

/// What a worker's copies look like from outside: who was sent where, and what has arrived.
struct Shadow {
  std::map<std::uint32_t, std::pair<std::uint16_t, std::uint16_t>> slots;  ///< slot -> (layer, expert)
  std::set<std::uint32_t> filling;
};

/// One event with copies that complete or fail some events later. False: it would have shown a wrong expert.
bool random_event(VramCache& cache, Shadow& shadow, std::mt19937& engine, std::uint16_t layer) {
  std::set<std::uint16_t> members;
  while (members.size() < 3)
    members.insert(static_cast<std::uint16_t>(std::min(engine() % 20, engine() % 20)));
  std::vector<ExpertId> event;
  for (const std::uint16_t member : members) event.push_back(ExpertId{member});
  std::vector<ExpertId> elsewhere;
  for (const ExpertId expert : event) {
    const auto slot = cache.find(LayerId{layer}, expert);
    if (!slot) elsewhere.push_back(expert);
    if (slot && (shadow.filling.count(*slot) > 0 || shadow.slots[*slot] != std::pair{layer, expert.value}))
      return false;
  }
  for (const ExpertId expert : elsewhere) {
    if (!cache.wants(LayerId{layer}, expert)) continue;
    const auto slot = cache.admit(LayerId{layer}, expert, event);
    if (!slot) continue;
    const auto was = shadow.slots.find(*slot);
    if (shadow.filling.count(*slot) > 0) return false;
    if (was != shadow.slots.end() && members.count(was->second.second) > 0) return false;
    shadow.slots[*slot] = {layer, expert.value};
    shadow.filling.insert(*slot);
  }
  for (auto at = shadow.filling.begin(); at != shadow.filling.end();) {
    const auto fate = engine() % 8;
    if (fate == 0) {
      cache.abandon(*at);
      shadow.slots.erase(*at);
    } else if (fate < 4) {
      cache.filled(*at);
    }
    at = fate < 4 ? shadow.filling.erase(at) : std::next(at);
  }
  return true;
}

}  // namespace

TEST_CASE("copies that take their time, or fail: never a wrong expert") {
  for (const std::uint32_t window : {0U, 2U, 8U}) {
    VramCache cache(3, 20, 14, {.second_touch_within = window});
    Shadow shadow;
    std::mt19937 engine(11);
    bool right = true;
    for (int step = 0; step < 2000 && right; ++step) {
      cache.begin_step();
      for (std::uint16_t layer = 0; layer < 3 && right; ++layer)
        right = random_event(cache, shadow, engine, layer);
    }
    CHECK(right);
    CHECK(cache.filling() == shadow.filling.size());
    CHECK(cache.resident() == shadow.slots.size() - shadow.filling.size());
    const VramCacheCounters& c = cache.counters();
    CHECK(c.hits + c.misses == 2000U * 3U * 3U);
    CHECK(c.hits > 1000);
    CHECK(c.admissions - c.abandoned - c.evictions == shadow.slots.size());
  }
}

TEST_CASE("nothing is allocated after construction") {
  VramCache cache(2, 64, 12);
  std::mt19937 engine(5);
  std::vector<ExpertId> event(4);
  testing::start_counting_allocations();
  for (int i = 0; i < 500; ++i) {
    cache.begin_step();
    for (std::uint16_t k = 0; k < 4; ++k)
      event[k] = ExpertId{static_cast<std::uint16_t>(16U * k + engine() % 16 / (k + 1U))};
    for (const ExpertId expert : event)
      if (!cache.find(LayerId{1}, expert) && cache.wants(LayerId{1}, expert))
        if (const auto slot = cache.admit(LayerId{1}, expert, event)) cache.filled(*slot);
  }
  const std::uint64_t allocations = testing::stop_counting_allocations();
  CHECK(allocations == 0);
  CHECK(cache.counters().evictions > 0);
}
