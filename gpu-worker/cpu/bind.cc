// From the weights image to typed matrices: every tensor found, its shape, dtype and scales checked.
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>

#include "gpu-worker/cpu/thread_pool.h"
#include "gpu-worker/cpu/weights.h"

namespace stoker {
namespace {

std::string layer_name(std::size_t layer, const char* rest) {
  return "model.layers." + std::to_string(layer) + "." + rest;
}

class Binder {
 public:
  Binder(const ModelConfig& config, const WeightsImage& image, const Kernels& kernels, ThreadPool& pool)
      : config_(config), image_(image), kernels_(kernels), pool_(pool) {}

  Result<ModelWeights> bind();

 private:
  Result<Matrix> matrix(const std::string& name, std::uint64_t rows, std::uint64_t cols);
  /// A vector or small matrix as F32, plus `offset` (1 for zero-centred norms).
  Result<FloatBuffer> floats(const std::string& name, std::uint64_t rows, std::uint64_t cols, float offset);
  Result<const float*> widen_scales(const std::string& name, std::uint64_t rows, std::uint64_t cols);
  Result<void> check_finite(const std::string& name, const MatrixView& view);
  Result<void> layer(std::size_t index, LayerWeights& out);
  Result<void> delta_net(std::size_t index, DeltaNetWeights& out);
  Result<void> attention(std::size_t index, AttentionWeights& out);
  Result<void> moe(std::size_t index, MoeWeights& out);
  Result<DType> expert_dtype();
  Result<void> check_expert_scales();
  Result<void> bad_expert_scale(std::uint32_t layer, const std::byte* scales,
                                const std::array<std::uint64_t, 3>& tiles);

