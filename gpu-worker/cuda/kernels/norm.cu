// RMS norm and the small element-wise kernels.
#include "gpu-worker/cuda/kernels/lanes.cuh"
#include "gpu-worker/cuda/module.h"

namespace stoker::device {
namespace {

constexpr unsigned kThreads = 256;

/// A block per row. The first half-warp sums (its order is fixed), the other threads bring the row and scale.
__global__ void __launch_bounds__(kThreads) rms_norm(RmsNorm a) {
  STOKER_DYNAMIC_SHARED(float, row);
  STOKER_SHARED(float, r, [1]);
  const unsigned from = a.from == nullptr ? blockIdx.x : a.from[blockIdx.x];
  const float* x = a.x + std::size_t{from} * a.n;
  float* y = a.y + std::size_t{blockIdx.x} * a.n;
  for (unsigned i = threadIdx.x; i < a.n; i += kThreads) row[i] = x[i];
  __syncthreads();
  if (threadIdx.x < 32) {
    const float mean = dot(row, row, a.n) / static_cast<float>(a.n);
    if (threadIdx.x == 0) r[0] = 1.0F / sqrtf(mean + a.eps);
  }
  __syncthreads();
  for (unsigned i = threadIdx.x; i < a.n; i += kThreads) y[i] = row[i] * r[0] * a.w[i];
}

__global__ void __launch_bounds__(kThreads) silu_mul(SiluMul a) {
  const std::uint64_t step = std::uint64_t{gridDim.x} * kThreads;
  for (std::uint64_t i = std::uint64_t{blockIdx.x} * kThreads + threadIdx.x; i < a.n; i += step)
    a.g[i] = silu_lane(a.g[i]) * a.u[i];
}

__global__ void __launch_bounds__(kThreads) not_finite(NotFinite a) {
  STOKER_SHARED(unsigned, found, [1]);
  if (threadIdx.x == 0) found[0] = 0;
  __syncthreads();
  const float* x = a.x + std::size_t{blockIdx.x} * a.n;
  bool bad = false;
  for (unsigned i = threadIdx.x; i < a.n; i += kThreads) bad = bad || is_not_finite(x[i]);
  if (bad) atomicOr(&found[0], 1U);
  __syncthreads();
  if (threadIdx.x == 0) a.flags[blockIdx.x] = found[0];
}

}  // namespace

Status launch_rms_norm(const RmsNorm& a, Stream* s) {
  if (a.rows == 0) return nullptr;
  const std::size_t bytes = std::size_t{a.n} * sizeof(float);
  static_assert(kHiddenMax * sizeof(float) + 16 <= kSharedBytesMax, "a row in shared memory");
  if (a.n == 0 || a.n > kHiddenMax) return "rms_norm: rows of 1 to 12284 floats only";
  return STOKER_LAUNCH(rms_norm, a.rows, kThreads, bytes, s, a);
}

Status launch_silu_mul(const SiluMul& a, Stream* s) {
  if (a.n == 0) return nullptr;
  const std::uint64_t blocks = (a.n + kThreads - 1) / kThreads;
  const unsigned grid = blocks < 4096 ? static_cast<unsigned>(blocks) : 4096;
  return STOKER_LAUNCH(silu_mul, grid, kThreads, 0, s, a);
}

Status launch_not_finite(const NotFinite& a, Stream* s) {
  if (a.rows == 0) return nullptr;
  return STOKER_LAUNCH(not_finite, a.rows, kThreads, 0, s, a);
}

}  // namespace stoker::device
