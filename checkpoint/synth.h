// Synthetic checkpoints in the exact published format, of any size: what `stoker synth` writes. The weights
// are random but valid, finite and of realistic size; the same spec and seed give the same bytes.
//
// Locality: with independent random routers every token picks experts anew, and cache hit rates mean
// nothing. With `locality` on, embedding rows are sums of a common, a topic, a subtopic and a token direction
// (caching.md 6.4: popularity, slow, fast and independent part of the router's logits) and sublayers add
// little to the residual stream, so that a walk over topics (routing_tokens.txt) is a walk over experts.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/config.h"
#include "shm/base/result.h"

namespace stoker {

enum class SynthFormat : std::uint8_t { fp8_bf16_scales, fp8_f32_scales, bf16, f32 };

/// Shares (of standard deviation) of the router's logits, and the walk of the tokens. See synth_routing.h.
/// The defaults are calibrated for 512 experts, 10 per token: an LRU of 64 (128) slots per layer hits 67 %
/// (80 %), consecutive tokens share 39 % of their experts and the most used quarter takes 67 % of accesses.
/// caching.md 6.2 and 6.3 have 66-68 %, 79-81 %, 46 % and 59 %. tests/unit/checkpoint/synth_test.cc checks
/// it.
struct RoutingLocality {
  double logit_std = 3.75;  ///< of all parts together
  double common = 1.5;      ///< same for every token: popularity of experts (lognormal heat)
  double topic = 1.3;       ///< changes every `topic_tokens` on average
  double subtopic = 2.77;   ///< changes every `subtopic_tokens` on average
  double token = 1.2;       ///< the token's own
  double topic_tokens = 70;
  double subtopic_tokens = 3;
  std::uint32_t topics = 64;
  std::uint32_t subtopics = 32;  ///< per topic
};

struct SynthSpec {
  std::string directory;  ///< made by synthesize(); written as <directory>.partial and renamed at the end
  ModelConfig config;
  SynthFormat format = SynthFormat::fp8_bf16_scales;
  std::uint32_t shards = 4;
  std::uint64_t seed = 1;
  unsigned threads = 0;      ///< 0: one per core
  bool force = false;        ///< replace an existing checkpoint directory
  bool sparse = false;       ///< most experts are file holes (weights 0, scales valid)
  double real_share = 0.03;  ///< sparse: share of experts that are written
  bool locality = false;
  RoutingLocality routing;
  std::uint32_t routing_tokens = 0;  ///< ids in routing_tokens.txt; 0: no such file
  /// The walk uses ids below this; 0: the whole vocabulary. Fewer than some 50,000 ids repeat themselves so
  /// often that hit rates come out too high.
  std::uint32_t routing_vocab = 0;
  /// Copied to tokenizer.json, tokenizer_config.json, chat_template.jinja; empty: not written.
  std::string tokenizer_path, tokenizer_config_path, template_path;
};

struct SynthReport {
  std::uint64_t tensors = 0;
  std::uint64_t tensor_bytes = 0;   ///< sum over tensors, as published sizes are counted
  std::uint64_t written_bytes = 0;  ///< of those, really written
  std::uint32_t files = 0;
  std::uint64_t real_experts = 0, experts = 0;
};

struct SynthProgress {
  std::uint64_t done_bytes = 0, total_bytes = 0;
};
/// Called now and then, by one thread at a time; false cancels.
using SynthCallback = std::function<bool(const SynthProgress&)>;

/// "tiny" (8 layers, hidden 256, 16 experts, for tests and the demo), "bench" (12 layers of the real shapes,
/// 19 GB), "Qwen3-Coder-Next-FP8" (48 layers, 40 shards, 148,383 tensors, 80,362,904,064 tensor bytes).
Result<SynthSpec> synth_preset(std::string_view name);

/// What synthesize() would write, without writing.
Result<SynthReport> synth_plan(const SynthSpec& spec);

/// Writes the checkpoint. Refuses an existing directory (unless force), too little disk space, and specs
/// whose config parse_model_config would refuse. On failure nothing is left but a removed .partial directory.
Result<SynthReport> synthesize(const SynthSpec& spec, const SynthCallback& progress = {});

}  // namespace stoker
