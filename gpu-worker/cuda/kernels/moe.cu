// Around the experts of a layer (model.md 3.7): who they are, and the sum of what they gave.
#include "gpu-worker/cuda/kernels/lanes.cuh"
#include "gpu-worker/cuda/module.h"
#include "gpu-worker/scalar_math.h"

namespace stoker::device {
namespace {

constexpr unsigned kTopThreads = 128;
constexpr unsigned kCombineThreads = kCombineColumns + 32;  ///< the last warp has the shared expert's gate
constexpr unsigned kCombineBlocks = 4;  ///< of a multiprocessor at once: bounds the registers

/// Softmax of one row in place; its bits are left in shared memory too, for the choice.
__device__ __forceinline__ void softmax_row(float* p, unsigned n, unsigned* bits) {
  STOKER_SHARED(float, tops, [kTopThreads / 32]);
  STOKER_SHARED(float, total, [1]);
  float top = -INFINITY;
  for (unsigned i = threadIdx.x; i < n; i += kTopThreads) top = larger(top, p[i]);
  for (int mask = 16; mask > 0; mask /= 2) top = larger(top, __shfl_xor_sync(kAllLanes, top, mask));
  if (threadIdx.x % 32 == 0) tops[threadIdx.x / 32] = top;
  __syncthreads();
  for (const float other : tops) top = larger(top, other);
  for (unsigned i = threadIdx.x; i < n; i += kTopThreads) bits[i] = __float_as_uint(exp_lane(p[i] - top));
  __syncthreads();
  if (threadIdx.x < 32) {
    float sum = 0.0F;
    for (unsigned i = lane16(); i < n; i += 16) sum += __uint_as_float(bits[i]);
    sum = lane_sum(sum);
    if (threadIdx.x == 0) total[0] = sum;
  }
  __syncthreads();
  for (unsigned i = threadIdx.x; i < n; i += kTopThreads) {
    p[i] = __uint_as_float(bits[i]) / total[0];
    bits[i] = __float_as_uint(p[i]);
  }
}

/// A probability as a whole number of the same order, NaN below all; 0 is left for "taken".
__device__ __forceinline__ unsigned key_of(unsigned bits) {
  return (bits & 0x7FFF'FFFFU) > 0x7F80'0000U ? 1 : bits + 2;
}
__device__ __forceinline__ float value_of(unsigned key) {
  return key == 1 ? quiet_nan() : __uint_as_float(key - 2);
}

struct Candidate {
  unsigned key, id;
};
/// The largest that this lane of the warp has left, the lowest id of equal ones.
__device__ __forceinline__ Candidate best_of_lane(const unsigned* keys, unsigned n) {
  Candidate best{0, 0xFFFF'FFFFU};
  for (unsigned i = threadIdx.x; i < n; i += 32) {
    if (keys[i] > best.key) best = {keys[i], i};
  }
  return best;
}

/// A block per row. The first warp chooses: each lane offers its best, the owner of the winner looks again.
__global__ void __launch_bounds__(kTopThreads) top_k(TopK a) {
  STOKER_DYNAMIC_SHARED(unsigned, keys);
  softmax_row(a.p + std::size_t{blockIdx.x} * a.experts, a.experts, keys);
  for (unsigned i = threadIdx.x; i < a.experts; i += kTopThreads) keys[i] = key_of(keys[i]);
  __syncthreads();
  if (threadIdx.x >= 32) return;
  unsigned* ids = a.ids + std::size_t{blockIdx.x} * a.k;
  float* weights = a.weights + std::size_t{blockIdx.x} * a.k;
  float sum = 0.0F;
  Candidate mine = best_of_lane(keys, a.experts);
  for (unsigned rank = 0; rank < a.k; ++rank) {
    Candidate best = mine;
    for (int mask = 16; mask > 0; mask /= 2) {
      const Candidate other{__shfl_xor_sync(kAllLanes, best.key, mask),
                            __shfl_xor_sync(kAllLanes, best.id, mask)};
      if (other.key > best.key || (other.key == best.key && other.id < best.id)) best = other;
    }
    sum += value_of(best.key);
    if (threadIdx.x == 0) {
      ids[rank] = best.id;
      weights[rank] = value_of(best.key);
    }
    if (best.id == mine.id) {
      keys[best.id] = 0;
      mine = best_of_lane(keys, a.experts);
    }
  }
  if (threadIdx.x != 0 || !a.normalise) return;
  for (unsigned rank = 0; rank < a.k; ++rank) weights[rank] /= sum;
}

/// One column of the outputs of a row's experts, summed in the order of their ranks. Which are not finite
/// goes to `bad`, as Combine::not_finite has it.
template <unsigned kRanks>
__device__ __forceinline__ float sum_of_ranks(const Combine& a, unsigned row, unsigned column,
                                              unsigned& bad) {
  const unsigned ranks = kRanks > 0 ? kRanks : a.k;
  const float* out = a.out + std::size_t{row} * ranks * a.hidden + column;
  const float* weights = a.weights + std::size_t{row} * ranks;
  float y = 0.0F;
  STOKER_UNROLL_BY(kRanks > 0 ? kRanks : 4)
  for (unsigned rank = 0; rank < ranks; ++rank, out += a.hidden) {
    const float value = __ldg(out);
    if (is_not_finite(value)) bad |= 1U << min(rank, 31U);
    y = fmaf(__ldg(weights + rank), value, y);
  }
  return y;
}

/// A block per row and kCombineColumns columns.
template <unsigned kRanks>
__global__ void __launch_bounds__(kCombineThreads, kCombineBlocks) combine(Combine a) {
  STOKER_SHARED(unsigned, found, [1]);
  STOKER_SHARED(float, sigma, [1]);
  const unsigned row = blockIdx.x;
  const unsigned column = blockIdx.y * kCombineColumns + threadIdx.x;
  const bool mine = threadIdx.x < kCombineColumns && column < a.hidden;
  const std::size_t at = std::size_t{row} * a.hidden + column;
  // Everything that is read is asked for before anything is computed.
  const float x = mine ? a.x[at] : 0.0F;
  const float shared = mine && a.shared != nullptr ? __ldg(a.shared + at) : 0.0F;
  unsigned bad = 0;
  float y = 0.0F;
  if (mine) {
    y = sum_of_ranks<kRanks>(a, row, column, bad);
  } else if (threadIdx.x == kCombineColumns) {
    found[0] = 0;
    // Double precision is slow on most cards: once per block, beside the others.
    if (a.shared != nullptr) sigma[0] = sigmoid_exact(a.shared_gate[row]);
  }
  __syncthreads();
  if (bad != 0) atomicOr(&found[0], bad);
  if (mine) a.x[at] = x + (a.shared != nullptr ? fmaf(sigma[0], shared, y) : y);
  __syncthreads();
  if (threadIdx.x == 0) a.not_finite[std::size_t{row} * gridDim.y + blockIdx.y] = found[0];
}

}  // namespace

Status launch_top_k(const TopK& a, Stream* s) {
  if (a.rows == 0) return nullptr;
  if (a.k > a.experts) return "top_k: k is larger than the number of experts";
  const std::size_t bytes = std::size_t{a.experts} * sizeof(unsigned);
  static_assert(kExpertsMax * sizeof(unsigned) + 32 <= kSharedBytesMax, "one word per expert");
  if (a.experts == 0 || a.experts > kExpertsMax) return "top_k: 1 to 12280 experts only";
  return STOKER_LAUNCH(top_k, a.rows, kTopThreads, bytes, s, a);
}

Status launch_combine(const Combine& a, Stream* s) {
  if (a.rows == 0 || a.hidden == 0) return nullptr;
  const dim3 grid(a.rows, combine_slots(a.hidden));
  if (a.k == 8) return STOKER_LAUNCH(combine<8>, grid, kCombineThreads, 0, s, a);
  if (a.k == 10) return STOKER_LAUNCH(combine<10>, grid, kCombineThreads, 0, s, a);
  return STOKER_LAUNCH(combine<0>, grid, kCombineThreads, 0, s, a);
}

}  // namespace stoker::device
