// The kernels through Highway: this file is compiled once per instruction set (foreach_target.h includes
// it again), and select_kernels() picks one table at run time.
#include "gpu-worker/cpu/kernels.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <string>

// Below AVX2 there is no fused multiply-add: those CPUs run the portable kernels. AVX3_DL (Ice Lake, Zen 4)
// has byte permutes (VBMI), with which FP8 codes are looked up instead of computed.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4)
#define HWY_WANT_AVX3_DL
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "gpu-worker/cpu/kernels.cc"
#include <hwy/foreach_target.h>  // NOLINT(misc-include-cleaner)
//
#include <hwy/highway.h>

#include "gpu-worker/cpu/f8.h"

#undef STOKER_TABLE_NAME
#if HWY_TARGET == HWY_AVX2
#define STOKER_TABLE_NAME "avx2"
#elif HWY_TARGET == HWY_AVX3
#define STOKER_TABLE_NAME "avx512"
#elif HWY_TARGET == HWY_AVX3_DL
#define STOKER_TABLE_NAME "avx512vbmi"
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
#include "gpu-worker/cpu/matmul-inl.h"
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
#if (HWY_TARGETS) & HWY_AVX3_DL
    Choice{Simd::avx512vbmi, "avx512vbmi", N_AVX3_DL::kernel_table, HWY_AVX3_DL},
#endif
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
  const char* wanted = simd == Simd::avx512vbmi ? "avx512vbmi" : simd == Simd::avx512 ? "avx512" : "avx2";
  for (const Choice& choice : kChoices) {
    const bool supported = choice.target == 0 || (hwy::SupportedTargets() & choice.target) != 0;
    if (simd == choice.simd && !supported) break;
    if (supported && (simd == Simd::automatic || simd == choice.simd)) return choice.table();
  }
  return fail(Errc::unsupported,
              std::string("this CPU (or this build) has no ") + wanted + "; use simd = automatic, or scalar");
}

namespace {

constexpr std::array<float, 256> make_f8_table() {
  std::array<float, 256> table{};
  for (std::uint32_t code = 0; code < 256; ++code) table[code] = decode_f8_e4m3(code);
  return table;
}
constexpr std::array<float, 256> kF8Table = make_f8_table();

}  // namespace

float f8_e4m3_value(std::uint8_t code) { return kF8Table[code]; }

}  // namespace stoker
#endif
