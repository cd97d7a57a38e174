// What must not change a result (chunks, batch, threads, instruction set, residency, order of arrival), and
// what a failure may touch.
#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <limits>
#include <set>

#include "tests/unit/model/count_allocations.h"
#include "tests/unit/model/tiny_model.h"

namespace stoker::testing {
namespace {

ModelConfig fp8_config() {
  ModelConfig c = t0_config();
  c.vocab_size = 96;
  c.hidden_size = 160;  // a ragged last tile of 128
  c.head_dim = 64;
  c.rotary_dim = 16;
  c.linear_key_dim = 32;
  c.linear_value_dim = 48;
  c.experts = 12;
  c.experts_per_token = 4;
  c.moe_intermediate = 96;
  c.shared_intermediate = 64;
  c.scale_block_rows = 128;
  c.scale_block_cols = 128;
  return c;
}

/// Key heads = value heads, one kv head, tied, raw router weights, no shared expert, attention first.
ModelConfig odd_config() {
  ModelConfig c = t0_config();
  c.mixers = {MixerType::full_attention, MixerType::linear_attention, MixerType::linear_attention};
  c.layers = 3;
  c.hidden_size = 36;
  c.attention_heads = 3;
  c.kv_heads = 1;
  c.head_dim = 20;
  c.rotary_dim = 10;
  c.linear_key_heads = 3;
  c.linear_value_heads = 3;
  c.linear_key_dim = 10;
  c.linear_value_dim = 21;
  c.conv_kernel = 2;
  c.experts = 5;
  c.experts_per_token = 2;
  c.moe_intermediate = 13;
  c.shared_intermediate = 0;
  c.norm_topk_prob = false;
  c.tie_word_embeddings = true;
  c.scale_block_rows = 16;
  c.scale_block_cols = 32;
  return c;
}

struct Variant {
  const char* name;
  ModelConfig config;
  TinyOptions options;
};

std::vector<Variant> variants() {
  return {{"T0 F32", t0_config(), {}},
          {"FP8", fp8_config(), {.matrices = DType::f8_e4m3, .others = DType::bf16}},
          {"FP8, F32 scales, odd shapes",
           odd_config(),
           {.matrices = DType::f8_e4m3, .others = DType::f32, .scale_dtype = DType::f32}},
          {"BF16, odd shapes", odd_config(), {.matrices = DType::bf16, .others = DType::bf16}}};
}

std::vector<std::uint32_t> some_tokens(std::size_t n, std::uint32_t vocab, std::uint32_t seed = 3) {
  std::vector<std::uint32_t> tokens(n);
  for (std::uint32_t& t : tokens) {
    seed = seed * 1664525U + 1013904223U;
    t = (seed >> 8) % vocab;
  }
  return tokens;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

std::vector<float> fresh_run(Model& model, TinyModel& tiny, const std::vector<std::uint32_t>& tokens,
                             const std::vector<std::size_t>& steps, unsigned resident = 100,
                             std::uint32_t seed = 0, Access access = Access::prefill) {
  MemorySource source(tiny, seed);
  source.resident_percent = resident;
  auto sequence = model.new_sequence();
  auto logits = run_all(model, source, *sequence, tokens, steps, access);
  CHECK(sequence->length() == tokens.size());
  CHECK(sequence->memory_bytes() == model.sequence_bytes(tokens.size()));
  return logits;
}

}  // namespace

TEST_CASE("the same bits for every chunking, thread count, instruction set, residency and order of arrival") {
  for (const Variant& v : variants()) {
    INFO(v.name);
    TinyModel tiny(v.config, v.options);
    const auto tokens = some_tokens(300, v.config.vocab_size);
    auto model = tiny.load({.threads = 1});
    const auto golden = fresh_run(*model, tiny, tokens, {300});
    for (const float x : golden) REQUIRE(std::isfinite(x));
    const std::vector<std::vector<std::size_t>> chunkings = {{1},       {64},  {130, 1, 1, 1, 5, 64},
                                                             {1, 2, 3}, {299}, {256, 1}};
    for (const auto& steps : chunkings) {
      INFO("first chunk " << steps.front());
      CHECK(same_bits(fresh_run(*model, tiny, tokens, steps), golden));
    }
    CHECK(same_bits(fresh_run(*model, tiny, tokens, {1}, 50, 1, Access::decode), golden));
    for (const unsigned threads : {2U, 5U}) {
      auto other = tiny.load({.threads = threads});
      CHECK(same_bits(fresh_run(*other, tiny, tokens, {37}, 0, threads), golden));
      CHECK(same_bits(fresh_run(*other, tiny, tokens, {100, 1}, 30, threads), golden));
    }
    for (const Simd simd : {Simd::scalar, Simd::avx2, Simd::avx512, Simd::avx512vbmi}) {
      const SteadyClock clock;
      auto other = Model::load_cpu(tiny.config(), tiny.image(), {.threads = 2, .simd = simd}, clock);
      if (!other) {
        WARN("skipped: " << other.error().message);
        continue;
      }
      CHECK(same_bits(fresh_run(**other, tiny, tokens, {50}), golden));
    }
  }
}

TEST_CASE("the same bits alone and beside other sequences in any phase") {
  for (const Variant& v : variants()) {
    INFO(v.name);
    TinyModel tiny(v.config, v.options);
    auto model = tiny.load({.threads = 2});
    MemorySource source(tiny, 9);
    source.resident_percent = 60;
    std::vector<std::vector<std::uint32_t>> tokens;
    std::vector<std::vector<float>> golden, got(4);
    for (std::uint32_t s = 0; s < 4; ++s) {
      tokens.push_back(some_tokens(40, v.config.vocab_size, s));
      golden.push_back(fresh_run(*model, tiny, tokens.back(), {40}));
    }
    std::vector<std::unique_ptr<Sequence>> sequences;
    for (int s = 0; s < 4; ++s) sequences.push_back(model->new_sequence());
    // Sequence s takes s * 5 + 1 tokens per step, so prefill and decode mix and each leaves at another time.
    while (true) {
      std::vector<Segment> segments;
      std::vector<std::size_t> who;
      for (std::size_t s = 0; s < 4; ++s) {
        const std::size_t at = sequences[s]->length();
        const std::size_t n = std::min(s * 5 + 1, tokens[s].size() - at);
        if (n == 0) continue;
        segments.push_back({sequences[s].get(), static_cast<std::uint32_t>(s),
                            std::span(tokens[s]).subspan(at, n), Segment::Logits::all});
        who.push_back(s);
      }
      if (segments.empty()) break;
      std::vector<SegmentResult> results(segments.size());
      REQUIRE(model->step(segments, Access::decode, source, nullptr, results));
      for (std::size_t i = 0; i < who.size(); ++i) {
        REQUIRE_FALSE(results[i].error);
        got[who[i]].insert(got[who[i]].end(), results[i].logits.begin(), results[i].logits.end());
      }
    }
    for (std::size_t s = 0; s < 4; ++s) CHECK(same_bits(got[s], golden[s]));
  }
}

TEST_CASE("an FP8 model and its dequantised F32 twin give the same bits") {
  ModelConfig config = fp8_config();
  TinyModel fp8(config, {.matrices = DType::f8_e4m3});
  TinyModel twin(config, {.matrices = DType::f32, .dequantised = true});
  const auto tokens = some_tokens(70, config.vocab_size);
  auto a = fp8.load();
  auto b = twin.load();
  CHECK(same_bits(fresh_run(*a, fp8, tokens, {33}), fresh_run(*b, twin, tokens, {33})));
}

TEST_CASE("logits none, last and all") {
  TinyModel tiny(t0_config(), {});
  auto model = tiny.load();
  MemorySource source(tiny);
  const std::vector<std::uint32_t> tokens = {1, 5, 9};
  const auto all = fresh_run(*model, tiny, tokens, {3});
  auto a = model->new_sequence(), b = model->new_sequence(), c = model->new_sequence();
  const Segment segments[] = {{a.get(), 1, tokens, Segment::Logits::none},
                              {b.get(), 2, tokens, Segment::Logits::last},
                              {c.get(), 3, tokens, Segment::Logits::all}};
  SegmentResult results[3];
  REQUIRE(model->step(segments, Access::prefill, source, nullptr, results));
  CHECK(results[0].logits.empty());
  CHECK(same_bits({results[1].logits.begin(), results[1].logits.end()}, {all.end() - 32, all.end()}));
  CHECK(same_bits({results[2].logits.begin(), results[2].logits.end()}, all));
}

TEST_CASE("a failed expert fails the segments that need it and no others") {
  TinyModel tiny(t0_config(), {});
  auto model = tiny.load({.threads = 2});
  MemorySource source(tiny);
  // Token 1 alone wants experts 1, 2, 7 in layer 0 (model.md A, T0).
  source.failing = {{0, 2}};
  std::vector<std::unique_ptr<Sequence>> sequences;
  std::vector<std::uint32_t> tokens(32);
  for (std::uint32_t t = 0; t < 32; ++t) tokens[t] = t;
  std::vector<Segment> segments;
  for (std::uint32_t t = 0; t < 32; ++t) {
    sequences.push_back(model->new_sequence());
    segments.push_back({sequences.back().get(), t, {&tokens[t], 1}, Segment::Logits::last});
  }
  struct Wants final : RoutingObserver {
    std::set<std::uint32_t> needed;
    void on_lookahead(const LookaheadEvent&) override {}
    void on_routing(const RoutingEvent& e) override {
      for (const ExpertId id : e.chosen) {
        if (e.layer == 0 && id.value == 2) needed.insert(e.sequence_id);
      }
    }
  } wants;
  std::vector<SegmentResult> results(32);
  MemorySource healthy(tiny);
  REQUIRE(model->step(segments, Access::decode, healthy, &wants, results));
  REQUIRE(wants.needed.count(1) == 1);
  REQUIRE(wants.needed.size() < 32);
  std::vector<std::vector<float>> golden;
  for (const SegmentResult& r : results) golden.emplace_back(r.logits.begin(), r.logits.end());
  for (std::uint32_t t = 0; t < 32; ++t) {
    sequences[t] = model->new_sequence();
    segments[t].sequence = sequences[t].get();
  }
  REQUIRE(model->step(segments, Access::decode, source, nullptr, results));
  for (std::uint32_t t = 0; t < 32; ++t) {
    INFO("segment " << t);
    REQUIRE(results[t].error.has_value() == (wants.needed.count(t) == 1));
    if (results[t].error) {
      CHECK(results[t].error->code == Errc::io);
      CHECK(results[t].error->message.find("offset 4096") != std::string::npos);
      CHECK(results[t].logits.empty());
    } else {
      CHECK(same_bits({results[t].logits.begin(), results[t].logits.end()}, golden[t]));
    }
  }
  // All segments failed: the step ends early, without an Error.
  SegmentResult one;
  auto lonely = model->new_sequence();
  const Segment segment{lonely.get(), 1, {&tokens[1], 1}, Segment::Logits::last};
  const std::uint64_t before = source.served;
  REQUIRE(model->step({&segment, 1}, Access::decode, source, nullptr, {&one, 1}));
  CHECK(one.error);
  CHECK(source.served == before + 2);
}

TEST_CASE("a NaN code in an expert is named, other segments go on") {
  TinyModel tiny(fp8_config(), {.matrices = DType::f8_e4m3});
  auto model = tiny.load();
  struct First final : RoutingObserver {
    std::uint32_t id = 0;
    void on_lookahead(const LookaheadEvent&) override {}
    void on_routing(const RoutingEvent& e) override {
      if (e.layer == 1) id = e.chosen[1].value;
    }
  } first;
  MemorySource source(tiny);
  const std::uint32_t token = 4;
  auto sequence = model->new_sequence();
  Segment segment{sequence.get(), 1, {&token, 1}, Segment::Logits::last};
  SegmentResult result;
  REQUIRE(model->step({&segment, 1}, Access::decode, source, &first, {&result, 1}));
  REQUIRE_FALSE(result.error);
  for (const int part : {0, 1, 2}) {
    TinyExpert& expert = tiny.expert(1, first.id);
    std::byte& code = expert.bytes[(part == 0 ? expert.gate : part == 1 ? expert.up : expert.down) + 77];
    const std::byte saved = std::exchange(code, std::byte{0xFF});
    sequence = model->new_sequence();
    segment.sequence = sequence.get();
    REQUIRE(model->step({&segment, 1}, Access::decode, source, nullptr, {&result, 1}));
    REQUIRE(result.error);
    CHECK(result.error->code == Errc::corrupt);
    CHECK(result.error->message.find("expert " + std::to_string(first.id) + " of layer 1") !=
          std::string::npos);
    code = saved;
  }
}

TEST_CASE("a broken source fails the step") {
  TinyModel tiny(t0_config(), {});
  auto model = tiny.load();
  MemorySource source(tiny);
  source.broken = true;
  auto sequence = model->new_sequence();
  const std::uint32_t token = 1;
  const Segment segment{sequence.get(), 1, {&token, 1}, Segment::Logits::last};
  SegmentResult result;
  const auto stats = model->step({&segment, 1}, Access::decode, source, nullptr, {&result, 1});
  REQUIRE_FALSE(stats);
  CHECK(stats.error().code == Errc::peer_gone);
}

TEST_CASE("look-ahead goes out before misses are waited for; decode only") {
  TinyModel tiny(t0_config(), {});
  auto model = tiny.load({.lookahead = 3});
  MemorySource source(tiny);
  source.resident_percent = 0;
  source.landed_percent = 0;
  struct Order final : RoutingObserver {
    MemorySource* source = nullptr;
    std::vector<std::uint64_t> waits_before;
    std::vector<std::vector<float>> scores;
    std::vector<Tier> tiers;
    void on_lookahead(const LookaheadEvent& e) override {
      waits_before.push_back(source->waits);
      scores.emplace_back(e.scores.begin(), e.scores.end());
      CHECK(e.candidates.size() == 3);
    }
    void on_routing(const RoutingEvent& e) override {
      tiers.insert(tiers.end(), e.tiers.begin(), e.tiers.end());
    }
  } order;
  order.source = &source;
  auto sequence = model->new_sequence();
  const std::uint32_t token = 1;
  const Segment segment{sequence.get(), 1, {&token, 1}, Segment::Logits::last};
  SegmentResult result;
  const auto stats = model->step({&segment, 1}, Access::decode, source, &order, {&result, 1});
  REQUIRE(stats);
  CHECK(order.waits_before == std::vector<std::uint64_t>{0, 3, 6});  // layer l's own three come after
  CHECK(stats->disk == 12);
  CHECK(stats->pool == 0);
  for (const Tier t : order.tiers) CHECK(t == Tier::disk);
}

TEST_CASE("a layer's timing is in order, for observers that want it") {
  TinyModel tiny(t0_config(), {});
  auto model = tiny.load({});
  struct Times final : RoutingObserver {
    bool wants = true;
    std::vector<LayerTiming> layers;
    void on_lookahead(const LookaheadEvent&) override {}
    void on_routing(const RoutingEvent& e) override { layers.push_back(e.timing); }
    [[nodiscard]] bool wants_timing() const override { return wants; }
  };
  for (const unsigned resident : {0U, 100U}) {
    MemorySource source(tiny);
    source.resident_percent = resident;
    auto sequence = model->new_sequence();
    const std::uint32_t token = 1;
    const Segment segment{sequence.get(), 1, {&token, 1}, Segment::Logits::last};
    SegmentResult result;
    Times times;
    const auto stats = model->step({&segment, 1}, Access::decode, source, &times, {&result, 1});
    REQUIRE(stats);
    REQUIRE(times.layers.size() == 4);
    Duration before{}, stalled{};
    for (const LayerTiming& t : times.layers) {
      CHECK((before < t.demanded && t.demanded <= t.landed && t.landed <= t.done));
      CHECK(t.stalled <= t.landed - t.demanded);
      CHECK((t.stalled > Duration{}) == (resident == 0));
      before = t.done;
      stalled += t.stalled;
    }
    CHECK(stalled == stats->stall);
    CHECK(before <= stats->total);
    times = {};
    times.wants = false;
    REQUIRE(model->step({&segment, 1}, Access::decode, source, &times, {&result, 1}));
    for (const LayerTiming& t : times.layers) CHECK((t.demanded == Duration{} && t.done == Duration{}));
  }
}

TEST_CASE("bad weights are refused at load, by name") {
  const SteadyClock clock;
  const auto message = [&](TinyModel& tiny) {
    tiny.rebuild();
    const auto model = Model::load_cpu(tiny.config(), tiny.image(), {.threads = 1}, clock);
    REQUIRE_FALSE(model);
    return model.error().message;
  };
  const auto contains = [](const std::string& text, const std::string& part) {
    INFO(text);
    CHECK(text.find(part) != std::string::npos);
  };
  const TinyOptions fp8{.matrices = DType::f8_e4m3, .others = DType::bf16};
  for (const char* name :
       {"lm_head.weight", "model.layers.0.linear_attn.A_log", "model.layers.3.self_attn.k_norm.weight",
        "model.layers.2.mlp.shared_expert.up_proj.weight", "model.layers.1.mlp.gate.weight",
        "model.layers.0.linear_attn.in_proj_qkvz.weight_scale_inv", "stoker.expert_dtype",
        "stoker.layers.2.expert_scales"}) {
    TinyModel tiny(fp8_config(), fp8);
    tiny.remove(name);
    contains(message(tiny),
             std::string(name).find("_scale_inv") == std::string::npos ? name : "in_proj_qkvz.weight");
  }
  struct Damage {
    const char* name;
    std::vector<std::uint8_t> bytes;  ///< written at the tensor's start
  };
  for (const Damage& d :
       std::initializer_list<Damage>{{"model.embed_tokens.weight", {0xC0, 0x7F}},
                                     {"model.layers.1.linear_attn.dt_bias", {0x80, 0xFF}},
                                     {"model.layers.0.linear_attn.out_proj.weight", {0x7F}},
                                     {"model.layers.0.linear_attn.out_proj.weight_scale_inv", {0xC0, 0x7F}},
                                     {"model.layers.3.self_attn.q_proj.weight_scale_inv", {0x80, 0x7F}}}) {
    TinyModel tiny(fp8_config(), fp8);
    for (std::size_t i = 0; i < d.bytes.size(); ++i) tiny.bytes(d.name)[i] = std::byte{d.bytes[i]};
    contains(message(tiny), d.name);
  }
  {
    TinyModel tiny(fp8_config(), fp8);
    auto& scales = tiny.bytes("stoker.layers.1.expert_scales");
    const float nan = std::numeric_limits<float>::quiet_NaN();
    std::memcpy(scales.data() + scales.size() / 12 * 7, &nan, 4);
    contains(message(tiny), "model.layers.1.mlp.experts.7");
  }
  {
    ModelConfig other = fp8_config();
    TinyModel tiny(fp8_config(), fp8);
    other.linear_key_dim = 16;
    const auto model = Model::load_cpu(other, tiny.image(), {.threads = 1}, clock);
    REQUIRE_FALSE(model);
    contains(model.error().message, "model.layers.0.linear_attn.in_proj_qkvz.weight");
  }
}

namespace {

/// Hits only, and no allocation of its own.
class LeanSource final : public ExpertSource {
 public:
  explicit LeanSource(TinyModel& model) : model_(model) {}
  void begin(LayerId layer, std::span<const ExpertId> wanted, Access) override {
    layer_ = layer.value;
    wanted_ = wanted;
  }
  Result<SourceEvent> next(bool) override {
    SourceEvent event;
    if (wanted_.empty()) return event;
    const ExpertId id = wanted_.front();
    wanted_ = wanted_.subspan(1);
    const TinyExpert& e = model_.expert(layer_, id.value);
    event.kind = SourceEvent::Kind::leased;
    event.leased = {id,
                    Tier::pool,
                    0,
                    e.bytes.data() + e.gate,
                    e.bytes.data() + e.up,
                    e.bytes.data() + e.down,
                    e.scales.empty() ? nullptr : e.scales.data()};
    return event;
  }
  void release(const LeasedExpert&) override {}

