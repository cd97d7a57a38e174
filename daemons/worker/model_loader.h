// The model on the device that the configuration asks for.
#pragma once

#include <cstdint>
#include <memory>

#include "daemons/common/config.h"
#include "gpu-worker/decode.h"
#include "shm/pool.h"

namespace stoker {

struct LoadedModel {
  std::unique_ptr<Model> model;
  std::uint64_t sequence_memory = 0;  ///< budget in bytes for all sequences' state, where the model has them
};

/// `config.device` auto: on a GPU if one works, else on the CPU with a line in the log that says why. All
/// arguments must outlive the model.
Result<LoadedModel> load_model(const Config& config, const ModelConfig& model, const WeightsImage& image,
                               Pool& pool, const Clock& clock);

}  // namespace stoker
