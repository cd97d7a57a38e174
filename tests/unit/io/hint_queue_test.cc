#include <catch2/catch.hpp>

#include "io-worker/hint_queue.h"

using namespace stoker;

namespace {

constexpr std::uint32_t kLayers = 4, kExperts = 8;

LoaderHint hint(std::uint32_t process, std::uint64_t step, std::uint32_t layer, std::uint32_t expert) {
  return {.expert = ExpertKey{layer * kExperts + expert}, .process = process, .step = step};
}

HintQueue queue(std::uint64_t step_reads = 0) {
  return HintQueue(
      {.capacity = 8, .layers = kLayers, .experts_per_layer = kExperts, .step_reads = step_reads});
}

}  // namespace

TEST_CASE("the hint whose layer comes next is first, whoever came first") {
  HintQueue hints = queue();
  HintQueue::Progress progress{};
  progress[0] = progress_of(5, 0);
  hints.push(hint(0, 5, 3, 1));
  hints.push(hint(0, 6, 0, 2));
  hints.push(hint(0, 5, 1, 3));
  CHECK(hints.take(progress)->expert.value == 1 * kExperts + 3);
  CHECK(hints.take(progress)->expert.value == 3 * kExperts + 1);
  CHECK(hints.take(progress)->expert.value == 2);
  CHECK_FALSE(hints.take(progress));
  CHECK(hints.take_dropped() == 0);
}

TEST_CASE("a hint is late when its layer has begun in its own worker, and only then") {
  HintQueue hints = queue();
  HintQueue::Progress progress{};
  progress[0] = progress_of(100, 2);
  progress[1] = progress_of(7, 2);
  hints.push(hint(0, 100, 2, 1));  // begun
  hints.push(hint(1, 7, 1, 1));    // passed
  hints.push(hint(1, 7, 3, 1));    // far behind worker 0's count, and in time
  const auto next = hints.take(progress);
  REQUIRE(next);
  CHECK(next->process == 1);
  CHECK_FALSE(hints.take(progress));
  CHECK(hints.take_dropped() == 2);
}

TEST_CASE("a step's budget is spent no faster than its layers come") {
  HintQueue hints = queue(4);  // one read per layer
  const HintQueue::Progress progress{};
  const auto issues = [&](const LoaderHint& h) {
    hints.push(h);
    const auto taken = hints.take(progress);
    if (taken) hints.issued(*taken);
    return taken.has_value();
  };
  CHECK(issues(hint(0, 1, 0, 1)));
  CHECK_FALSE(issues(hint(0, 1, 0, 2)));
  CHECK(issues(hint(0, 1, 3, 1)));
  CHECK(issues(hint(0, 1, 3, 2)));
  CHECK(issues(hint(0, 1, 3, 3)));
  CHECK_FALSE(issues(hint(0, 1, 3, 4)));
  CHECK(issues(hint(1, 1, 0, 2)));  // another worker has its own
  CHECK(issues(hint(0, 2, 0, 2)));  // and so has another step
}

TEST_CASE("a batch costs at most the reads it names") {
  HintQueue hints = queue();
  const HintQueue::Progress progress{};
  for (std::uint32_t expert = 0; expert < 3; ++expert) {
    LoaderHint h = hint(0, 1, 2, expert);
    h.batch = 9;
    h.batch_reads = 1;
    hints.push(h);
  }
  hints.issued(*hints.take(progress));
  CHECK_FALSE(hints.take(progress));
  CHECK(hints.take_dropped() == 2);
}

TEST_CASE("what does not fit or cannot be is dropped and counted") {
  HintQueue hints = queue();
  for (std::uint32_t i = 0; i < 10; ++i) hints.push(hint(0, 1, 1, i % kExperts));
  CHECK(hints.take_dropped() == 2);
  hints.push(hint(99, 1, 1, 1));
  hints.push({.expert = ExpertKey{kLayers * kExperts}, .step = 1});
  CHECK(hints.take_dropped() == 2);
}