 private:
  TinyModel& model_;
  std::size_t layer_ = 0;
  std::span<const ExpertId> wanted_;
};

}  // namespace

TEST_CASE("a decode step on hits allocates nothing") {
  TinyModel tiny(fp8_config(), {.matrices = DType::f8_e4m3, .others = DType::bf16});
  auto model = tiny.load({.threads = 2});
  LeanSource source(tiny);
  struct Silent final : RoutingObserver {
    void on_lookahead(const LookaheadEvent&) override {}
    void on_routing(const RoutingEvent&) override {}
  } observer;
  auto sequence = model->new_sequence();
  const std::uint32_t token = 3;
  const Segment segment{sequence.get(), 1, {&token, 1}, Segment::Logits::last};
  SegmentResult result;
  for (int i = 0; i < 3; ++i)
    REQUIRE(model->step({&segment, 1}, Access::decode, source, &observer, {&result, 1}));
  bool ok = true;
  start_counting_allocations();
  for (int i = 0; i < 20; ++i) {
    ok = model->step({&segment, 1}, Access::decode, source, &observer, {&result, 1}).has_value() && ok;
  }
  const std::uint64_t allocations = stop_counting_allocations();
  CHECK(ok);
  CHECK(allocations == 0);
}

TEST_CASE("a sequence's memory is what was promised, and grows by blocks") {
  TinyModel tiny(t0_config(), {});
  auto model = tiny.load();
  CHECK(model->new_sequence()->memory_bytes() == model->sequence_bytes(0));
  CHECK(model->sequence_bytes(1) == model->sequence_bytes(256));
  CHECK(model->sequence_bytes(257) - model->sequence_bytes(256) == std::uint64_t{2} * 2 * 256 * 16 * 4);
}

}  // namespace stoker::testing
