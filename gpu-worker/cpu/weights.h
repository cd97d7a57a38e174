// The weights of a model, bound to the resident image: what every backend starts from.
#pragma once

#include <vector>

#include "checkpoint/config.h"
#include "gpu-worker/cpu/buffer.h"
#include "gpu-worker/cpu/kernels.h"
#include "gpu-worker/dims.h"
#include "gpu-worker/weights.h"

namespace stoker {

class ThreadPool;

/// Small vectors (norms, conv taps) are kept as F32; matrices stay where the image has them.
struct DeltaNetWeights {
  Matrix qkvz, ba, out;
  FloatBuffer conv;       ///< [taps][conv_dim], oldest tap first
  FloatBuffer neg_exp_a;  ///< -exp(A_log), per value head
  FloatBuffer dt_bias;
  FloatBuffer norm;  ///< plain w (model.md trap 1)
};

struct AttentionWeights {
  Matrix q, k, v, o;
  FloatBuffer q_norm, k_norm;  ///< 1 + w
};

struct MoeWeights {
  Matrix router;                               ///< [experts, hidden]
  Matrix shared_scale;                         ///< [1, hidden]: the shared expert's sigmoid gate
  Matrix shared_gate, shared_up, shared_down;  ///< absent when shared_intermediate == 0
};

struct LayerWeights {
  MixerType mixer = MixerType::linear_attention;
  FloatBuffer input_norm, post_norm;  ///< 1 + w
  DeltaNetWeights delta;              ///< one of the two mixers is bound
  AttentionWeights attention;
  MoeWeights moe;
};

struct ModelWeights {
  Matrix embed, lm_head;
  FloatBuffer final_norm;
  std::vector<LayerWeights> layers;
  DType expert_dtype = DType::other;
  std::vector<FloatBuffer> scales;  ///< widened tile scales of the resident FP8 matrices
};

/// Binds and checks every tensor that `config` implies. Errors name the tensor.
Result<ModelWeights> bind_weights(const ModelConfig& config, const WeightsImage& image,
                                  const Kernels& kernels, ThreadPool& pool);

}  // namespace stoker
