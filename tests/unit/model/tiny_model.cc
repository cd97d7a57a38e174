#include "tests/unit/model/tiny_model.h"

#include <algorithm>
#include <bit>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>

#include "gpu-worker/cpu/kernels.h"

namespace stoker::testing {

std::vector<double> generate(const std::string& name, double mean, double amplitude, std::size_t count) {
  std::uint32_t x = 0x811C9DC5U;
  for (const char c : name) x = (x ^ static_cast<std::uint8_t>(c)) * 0x01000193U;
  std::vector<double> values(count);
  for (double& value : values) {
    x = x * 1664525U + 1013904223U;
    const double u = (static_cast<double>(x >> 8) + 0.5) / 16777216.0 - 0.5;
    value = mean + amplitude * u;
  }
  return values;
}

float bf16_round(float x) {
  std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  bits += 0x7FFFU + ((bits >> 16) & 1U);
  return std::bit_cast<float>(bits & 0xFFFF'0000U);
}

std::uint8_t f8_encode(float x) {
  const std::uint8_t sign = std::signbit(x) ? 0x80 : 0;
  const float a = std::min(std::fabs(x), 448.0F);
  int exponent = a > 0 ? std::ilogb(a) : -6;
  exponent = std::max(exponent, -6);
  const float step = std::ldexp(1.0F, exponent - 3);
  const int n = static_cast<int>(std::nearbyint(a / step));  // 0..16 steps of the binade
  // Code of value n * 2^(e-3): exponent field e + 6 counts from the subnormals, a carry moves it up by
  // itself.
  return static_cast<std::uint8_t>(sign | std::min((exponent + 6) * 8 + n, 0x7E));
}

namespace {

std::vector<std::byte> plain_bytes(const std::vector<double>& values, DType dtype) {
  std::vector<std::byte> out(values.size() * dtype_bytes(dtype));
  for (std::size_t i = 0; i < values.size(); ++i) {
    const auto f = static_cast<float>(values[i]);
    if (dtype == DType::f32) {
      std::memcpy(out.data() + 4 * i, &f, 4);
    } else {
      const std::uint32_t bits = std::bit_cast<std::uint32_t>(bf16_round(f)) >> 16;
      std::memcpy(out.data() + 2 * i, &bits, 2);
    }
  }
  return out;
}

}  // namespace

Encoded encode(const std::vector<double>& values, std::uint32_t rows, std::uint32_t cols, DType dtype,
               std::uint32_t block_rows, std::uint32_t block_cols) {
  if (dtype != DType::f8_e4m3) return {plain_bytes(values, dtype), {}};
  const std::uint32_t tile_cols = (cols + block_cols - 1) / block_cols;
  const std::uint32_t tile_rows = (rows + block_rows - 1) / block_rows;
  std::vector<float> amax(std::size_t{tile_rows} * tile_cols);
  const auto tile = [&](std::size_t i) { return i / cols / block_rows * tile_cols + i % cols / block_cols; };
  for (std::size_t i = 0; i < values.size(); ++i) {
    amax[tile(i)] = std::max(amax[tile(i)], std::fabs(static_cast<float>(values[i])));
  }
  Encoded out{std::vector<std::byte>(values.size()), {}};
  for (const float a : amax) out.scales.push_back(a == 0 ? 1.0F : bf16_round(a / 448.0F));
  for (std::size_t i = 0; i < values.size(); ++i) {
    out.data[i] = std::byte{f8_encode(static_cast<float>(values[i]) / out.scales[tile(i)])};
  }
  return out;
}

std::vector<float> dequantise(const Encoded& e, std::uint32_t rows, std::uint32_t cols, DType dtype,
                              std::uint32_t block_rows, std::uint32_t block_cols) {
  std::vector<float> out(std::size_t{rows} * cols);
  const Matrix m{e.data.data(), dtype, rows, cols, e.scales.data(), block_rows, block_cols};
  for (std::size_t i = 0; i < out.size(); ++i) {
    if (dtype == DType::f8_e4m3) {
      out[i] = f8_e4m3_value(std::to_integer<std::uint8_t>(e.data[i])) *
               e.scales[i / cols / block_rows * m.scale_cols() + i % cols / block_cols];
    } else if (dtype == DType::bf16) {
      std::uint16_t bits = 0;
      std::memcpy(&bits, e.data.data() + 2 * i, 2);
      out[i] = std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
    } else {
      std::memcpy(&out[i], e.data.data() + 4 * i, 4);
    }
  }
  return out;
}

ModelConfig t0_config() {
  ModelConfig c;
  c.architecture = "qwen3_next";
  c.vocab_size = 32;
  c.hidden_size = 16;
  c.layers = 4;
  c.max_position_embeddings = 4096;
  c.mixers = {MixerType::linear_attention, MixerType::linear_attention, MixerType::linear_attention,
              MixerType::full_attention};
  c.attention_heads = 4;
  c.kv_heads = 2;
  c.head_dim = 16;
  c.rotary_dim = 4;
  c.rope_theta = 100;
  c.linear_key_heads = 2;
  c.linear_value_heads = 4;
  c.linear_key_dim = 4;
  c.linear_value_dim = 4;
  c.conv_kernel = 4;
  c.experts = 8;
  c.experts_per_token = 3;
  c.moe_intermediate = 8;
  c.shared_intermediate = 8;
  return c;
}

TinyModel::TinyModel(ModelConfig config, TinyOptions options)
    : config_(std::move(config)), options_(options) {
  const std::uint64_t hidden = config_.hidden_size;
  add("model.embed_tokens.weight", options_.others, {config_.vocab_size, hidden}, 0, 2);
  if (!config_.tie_word_embeddings)
    add_matrix("lm_head.weight", config_.vocab_size, config_.hidden_size, false);
  add("model.norm.weight", options_.others, {hidden}, 0, 1);
  for (std::size_t layer = 0; layer < config_.layers; ++layer) {
    add_layer(layer);
    add_experts(layer);
  }
  std::vector<std::byte> dtype(4);
  dtype[0] = std::byte{static_cast<std::uint8_t>(options_.matrices)};
  tensors_.push_back({"stoker.expert_dtype", DType::i32, {1}, dtype});
  rebuild();
}

void TinyModel::add(const std::string& name, DType dtype, const std::vector<std::uint64_t>& shape,
                    double mean, double amp) {
  std::uint64_t count = 1;
  for (const std::uint64_t d : shape) count *= d;
  tensors_.push_back({name, dtype, shape, plain_bytes(generate(name, mean, amp, count), dtype)});
}

Encoded TinyModel::store(const std::vector<double>& values, std::uint32_t rows, std::uint32_t cols) const {
  const std::uint32_t br = config_.scale_block_rows;
  const std::uint32_t bc = config_.scale_block_cols;
  if (!options_.dequantised) return encode(values, rows, cols, options_.matrices, br, bc);
  const Encoded f8 = encode(values, rows, cols, DType::f8_e4m3, br, bc);
  const std::vector<float> exact = dequantise(f8, rows, cols, DType::f8_e4m3, br, bc);
  return {plain_bytes({exact.begin(), exact.end()}, DType::f32), {}};
}

void TinyModel::add_matrix(const std::string& name, std::uint32_t rows, std::uint32_t cols, bool quantised) {
  const double amp = 4.0 / std::sqrt(static_cast<double>(cols));
  const DType dtype = quantised ? options_.matrices : options_.others;
  const auto values = generate(name, 0, amp, std::size_t{rows} * cols);
  Encoded e = quantised
                  ? store(values, rows, cols)
                  : encode(values, rows, cols, dtype, config_.scale_block_rows, config_.scale_block_cols);
  tensors_.push_back({name, dtype, {rows, cols}, std::move(e.data)});
  if (dtype != DType::f8_e4m3) return;
  const std::vector<double> scales(e.scales.begin(), e.scales.end());
  const std::uint64_t tile_rows = (rows + config_.scale_block_rows - 1) / config_.scale_block_rows;
  tensors_.push_back({name + "_scale_inv",
                      options_.scale_dtype,
                      {tile_rows, scales.size() / tile_rows},
                      plain_bytes(scales, options_.scale_dtype)});
}

void TinyModel::add_layer(std::size_t layer) {
  const ModelConfig& c = config_;
  const DType other = options_.others;
  const std::string p = "model.layers." + std::to_string(layer) + ".";
  const std::uint32_t hidden = c.hidden_size;
  add(p + "input_layernorm.weight", other, {hidden}, 0, 1);
  add(p + "post_attention_layernorm.weight", other, {hidden}, 0, 1);
  if (c.mixers[layer] == MixerType::full_attention) {
    add_matrix(p + "self_attn.q_proj.weight", 2 * c.attention_heads * c.head_dim, hidden, true);
    add_matrix(p + "self_attn.k_proj.weight", c.kv_heads * c.head_dim, hidden, true);
    add_matrix(p + "self_attn.v_proj.weight", c.kv_heads * c.head_dim, hidden, true);
    add_matrix(p + "self_attn.o_proj.weight", hidden, c.attention_heads * c.head_dim, true);
    add(p + "self_attn.q_norm.weight", other, {c.head_dim}, 0, 1);
    add(p + "self_attn.k_norm.weight", other, {c.head_dim}, 0, 1);
  } else {
    const std::uint32_t key_dim = c.linear_key_heads * c.linear_key_dim;
    const std::uint32_t value_dim = c.linear_value_heads * c.linear_value_dim;
    add_matrix(p + "linear_attn.in_proj_qkvz.weight", 2 * key_dim + 2 * value_dim, hidden, true);
    add_matrix(p + "linear_attn.in_proj_ba.weight", 2 * c.linear_value_heads, hidden, false);
    add_matrix(p + "linear_attn.out_proj.weight", hidden, value_dim, true);
    add(p + "linear_attn.conv1d.weight", other, {2 * key_dim + value_dim, 1, c.conv_kernel}, 0, 1.5);
    add(p + "linear_attn.A_log", other, {c.linear_value_heads}, 0.5, 2);
    add(p + "linear_attn.dt_bias", other, {c.linear_value_heads}, 0, 2);
    add(p + "linear_attn.norm.weight", other, {c.linear_value_dim}, 1, 1);
  }
  add_matrix(p + "mlp.gate.weight", c.experts, hidden, false);
  if (c.shared_intermediate == 0) return;
  add_matrix(p + "mlp.shared_expert_gate.weight", 1, hidden, false);
  add_matrix(p + "mlp.shared_expert.gate_proj.weight", c.shared_intermediate, hidden, true);
  add_matrix(p + "mlp.shared_expert.up_proj.weight", c.shared_intermediate, hidden, true);
  add_matrix(p + "mlp.shared_expert.down_proj.weight", hidden, c.shared_intermediate, true);
}

void TinyModel::add_experts(std::size_t layer) {
  const std::uint32_t hidden = config_.hidden_size;
  const std::uint32_t inner = config_.moe_intermediate;
  std::vector<float> all_scales;
  std::vector<std::int32_t> all_parts;
  for (std::size_t e = 0; e < config_.experts; ++e) {
    TinyExpert expert;
    // Three bytes first, one between: no part is aligned to anything.
    expert.bytes.resize(3);
    const auto part = [&](const char* which, std::uint32_t rows, std::uint32_t cols) {
      const std::string name = "model.layers." + std::to_string(layer) + ".mlp.experts." + std::to_string(e) +
                               "." + which + "_proj.weight";
      const double amp = 4.0 / std::sqrt(static_cast<double>(cols));
      const Encoded m = store(generate(name, 0, amp, std::size_t{rows} * cols), rows, cols);
      const std::size_t at = expert.bytes.size();
      expert.bytes.insert(expert.bytes.end(), m.data.begin(), m.data.end());
      expert.bytes.push_back(std::byte{0x7F});
      expert.scales.insert(expert.scales.end(), m.scales.begin(), m.scales.end());
      return at;
    };
    expert.gate = part("gate", inner, hidden);
    expert.up = part("up", inner, hidden);
    expert.down = part("down", hidden, inner);
    all_scales.insert(all_scales.end(), expert.scales.begin(), expert.scales.end());
    for (const std::size_t at : {expert.gate, expert.up, expert.down})
      all_parts.push_back(static_cast<std::int32_t>(at));
    experts_.push_back(std::move(expert));
  }
  std::vector<std::byte> parts(all_parts.size() * 4);
  std::memcpy(parts.data(), all_parts.data(), parts.size());
  tensors_.push_back({"stoker.layers." + std::to_string(layer) + ".expert_parts",
                      DType::i32,
                      {config_.experts, 3},
                      std::move(parts)});
  if (all_scales.empty()) return;
  std::vector<std::byte> bytes(all_scales.size() * 4);
  std::memcpy(bytes.data(), all_scales.data(), bytes.size());
  tensors_.push_back({"stoker.layers." + std::to_string(layer) + ".expert_scales",
                      DType::f32,
                      {config_.experts, all_scales.size() / config_.experts},
                      std::move(bytes)});
}

void TinyModel::remove(const std::string& name) {
  std::erase_if(tensors_, [&](const Tensor& t) { return t.name == name; });
}

std::vector<std::byte>& TinyModel::bytes(const std::string& name) {
  const auto it =
      std::find_if(tensors_.begin(), tensors_.end(), [&](const Tensor& t) { return t.name == name; });
  REQUIRE(it != tensors_.end());
  return it->data;
}

void TinyModel::rebuild() {
  std::vector<TensorInfo> infos;
  std::uint64_t at = 0;
  for (const Tensor& t : tensors_) {
    infos.push_back({t.name, t.dtype, t.shape, at, t.data.size()});
    at = (at + t.data.size() + 63) / 64 * 64;
  }
  const std::string header = write_safetensors_header(infos, 64);
  storage_.assign(header.size() + at, std::byte{0});
  std::memcpy(storage_.data(), header.data(), header.size());
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    std::copy(tensors_[i].data.begin(), tensors_[i].data.end(),
              storage_.begin() + static_cast<std::ptrdiff_t>(header.size() + infos[i].begin));
  }
  auto image = WeightsImage::parse(storage_);
  INFO((image ? std::string() : image.error().message));
  REQUIRE(image.has_value());
  image_ = std::make_unique<WeightsImage>(*std::move(image));
}

std::unique_ptr<Model> TinyModel::load(CpuOptions options) const {
  static const SteadyClock clock;
  auto model = Model::load_cpu(config_, *image_, options, clock);
  INFO((model ? std::string() : model.error().message));
  REQUIRE(model.has_value());
  return *std::move(model);
}

std::uint32_t MemorySource::draw() {
  random_ = random_ * 1664525U + 1013904223U;
  return random_ >> 8;
}

void MemorySource::begin(LayerId layer, std::span<const ExpertId> wanted, Access) {
  REQUIRE(over_);
  REQUIRE(held_.empty());
  layer_ = layer;
  over_ = false;
  for (const ExpertId id : wanted) (draw() % 100 < resident_percent ? hits_ : misses_).push_back(id);
  for (std::size_t i = hits_.size(); i > 1; --i) std::swap(hits_[i - 1], hits_[draw() % i]);
  for (std::size_t i = misses_.size(); i > 1; --i) std::swap(misses_[i - 1], misses_[draw() % i]);
}

Result<SourceEvent> MemorySource::next(bool wait) {
  SourceEvent event;
  if (broken) return fail(Errc::peer_gone, "the loader is gone");
  if (hits_.empty() && misses_.empty()) {
    over_ = true;
    event.kind = SourceEvent::Kind::done;
    return event;
  }
  // A full pool: the loader would wait for these leases while the worker waits for the loader.
  if (wait) REQUIRE(held_.empty());
  const bool miss = hits_.empty();
  if (miss && !wait && draw() % 100 >= landed_percent) {
    event.kind = SourceEvent::Kind::pending;
    return event;
  }
  if (miss && wait) ++waits;
  std::vector<ExpertId>& from = miss ? misses_ : hits_;
  const ExpertId id = from.back();
  from.pop_back();
  if (failing.count({layer_.value, id.value}) != 0) {
    event.kind = SourceEvent::Kind::failed;
    event.expert = id;
    event.error = Error{Errc::io, 5, "model-00001.safetensors: read at offset 4096 failed"};
    return event;
  }
  const TinyExpert& e = model_.expert(layer_.value, id.value);
  const std::byte* base = e.bytes.data();
  event.kind = SourceEvent::Kind::leased;
  event.leased = {id,
                  miss ? Tier::disk : Tier::pool,
                  id.value,
                  base + e.gate,
                  base + e.up,
                  base + e.down,
                  e.scales.empty() ? nullptr : e.scales.data()};
  REQUIRE(held_.insert(id.value).second);
  ++served;
  return event;
}

void MemorySource::release(const LeasedExpert& expert) {
  REQUIRE(expert.handle == expert.expert.value);
  REQUIRE(held_.erase(expert.handle) == 1);
}

std::vector<float> run_all(Model& model, ExpertSource& source, Sequence& sequence,
                           const std::vector<std::uint32_t>& tokens, const std::vector<std::size_t>& steps,
                           Access access) {
  std::vector<float> out;
  std::size_t at = 0;
  for (std::size_t i = 0; at < tokens.size(); ++i) {
    const std::size_t n = std::min(steps[std::min(i, steps.size() - 1)], tokens.size() - at);
    const Segment segment{&sequence, 1, std::span(tokens).subspan(at, n), Segment::Logits::all};
    SegmentResult result;
    const auto stats = model.step({&segment, 1}, access, source, nullptr, {&result, 1});
    REQUIRE(stats.has_value());
    INFO((result.error ? result.error->message : std::string()));
    REQUIRE_FALSE(result.error);
    REQUIRE(result.logits.size() == n * model.config().vocab_size);
    out.insert(out.end(), result.logits.begin(), result.logits.end());
    at += n;
  }
  return out;
}

}  // namespace stoker::testing
