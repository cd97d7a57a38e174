#include "checkpoint/synth_files.h"

#include <nlohmann/json.hpp>

namespace stoker {

using nlohmann::ordered_json;

namespace {

ordered_json ids_json(const std::vector<std::uint32_t>& ids) {
  if (ids.size() == 1) return ids[0];
  return ids.empty() ? ordered_json() : ordered_json(ids);
}

ordered_json quantisation_json(const ModelConfig& config) {
  return {{"activation_scheme", "dynamic"},
          {"fmt", "e4m3"},
          {"quant_method", "fp8"},
          {"weight_block_size", {config.scale_block_rows, config.scale_block_cols}}};
}

}  // namespace

std::string synth_config_json(const SynthSpec& spec) {
  const ModelConfig& c = spec.config;
  ordered_json types = ordered_json::array();
  for (MixerType mixer : c.mixers)
    types.push_back(mixer == MixerType::full_attention ? "full_attention" : "linear_attention");
  ordered_json root = {
      {"architectures", {"Qwen3NextForCausalLM"}},
      {"attention_bias", false},
      {"attention_dropout", 0.0},
      {"decoder_sparse_step", 1},
      {"dtype", spec.format == SynthFormat::f32 ? "float32" : "bfloat16"},
      {"eos_token_id", ids_json(c.eos_token_ids)},
      {"head_dim", c.head_dim},
      {"hidden_act", "silu"},
      {"hidden_size", c.hidden_size},
      {"initializer_range", 0.02},
      {"intermediate_size", c.moe_intermediate * 10},
      {"layer_types", types},
      {"linear_conv_kernel_dim", c.conv_kernel},
      {"linear_key_head_dim", c.linear_key_dim},
      {"linear_num_key_heads", c.linear_key_heads},
      {"linear_num_value_heads", c.linear_value_heads},
      {"linear_value_head_dim", c.linear_value_dim},
      {"max_position_embeddings", c.max_position_embeddings},
      {"mlp_only_layers", ordered_json::array()},
      {"model_type", c.architecture},
      {"moe_intermediate_size", c.moe_intermediate},
      {"norm_topk_prob", c.norm_topk_prob},
      {"num_attention_heads", c.attention_heads},
      {"num_experts", c.experts},
      {"num_experts_per_tok", c.experts_per_token},
      {"num_hidden_layers", c.layers},
      {"num_key_value_heads", c.kv_heads},
      {"output_router_logits", false},
      {"partial_rotary_factor", static_cast<double>(c.rotary_dim) / c.head_dim},
      {"rms_norm_eps", 1e-6},
      {"rope_scaling", nullptr},
      {"rope_theta", c.rope_theta},
      {"router_aux_loss_coef", 0.001},
      {"shared_expert_intermediate_size", c.shared_intermediate},
      {"tie_word_embeddings", c.tie_word_embeddings},
      {"use_cache", true},
      {"use_sliding_window", false},
      {"vocab_size", c.vocab_size},
  };
  if (spec.format == SynthFormat::fp8_bf16_scales || spec.format == SynthFormat::fp8_f32_scales)
    root["quantization_config"] = quantisation_json(c);
  return root.dump(2) + "\n";
}

std::string synth_generation_json(const SynthSpec& spec) {
  // No top_k or top_p with planted locality: the walk over topics needs the whole distribution.
  ordered_json root = {
      {"do_sample", true}, {"eos_token_id", ids_json(spec.config.eos_token_ids)}, {"temperature", 1.0}};
  if (!spec.locality) root.update({{"top_k", 40}, {"top_p", 0.95}});
  return root.dump(2) + "\n";
}

std::string synth_index_json(const std::vector<SynthShard>& shards) {
  std::uint64_t total = 0;
  nlohmann::json map = nlohmann::json::object();  // sorted, as Hugging Face writes it
  for (const SynthShard& shard : shards)
    for (const SynthTensor& tensor : shard.tensors) {
      total += tensor.info.bytes;
      map[tensor.info.name] = shard.name;
    }
  const nlohmann::json root = {{"metadata", {{"total_size", total}}}, {"weight_map", std::move(map)}};
  return root.dump(2) + "\n";
}

}  // namespace stoker
