// The canonical arithmetic of the CPU backend (cpu/kernels.h, cpu/vec-inl.h) on half-warps: lane l of the 16
// virtual lanes is thread l of a half-warp, and the reduction tree is four xor shuffles (a sum of two floats
// does not depend on their order). Compiled without contraction: what is fused says fmaf.
//
// Functions that shuffle are called by whole warps.
#pragma once

#include "gpu-worker/cuda/kernel_language.h"

#if defined(__CUDACC__)
#define STOKER_UNROLL _Pragma("unroll")
#define STOKER_PRAGMA(text) _Pragma(#text)
#define STOKER_UNROLL_BY(n) STOKER_PRAGMA(unroll n)
#else
#define STOKER_UNROLL
#define STOKER_UNROLL_BY(n)
#endif

namespace stoker::device {

constexpr unsigned kAllLanes = 0xFFFF'FFFFU;
constexpr unsigned kSharedBytesMax = 48 * 1024;  ///< static and dynamic, on every card

__device__ __forceinline__ unsigned lane16() { return threadIdx.x % 16; }

/// Sum over the half-warp in the canonical order; every lane gets it.
__device__ __forceinline__ float lane_sum(float v) {
  STOKER_UNROLL
  for (int mask = 8; mask > 0; mask /= 2) v += __shfl_xor_sync(kAllLanes, v, mask, 16);
  return v;
}

/// The reduction of kCount sums at once. In each step a lane hands half of its sums to its partner and keeps
/// the partner's share of the others: 60 shuffles for 64 sums, not 256.
template <int kMask, int kCount, int kSize>
__device__ __forceinline__ void fold_lanes(float (&acc)[kSize]) {
  if constexpr (kMask > 0 && kCount > 1) {
    constexpr int kHalf = kCount / 2;
    const bool upper = (lane16() & static_cast<unsigned>(kMask)) != 0;
    STOKER_UNROLL
    for (int i = 0; i < kHalf; ++i) {
      const float keep = upper ? acc[i + kHalf] : acc[i];
      const float give = upper ? acc[i] : acc[i + kHalf];
      acc[i] = keep + __shfl_xor_sync(kAllLanes, give, kMask, 16);
    }
    fold_lanes<kMask / 2, kHalf>(acc);
  } else if constexpr (kMask > 0) {
    acc[0] += __shfl_xor_sync(kAllLanes, acc[0], kMask, 16);
    fold_lanes<kMask / 2, 1>(acc);
  }
}
/// Reduces acc over the half-warp and calls body(o, sum) for the sums that this lane holds then: o ascending
/// with the lane, so that its top bit is the lane's. Of equal copies (kCount < 16) each lane has one; `mine`
/// is true in the one that should write. body may shuffle.
template <int kCount, class Body>
__device__ __forceinline__ void for_lane_sums(float (&acc)[kCount], const Body& body) {
  static_assert((kCount & (kCount - 1)) == 0, "halves must be whole");
  fold_lanes<8, kCount>(acc);
  constexpr unsigned kCopies = kCount < 16 ? 16 / kCount : 1;
  constexpr unsigned kHeld = kCount < 16 ? 1 : kCount / 16;
  STOKER_UNROLL
  for (unsigned i = 0; i < kHeld; ++i) body(lane16() / kCopies * kHeld + i, acc[i], lane16() % kCopies == 0);
}

/// Canonical dot product by a half-warp; every lane gets it.
__device__ __forceinline__ float dot(const float* a, const float* b, unsigned n) {
  float acc = 0.0F;
  const unsigned whole = n / 16 * 16;
  // Counts what all lanes have in common: so nvcc sees how often it goes round when n is a constant.
  for (unsigned base = 0; base < whole; base += 16) acc = fmaf(a[base + lane16()], b[base + lane16()], acc);
  const unsigned k = whole + lane16();
  if (whole < n) acc = fmaf(k < n ? a[k] : 0.0F, k < n ? b[k] : 0.0F, acc);
  return lane_sum(acc);
}

/// v_exp of vec-inl.h, operation by operation.
__device__ __forceinline__ float exp_lane(float x) {
  const float top = x < 88.37F ? x : 88.37F;
  const float c = x > -87.33F ? top : -87.33F;  // NaN too: put back below
  const float n = rintf(c * 1.44269504088896341F);
  float r = fmaf(n, -0.693359375F, c);
  r = fmaf(n, 2.12194440e-4F, r);
  float p = 1.9875691500e-4F;
  p = fmaf(p, r, 1.3981999507e-3F);
  p = fmaf(p, r, 8.3334519073e-3F);
  p = fmaf(p, r, 4.1665795894e-2F);
  p = fmaf(p, r, 1.6666665459e-1F);
  p = fmaf(p, r, 5.0000001201e-1F);
  p = fmaf(p, r * r, r) + 1.0F;
  const float power = __uint_as_float(static_cast<unsigned>(static_cast<int>(n) + 127) << 23);
  return x != x ? x : p * power;
}
__device__ __forceinline__ float sigmoid_lane(float x) { return 1.0F / (1.0F + exp_lane(0.0F - x)); }
__device__ __forceinline__ float silu_lane(float x) { return x / (1.0F + exp_lane(0.0F - x)); }

__device__ __forceinline__ bool is_not_finite(float x) {
  return (__float_as_uint(x) & 0x7F80'0000U) == 0x7F80'0000U;
}

/// The larger of two as the CPU's softmax has it: a NaN never replaces a number.
__device__ __forceinline__ float larger(float a, float b) { return b > a ? b : a; }

/// The largest, or smallest, of what the lanes of a warp bring; every lane gets it.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
__device__ __forceinline__ unsigned warp_max(unsigned v) { return __reduce_max_sync(kAllLanes, v); }
__device__ __forceinline__ unsigned warp_min(unsigned v) { return __reduce_min_sync(kAllLanes, v); }
#else
__device__ __forceinline__ unsigned warp_max(unsigned v) {
  STOKER_UNROLL
  for (int mask = 16; mask > 0; mask /= 2) v = max(v, __shfl_xor_sync(kAllLanes, v, mask));
  return v;
}
__device__ __forceinline__ unsigned warp_min(unsigned v) {
  STOKER_UNROLL
  for (int mask = 16; mask > 0; mask /= 2) v = min(v, __shfl_xor_sync(kAllLanes, v, mask));
  return v;
}
#endif

/// The top bit of each byte that is a NaN code, 0x7F or 0xFF.
__device__ __forceinline__ unsigned f8_nans(unsigned codes) {
  return ((codes & 0x7F7F'7F7FU) + 0x0101'0101U) & 0x8080'8080U;
}

/// Values of four E4M3FN codes over kF8Fold, for products with a scale that was multiplied by it: exact, and
/// one instruction less per weight. Where the hardware does not convert: a code's exponent and mantissa
/// fields, put where a float has its own, mean value * 2^-120, subnormals included. NaN codes come out as NaN
/// where it does and as 480 elsewhere: see f8_nans.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
constexpr float kF8Fold = 1.0F;
constexpr bool kF8NanIsNan = true;
__device__ __forceinline__ void f8_folded(unsigned codes, float (&out)[4]) {
  STOKER_UNROLL
  for (unsigned i = 0; i < 2; ++i) {
    const auto pair = static_cast<__nv_fp8x2_storage_t>(codes >> (16 * i));
    const __half2 halves = __nv_cvt_fp8x2_to_halfraw2(pair, __NV_E4M3);
    out[2 * i] = __low2float(halves);
    out[2 * i + 1] = __high2float(halves);
  }
}
#else
constexpr float kF8Fold = 0x1p120F;
constexpr bool kF8NanIsNan = false;
__device__ __forceinline__ void f8_folded(unsigned codes, float (&out)[4]) {
  STOKER_UNROLL
  for (unsigned i = 0; i < 4; ++i) {
    const int signed_top = static_cast<int>(codes << (24 - 8 * i));
    out[i] = __uint_as_float(static_cast<unsigned>(signed_top >> 4) & 0x87F0'0000U);
  }
}
#endif

__device__ __forceinline__ float quiet_nan() { return __uint_as_float(0x7FC0'0000U); }

/// The same as they are, NaN included.
__device__ __forceinline__ void f8_values(unsigned codes, float (&out)[4]) {
  f8_folded(codes, out);
  const unsigned nans = kF8NanIsNan ? 0 : f8_nans(codes);
  STOKER_UNROLL
  for (unsigned i = 0; i < 4; ++i) {
    const bool nan = (nans & (0x80U << (8 * i))) != 0;
    out[i] = nan ? quiet_nan() : out[i] * kF8Fold;
  }
}

}  // namespace stoker::device
