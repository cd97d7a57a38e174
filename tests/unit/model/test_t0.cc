// model.md Appendix A, T0: the end-to-end numbers of a model written down in the specification.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>

#include "tests/unit/model/tiny_model.h"

namespace stoker::testing {
namespace {

constexpr Simd kAll[] = {Simd::scalar, Simd::avx2, Simd::avx512, Simd::avx512vbmi};

struct Recorder final : RoutingObserver {
  struct Routing {
    std::uint32_t layer, position;
    std::vector<std::uint32_t> ids;
    std::vector<float> weights;
  };
  std::vector<Routing> routings;
  std::vector<std::uint32_t> lookahead_layers;
  void on_lookahead(const LookaheadEvent& e) override {
    lookahead_layers.push_back(e.layer);
    REQUIRE(std::is_sorted(e.scores.rbegin(), e.scores.rend()));
  }
  void on_routing(const RoutingEvent& e) override {
    Routing r{e.layer, e.position, {}, {e.weights.begin(), e.weights.end()}};
    for (const ExpertId id : e.chosen) r.ids.push_back(id.value);
    routings.push_back(r);
  }
};

std::uint32_t argmax(const float* logits, std::size_t n) {
  return static_cast<std::uint32_t>(std::max_element(logits, logits + n) - logits);
}

void check_close(const float* got, const std::vector<double>& want, double tolerance) {
  for (std::size_t i = 0; i < want.size(); ++i) {
    INFO("index " << i);
    CHECK(static_cast<double>(got[i]) == Approx(want[i]).margin(tolerance));
  }
}

}  // namespace

TEST_CASE("A8: the generator") {
  const auto norm = generate("model.norm.weight", 0, 1, 3);
  CHECK(norm[0] == Approx(-0.062977582).margin(1e-9));
  CHECK(norm[1] == Approx(0.458589584).margin(1e-9));
  CHECK(norm[2] == Approx(0.071294695).margin(1e-9));
  const auto embed = generate("model.embed_tokens.weight", 0, 2, 32);
  CHECK(embed[16] == Approx(0.457161248).margin(1e-9));
  CHECK(embed[18] == Approx(0.746262014).margin(1e-9));
}

TEST_CASE("T0: one token") {
  TinyModel tiny(t0_config(), {});
  MemorySource source(tiny);
  for (const Simd simd : kAll) {
    if (!Model::load_cpu(tiny.config(), tiny.image(), {1, simd}, SteadyClock())) {
      WARN("skipped: this CPU lacks one of the instruction sets");
      continue;
    }
    auto model = tiny.load({1, simd});
    INFO(model->describe());
    auto sequence = model->new_sequence();
    const std::uint32_t token = 1;
    const Segment segment{sequence.get(), 7, {&token, 1}, Segment::Logits::last};
    SegmentResult result;
    Recorder recorder;
    REQUIRE(model->step({&segment, 1}, Access::decode, source, &recorder, {&result, 1}));
    check_close(result.logits.data(),
                {2.346778, 1.981767, -2.118415, 0.199910, 0.732496, 1.338541, 0.709918, 1.292704}, 1e-5);
    REQUIRE(recorder.routings.size() == 4);
    CHECK(recorder.routings[0].ids == std::vector<std::uint32_t>{1, 2, 7});
    CHECK(recorder.routings[1].ids == std::vector<std::uint32_t>{6, 3, 2});
    CHECK(recorder.routings[2].ids == std::vector<std::uint32_t>{0, 7, 3});
    CHECK(recorder.routings[3].ids == std::vector<std::uint32_t>{6, 4, 2});
    check_close(recorder.routings[0].weights.data(), {0.463184, 0.303731, 0.233085}, 2e-6);
    CHECK(recorder.lookahead_layers == std::vector<std::uint32_t>{1, 2, 3});
  }
}

TEST_CASE("T0: a prompt, every position, and the greedy continuation") {
  TinyModel tiny(t0_config(), {});
  MemorySource source(tiny);
  auto model = tiny.load({2});
  const std::vector<std::uint32_t> prompt = {1, 5, 9, 2, 30, 7, 7};
  auto sequence = model->new_sequence();
  const Segment segment{sequence.get(), 1, prompt, Segment::Logits::all};
  SegmentResult result;
  Recorder recorder;
  REQUIRE(model->step({&segment, 1}, Access::prefill, source, &recorder, {&result, 1}));
  CHECK(sequence->length() == 7);
  CHECK(recorder.lookahead_layers.empty());
  const std::vector<std::uint32_t> winners = {0, 1, 28, 1, 12, 25, 1};
  for (std::size_t i = 0; i < 7; ++i) CHECK(argmax(result.logits.data() + i * 32, 32) == winners[i]);
  const float* last = result.logits.data() + std::size_t{6} * 32;
  check_close(last, {-0.191857, 2.701525, 1.804211, 1.110755, -0.015487, 1.250580, 1.404200, 2.032460}, 1e-5);
  double sum = 0;
  for (int i = 0; i < 32; ++i) sum += static_cast<double>(last[i]);
  CHECK(sum == Approx(8.760914).margin(1e-4));

  const std::vector<std::vector<std::uint32_t>> ids = {{5, 7, 0}, {0, 5, 1}, {5, 4, 6}, {0, 5, 7}};
  const std::vector<std::vector<double>> weights = {{0.568817, 0.257141, 0.174042},
                                                    {0.431734, 0.306991, 0.261276},
                                                    {0.409123, 0.347555, 0.243322},
                                                    {0.368355, 0.341053, 0.290593}};
  for (const Recorder::Routing& r : recorder.routings) {
    if (r.position != 6) continue;
    CHECK(r.ids == ids[r.layer]);
    check_close(r.weights.data(), weights[r.layer], 3e-6);
  }

  std::vector<std::uint32_t> continuation = {argmax(last, 32)};
  while (continuation.size() < 8) {
    const Segment decode{sequence.get(), 1, {&continuation.back(), 1}, Segment::Logits::last};
    REQUIRE(model->step({&decode, 1}, Access::decode, source, nullptr, {&result, 1}));
    continuation.push_back(argmax(result.logits.data(), 32));
  }
  CHECK(continuation == std::vector<std::uint32_t>{1, 12, 18, 16, 21, 22, 25, 11});
}

}  // namespace stoker::testing
