// exp, sigmoid and softplus in double precision from IEEE operations only, so that the CPU, the GPU and the
// emulated GPU give the same bits; a C library's exp is not the same function everywhere.
// Included by .cu files: C++17, includes nothing of ours.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define STOKER_HOST_DEVICE __host__ __device__
#else
#define STOKER_HOST_DEVICE
#endif

namespace stoker {

/// 2^n for -1022 <= n <= 1023.
STOKER_HOST_DEVICE inline double pow2(int n) {
  const std::uint64_t bits = static_cast<std::uint64_t>(n + 1023) << 52;
  double out;
  memcpy(&out, &bits, sizeof out);
  return out;
}

/// e^x within 1 ulp for |x| <= 700, clamped beyond; NaN stays NaN. Range reduction with ln 2 in two pieces
/// (Cody and Waite), then the Taylor series, whose 14th term is below 2^-60 at ln(2) / 2.
STOKER_HOST_DEVICE inline double exp_exact(double x) {
  if (!(x > -700.0)) return x != x ? x : pow2(-1010);
  if (x > 700.0) x = 700.0;
  const double n = rint(x * 1.4426950408889634);
  double r = fma(n, -0.69314718036912382, x);
  r = fma(n, -1.9082149292705877e-10, r);
  double p = 1.0 / 6227020800.0;
  p = fma(p, r, 1.0 / 479001600.0);
  p = fma(p, r, 1.0 / 39916800.0);
  p = fma(p, r, 1.0 / 3628800.0);
  p = fma(p, r, 1.0 / 362880.0);
  p = fma(p, r, 1.0 / 40320.0);
  p = fma(p, r, 1.0 / 5040.0);
  p = fma(p, r, 1.0 / 720.0);
  p = fma(p, r, 1.0 / 120.0);
  p = fma(p, r, 1.0 / 24.0);
  p = fma(p, r, 1.0 / 6.0);
  p = fma(p, r, 0.5);
  p = fma(p, r, 1.0);
  p = fma(p, r, 1.0);
  return p * pow2(static_cast<int>(n));
}

/// ln(1 + u) for u >= 0, to about 1e-15: the exponent apart, then 2 atanh((m - 1) / (m + 1)).
STOKER_HOST_DEVICE inline double log1p_exact(double u) {
  if (u < 1e-4) return u * fma(u, fma(u, fma(u, -0.25, 1.0 / 3.0), -0.5), 1.0);
  const double v = 1.0 + u;
  std::uint64_t bits;
  memcpy(&bits, &v, sizeof bits);
  int exponent = static_cast<int>(bits >> 52) - 1023;
  bits = (bits & 0xFFFFFFFFFFFFFULL) | (1023ULL << 52);
  double m;
  memcpy(&m, &bits, sizeof m);
  if (m > 1.4142135623730951) {
    m *= 0.5;
    ++exponent;
  }
  const double s = (m - 1.0) / (m + 1.0);
  const double z = s * s;
  double p = 1.0 / 21.0;
  for (int k = 19; k >= 1; k -= 2) p = fma(p, z, 1.0 / k);
  return fma(static_cast<double>(exponent), 0.69314718055994531, 2.0 * s * p);
}

STOKER_HOST_DEVICE inline float sigmoid_exact(float x) {
  return static_cast<float>(1.0 / (1.0 + exp_exact(-static_cast<double>(x))));
}

/// log1p(e^x), x itself above 20 as torch does.
STOKER_HOST_DEVICE inline double softplus_exact(double x) { return x > 20.0 ? x : log1p_exact(exp_exact(x)); }

/// The decay of one value head: exp(-exp(A_log) * softplus(a + dt_bias)) (model.md 3.4 step 5).
STOKER_HOST_DEVICE inline float delta_decay(float neg_exp_a, float a, float dt_bias) {
  const double g =
      static_cast<double>(neg_exp_a) * softplus_exact(static_cast<double>(a) + static_cast<double>(dt_bias));
  return static_cast<float>(exp_exact(g));
}

}  // namespace stoker
