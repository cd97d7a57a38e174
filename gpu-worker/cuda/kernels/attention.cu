// Gated softmax attention over a paged KV cache (model.md 3.6), in the CPU backend's order: scores, the
// maximum over all positions, sums per page, then over the pages in order.
//
// Three kernels, parallel over rows, kv heads and pages: scores; exponentials and sums of a page; the sum
// over pages. A block serves up to eight query heads of one kv head, so that a key or value is read once for
// them.
#include "gpu-worker/cuda/kernels/lanes.cuh"
#include "gpu-worker/cuda/module.h"

namespace stoker::device {
namespace {

constexpr unsigned kStoreThreads = 128;
constexpr unsigned kScoreThreads = 256;
constexpr unsigned kKeysPerHalfWarp = 4;
constexpr unsigned kBlockKeys = kScoreThreads / 16 * kKeysPerHalfWarp;  ///< keys of one block of score_keys
constexpr unsigned kParts = kPagePositions / kBlockKeys;                ///< of a page
constexpr unsigned kValueThreads = 128;
constexpr unsigned kFinishThreads = 256;
// Blocks of them that must fit into a multiprocessor. Left alone nvcc takes few registers for sm_80 and
// sm_90, and reads arrive four at a time instead of sixteen.
constexpr unsigned kScoreBlocks = 3;
constexpr unsigned kValueBlocks = 4;
constexpr unsigned kFinishBlocks = 2;
static_assert(kPagePositions % kBlockKeys == 0 && kBlockKeys == 64, "score_keys has two keys per lane");

/// The keys (which 0) or values (which 1) of one kv head in a page.
__device__ __forceinline__ float* page_part(float* page, unsigned layer, unsigned which, unsigned kv_heads,
                                            unsigned kv_head, unsigned head_dim) {
  return page + ((std::size_t{layer} * 2 + which) * kv_heads + kv_head) * kPagePositions * head_dim;
}

/// A block per row and head: query heads first, then kv heads.
__global__ void __launch_bounds__(kStoreThreads) attention_store(AttentionStore a) {
  STOKER_DYNAMIC_SHARED(float, head);
  STOKER_SHARED(float, r, [1]);
  const Row row = a.step.rows[blockIdx.y];
  const bool is_query = blockIdx.x < a.heads;
  const unsigned kv_head = is_query ? 0 : blockIdx.x - a.heads;
  const unsigned dim = a.head_dim;
  const unsigned half = a.rotary / 2;
  float* q = a.q + std::size_t{blockIdx.y} * a.q_stride + std::size_t{blockIdx.x} * dim;
  const float* k = a.kv + (std::size_t{blockIdx.y} * 2 * a.kv_heads + kv_head) * dim;
  const float* in = is_query ? q : k;
  for (unsigned i = threadIdx.x; i < dim; i += kStoreThreads) head[i] = in[i];
  __syncthreads();
  if (threadIdx.x < 32) {
    const float mean = dot(head, head, dim) / static_cast<float>(dim);
    if (threadIdx.x == 0) r[0] = 1.0F / sqrtf(mean + a.eps);
  }
  __syncthreads();
  float* out = q;
  if (!is_query) {
    float* page = a.step.segments[row.segment].pages[row.position / kPagePositions];
    const std::size_t at = std::size_t{row.position % kPagePositions} * dim;
    out = page_part(page, a.layer, 0, a.kv_heads, kv_head, dim) + at;
    float* value = page_part(page, a.layer, 1, a.kv_heads, kv_head, dim) + at;
    const float* v = k + std::size_t{a.kv_heads} * dim;
    for (unsigned i = threadIdx.x; i < dim; i += kStoreThreads) value[i] = v[i];
  }
  const float* w = is_query ? a.q_norm : a.k_norm;
  const float* cosines = a.cos_sin + std::size_t{blockIdx.y} * a.rotary;
  const float* sines = cosines + half;
  const auto normed = [&](unsigned i) { return head[i] * r[0] * w[i]; };
  for (unsigned i = threadIdx.x; i < dim; i += kStoreThreads) {
    if (i < half) {
      out[i] = normed(i) * cosines[i] - normed(i + half) * sines[i];
    } else if (i < 2 * half) {
      out[i] = normed(i) * cosines[i - half] + normed(i - half) * sines[i - half];
    } else {
      out[i] = normed(i);
    }
  }
}

/// Where the kernels of one group of rows meet. Arrays begin with [row of the group][head].
struct Workspace {
  float* scores;  ///< [pages * kPagePositions]
  float* maxima;  ///< [pages * kParts]
  float* sums;    ///< [pages], of the exponentials
  float* values;  ///< [pages][head_dim], weighted
  unsigned pages;
};
std::uint64_t floats_per_head(std::uint64_t pages, std::uint64_t head_dim) {
  return pages * (kPagePositions + kParts + 1 + head_dim);
}

/// What blocks of score_keys and weigh_values find from their index: kHeads query heads of a row.
template <unsigned kHeads>
struct Queries {
  unsigned row;  ///< of the step
  unsigned kv_head;
  unsigned first;    ///< query head
  unsigned count;    ///< query heads, at most kHeads
  std::size_t slot;  ///< of `first` in the workspace
  unsigned length;   ///< positions attended to
  float* const* pages;

