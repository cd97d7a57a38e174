// The small files of a synthetic checkpoint.
#pragma once

#include <string>
#include <vector>

#include "checkpoint/synth.h"
#include "checkpoint/synth_layout.h"

namespace stoker {

/// config.json with the keys of the published one (model.md 1); parse_model_config reads it back to the same
/// ModelConfig.
std::string synth_config_json(const SynthSpec& spec);
std::string synth_generation_json(const SynthSpec& spec);
/// model.safetensors.index.json.
std::string synth_index_json(const std::vector<SynthShard>& shards);

}  // namespace stoker
