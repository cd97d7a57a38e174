#include "tests/golden/generator.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

namespace stoker::golden {
namespace {

constexpr std::string_view kFp8Suffixes[] = {
    "gate_proj.weight",
    "up_proj.weight",
    "down_proj.weight",
    "in_proj_qkvz.weight",
    "linear_attn.out_proj.weight",
    "q_proj.weight",
    "k_proj.weight",
    "v_proj.weight",
    "o_proj.weight",
};

struct Distribution {
  double mean = 0, amp = 0;
};

Distribution distribution(std::string_view name, std::uint64_t in_features, Rules rules) {
  const bool t0 = rules == Rules::appendix_a;
  const double root = std::sqrt(static_cast<double>(in_features));
  if (name == "model.embed_tokens.weight") {
    if (rules == Rules::tied) return {0, 3.5 / root};
    return {0, t0 ? 2.0 : 3.5};
  }
  if (name.ends_with("linear_attn.norm.weight")) return {1, 1};
  if (name.ends_with("norm.weight")) return {0, 1};
  if (name.ends_with("A_log")) return t0 ? Distribution{0.5, 2.0} : Distribution{0.75, 2.75};
  if (name.ends_with("dt_bias")) return {0, t0 ? 2.0 : 4.0};
  if (name.ends_with("conv1d.weight")) return {0, t0 ? 1.5 : 1.4};
  if (name.ends_with("mlp.gate.weight") && !t0) return {0, 10.5 / root};
  return {0, (t0 ? 4.0 : 3.5) / root};
}

/// Neighbouring tiles get different scales; else a wrong tile map would go unseen.
double tile_factor(std::uint64_t row, std::uint64_t col) {
  return 0.5 + 0.25 * static_cast<double>((3 * (row / kTile) + 5 * (col / kTile)) % 6);
}

std::uint64_t tiles(std::uint64_t n) { return (n + kTile - 1) / kTile; }

}  // namespace

std::uint32_t fnv1a32(std::span<const std::byte> data) {
  std::uint32_t hash = 0x811C9DC5U;
  for (std::byte b : data) hash = (hash ^ std::to_integer<std::uint32_t>(b)) * 0x01000193U;
  return hash;
}

std::uint32_t fnv1a32(std::string_view text) {
  return fnv1a32(std::as_bytes(std::span(text.data(), text.size())));
}

std::uint32_t fill_uniform(std::uint32_t state, std::span<double> out) {
  for (double& u : out) {
    state = state * 1664525U + 1013904223U;
    u = (static_cast<double>(state >> 8) + 0.5) / 16777216.0 - 0.5;
  }
  return state;
}

bool is_fp8_module(std::string_view name) {
  return std::any_of(std::begin(kFp8Suffixes), std::end(kFp8Suffixes),
                     [&](std::string_view suffix) { return name.ends_with(suffix); });
}

std::vector<float> make_tensor(const std::string& name, const std::vector<std::uint64_t>& shape,
                               const std::string& salt, Rules rules) {
  std::uint64_t rows = 1;
  for (std::size_t i = 0; i + 1 < shape.size(); ++i) rows *= shape[i];
  const std::uint64_t cols = shape.back();
  const Distribution d = distribution(name, cols, rules);
  const bool tiled = rules != Rules::appendix_a && is_fp8_module(name);
  std::vector<float> out(rows * cols);
  std::vector<double> row(cols);
  std::uint32_t state = fnv1a32(salt + name);
  for (std::uint64_t r = 0; r < rows; ++r) {
    state = fill_uniform(state, row);
    for (double& value : row) value *= d.amp;
    for (std::uint64_t c = 0; tiled && c < cols; c += kTile) {
      const double factor = tile_factor(r, c);
      for (std::uint64_t i = c; i < std::min(c + kTile, cols); ++i) row[i] *= factor;
    }
    for (std::uint64_t c = 0; c < cols; ++c) out[r * cols + c] = static_cast<float>(d.mean + row[c]);
  }
  return out;
}

std::uint16_t to_bf16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  return static_cast<std::uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
}

float from_bf16(std::uint16_t bits) { return std::bit_cast<float>(std::uint32_t{bits} << 16); }

std::uint8_t to_e4m3(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 24) & 0x80U;
  const std::uint32_t magnitude = bits & 0x7FFFFFFFU;
  const float size = std::bit_cast<float>(magnitude);
  std::int32_t code = 0;
  if (size < 0x1p-6F) {
    code = static_cast<std::int32_t>(std::nearbyint(size * 512.0F));  // subnormals step by 2^-9
  } else {
    const std::uint32_t rounded = (magnitude + 0x7FFFFU + ((magnitude >> 20) & 1U)) >> 20;
    code = static_cast<std::int32_t>(rounded) - ((127 - 7) << 3);
  }
  return static_cast<std::uint8_t>(sign | static_cast<std::uint32_t>(std::min(code, 0x7E)));
}

float from_e4m3(std::uint8_t code) {
  const int exponent = (code >> 3) & 15, mantissa = code & 7;
  if ((code & 0x7F) == 0x7F) return std::numeric_limits<float>::quiet_NaN();
  const float size = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                   : std::ldexp(1.0F + static_cast<float>(mantissa) / 8.0F, exponent - 7);
  return (code & 0x80) != 0 ? -size : size;
}

Quantised quantise(std::span<const float> weights, std::uint64_t rows, std::uint64_t cols, bool bf16_scales) {
  const std::uint64_t tile_cols = tiles(cols);
  Quantised out;
  out.scales.assign(tiles(rows) * tile_cols, 0.0F);
  out.codes.resize(rows * cols);
  for (std::uint64_t r = 0; r < rows; ++r)
    for (std::uint64_t c = 0; c < cols; ++c) {
      float& amax = out.scales[r / kTile * tile_cols + c / kTile];
      amax = std::max(amax, std::fabs(weights[r * cols + c]));
    }
  for (float& scale : out.scales) {
    if (scale == 0.0F) {
      scale = 1.0F;
      continue;
    }
    scale /= 448.0F;
    if (bf16_scales) scale = from_bf16(to_bf16(scale));
  }
  for (std::uint64_t r = 0; r < rows; ++r)
    for (std::uint64_t c = 0; c < cols; ++c)
      out.codes[r * cols + c] =
          to_e4m3(weights[r * cols + c] / out.scales[r / kTile * tile_cols + c / kTile]);
  return out;
}

}  // namespace stoker::golden
