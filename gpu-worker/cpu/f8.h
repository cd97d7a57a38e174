// FP8 E4M3FN, bit by bit (OCP 8-bit floating point specification 5.3; model.md 4.1).
#pragma once

#include <bit>
#include <cstdint>

namespace stoker {

/// Value of a code; 0x7F and 0xFF are NaN. Checked against the golden numbers of model.md Appendix A1.
constexpr float decode_f8_e4m3(std::uint32_t code) {
  const std::uint32_t exponent = (code >> 3) & 15U;
  const std::uint32_t mantissa = code & 7U;
  const std::uint32_t sign = (code & 0x80U) << 24;
  if ((code & 0x7FU) == 0x7FU) return std::bit_cast<float>(sign | 0x7FC0'0000U);
  if (exponent == 0) {
    const float value = static_cast<float>(mantissa) / 512.0F;
    return sign != 0 ? -value : value;
  }
  return std::bit_cast<float>(sign | (exponent + 120U) << 23 | mantissa << 20);
}

}  // namespace stoker
