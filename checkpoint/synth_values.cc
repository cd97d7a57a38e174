#include "checkpoint/synth_values.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include "checkpoint/synth_random.h"
#include "shm/base/check.h"

namespace stoker {

namespace {

/// The 255.5/256 quantile of the normal distribution: the largest of 256 equally likely values.
constexpr double kQuantileMax = 2.8856349;
constexpr double kCodeMax = 448.0;  ///< largest finite E4M3 value

double e4m3_value(unsigned code) {
  const unsigned exponent = (code >> 3) & 15, mantissa = code & 7;
  const double magnitude = exponent == 0
                               ? mantissa * 0x1p-9
                               : (1 + mantissa / 8.0) * std::ldexp(1.0, static_cast<int>(exponent) - 7);
  return (code & 0x80) != 0 ? -magnitude : magnitude;
}

std::uint8_t e4m3_nearest(double x) {
  unsigned best = 0;
  for (unsigned code = 0; code < 0x7F; ++code)
    if (std::fabs(e4m3_value(code) - std::fabs(x)) < std::fabs(e4m3_value(best) - std::fabs(x))) best = code;
  return static_cast<std::uint8_t>(x < 0 ? best | 0x80 : best);
}

double normal_quantile(double p) {
  double low = -8, high = 8;
  for (int i = 0; i < 60; ++i) {
    const double mid = (low + high) / 2;
    (0.5 * std::erfc(-mid / std::sqrt(2.0)) < p ? low : high) = mid;
  }
  return (low + high) / 2;
}

std::uint16_t bf16_round(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  return static_cast<std::uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

}  // namespace

SynthValues::SynthValues(const SynthSpec& spec) : spec_(spec), routing_(spec) {
  for (unsigned i = 0; i < 256; ++i)
    codes_[i] = e4m3_nearest(normal_quantile((i + 0.5) / 256) / kQuantileMax * kCodeMax);
}

double SynthValues::weight_std(const SynthTensor& tensor) const {
  const double unit = 1.0 / std::sqrt(static_cast<double>(tensor.columns));
  const std::string& name = tensor.info.name;
  switch (tensor.role) {
    case TensorRole::embedding:
      return 1.0;
    case TensorRole::norm:
      return spec_.locality ? 0.1 : 0.3;
    case TensorRole::gated_norm:
      return 0.3;
    case TensorRole::router:
      return (spec_.locality ? spec_.routing.logit_std : 3.0) * unit;
    case TensorRole::lm_head:
      return 3.0 * unit;
    case TensorRole::linear:
    case TensorRole::expert:
      break;
    default:
      return unit;
  }
  // With locality, what sublayers add to the residual stream stays small beside the embedding: after all
  // layers about 0.4 of it, so that the router's input is mostly the token's planted direction.
  const bool output = name.find("out_proj") != std::string::npos ||
                      name.find("o_proj") != std::string::npos || name.find("down_proj") != std::string::npos;
  return spec_.locality && output ? 0.7 * unit / std::sqrt(static_cast<double>(spec_.config.layers)) : unit;
}

void SynthValues::fill_codes(const SynthTensor& tensor, std::uint64_t first, std::span<std::byte> out) const {
  const RandomStream stream(spec_.seed, tensor.info.name);
  for (std::size_t i = 0; i < out.size(); i += 8) {
    const std::uint64_t r = stream.bits((first + i) / 8);
    std::uint8_t block[8];
    for (unsigned k = 0; k < 8; ++k) block[k] = codes_[(r >> (8 * k)) & 0xFF];
    std::memcpy(out.data() + i, block, std::min<std::size_t>(8, out.size() - i));
  }
}

/// Tiles differ by up to +-25 %, so that a wrong tile map shows in the results.
void SynthValues::fill_scales(const SynthTensor& tensor, std::uint64_t first, std::span<float> out) const {
  const RandomStream stream(spec_.seed, tensor.info.name);
  const auto size = static_cast<float>(weight_std(tensor) * kQuantileMax / kCodeMax);
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = size * (0.75F + 0.5F * stream.uniform(first + i));
}

/// Embedding and head with planted locality: row by row.
void SynthValues::fill_rows(const SynthTensor& tensor, std::uint64_t first, std::span<float> out) const {
  std::size_t at = 0;
  while (at < out.size()) {
    const std::uint64_t row = (first + at) / tensor.columns, column = (first + at) % tensor.columns;
    const std::span<float> part =
        out.subspan(at, std::min<std::size_t>(tensor.columns - column, out.size() - at));
    if (tensor.role == TensorRole::embedding)
      routing_.embedding(static_cast<std::uint32_t>(row), column, part);
    else
      routing_.head(static_cast<std::uint32_t>(row), column, part);
    at += part.size();
  }
}

void SynthValues::fill_floats(const SynthTensor& tensor, std::uint64_t first, std::span<float> out) const {
  if (tensor.scale) return fill_scales(tensor, first, out);
  if (spec_.locality && (tensor.role == TensorRole::embedding || tensor.role == TensorRole::lm_head))
    return fill_rows(tensor, first, out);
  const RandomStream stream(spec_.seed, tensor.info.name);
  const auto each = [&](auto value) {
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = value(first + i);
  };
  switch (tensor.role) {
    case TensorRole::a_log:
      return each([&](std::uint64_t i) { return std::log(0.5F + 7.5F * stream.uniform(i)); });
    case TensorRole::dt_bias:
      return each([&](std::uint64_t i) { return 4 * stream.uniform(i) - 2; });
    case TensorRole::conv:
      return each([&](std::uint64_t i) { return 1.4F * stream.uniform(i) - 0.7F; });
    default:
      break;
  }
  const auto size = static_cast<float>(weight_std(tensor));
  const float mean = tensor.role == TensorRole::gated_norm ? 1.0F : 0.0F;
  each([&](std::uint64_t i) { return mean + size * stream.normal(i); });
}

void SynthValues::fill(const SynthTensor& tensor, std::uint64_t first, std::span<std::byte> out) const {
  STOKER_CHECK(first % 8 == 0);
  if (tensor.info.dtype == DType::f8_e4m3) return fill_codes(tensor, first, out);
  const std::size_t width = dtype_bytes(tensor.info.dtype), count = out.size() / width;
  std::array<float, 2048> block;
  for (std::size_t at = 0; at < count; at += block.size()) {
    const std::size_t n = std::min(block.size(), count - at);
    fill_floats(tensor, first + at, std::span(block).first(n));
    if (width == 4) {
      std::memcpy(out.data() + at * 4, block.data(), n * 4);
      continue;
    }
    std::array<std::uint16_t, 2048> rounded;
    for (std::size_t i = 0; i < n; ++i) rounded[i] = bf16_round(block[i]);
    std::memcpy(out.data() + at * 2, rounded.data(), n * 2);
  }
}

}  // namespace stoker
