// The kernels through Highway: this file is compiled once per instruction set (foreach_target.h includes
// it again), and select_kernels() picks one table at run time.
#include "gpu-worker/cpu/kernels.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <string>

// Below AVX2 there is no fused multiply-add: those CPUs run the portable kernels. AVX3_DL adds nothing here.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "gpu-worker/cpu/kernels.cc"
#include <hwy/foreach_target.h>  // NOLINT(misc-include-cleaner)
//
#include <hwy/highway.h>

#undef STOKER_TABLE_NAME
#if HWY_TARGET == HWY_AVX2
#define STOKER_TABLE_NAME "avx2"
#elif HWY_TARGET == HWY_AVX3
#define STOKER_TABLE_NAME "avx512"
#elif HWY_TARGET == HWY_NEON && defined(__aarch64__)
#define STOKER_TABLE_NAME "neon"
#endif

#if defined(STOKER_TABLE_NAME)
HWY_BEFORE_NAMESPACE();
namespace stoker {
namespace HWY_NAMESPACE {
namespace {
#include "gpu-worker/cpu/vec-inl.h"
//
#include "gpu-worker/cpu/kernels-inl.h"
}  // namespace
const Kernels* kernel_table() { return table(); }
}  // namespace HWY_NAMESPACE
}  // namespace stoker
HWY_AFTER_NAMESPACE();
#endif

#if HWY_ONCE
namespace stoker {
namespace {

struct Choice {
  Simd simd;
  const char* name;
  const Kernels* (*table)();
  std::int64_t target;  ///< Highway's CPU bit; 0: any CPU
};

/// Best first.
constexpr std::array kChoices = {
#if (HWY_TARGETS) & HWY_AVX3
    Choice{Simd::avx512, "avx512", N_AVX3::kernel_table, HWY_AVX3},
#endif
#if (HWY_TARGETS) & HWY_AVX2
    Choice{Simd::avx2, "avx2", N_AVX2::kernel_table, HWY_AVX2},
#endif
#if ((HWY_TARGETS)&HWY_NEON) && defined(__aarch64__)
    Choice{Simd::automatic, "neon", N_NEON::kernel_table, HWY_NEON},
#endif
    Choice{Simd::scalar, "scalar", portable::kernel_table, 0},
};

}  // namespace

Result<const Kernels*> select_kernels(Simd simd) {
  const char* wanted = simd == Simd::avx512 ? "avx512" : "avx2";
  for (const Choice& choice : kChoices) {
    const bool supported = choice.target == 0 || (hwy::SupportedTargets() & choice.target) != 0;
    if (simd == choice.simd && !supported) break;
    if (supported && (simd == Simd::automatic || simd == choice.simd)) return choice.table();
  }
  return fail(Errc::unsupported,
              std::string("this CPU (or this build) has no ") + wanted + "; use simd = automatic, or scalar");
}

namespace {

/// model.md 4.1, checked against the golden numbers of Appendix A1 by the tests.
constexpr float decode_f8(std::uint32_t code) {
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

constexpr std::array<float, 256> make_f8_table() {
  std::array<float, 256> table{};
  for (std::uint32_t code = 0; code < 256; ++code) table[code] = decode_f8(code);
  return table;
}
constexpr std::array<float, 256> kF8Table = make_f8_table();

}  // namespace

float f8_e4m3_value(std::uint8_t code) { return kF8Table[code]; }

}  // namespace stoker
#endif
