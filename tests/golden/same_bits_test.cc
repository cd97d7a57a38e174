// Invariant 2 of design.md 9, without processes: the same bits for any split of the tokens, order of arrival
// of the experts, company in the step and instruction set.
#include <catch2/catch.hpp>

#include "gpu-worker/cpu/sequence.h"
#include "tests/golden/golden_check.h"

namespace stoker::golden {
namespace {

void check_same_bits(const std::string& name) {
  const auto opened = open_golden(name);
  const Case& item = longest_split_case(opened->golden());
  const auto model = open_model(*opened);
  MemorySource& source = opened->source();
  const std::vector<std::uint32_t> whole = {static_cast<std::uint32_t>(item.tokens.size())};
  const auto want = logits_of(*model, source, {item.tokens, whole});
  CAPTURE(name);

  SECTION("any split") {
    for (const auto& split : item.splits)
      CHECK(same_bits(logits_of(*model, source, {item.tokens, split}), want));
    const std::vector<std::uint32_t> ones(item.tokens.size(), 1);
    CHECK(same_bits(logits_of(*model, source, {item.tokens, ones}), want));
  }
  SECTION("after going back to a mark") {
    for (const std::size_t mark : {std::size_t{1}, item.tokens.size() / 2, item.tokens.size() - 1})
      CHECK(same_bits(logits_after_detours(*model, source, item.tokens, mark, 2 * kKvBlock - 80), want));
  }
  SECTION("any order of arrival") {
    for (std::uint32_t seed : {1U, 2U, 3U}) {
      source.shuffle(seed);
      CHECK(same_bits(logits_of(*model, source, {item.tokens, item.splits.back()}), want));
    }
  }
  SECTION("beside other sequences") {
    const auto& cases = opened->golden().cases;
    std::vector<Feed> feeds = {{item.tokens, item.splits.back()}};
    for (std::size_t i = 0; i < 3; ++i) feeds.push_back({cases[i + 5].tokens, cases[i + 5].splits.front()});
    const auto together = run(*model, source, feeds);
    if (!together) FAIL(together.error().text());
    CHECK(same_bits(together->front(), want));
  }
  SECTION("any instruction set") {
    for (Simd simd : {Simd::scalar, Simd::avx2, Simd::avx512, Simd::avx512vbmi}) {
      const auto other = opened->load_model(simd);
      if (!other) {
        REQUIRE(other.error().code == Errc::unsupported);
        WARN("skipped: " << other.error().text());
        continue;
      }
      CAPTURE((*other)->describe());
      CHECK(same_bits(logits_of(**other, source, {item.tokens, item.splits.back()}), want));
    }
  }
}

}  // namespace

TEST_CASE("same bits: FP8") { check_same_bits("a_fp8"); }
TEST_CASE("same bits: BF16, tied") { check_same_bits("f_tied_bf16"); }
TEST_CASE("same bits: odd dimensions") { check_same_bits("e_odd"); }

}  // namespace stoker::golden
