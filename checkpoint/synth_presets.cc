#include "checkpoint/synth.h"

namespace stoker {

namespace {

void set_mixers(ModelConfig& config, std::uint32_t layers) {
  config.layers = layers;
  config.mixers.clear();
  for (std::uint32_t i = 0; i < layers; ++i)
    config.mixers.push_back((i + 1) % 4 == 0 ? MixerType::full_attention : MixerType::linear_attention);
}

/// model.md 1.1.
ModelConfig coder_next(std::uint32_t layers) {
  ModelConfig c;
  c.architecture = "qwen3_next";
  c.vocab_size = 151936;
  c.hidden_size = 2048;
  c.max_position_embeddings = 262144;
  set_mixers(c, layers);
  c.attention_heads = 16;
  c.kv_heads = 2;
  c.head_dim = 256;
  c.rotary_dim = 64;
  c.rope_theta = 5e6;
  c.linear_key_heads = 16;
  c.linear_value_heads = 32;
  c.linear_key_dim = c.linear_value_dim = 128;
  c.conv_kernel = 4;
  c.experts = 512;
  c.experts_per_token = 10;
  c.moe_intermediate = c.shared_intermediate = 512;
  c.scale_block_rows = c.scale_block_cols = 128;
  c.eos_token_ids = {151645};
  return c;
}

/// model.md 9.1.
ModelConfig tiny() {
  ModelConfig c = coder_next(8);
  c.vocab_size = 512;
  c.hidden_size = 256;
  c.max_position_embeddings = 4096;
  c.attention_heads = 4;
  c.head_dim = 64;
  c.rotary_dim = 16;
  c.linear_key_heads = 2;
  c.linear_value_heads = 4;
  c.experts = 16;
  c.experts_per_token = 4;
  c.moe_intermediate = c.shared_intermediate = 128;
  c.eos_token_ids = {511};
  return c;
}

}  // namespace

Result<SynthSpec> synth_preset(std::string_view name) {
  SynthSpec spec;
  if (name == "tiny") {
    spec.config = tiny();
    spec.shards = 3;
    return spec;
  }
  spec.locality = true;
  spec.routing_tokens = 8192;
  spec.routing_vocab = 151669;  // ids above are padding rows of the published tokenizer
  if (name == "bench") {
    spec.config = coder_next(12);
    spec.shards = 10;
    return spec;
  }
  if (name == "Qwen3-Coder-Next-FP8") {
    spec.config = coder_next(48);
    spec.shards = 40;
    return spec;
  }
  return fail(Errc::invalid, "no synthetic preset \"" + std::string(name.substr(0, 60)) +
                                 "\"; there are tiny, bench and Qwen3-Coder-Next-FP8");
}

}  // namespace stoker
