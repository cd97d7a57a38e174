// Which tensors a synthetic checkpoint has, in which shard, at which offset.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "checkpoint/safetensors.h"
#include "checkpoint/synth.h"
#include "checkpoint/tensor_list.h"

namespace stoker {

struct SynthTensor {
  TensorInfo info;  ///< begin is relative to the shard's data section
  TensorRole role = TensorRole::linear;
  bool scale = false;         ///< the "_scale_inv" of a matrix of this role
  bool hole = false;          ///< payload left as a file hole
  std::uint64_t columns = 0;  ///< inputs per row of the (scaled) matrix: sets the size of the weights
};

struct SynthShard {
  std::string name;    ///< model-00001-of-00040.safetensors
  std::string header;  ///< length field and JSON
  std::vector<SynthTensor> tensors;
  std::uint64_t data_bytes = 0;
};

/// Tensors in model order are dealt to `spec.shards` shards of about equal size (an expert may straddle two);
/// inside a shard they lie as the standard serialiser puts them: wider dtypes first, then by name
/// (model.md 2.3).
std::vector<SynthShard> synth_shards(const SynthSpec& spec);

/// Whether the expert is written, not left as a hole.
bool synth_expert_is_real(const SynthSpec& spec, std::uint32_t layer, std::uint32_t expert);

}  // namespace stoker
