// config.json, generation_config.json and quantization_config of a published checkpoint.
// Nothing is hard-wired to one model size; what cannot be run is refused here by name.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "shm/base/result.h"

namespace stoker {

enum class MixerType : std::uint8_t { linear_attention, full_attention };

/// Dimensions and constants of a `qwen3_next` model (model.md 1.1). Counts are elements, not bytes.
struct ModelConfig {
  std::string architecture;  ///< "qwen3_next"
  std::uint32_t vocab_size = 0;
  std::uint32_t hidden_size = 0;
  std::uint32_t layers = 0;
  std::uint32_t max_position_embeddings = 0;
  std::vector<MixerType> mixers;  ///< one per layer
  float rms_norm_eps = 1e-6F;
  bool tie_word_embeddings = false;

  // Gated full attention (model.md 3.6)
  std::uint32_t attention_heads = 0;
  std::uint32_t kv_heads = 0;
  std::uint32_t head_dim = 0;
  std::uint32_t rotary_dim = 0;  ///< floor(head_dim * partial_rotary_factor), even
  double rope_theta = 0;

  // Gated DeltaNet (model.md 3.4)
  std::uint32_t linear_key_heads = 0;
  std::uint32_t linear_value_heads = 0;
  std::uint32_t linear_key_dim = 0;    ///< per head
  std::uint32_t linear_value_dim = 0;  ///< per head
  std::uint32_t conv_kernel = 0;

  // Mixture of experts (model.md 3.7)
  std::uint32_t experts = 0;
  std::uint32_t experts_per_token = 0;
  std::uint32_t moe_intermediate = 0;
  std::uint32_t shared_intermediate = 0;  ///< 0: no shared expert
  bool norm_topk_prob = true;

  // quantization_config: block scales; 0 x 0 when not FP8
  std::uint32_t scale_block_rows = 0;
  std::uint32_t scale_block_cols = 0;

  std::vector<std::uint32_t> eos_token_ids;  ///< from config.json; generation_config.json may replace them
};

/// Sampling defaults of generation_config.json; absent keys stay nullopt.
struct GenerationConfig {
  std::optional<bool> do_sample;
  std::optional<float> temperature, top_p, min_p, repetition_penalty;
  std::optional<std::uint32_t> top_k;
  std::vector<std::uint32_t> eos_token_ids;  ///< empty: use config.json's
};

/// Errors name the key and what was found. Errc::unsupported for another architecture, RoPE scaling,
/// sliding windows, dense layers, attention bias, other activations or quantisation methods.
Result<ModelConfig> parse_model_config(std::string_view json);
Result<GenerationConfig> parse_generation_config(std::string_view json);

}  // namespace stoker
