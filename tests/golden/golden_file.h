// A golden: a manifest (data/NAME.json) with the recipe of a checkpoint and token sequences, and what Hugging
// Face transformers computed for them (data/NAME.bin). Made by tools/oracle/make_goldens.py; docs/goldens.md.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/config.h"
#include "checkpoint/safetensors.h"
#include "shm/base/result.h"
#include "tests/golden/generator.h"

namespace stoker::golden {

inline constexpr std::uint32_t kProbes = 32;

struct ShardDigest {
  std::string file;
  std::uint64_t data_bytes = 0;
  std::string data_sha256;  ///< of the data section, in hex
};

/// What transformers said about one position.
struct PositionRecord {
  std::span<const float> probes;  ///< logits of entries probe_id(position, 0..kProbes-1)
  float largest = 0;              ///< largest |logit|
  std::uint32_t argmax = 0;
  float log_sum_exp = 0;
  float margin = 0;  ///< (first - second logit) / largest
};

struct Case {
  std::string name;
  std::vector<std::uint32_t> tokens;
  std::vector<std::vector<std::uint32_t>> splits;  ///< ways to feed the tokens; all give the same logits
  std::uint32_t prompt = 0;                        ///< greedy: length of the prompt within tokens
  std::vector<std::uint32_t> greedy;               ///< what follows the prompt; empty for other cases
  std::vector<PositionRecord> positions;           ///< one per token
  std::span<const float> last_logits;              ///< the whole row of the last position
};

struct Golden {
  std::string name;
  std::string salt;
  Rules rules = Rules::tiny;
  DType weight_dtype = DType::other;  ///< f8_e4m3, bf16 or f32
  DType scale_dtype = DType::other;   ///< bf16 or f32 when weights are FP8
  std::uint64_t shard_bytes = 0;
  std::uint32_t straddling_experts = 0;
  std::string config_json;  ///< text of config.json
  ModelConfig config;       ///< the same, parsed
  std::vector<ShardDigest> shards;
  std::vector<Case> cases;
  std::vector<float> blob;  ///< what the spans point into
};

/// Reads data/NAME.{json,bin} of `directory`.
Result<Golden> read_golden(const std::string& directory, const std::string& name);

/// The vocabulary entry whose logit is kept as probe `j` of a position.
std::uint32_t probe_id(std::uint64_t position, std::uint64_t j, std::uint32_t vocab);

}  // namespace stoker::golden