  __device__ Queries(const Attention& a, unsigned first_row) {
    const unsigned per_kv = a.heads / a.kv_heads;
    const unsigned tiles = (per_kv + kHeads - 1) / kHeads;
    kv_head = blockIdx.y / tiles;
    const unsigned tile = blockIdx.y % tiles;
    first = kv_head * per_kv + tile * kHeads;
    count = min(kHeads, per_kv - tile * kHeads);
    row = first_row + blockIdx.z;
    slot = std::size_t{blockIdx.z} * a.heads + first;
    const Row r = a.step.rows[row];
    length = r.position + 1;
    pages = a.step.segments[r.segment].pages;
  }
};

/// acc[n * kHeads + g] = this lane's part of query g times key n; both begin at the lane's first column. 64
/// columns at a time, without a test in their way: all of their reads are sent before the first is needed.
template <unsigned kHeads>
__device__ __forceinline__ void multiply_keys(const float* (&key)[kKeysPerHalfWarp], const float* query,
                                              unsigned dim, float (&acc)[kKeysPerHalfWarp * kHeads]) {
  constexpr unsigned kGroups = 4;  ///< of 16 columns
  unsigned base = 0;
  STOKER_UNROLL_BY(1)
  for (; base + 16 * kGroups <= dim; base += 16 * kGroups) {
    float k[kGroups][kKeysPerHalfWarp];
    STOKER_UNROLL
    for (unsigned j = 0; j < kGroups; ++j) {
      STOKER_UNROLL
      for (unsigned n = 0; n < kKeysPerHalfWarp; ++n) k[j][n] = __ldg(key[n] + 16 * j);
    }
    STOKER_UNROLL
    for (unsigned n = 0; n < kKeysPerHalfWarp; ++n) key[n] += 16 * kGroups;
    STOKER_UNROLL
    for (unsigned g = 0; g < kHeads; ++g) {
      STOKER_UNROLL
      for (unsigned j = 0; j < kGroups; ++j) {
        const float x = query[g * dim + base + 16 * j];
        STOKER_UNROLL
        for (unsigned n = 0; n < kKeysPerHalfWarp; ++n)
          acc[n * kHeads + g] = fmaf(x, k[j][n], acc[n * kHeads + g]);
      }
    }
  }
  STOKER_UNROLL_BY(1)
  for (; base < dim; base += 16) {
    const bool mine = base + lane16() < dim;
    float k[kKeysPerHalfWarp];
    STOKER_UNROLL
    for (unsigned n = 0; n < kKeysPerHalfWarp; ++n) {
      k[n] = mine ? __ldg(key[n]) : 0.0F;
      key[n] += 16;
    }
    STOKER_UNROLL
    for (unsigned g = 0; g < kHeads; ++g) {
      const float x = mine ? query[g * dim + base] : 0.0F;
      STOKER_UNROLL
      for (unsigned n = 0; n < kKeysPerHalfWarp; ++n)
        acc[n * kHeads + g] = fmaf(x, k[n], acc[n * kHeads + g]);
    }
  }
}

/// Scores of kBlockKeys keys and their maximum. Each half-warp multiplies four keys with all query heads.
template <unsigned kHeads>
__global__ void __launch_bounds__(kScoreThreads, kScoreBlocks)
    score_keys(Attention a, Workspace work, unsigned first_row) {
  STOKER_DYNAMIC_SHARED(float, queries);  // [kHeads][head_dim]
  STOKER_SHARED(float, scores, [kHeads][kBlockKeys]);
  const Queries<kHeads> q(a, first_row);
  const unsigned position = blockIdx.x * kBlockKeys;
  if (position >= q.length) return;
  const unsigned dim = a.head_dim;
  const unsigned count = min(kBlockKeys, q.length - position);
  const float* from = a.q + std::size_t{q.row} * a.q_stride + std::size_t{q.first} * dim;
  for (unsigned i = threadIdx.x; i < kHeads * dim; i += kScoreThreads)
    queries[i] = i < q.count * dim ? from[i] : 0.0F;
  __syncthreads();
  const float* keys = page_part(q.pages[position / kPagePositions], a.layer, 0, a.kv_heads, q.kv_head, dim) +
                      std::size_t{position % kPagePositions} * dim;
  const unsigned first = threadIdx.x / 16 * kKeysPerHalfWarp;
  const float* key[kKeysPerHalfWarp];
  STOKER_UNROLL
  for (unsigned n = 0; n < kKeysPerHalfWarp; ++n) key[n] = keys + min(first + n, count - 1) * dim + lane16();
  float acc[kKeysPerHalfWarp * kHeads] = {};
  multiply_keys<kHeads>(key, queries + lane16(), dim, acc);
  for_lane_sums(acc, [&](unsigned o, float sum, bool mine) {
    if (mine) scores[o % kHeads][first + o / kHeads] = sum * a.scale;
  });
  __syncthreads();
  // A warp per query head: to the workspace, and the largest.
  const unsigned lane = threadIdx.x % 32;
  for (unsigned g = threadIdx.x / 32; g < q.count; g += kScoreThreads / 32) {
    float* out = work.scores + (q.slot + g) * work.pages * kPagePositions + position;
    float top = -INFINITY;
    for (unsigned t = lane; t < count; t += 32) {
      out[t] = scores[g][t];
      top = larger(top, scores[g][t]);
    }
    for (int mask = 16; mask > 0; mask /= 2) top = larger(top, __shfl_xor_sync(kAllLanes, top, mask));
    if (lane == 0) work.maxima[(q.slot + g) * work.pages * kParts + blockIdx.x] = top;
  }
}

/// exp(score - maximum) of one position. A thread reads all of it at once, by fours; the gap spreads
/// positions over the banks.
template <unsigned kHeads>
struct alignas(kHeads < 4 ? 4 * kHeads : 16) Weights {
  float e[kHeads < 4 ? kHeads : kHeads + 4];
};

/// e = exp(score - maximum) of one page, their sum, and the sum of e times value for kValueThreads
/// dimensions.
template <unsigned kHeads>
__global__ void __launch_bounds__(kValueThreads, kValueBlocks)
    weigh_values(Attention a, Workspace work, unsigned first_row) {
  STOKER_SHARED(Weights<kHeads>, weights, [kPagePositions]);
  STOKER_SHARED(float, maxima, [kHeads]);
  const Queries<kHeads> q(a, first_row);
  const unsigned tiles = (a.head_dim + kValueThreads - 1) / kValueThreads;
  const unsigned page = blockIdx.x / tiles;
  const unsigned tile = blockIdx.x % tiles;
  const unsigned position = page * kPagePositions;
  if (position >= q.length) return;
  const unsigned count = min(kPagePositions, q.length - position);
  const unsigned warp = threadIdx.x / 32;
  const unsigned parts = (q.length + kBlockKeys - 1) / kBlockKeys;
  for (unsigned g = warp; g < q.count; g += kValueThreads / 32) {
    const float* from = work.maxima + (q.slot + g) * work.pages * kParts;
    float top = -INFINITY;
    for (unsigned p = threadIdx.x % 32; p < parts; p += 32) top = larger(top, from[p]);
    for (int mask = 16; mask > 0; mask /= 2) top = larger(top, __shfl_xor_sync(kAllLanes, top, mask));
    if (threadIdx.x % 32 == 0) maxima[g] = top;
  }
  __syncthreads();
  for (unsigned g = 0; g < kHeads; ++g) {
    const float* scores = work.scores + (q.slot + g) * work.pages * kPagePositions + position;
    for (unsigned t = threadIdx.x; t < kPagePositions; t += kValueThreads)
      weights[t].e[g] = g < q.count && t < count ? exp_lane(scores[t] - maxima[g]) : 0.0F;
  }
  __syncthreads();
  // Beyond the end zeros are added, which changes no bit of a sum of positive numbers.
  for (unsigned pair = warp; tile == 0 && pair * 2 < kHeads; pair += kValueThreads / 32) {
    const unsigned g = pair * 2 + threadIdx.x / 16 % 2;
    float sum = 0.0F;
    for (unsigned t = lane16(); t < kPagePositions; t += 16) sum += g < kHeads ? weights[t].e[g] : 0.0F;
    sum = lane_sum(sum);
    if (lane16() == 0 && g < q.count) work.sums[(q.slot + g) * work.pages + page] = sum;
  }
  const unsigned d = tile * kValueThreads + threadIdx.x;
  if (d >= a.head_dim) return;
  const float* v = page_part(q.pages[page], a.layer, 1, a.kv_heads, q.kv_head, a.head_dim) + d;
  float acc[kHeads] = {};
  STOKER_UNROLL_BY(16)
  for (unsigned t = 0; t < count; ++t) {
    const float value = __ldg(v + std::size_t{t} * a.head_dim);
    STOKER_UNROLL
    for (unsigned g = 0; g < kHeads; ++g) acc[g] = fmaf(weights[t].e[g], value, acc[g]);
  }
  STOKER_UNROLL
  for (unsigned g = 0; g < kHeads; ++g) {
    if (g < q.count) work.values[((q.slot + g) * work.pages + page) * a.head_dim + d] = acc[g];
  }
}

/// A block per head and row: sums over the pages in order, quotient and gate.
__global__ void __launch_bounds__(kFinishThreads, kFinishBlocks)
    finish_rows(Attention a, Workspace work, unsigned first_row) {
  const unsigned row = first_row + blockIdx.y;
  const std::size_t slot = std::size_t{blockIdx.y} * a.heads + blockIdx.x;
  const unsigned pages = a.step.rows[row].position / kPagePositions + 1;
  const float* sums = work.sums + slot * work.pages;
  for (unsigned d = threadIdx.x; d < a.head_dim; d += kFinishThreads) {
    const float* values = work.values + slot * work.pages * a.head_dim + d;
    float sum = 0.0F;
    float value = 0.0F;
    STOKER_UNROLL_BY(8)
    for (unsigned p = 0; p < pages; ++p) {
      sum += sums[p];
      value += values[std::size_t{p} * a.head_dim];
    }
    const float gate = a.gate[std::size_t{row} * a.q_stride + std::size_t{blockIdx.x} * a.head_dim + d];
    a.out[(std::size_t{row} * a.heads + blockIdx.x) * a.head_dim + d] = value / sum * sigmoid_lane(gate);
  }
}

template <unsigned kHeads>
Status attend(const Attention& a, const Workspace& work, unsigned first_row, unsigned rows, Stream* s) {
  const unsigned per_kv = a.heads / a.kv_heads;
  const unsigned head_tiles = a.kv_heads * ((per_kv + kHeads - 1) / kHeads);
  const unsigned dim_tiles = (a.head_dim + kValueThreads - 1) / kValueThreads;
  const std::size_t query_bytes = std::size_t{kHeads} * a.head_dim * sizeof(float);
  if (const Status bad = STOKER_LAUNCH(score_keys<kHeads>, dim3(work.pages * kParts, head_tiles, rows),
                                       kScoreThreads, query_bytes, s, a, work, first_row))
    return bad;
  if (const Status bad = STOKER_LAUNCH(weigh_values<kHeads>, dim3(work.pages * dim_tiles, head_tiles, rows),
                                       kValueThreads, 0, s, a, work, first_row))
    return bad;
  return STOKER_LAUNCH(finish_rows, dim3(a.heads, rows), kFinishThreads, 0, s, a, work, first_row);
}

}  // namespace

Status launch_attention_store(const AttentionStore& a, Stream* s) {
  if (a.step.row_count == 0) return nullptr;
  if (a.rotary > a.head_dim || a.rotary % 2 != 0)
    return "attention_store: rotary dimensions must be even and no more than the head's";
  if (a.head_dim == 0 || a.head_dim > 8192) return "attention_store: heads of 1 to 8192 dimensions only";
  if (a.step.row_count > 65'535) return "attention_store: more than 65535 rows";
  const dim3 grid(a.heads + a.kv_heads, a.step.row_count);
  return STOKER_LAUNCH(attention_store, grid, kStoreThreads, a.head_dim * sizeof(float), s, a);
}

std::uint64_t attention_workspace(std::uint32_t heads, std::uint32_t head_dim, std::uint32_t longest) {
  const std::uint64_t pages = (std::uint64_t{longest} + kPagePositions - 1) / kPagePositions;
  return heads * floats_per_head(pages, head_dim);
}

Status launch_attention(const Attention& a, Stream* s) {
  if (a.step.row_count == 0 || a.longest == 0) return nullptr;
  if (a.kv_heads == 0 || a.heads % a.kv_heads != 0)
    return "attention: the query heads must be a multiple of the kv heads";
  if (a.head_dim == 0 || a.head_dim > kHeadDimMax) return "attention: heads of 1 to 1024 dimensions only";
  const std::uint64_t per_row = attention_workspace(a.heads, a.head_dim, a.longest);
  std::uint64_t group = a.workspace_floats / per_row;
  if (group == 0) return "attention: the workspace is smaller than attention_workspace()";
  if (group > a.step.row_count) group = a.step.row_count;
  if (group > 65'535) group = 65'535;
  Workspace work{};
  work.pages = (a.longest + kPagePositions - 1) / kPagePositions;
  const std::uint64_t slots = group * a.heads;
  work.scores = a.workspace;
  work.maxima = work.scores + slots * work.pages * kPagePositions;
  work.sums = work.maxima + slots * work.pages * kParts;
  work.values = work.sums + slots * work.pages;
  const unsigned per_kv = a.heads / a.kv_heads;
  for (unsigned first = 0; first < a.step.row_count; first += static_cast<unsigned>(group)) {
    const unsigned rows = min(static_cast<unsigned>(group), a.step.row_count - first);
    const Status bad = per_kv == 1   ? attend<1>(a, work, first, rows, s)
                       : per_kv == 2 ? attend<2>(a, work, first, rows, s)
                       : per_kv <= 4 ? attend<4>(a, work, first, rows, s)
                                     : attend<8>(a, work, first, rows, s);
    if (bad != nullptr) return bad;
  }
  return nullptr;
}

}  // namespace stoker::device
