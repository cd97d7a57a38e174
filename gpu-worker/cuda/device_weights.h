// The resident weights in device memory, uploaded from the bound image. The embedding stays on the host: a
// token needs one row of it.
#pragma once

#include <cstdint>
#include <vector>

#include "gpu-worker/cpu/weights.h"
#include "gpu-worker/cuda/device.h"

namespace stoker {

struct DeviceDeltaNet {
  device::Matrix qkvz{}, ba{}, out{};
  const float *conv = nullptr, *neg_exp_a = nullptr, *dt_bias = nullptr, *norm = nullptr;
};
struct DeviceAttention {
  device::Matrix q{}, k{}, v{}, o{};
  const float *q_norm = nullptr, *k_norm = nullptr;
};
struct DeviceMoe {
  device::Matrix router{}, shared_scale{}, shared_gate{}, shared_up{}, shared_down{};
  const float* expert_scales = nullptr;  ///< FP8: [experts][scales_per_expert]
};
struct DeviceLayer {
  MixerType mixer = MixerType::linear_attention;
  std::uint32_t index = 0;  ///< among the layers of its mixer
  const float *input_norm = nullptr, *post_norm = nullptr;
  DeviceDeltaNet delta;
  DeviceAttention attention;
  DeviceMoe moe;
};

struct DeviceWeights {
  std::vector<DeviceLayer> layers;
  const float* final_norm = nullptr;
  device::Matrix lm_head{};
  const std::uint32_t *qkvz_scatter = nullptr, *ba_scatter = nullptr, *q_scatter = nullptr;
  std::uint32_t scales_per_expert = 0;
  std::uint32_t delta_layers = 0, attention_layers = 0;

  std::uint64_t bytes = 0;  ///< of device memory
  std::vector<DeviceArray<std::byte>> blocks;

  /// Returns when everything is there.
  static Result<DeviceWeights> upload(const device::Api& api, device::Stream* stream,
                                      const ModelConfig& config, const ModelWeights& weights,
                                      const WeightsImage& image);
};

device::Code code_of(DType dtype);

}  // namespace stoker
