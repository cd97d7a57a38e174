// The tensors that a config implies (model.md 2): what Checkpoint demands and what synth writes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "checkpoint/config.h"

namespace stoker {

/// What a tensor is for; decides its dtype in FP8 checkpoints and its values in synthetic ones.
enum class TensorRole : std::uint8_t {
  embedding,
  lm_head,
  norm,        ///< zero-centred RMSNorm: multiplies by 1 + w
  gated_norm,  ///< linear_attn.norm: multiplies by w
  router,
  shared_gate,
  in_proj_ba,
  conv,
  a_log,
  dt_bias,
  linear,  ///< a mixer's or the shared expert's matrix; FP8 with scales in FP8 checkpoints
  expert,  ///< a routed expert's matrix; the same
};

/// FP8 checkpoints store these as F8_E4M3 plus "<name>_scale_inv"; all others stay BF16 or F32.
constexpr bool may_be_fp8(TensorRole role) {
  return role == TensorRole::linear || role == TensorRole::expert;
}

struct TensorSpec {
  std::string name;
  std::vector<std::uint64_t> shape;
  TensorRole role = TensorRole::linear;
};

/// All tensors but routed experts and scales, in model order.
std::vector<TensorSpec> resident_tensors(const ModelConfig& config);

/// gate, up and down of one routed expert, in this order. `prefix` as from layer_prefix().
std::string layer_prefix(std::uint32_t layer);
std::string expert_prefix(std::uint32_t layer, std::uint32_t expert);
inline constexpr const char* kExpertMatrices[3] = {"gate_proj.weight", "up_proj.weight", "down_proj.weight"};
/// [rows, cols] of matrix 0 (gate), 1 (up) or 2 (down) of a routed expert.
std::vector<std::uint64_t> expert_shape(const ModelConfig& config, unsigned matrix);

inline constexpr const char* kScaleSuffix = "_scale_inv";
/// Shape of the scales of an FP8 matrix [rows, cols]: one per tile, partial tiles count (ceil).
std::vector<std::uint64_t> scale_shape(const ModelConfig& config, const std::vector<std::uint64_t>& shape);

}  // namespace stoker