  const ModelConfig& config_;
  const WeightsImage& image_;
  const Kernels& kernels_;
  ThreadPool& pool_;
  std::vector<FloatBuffer> scales_;
};

bool runnable(DType dtype) {
  return dtype == DType::f8_e4m3 || dtype == DType::bf16 || dtype == DType::f16 || dtype == DType::f32;
}

/// Elements of `bytes` per parallel chunk: enough to be worth a thread.
constexpr std::size_t kCheckGrain = 1U << 20;

Result<void> Binder::check_finite(const std::string& name, const MatrixView& view) {
  const std::size_t elements = std::size_t{view.rows} * view.cols;
  std::atomic<bool> bad{false};
  pool_.run(elements, kCheckGrain, [&](std::size_t begin, std::size_t end, unsigned) {
    const std::byte* from = view.data + begin * dtype_bytes(view.dtype);
    if (kernels_.has_non_finite(from, view.dtype, end - begin)) bad.store(true, std::memory_order_relaxed);
  });
  if (!bad.load()) return {};
  return fail(Errc::corrupt,
              "tensor " + name + " holds NaN or infinity: the checkpoint is damaged, run `stoker verify`");
}

Result<Matrix> Binder::matrix(const std::string& name, std::uint64_t rows, std::uint64_t cols) {
  STOKER_TRY(const MatrixView view, image_.matrix(name, rows, cols));
  if (!runnable(view.dtype)) {
    return fail(Errc::unsupported, "tensor " + name + " has dtype " + std::string(dtype_name(view.dtype)) +
                                       "; this build runs F8_E4M3, BF16, F16 and F32");
  }
  STOKER_TRY_VOID(check_finite(name, view));
  Matrix m{view.data, view.dtype, view.rows, view.cols, nullptr, 0, 0};
  if (view.dtype != DType::f8_e4m3) return m;
  m.block_rows = config_.scale_block_rows;
  m.block_cols = config_.scale_block_cols;
  STOKER_TRY(m.scales, widen_scales(name, rows, cols));
  return m;
}

Result<const float*> Binder::widen_scales(const std::string& name, std::uint64_t rows, std::uint64_t cols) {
  const std::string scale_name = name + "_scale_inv";
  if (config_.scale_block_rows == 0 || config_.scale_block_cols == 0) {
    return fail(Errc::corrupt,
                "tensor " + name + " is FP8, but config.json has no quantization_config block size");
  }
  const std::uint64_t tile_rows = (rows + config_.scale_block_rows - 1) / config_.scale_block_rows;
  const std::uint64_t tile_cols = (cols + config_.scale_block_cols - 1) / config_.scale_block_cols;
  STOKER_TRY(FloatBuffer wide, floats(scale_name, tile_rows, tile_cols, 0.0F));
  scales_.push_back(std::move(wide));
  return scales_.back().data();
}

Result<FloatBuffer> Binder::floats(const std::string& name, std::uint64_t rows, std::uint64_t cols,
                                   float offset) {
  STOKER_TRY(const MatrixView view, image_.matrix(name, rows, cols));
  if (!runnable(view.dtype) || view.dtype == DType::f8_e4m3) {
    return fail(Errc::unsupported, "tensor " + name + " has dtype " + std::string(dtype_name(view.dtype)) +
                                       "; it must be BF16, F16 or F32");
  }
  STOKER_TRY_VOID(check_finite(name, view));
  FloatBuffer out(std::size_t{view.rows} * view.cols);
  const Matrix m{view.data, view.dtype, view.rows, view.cols, nullptr, 0, 0};
  for (std::uint32_t r = 0; r < m.rows; ++r) kernels_.decode_row(m, r, out.data() + std::size_t{r} * m.cols);
  for (std::size_t i = 0; i < out.size(); ++i) out[i] += offset;
  return out;
}

Result<void> Binder::delta_net(std::size_t index, DeltaNetWeights& out) {
  const Dims dims(config_);
  const ModelConfig& c = config_;
  const auto name = [&](const char* rest) { return layer_name(index, "linear_attn.") + rest; };
  STOKER_TRY(out.qkvz, matrix(name("in_proj_qkvz.weight"), dims.conv_dim + dims.value_dim, c.hidden_size));
  STOKER_TRY(out.ba, matrix(name("in_proj_ba.weight"), 2ULL * c.linear_value_heads, c.hidden_size));
  STOKER_TRY(out.out, matrix(name("out_proj.weight"), c.hidden_size, dims.value_dim));
  STOKER_TRY(const FloatBuffer conv, floats(name("conv1d.weight"), dims.conv_dim, c.conv_kernel, 0.0F));
  out.conv = FloatBuffer(conv.size());
  for (std::size_t channel = 0; channel < dims.conv_dim; ++channel) {
    for (std::size_t tap = 0; tap < c.conv_kernel; ++tap) {
      out.conv[tap * dims.conv_dim + channel] = conv[channel * c.conv_kernel + tap];
    }
  }
  STOKER_TRY(out.neg_exp_a, floats(name("A_log"), 1, c.linear_value_heads, 0.0F));
  for (std::size_t i = 0; i < out.neg_exp_a.size(); ++i) {
    out.neg_exp_a[i] = static_cast<float>(-std::exp(static_cast<double>(out.neg_exp_a[i])));
  }
  STOKER_TRY(out.dt_bias, floats(name("dt_bias"), 1, c.linear_value_heads, 0.0F));
  STOKER_TRY(out.norm, floats(name("norm.weight"), 1, c.linear_value_dim, 0.0F));
  return {};
}

Result<void> Binder::attention(std::size_t index, AttentionWeights& out) {
  const Dims dims(config_);
  const std::uint64_t hidden = config_.hidden_size;
  const auto name = [&](const char* rest) { return layer_name(index, "self_attn.") + rest; };
  STOKER_TRY(out.q, matrix(name("q_proj.weight"), 2ULL * dims.q_dim, hidden));
  STOKER_TRY(out.k, matrix(name("k_proj.weight"), dims.kv_dim, hidden));
  STOKER_TRY(out.v, matrix(name("v_proj.weight"), dims.kv_dim, hidden));
  STOKER_TRY(out.o, matrix(name("o_proj.weight"), hidden, dims.q_dim));
  STOKER_TRY(out.q_norm, floats(name("q_norm.weight"), 1, config_.head_dim, 1.0F));
  STOKER_TRY(out.k_norm, floats(name("k_norm.weight"), 1, config_.head_dim, 1.0F));
  return {};
}

Result<void> Binder::moe(std::size_t index, MoeWeights& out) {
  const std::uint64_t hidden = config_.hidden_size;
  const std::uint64_t inner = config_.shared_intermediate;
  const auto name = [&](const char* rest) { return layer_name(index, "mlp.") + rest; };
  STOKER_TRY(out.router, matrix(name("gate.weight"), config_.experts, hidden));
  if (inner == 0) return {};
  STOKER_TRY(out.shared_scale, matrix(name("shared_expert_gate.weight"), 1, hidden));
  STOKER_TRY(out.shared_gate, matrix(name("shared_expert.gate_proj.weight"), inner, hidden));
  STOKER_TRY(out.shared_up, matrix(name("shared_expert.up_proj.weight"), inner, hidden));
  STOKER_TRY(out.shared_down, matrix(name("shared_expert.down_proj.weight"), hidden, inner));
  return {};
}

Result<void> Binder::layer(std::size_t index, LayerWeights& out) {
  out.mixer = config_.mixers[index];
  STOKER_TRY(out.input_norm,
             floats(layer_name(index, "input_layernorm.weight"), 1, config_.hidden_size, 1.0F));
  STOKER_TRY(out.post_norm,
             floats(layer_name(index, "post_attention_layernorm.weight"), 1, config_.hidden_size, 1.0F));
  if (out.mixer == MixerType::full_attention) {
    STOKER_TRY_VOID(attention(index, out.attention));
  } else {
    STOKER_TRY_VOID(delta_net(index, out.delta));
  }
  return moe(index, out.moe);
}

/// The worker never sees an expert's tensor, so the image says how they are stored.
Result<DType> Binder::expert_dtype() {
  const TensorInfo* info = image_.find("stoker.expert_dtype");
  if (info == nullptr || info->dtype != DType::i32 || info->elements() != 1) {
    return fail(Errc::layout, "the weights image has no stoker.expert_dtype: restart the loader");
  }
  std::int32_t value = 0;
  std::memcpy(&value, image_.data(*info), sizeof value);
  const DType dtype = static_cast<DType>(value & 0xFF);
  if (value < 0 || value > 0xFF || !runnable(dtype)) {
    return fail(Errc::unsupported, "routed experts are stored as a dtype that this build does not run");
  }
  return dtype;
}

Result<void> Binder::check_expert_scales() {
  const ModelConfig& c = config_;
  if (c.scale_block_rows == 0 || c.scale_block_cols == 0) {
    return fail(Errc::corrupt,
                "routed experts are FP8, but config.json has no quantization_config block size");
  }
  const auto tiles = [&](std::uint64_t rows, std::uint64_t cols) {
    return ((rows + c.scale_block_rows - 1) / c.scale_block_rows) *
           ((cols + c.scale_block_cols - 1) / c.scale_block_cols);
  };
  const std::uint64_t gate_tiles = tiles(c.moe_intermediate, c.hidden_size);
  const std::array<std::uint64_t, 3> parts{gate_tiles, gate_tiles, tiles(c.hidden_size, c.moe_intermediate)};
  const std::uint64_t per_expert = parts[0] + parts[1] + parts[2];
  for (std::uint32_t i = 0; i < c.layers; ++i) {
    const std::string name = "stoker.layers." + std::to_string(i) + ".expert_scales";
    STOKER_TRY(const MatrixView view, image_.matrix(name, c.experts, per_expert));
    if (view.dtype != DType::f32) return fail(Errc::corrupt, "tensor " + name + " must be F32");
    if (!kernels_.has_non_finite(view.data, DType::f32, c.experts * per_expert)) continue;
    return bad_expert_scale(i, view.data, parts);
  }
  return {};
}

/// Names the tensor of the first scale of a layer that is not finite; there is one.
Result<void> Binder::bad_expert_scale(std::uint32_t layer, const std::byte* scales,
                                      const std::array<std::uint64_t, 3>& tiles) {
  static constexpr std::array kMatrices{"gate_proj", "up_proj", "down_proj"};
  for (std::uint32_t e = 0; e < config_.experts; ++e) {
    for (std::size_t m = 0; m < tiles.size(); scales += tiles[m++] * sizeof(float)) {
      if (!kernels_.has_non_finite(scales, DType::f32, tiles[m])) continue;
      return fail(Errc::corrupt, "tensor " + layer_name(layer, "mlp.experts.") + std::to_string(e) + "." +
                                     kMatrices[m] +
                                     ".weight_scale_inv holds NaN or infinity: the checkpoint is damaged, "
                                     "run `stoker verify`");
    }
  }
  return {};
}

Result<ModelWeights> Binder::bind() {
  const std::uint64_t vocab = config_.vocab_size;
  const std::uint64_t hidden = config_.hidden_size;
  ModelWeights out;
  STOKER_TRY(out.embed, matrix("model.embed_tokens.weight", vocab, hidden));
  if (config_.tie_word_embeddings) {
    out.lm_head = out.embed;
  } else {
    STOKER_TRY(out.lm_head, matrix("lm_head.weight", vocab, hidden));
  }
  STOKER_TRY(out.final_norm, floats("model.norm.weight", 1, hidden, 1.0F));
  out.layers.resize(config_.layers);
  for (std::size_t i = 0; i < out.layers.size(); ++i) STOKER_TRY_VOID(layer(i, out.layers[i]));
  STOKER_TRY(out.expert_dtype, expert_dtype());
  if (out.expert_dtype == DType::f8_e4m3) STOKER_TRY_VOID(check_expert_scales());
  out.scales = std::move(scales_);
  return out;
}

/// Relations that the layers rely on; config.cc checks them too, but a model must not trust its caller.
Result<void> check_config(const ModelConfig& c) {
  const auto bad = [](const std::string& what) {
    return fail(Errc::invalid, "model configuration: " + what);
  };
  if (c.hidden_size == 0 || c.vocab_size == 0 || c.layers == 0) return bad("a dimension is 0");
  if (c.mixers.size() != c.layers) return bad("layer_types must name every layer");
  if (c.experts == 0 || c.experts > UINT16_MAX) return bad("num_experts must be 1 to 65535");
  if (c.experts_per_token == 0 || c.experts_per_token > c.experts) {
    return bad("num_experts_per_tok must be 1 to num_experts");
  }
  if (c.moe_intermediate == 0) return bad("moe_intermediate_size is 0");
  for (const MixerType mixer : c.mixers) {
    if (mixer == MixerType::full_attention) {
      if (c.kv_heads == 0 || c.attention_heads % c.kv_heads != 0 || c.head_dim == 0) {
        return bad("num_attention_heads must be a multiple of num_key_value_heads");
      }
      if (c.rotary_dim % 2 != 0 || c.rotary_dim > c.head_dim)
        return bad("rotary dimension must be even, <= head_dim");
    } else if (c.conv_kernel > kConvTapsMax) {
      return bad("linear_conv_kernel_dim " + std::to_string(c.conv_kernel) + " is more than " +
                 std::to_string(kConvTapsMax));
    } else if (c.linear_key_heads == 0 || c.linear_value_heads % c.linear_key_heads != 0 ||
               c.linear_key_dim == 0 || c.linear_value_dim == 0 || c.conv_kernel == 0) {
      return bad("linear_num_value_heads must be a multiple of linear_num_key_heads, dimensions not 0");
    }
  }
  return {};
}

}  // namespace

Result<ModelWeights> bind_weights(const ModelConfig& config, const WeightsImage& image,
                                  const Kernels& kernels, ThreadPool& pool) {
  STOKER_TRY_VOID(check_config(config));
  return Binder(config, image, kernels, pool).bind();
}

}  // namespace stoker
