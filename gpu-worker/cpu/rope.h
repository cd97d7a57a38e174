// Rotary position embedding over the first dims of a head (model.md 3.6 step 3).
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace stoker {

/// 1 / theta^(2i / rotary_dim) for i < rotary_dim / 2, in fp32 steps as transformers computes it.
inline std::vector<float> inverse_frequencies(double theta, std::uint32_t rotary_dim) {
  std::vector<float> result;
  for (std::uint32_t i = 0; i < rotary_dim / 2; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(rotary_dim);
    result.push_back(1.0F / static_cast<float>(std::pow(theta, static_cast<double>(exponent))));
  }
  return result;
}

/// cos_sin: cosines, then sines. Angles in fp32 as transformers has them (they reach 262144 radians), their
/// sine and cosine to full precision.
inline void rope_angles(const std::vector<float>& inv_freq, std::uint32_t position, float* cos_sin) {
  const std::size_t half = inv_freq.size();
  for (std::size_t i = 0; i < half; ++i) {
    const float angle = static_cast<float>(position) * inv_freq[i];
    cos_sin[i] = static_cast<float>(std::cos(static_cast<double>(angle)));
    cos_sin[half + i] = static_cast<float>(std::sin(static_cast<double>(angle)));
  }
}

/// Rotates pairs (i, i + half) of x; dims from 2 * half on stay.
inline void rotate(float* x, const float* cos_sin, std::size_t half) {
  for (std::size_t i = 0; i < half; ++i) {
    const float a = x[i];
    const float b = x[i + half];
    x[i] = a * cos_sin[i] - b * cos_sin[half + i];
    x[i + half] = b * cos_sin[i] + a * cos_sin[half + i];
  }
}

}  // namespace stoker
