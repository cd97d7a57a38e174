// Around the experts of a layer (model.md 3.7): who they are, and the sum of what they gave.
#include "gpu-worker/cuda/kernels/lanes.cuh"
#include "gpu-worker/cuda/module.h"
#include "gpu-worker/scalar_math.h"

namespace stoker::device {
namespace {

constexpr unsigned kTopThreads = 128;
constexpr unsigned kHeldKeys = 16;  ///< experts of a lane of the warp that chooses, in registers
constexpr unsigned kCombineThreads = kCombineColumns + 32;  ///< the last warp has the shared expert's gate
constexpr unsigned kCombineBlocks = 3;  ///< of a multiprocessor at once: bounds the registers

/// A probability as a whole number of the same order, NaN below all; 0 is left for "taken".
__device__ __forceinline__ unsigned key_of(unsigned bits) {
  return (bits & 0x7FFF'FFFFU) > 0x7F80'0000U ? 1 : bits + 2;
}
__device__ __forceinline__ float value_of(unsigned key) {
  return key == 1 ? quiet_nan() : __uint_as_float(key - 2);
}

/// Softmax of one row in place; its keys are left in shared memory too, for the choice.
__device__ __forceinline__ void softmax_row(float* p, unsigned n, unsigned* keys) {
  STOKER_SHARED(float, tops, [kTopThreads / 32]);
  STOKER_SHARED(float, total, [1]);
  float top = -INFINITY;
  for (unsigned i = threadIdx.x; i < n; i += kTopThreads) {
    const float logit = p[i];
    keys[i] = __float_as_uint(logit);
    top = larger(top, logit);
  }
  for (int mask = 16; mask > 0; mask /= 2) top = larger(top, __shfl_xor_sync(kAllLanes, top, mask));
  if (threadIdx.x % 32 == 0) tops[threadIdx.x / 32] = top;
  __syncthreads();
  for (const float other : tops) top = larger(top, other);
  for (unsigned i = threadIdx.x; i < n; i += kTopThreads)
    keys[i] = __float_as_uint(exp_lane(__uint_as_float(keys[i]) - top));
  __syncthreads();
  if (threadIdx.x < 32) {
    float sum = 0.0F;
    const unsigned whole = n / 16 * 16;
    for (unsigned base = 0; base < whole; base += 16) sum += __uint_as_float(keys[base + lane16()]);
    if (whole + lane16() < n) sum += __uint_as_float(keys[whole + lane16()]);
    sum = lane_sum(sum);
    if (threadIdx.x == 0) total[0] = sum;
  }
  __syncthreads();
  for (unsigned i = threadIdx.x; i < n; i += kTopThreads) {
    p[i] = __uint_as_float(keys[i]) / total[0];
    keys[i] = key_of(__float_as_uint(p[i]));
  }
}

struct Candidate {
  unsigned key, id;
};

/// The keys of one lane of the warp that chooses: kHeld at most, in registers, or any number where they are.
template <unsigned kHeld>
class LaneKeys {
 public:
  __device__ __forceinline__ LaneKeys(unsigned* keys, unsigned n) : keys_(keys), n_(n) {
    if constexpr (kHeld > 0) {
      STOKER_UNROLL
      for (unsigned j = 0; j < kHeld; ++j) held_[j] = id_of(j) < n ? keys[id_of(j)] : 0;
    }
  }
  /// The largest that is left, the lowest id of equal ones.
  __device__ __forceinline__ Candidate best() const {
    Candidate best{0, 0xFFFF'FFFFU};
    if constexpr (kHeld > 0) {
      STOKER_UNROLL
      for (unsigned j = 0; j < kHeld; ++j) {
        if (held_[j] > best.key) best = {held_[j], id_of(j)};
      }
    } else {
      for (unsigned i = threadIdx.x; i < n_; i += 32) {
        if (keys_[i] > best.key) best = {keys_[i], i};
      }
    }
    return best;
  }
  __device__ __forceinline__ void take(unsigned id) {
    if constexpr (kHeld > 0) {
      STOKER_UNROLL
      for (unsigned j = 0; j < kHeld; ++j) held_[j] = id_of(j) == id ? 0 : held_[j];
    } else {
      keys_[id] = 0;
    }
  }

 private:
  __device__ __forceinline__ static unsigned id_of(unsigned j) { return threadIdx.x + 32 * j; }
  unsigned held_[kHeld > 0 ? kHeld : 1];
  unsigned* keys_;
  unsigned n_;
};

/// A block per row. The first warp chooses: each lane offers its best, the owner of the winner looks again.
template <unsigned kHeld>
__global__ void __launch_bounds__(kTopThreads) top_k(TopK a) {
  STOKER_DYNAMIC_SHARED(unsigned, keys);
  softmax_row(a.p + std::size_t{blockIdx.x} * a.experts, a.experts, keys);
  __syncthreads();
  if (threadIdx.x >= 32) return;
  unsigned* ids = a.ids + std::size_t{blockIdx.x} * a.k;
  float* weights = a.weights + std::size_t{blockIdx.x} * a.k;
  LaneKeys<kHeld> left(keys, a.experts);
  Candidate mine = left.best();
  float sum = 0.0F;
  float weight = 0.0F;  // the last that this lane wrote
  for (unsigned rank = 0; rank < a.k; ++rank) {
    const unsigned key = warp_max(mine.key);
    const unsigned id = warp_min(mine.key == key ? mine.id : 0xFFFF'FFFFU);
    sum += value_of(key);
    if (threadIdx.x == rank % 32) {
      ids[rank] = id;
      weights[rank] = weight = value_of(key);
    }
    if (id != mine.id) continue;
    left.take(id);
    mine = left.best();
  }
  if (!a.normalise) return;
  for (unsigned rank = threadIdx.x; rank < a.k; rank += 32)
    weights[rank] = (rank + 32 < a.k ? weights[rank] : weight) / sum;
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
  if (a.experts <= 32 * kHeldKeys) return STOKER_LAUNCH(top_k<kHeldKeys>, a.rows, kTopThreads, bytes, s, a);
  return STOKER_LAUNCH(top_k<0>, a.rows, kTopThreads, bytes, s, a);
}

Status launch_combine(const Combine& a, Stream* s) {
  if (a.rows == 0 || a.hidden == 0) return nullptr;
  const dim3 grid(a.rows, combine_slots(a.hidden));
  if (a.k == 8) return STOKER_LAUNCH(combine<8>, grid, kCombineThreads, 0, s, a);
  if (a.k == 10) return STOKER_LAUNCH(combine<10>, grid, kCombineThreads, 0, s, a);
  return STOKER_LAUNCH(combine<0>, grid, kCombineThreads, 0, s, a);
}

}  // namespace stoker::device
