#include "checkpoint/tensor_list.h"

namespace stoker {

namespace {

void add_linear_attention(std::vector<TensorSpec>& out, const ModelConfig& c, const std::string& layer) {
  const std::string at = layer + "linear_attn.";
  const std::uint64_t key = std::uint64_t{c.linear_key_heads} * c.linear_key_dim;
  const std::uint64_t value = std::uint64_t{c.linear_value_heads} * c.linear_value_dim;
  out.push_back({at + "in_proj_qkvz.weight", {2 * key + 2 * value, c.hidden_size}, TensorRole::linear});
  out.push_back({at + "in_proj_ba.weight",
                 {2 * std::uint64_t{c.linear_value_heads}, c.hidden_size},
                 TensorRole::in_proj_ba});
  out.push_back({at + "conv1d.weight", {2 * key + value, 1, c.conv_kernel}, TensorRole::conv});
  out.push_back({at + "A_log", {c.linear_value_heads}, TensorRole::a_log});
  out.push_back({at + "dt_bias", {c.linear_value_heads}, TensorRole::dt_bias});
  out.push_back({at + "norm.weight", {c.linear_value_dim}, TensorRole::gated_norm});
  out.push_back({at + "out_proj.weight", {c.hidden_size, value}, TensorRole::linear});
}

void add_full_attention(std::vector<TensorSpec>& out, const ModelConfig& c, const std::string& layer) {
  const std::string at = layer + "self_attn.";
  const std::uint64_t query = std::uint64_t{c.attention_heads} * c.head_dim;
  const std::uint64_t key = std::uint64_t{c.kv_heads} * c.head_dim;
  out.push_back({at + "q_proj.weight", {2 * query, c.hidden_size}, TensorRole::linear});
  out.push_back({at + "k_proj.weight", {key, c.hidden_size}, TensorRole::linear});
  out.push_back({at + "v_proj.weight", {key, c.hidden_size}, TensorRole::linear});
  out.push_back({at + "o_proj.weight", {c.hidden_size, query}, TensorRole::linear});
  out.push_back({at + "q_norm.weight", {c.head_dim}, TensorRole::norm});
  out.push_back({at + "k_norm.weight", {c.head_dim}, TensorRole::norm});
}

void add_mlp(std::vector<TensorSpec>& out, const ModelConfig& c, const std::string& layer) {
  const std::string at = layer + "mlp.";
  out.push_back({at + "gate.weight", {c.experts, c.hidden_size}, TensorRole::router});
  if (c.shared_intermediate == 0) return;
  out.push_back({at + "shared_expert_gate.weight", {1, c.hidden_size}, TensorRole::shared_gate});
  out.push_back(
      {at + "shared_expert.gate_proj.weight", {c.shared_intermediate, c.hidden_size}, TensorRole::linear});
  out.push_back(
      {at + "shared_expert.up_proj.weight", {c.shared_intermediate, c.hidden_size}, TensorRole::linear});
  out.push_back(
      {at + "shared_expert.down_proj.weight", {c.hidden_size, c.shared_intermediate}, TensorRole::linear});
}

}  // namespace

std::string layer_prefix(std::uint32_t layer) { return "model.layers." + std::to_string(layer) + "."; }

std::string expert_prefix(std::uint32_t layer, std::uint32_t expert) {
  return layer_prefix(layer) + "mlp.experts." + std::to_string(expert) + ".";
}

std::vector<std::uint64_t> expert_shape(const ModelConfig& c, unsigned matrix) {
  if (matrix == 2) return {c.hidden_size, c.moe_intermediate};
  return {c.moe_intermediate, c.hidden_size};
}

std::vector<std::uint64_t> scale_shape(const ModelConfig& c, const std::vector<std::uint64_t>& shape) {
  const std::uint64_t rows = c.scale_block_rows, cols = c.scale_block_cols;
  return {(shape[0] + rows - 1) / rows, (shape[1] + cols - 1) / cols};
}

std::vector<TensorSpec> resident_tensors(const ModelConfig& c) {
  std::vector<TensorSpec> out;
  out.reserve(3 + std::size_t{c.layers} * 16);
  out.push_back({"model.embed_tokens.weight", {c.vocab_size, c.hidden_size}, TensorRole::embedding});
  for (std::uint32_t i = 0; i < c.layers; ++i) {
    const std::string layer = layer_prefix(i);
    out.push_back({layer + "input_layernorm.weight", {c.hidden_size}, TensorRole::norm});
    if (c.mixers[i] == MixerType::full_attention)
      add_full_attention(out, c, layer);
    else
      add_linear_attention(out, c, layer);
    out.push_back({layer + "post_attention_layernorm.weight", {c.hidden_size}, TensorRole::norm});
    add_mlp(out, c, layer);
  }
  out.push_back({"model.norm.weight", {c.hidden_size}, TensorRole::norm});
  if (!c.tie_word_embeddings)
    out.push_back({"lm_head.weight", {c.vocab_size, c.hidden_size}, TensorRole::lm_head});
  return out;
}

}  // namespace stoker
