#include "tests/golden/golden_checkpoint.h"

#include <openssl/evp.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

namespace stoker::golden {
namespace {

using Shape = std::vector<std::uint64_t>;

void add_mlp(std::vector<Stored>& out, const std::string& prefix, std::uint64_t hidden, std::uint64_t width) {
  out.push_back({prefix + "gate_proj.weight", DType::other, {width, hidden}});
  out.push_back({prefix + "up_proj.weight", DType::other, {width, hidden}});
  out.push_back({prefix + "down_proj.weight", DType::other, {hidden, width}});
}

void add_mixer(std::vector<Stored>& out, const ModelConfig& c, const std::string& prefix, MixerType mixer) {
  const std::uint64_t h = c.hidden_size;
  if (mixer == MixerType::linear_attention) {
    const std::string p = prefix + "linear_attn.";
    const std::uint64_t kd = std::uint64_t{c.linear_key_heads} * c.linear_key_dim;
    const std::uint64_t vd = std::uint64_t{c.linear_value_heads} * c.linear_value_dim;
    out.push_back({p + "in_proj_qkvz.weight", DType::other, {2 * kd + 2 * vd, h}});
    out.push_back({p + "in_proj_ba.weight", DType::other, {std::uint64_t{2} * c.linear_value_heads, h}});
    out.push_back({p + "conv1d.weight", DType::other, {2 * kd + vd, 1, c.conv_kernel}});
    out.push_back({p + "A_log", DType::other, {c.linear_value_heads}});
    out.push_back({p + "dt_bias", DType::other, {c.linear_value_heads}});
    out.push_back({p + "norm.weight", DType::other, {c.linear_value_dim}});
    out.push_back({p + "out_proj.weight", DType::other, {h, vd}});
    return;
  }
  const std::string p = prefix + "self_attn.";
  const std::uint64_t qd = std::uint64_t{c.attention_heads} * c.head_dim;
  const std::uint64_t kvd = std::uint64_t{c.kv_heads} * c.head_dim;
  out.push_back({p + "q_proj.weight", DType::other, {2 * qd, h}});
  out.push_back({p + "k_proj.weight", DType::other, {kvd, h}});
  out.push_back({p + "v_proj.weight", DType::other, {kvd, h}});
  out.push_back({p + "o_proj.weight", DType::other, {h, qd}});
  out.push_back({p + "q_norm.weight", DType::other, {c.head_dim}});
  out.push_back({p + "k_norm.weight", DType::other, {c.head_dim}});
}

std::vector<Stored> weight_list(const ModelConfig& c) {
  const std::uint64_t h = c.hidden_size;
  std::vector<Stored> out;
  out.push_back({"model.embed_tokens.weight", DType::other, {c.vocab_size, h}});
  for (std::size_t i = 0; i < c.mixers.size(); ++i) {
    const std::string p = "model.layers." + std::to_string(i) + ".";
    out.push_back({p + "input_layernorm.weight", DType::other, {h}});
    add_mixer(out, c, p, c.mixers[i]);
    out.push_back({p + "post_attention_layernorm.weight", DType::other, {h}});
    out.push_back({p + "mlp.gate.weight", DType::other, {c.experts, h}});
    if (c.shared_intermediate > 0) {
      out.push_back({p + "mlp.shared_expert_gate.weight", DType::other, {1, h}});
      add_mlp(out, p + "mlp.shared_expert.", h, c.shared_intermediate);
    }
    for (std::uint32_t e = 0; e < c.experts; ++e)
      add_mlp(out, p + "mlp.experts." + std::to_string(e) + ".", h, c.moe_intermediate);
  }
  out.push_back({"model.norm.weight", DType::other, {h}});
  if (!c.tie_word_embeddings) out.push_back({"lm_head.weight", DType::other, {c.vocab_size, h}});
  return out;
}

std::uint64_t byte_count(const Stored& tensor) {
  std::uint64_t n = dtype_bytes(tensor.dtype);
  for (std::uint64_t d : tensor.shape) n *= d;
  return n;
}

/// A new shard begins when the next tensor would pass shard_bytes, so experts straddle files. Inside a shard
/// wider types come first, then names, as the standard serialiser orders them (model.md 2.3).
std::vector<std::vector<Stored>> shards(const Golden& golden) {
  std::vector<std::vector<Stored>> out(1);
  std::uint64_t size = 0;
  for (Stored& tensor : stored_tensors(golden)) {
    const std::uint64_t n = byte_count(tensor);
    if (!out.back().empty() && size + n > golden.shard_bytes) {
      out.emplace_back();
      size = 0;
    }
    size += n;
    out.back().push_back(std::move(tensor));
  }
  for (auto& shard : out)
    std::sort(shard.begin(), shard.end(), [](const Stored& a, const Stored& b) {
      const auto width_a = dtype_bytes(a.dtype), width_b = dtype_bytes(b.dtype);
      return width_a != width_b ? width_a > width_b : a.name < b.name;
    });
  return out;
}

template <class T>
std::string raw_bytes(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

std::string bf16_bytes(const std::vector<float>& values) {
  std::vector<std::uint16_t> bits(values.size());
  std::transform(values.begin(), values.end(), bits.begin(), to_bf16);
  return raw_bytes(bits);
}

/// Makes a weight's stored bytes, and its scales' when it is FP8, and puts them under their names.
void make(const Golden& golden, const std::string& name, const Shape& shape, DType dtype,
          std::map<std::string, std::string>& ready) {
  std::vector<float> values = make_tensor(name, shape, golden.salt, golden.rules);
  if (dtype == DType::f32) {
    ready[name] = raw_bytes(values);
    return;
  }
  if (dtype == DType::bf16) {
    ready[name] = bf16_bytes(values);
    return;
  }
  for (float& v : values) v = from_bf16(to_bf16(v));  // the FP8 release is made from the BF16 one
  const bool bf16_scales = golden.scale_dtype == DType::bf16;
  const Quantised q = quantise(values, shape[0], shape[1], bf16_scales);
  ready[name] = raw_bytes(q.codes);
  ready[name + "_scale_inv"] = bf16_scales ? bf16_bytes(q.scales) : raw_bytes(q.scales);
}

std::string sha256_hex(const std::string& bytes) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned length = 0;
  EVP_Digest(bytes.data(), bytes.size(), digest, &length, EVP_sha256(), nullptr);
  std::string out;
  for (unsigned i = 0; i < length; ++i) {
    out += "0123456789abcdef"[digest[i] >> 4];
    out += "0123456789abcdef"[digest[i] & 15];
  }
  return out;
}

Result<void> write_text(const std::filesystem::path& path, const std::string& head,
                        const std::string& body = {}) {
  std::ofstream file(path, std::ios::binary);
  file << head << body;
  file.close();
  if (!file) return fail(Errc::io, "cannot write " + path.string(), errno);
  return {};
}

std::string index_json(const Golden& golden, const std::vector<std::vector<Stored>>& plan) {
  nlohmann::json index;
  std::uint64_t total = 0;
  for (std::size_t i = 0; i < plan.size(); ++i) {
    total += golden.shards[i].data_bytes;
    for (const Stored& tensor : plan[i]) index["weight_map"][tensor.name] = golden.shards[i].file;
  }
  index["metadata"]["total_size"] = total;
  return index.dump(2) + "\n";
}

std::string generation_json(const ModelConfig& config) {
  nlohmann::json json;
  json["do_sample"] = false;
  json["eos_token_id"] = config.eos_token_ids;
  return json.dump(2) + "\n";
}

std::string header_of(const std::vector<Stored>& shard) {
  std::vector<TensorInfo> infos;
  std::uint64_t offset = 0;
  for (const Stored& tensor : shard) {
    infos.push_back({tensor.name, tensor.dtype, tensor.shape, offset, byte_count(tensor)});
    offset += byte_count(tensor);
  }
  return write_safetensors_header(infos, 8, {{"format", "pt"}});
}

}  // namespace

std::vector<Stored> stored_tensors(const Golden& golden) {
  std::vector<Stored> out;
  for (Stored& tensor : weight_list(golden.config)) {
    const bool fp8 = golden.weight_dtype == DType::f8_e4m3 && is_fp8_module(tensor.name);
    tensor.dtype = fp8 ? DType::f8_e4m3 : golden.weight_dtype == DType::f32 ? DType::f32 : DType::bf16;
    out.push_back(tensor);
    if (!fp8) continue;
    for (std::uint64_t& d : tensor.shape) d = (d + kTile - 1) / kTile;
    out.push_back({tensor.name + "_scale_inv", golden.scale_dtype, tensor.shape});
  }
  return out;
}

Result<void> write_checkpoint(const Golden& golden, const std::string& directory,
                              const std::string& tokenizer) {
  namespace fs = std::filesystem;
  const fs::path dir(directory);
  std::error_code error;
  fs::create_directories(dir, error);
  if (error) return fail(Errc::io, "cannot make directory " + directory, error.value());
  std::map<std::string, Stored> weights;
  for (Stored& tensor : stored_tensors(golden)) weights.emplace(tensor.name, tensor);
  const auto plan = shards(golden);
  if (plan.size() != golden.shards.size())
    return fail(Errc::corrupt, golden.name + ": " + std::to_string(plan.size()) +
                                   " shards, the manifest has " + std::to_string(golden.shards.size()));
  std::map<std::string, std::string> ready;  // made, but not yet written: a scale may be in the next shard
  for (std::size_t i = 0; i < plan.size(); ++i) {
    std::string data;
    data.reserve(golden.shards[i].data_bytes);
    for (const Stored& tensor : plan[i]) {
      if (!ready.contains(tensor.name)) {
        const bool scale = tensor.name.ends_with("_scale_inv");
        const Stored& weight =
            weights.at(scale ? tensor.name.substr(0, tensor.name.size() - 10) : tensor.name);
        make(golden, weight.name, weight.shape, weight.dtype, ready);
      }
      data += ready.at(tensor.name);
      ready.erase(tensor.name);
    }
    if (sha256_hex(data) != golden.shards[i].data_sha256)
      return fail(Errc::corrupt,
                  golden.name + ": " + golden.shards[i].file +
                      " differs from what the oracle used; generator.cc and generator.py disagree");
    STOKER_TRY_VOID(write_text(dir / golden.shards[i].file, header_of(plan[i]), data));
  }
  if (plan.size() > 1)
    STOKER_TRY_VOID(write_text(dir / "model.safetensors.index.json", index_json(golden, plan)));
  STOKER_TRY_VOID(write_text(dir / "config.json", golden.config_json));
  STOKER_TRY_VOID(write_text(dir / "generation_config.json", generation_json(golden.config)));
  if (!tokenizer.empty()) {
    fs::copy_file(tokenizer, dir / "tokenizer.json", fs::copy_options::overwrite_existing, error);
    if (error) return fail(Errc::io, "cannot copy " + tokenizer, error.value());
  }
  return {};
}

}  // namespace stoker::golden
