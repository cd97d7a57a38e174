// Sizes and index tables that follow from a model's configuration, for every backend.
#pragma once

#include <cstdint>
#include <vector>

#include "checkpoint/config.h"

namespace stoker {

/// Longest causal convolution that the DeltaNet mixer takes; published models have 4 taps.
inline constexpr std::uint32_t kConvTapsMax = 64;
inline constexpr float kL2Eps = 1e-6F;  ///< model.md trap 8

struct Dims {
  explicit Dims(const ModelConfig& c);
  std::uint32_t key_dim, value_dim, conv_dim;  ///< DeltaNet: key heads * dim, value heads * dim, channels
  std::uint32_t v_per_k;                       ///< value heads per key head
  std::uint32_t q_dim, kv_dim;                 ///< attention
  std::uint32_t q_per_kv;
};

// Destination of each projected row: undoes the interleaving of model.md 2.1 when results are stored.

/// Row of in_proj_qkvz -> column of [q | k | v | z], value and key heads in order.
std::vector<std::uint32_t> qkvz_columns(const ModelConfig& c, const Dims& dims);
/// Row of in_proj_ba -> column of [b | a].
std::vector<std::uint32_t> ba_columns(const ModelConfig& c, const Dims& dims);
/// Row of q_proj -> column of [q | gate].
std::vector<std::uint32_t> q_columns(const ModelConfig& c, const Dims& dims);

}  // namespace stoker
