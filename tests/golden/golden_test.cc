// Invariant 1 of design.md 9: logits equal transformers' (fp32, exactly dequantised weights) within 1e-3 of
// the largest logit at every position, greedy continuations are identical, however the tokens are fed.
#include <catch2/catch.hpp>

#include "tests/golden/golden_check.h"

namespace stoker::golden {

TEST_CASE("golden: T0 of model.md appendix A", "[t0]") { check_golden("t0"); }
TEST_CASE("golden: FP8 with BF16 scales over several shards", "[a_fp8]") { check_golden("a_fp8"); }
TEST_CASE("golden: BF16", "[b_bf16]") { check_golden("b_bf16"); }
TEST_CASE("golden: key heads = value heads", "[d_equal_heads]") { check_golden("d_equal_heads"); }
TEST_CASE("golden: odd dimensions, tied, no shared expert", "[e_odd]") { check_golden("e_odd"); }
TEST_CASE("golden: tied BF16, one expert per token", "[f_tied_bf16]") { check_golden("f_tied_bf16"); }

TEST_CASE("a slightly wrong model is noticed", "[sharp]") {
  const auto opened = open_golden("a_fp8");
  const Golden& golden = opened->golden();
  const Case& item = golden.cases.at(5);  // long enough for RoPE to matter
  REQUIRE(item.tokens.size() > 60);
  ModelConfig config = golden.config;
  SECTION("unchanged") {}
  SECTION("rope theta of the sibling model") { config.rope_theta *= 2; }
  SECTION("no renormalisation of the routing weights") { config.norm_topk_prob = false; }
  SECTION("one expert less per token") { config.experts_per_token -= 1; }
  SECTION("half the rotary dimensions") { config.rotary_dim /= 2; }
  SECTION("another epsilon") { config.rms_norm_eps = 1e-3F; }
  const bool changed = config.rope_theta != golden.config.rope_theta ||
                       config.norm_topk_prob != golden.config.norm_topk_prob ||
                       config.experts_per_token != golden.config.experts_per_token ||
                       config.rotary_dim != golden.config.rotary_dim ||
                       config.rms_norm_eps < golden.config.rms_norm_eps ||
                       config.rms_norm_eps > golden.config.rms_norm_eps;
  const auto model = opened->load_model(Simd::automatic, config);
  if (!model) FAIL(model.error().text());
  const auto logits = logits_of(**model, opened->source(), {item.tokens, item.splits.front()});
  CHECK((compare(golden, item, logits).relative >= kLogitsTolerance) == changed);
}

TEST_CASE("goldens have experts that straddle shards", "[manifest]") {
  for (const char* name : {"a_fp8", "d_equal_heads", "e_odd"}) {
    const auto golden = read_golden(STOKER_GOLDEN_DATA, name);
    if (!golden) FAIL(golden.error().text());
    CAPTURE(name);
    CHECK(golden->straddling_experts > 0);
    CHECK(golden->shards.size() > 1);
  }
}

}  // namespace stoker::golden
