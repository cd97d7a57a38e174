// Which slot goes: order of victims, floors, and fairness between layers in the middle of a step.
#include "io-worker/residency.h"

#include <catch2/catch.hpp>
#include <cmath>

#include "shm/usage.h"

using namespace stoker;

namespace {

constexpr std::uint32_t kLayers = 4, kExperts = 100;

ResidentSlot slot(std::uint32_t id, std::uint32_t layer, std::uint64_t usage,
                  SlotOrigin origin = SlotOrigin::demand, std::uint32_t filled = 0) {
  return {.slot = SlotId{id},
          .expert = ExpertKey{layer * kExperts + id},
          .origin = origin,
          .usage = usage,
          .filled_step = filled};
}

std::uint64_t used(float frequency, std::uint32_t step) {
  return pack_usage({.frequency = frequency, .step = step});
}

std::vector<std::uint32_t> choose(std::vector<ResidentSlot> slots, std::uint32_t step, std::uint32_t layer,
                                  std::size_t count, std::vector<std::uint32_t> resident = {90, 90, 90, 90}) {
  Residency residency(kLayers, kExperts, 160);
  std::vector<SlotId> out;
  residency.choose(slots, resident, step, layer, count, out);
  std::vector<std::uint32_t> ids;
  for (const SlotId id : out) ids.push_back(id.value);
  return ids;
}

using Ids = std::vector<std::uint32_t>;

}  // namespace

TEST_CASE("lowest frequency over age first; never used before all others") {
  CHECK(choose({slot(0, 0, used(4, 9)), slot(1, 0, used(20, 2)), slot(2, 0, used(1, 9)), slot(3, 0, 0)}, 10,
               0, 3) == Ids{3, 2, 1});
}

TEST_CASE("score: decayed frequency over a power of the age, sharper in a small pool") {
  const Residency small(1, 512, 24), large(1, 512, 1200);
  for (const Residency* residency : {&small, &large}) CHECK(residency->score(used(5, 100), 100) == 5.0F);
  CHECK(small.score(used(5, 100), 104) == Approx(5 * std::pow(0.999, 4) / std::pow(5.0, 1.5)));
  CHECK(large.score(used(5, 100), 104) == Approx(5 * std::pow(0.999, 4) / std::pow(5.0, 1.01)));
  CHECK(small.score(0, 1000) == 0.0F);
  // Often used long ago loses against used just now, however long ago.
  CHECK(large.score(used(900, 0), 4000) < large.score(touch(0, 4000), 4000));
  CHECK(large.score(used(900, 0), 4'000'000) < large.score(touch(0, 4'000'000), 4'000'000));
  // The step counter may wrap.
  CHECK(small.score(used(1, 0xFFFFFFFEU), 1) == Approx(std::pow(0.999, 3) / std::pow(4.0, 1.5)));
}

TEST_CASE("a wrong guess goes first, a fresh one last, a used one by its score") {
  const auto hint = SlotOrigin::hint_unused;
  CHECK(choose({slot(0, 0, used(5, 10)), slot(1, 0, 0, hint, 4), slot(2, 0, 0, hint, 9)}, 10, 0, 3) ==
        Ids{1, 0, 2});
}

TEST_CASE("a layer that the step has not reached yet has missed one chance less") {
  // Both were used in every step so far, the last time in step 9; the step in progress is 10, in layer 2.
  // Layer 1 has come by without using its expert, layer 3 has not come by.
  CHECK(choose({slot(0, 3, used(1, 9)), slot(1, 1, used(1, 9))}, 10, 2, 1) == Ids{1});
  // The layer in progress has had its chance too.
  CHECK(choose({slot(0, 3, used(1, 9)), slot(1, 2, used(1, 9))}, 10, 2, 1) == Ids{1});
  // Step 0, and another worker's step that is ahead, are no older than 0.
  CHECK(choose({slot(0, 3, used(1, 0)), slot(1, 1, used(0.5F, 0))}, 0, 2, 1) == Ids{1});
}

TEST_CASE("no layer falls below its floor while another is above its own") {
  // 160 slots, 4 layers: the floor is 20.
  CHECK(choose({slot(0, 0, 0), slot(1, 0, 0), slot(2, 1, used(50, 10))}, 10, 0, 2, {21, 30, 0, 0}) ==
        Ids{0, 2});
  // All at their floor: the lowest score goes all the same.
  CHECK(choose({slot(0, 0, used(2, 9)), slot(1, 1, used(1, 9))}, 10, 3, 1, {20, 20, 20, 20}) == Ids{1});
}

TEST_CASE("ties go to the older fill, then to the lower slot") {
  CHECK(choose({slot(3, 0, 0, SlotOrigin::demand, 5), slot(2, 0, 0, SlotOrigin::demand, 7),
                slot(1, 0, 0, SlotOrigin::demand, 5)},
               10, 0, 3) == Ids{1, 3, 2});
}
