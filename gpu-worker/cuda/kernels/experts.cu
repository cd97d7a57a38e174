// The experts of a batch in two launches, whatever their number: gate and up with silu, then down, whose
// results go to the places of their (row, rank) pairs. blockIdx.y is the expert.
#include <type_traits>

#include "gpu-worker/cuda/kernels/few_rows.cuh"
#include "gpu-worker/cuda/kernels/tile.cuh"
#include "gpu-worker/cuda/module.h"

namespace stoker::device {
namespace {

constexpr unsigned kFewPairs = 16;    ///< most pairs of an expert for the kernels that decoding uses
constexpr unsigned kTilesAtOnce = 4;  ///< tiles of pairs of one expert with a block of their own
constexpr unsigned kAnyPairs = 4;     ///< pairs at a time where nothing else fits

/// Blocks of the kernels for few pairs that must fit into a multiprocessor: bounds the registers, of which
/// nvcc would take more than 128 to hoist loads.
template <int kMost>
constexpr int kBlocksAtOnce = kMost == 1 ? 4 : 3;

/// The three matrices of one expert, and its pairs.
struct Work {
  Matrix gate, up, down;
  const unsigned* pairs;
  unsigned first, count;
};
__device__ __forceinline__ Work work_of(const Experts& a) {
  const Expert e = a.experts[blockIdx.y];
  std::size_t tiles = 0;
  if (a.code == Code::f8_e4m3) {
    tiles = std::size_t{(a.inner + a.block_rows - 1) / a.block_rows} *
            ((a.hidden + a.block_cols - 1) / a.block_cols);
  }
  const auto matrix = [&](const void* data, const float* scales, unsigned rows, unsigned cols) {
    return Matrix{data, scales, rows, cols, a.block_rows, a.block_cols, a.code};
  };
  return {matrix(e.gate, e.scales, a.inner, a.hidden),
          matrix(e.up, e.scales + tiles, a.inner, a.hidden),
          matrix(e.down, e.scales + 2 * tiles, a.hidden, a.inner),
          a.pairs + e.first,
          e.first,
          e.count};
}

/// Where the input of an expert's pair n begins, for n beyond the last pair its own: of gate and up, of down.
__device__ __forceinline__ std::size_t input_at(const Experts& a, const Work& w, unsigned n) {
  return std::size_t{w.pairs[min(n, w.count - 1)] / a.k} * a.hidden;
}
__device__ __forceinline__ std::size_t inner_at(const Experts& a, const Work& w, unsigned n) {
  return std::size_t{w.first + min(n, w.count - 1)} * a.inner;
}

/// Pair n's product with row `row` of gate, and in the other half of the half-warp with that of up.
__device__ __forceinline__ void put_inner(const Experts& a, const Work& w, unsigned n, unsigned row,
                                          float sum, bool mine) {
  const float up = __shfl_xor_sync(kAllLanes, sum, 8, 16);
  if (mine && lane16() < 8 && n < w.count && row < a.inner)
    a.gate[inner_at(a, w, n) + row] = silu_lane(sum) * up;
}
__device__ __forceinline__ void put_out(const Experts& a, const Work& w, unsigned n, unsigned row,
                                        float sum) {
  if (n < w.count && row < a.hidden) a.out[std::size_t{w.pairs[n]} * a.hidden + row] = sum;
}

/// body(number of rows as a type, first pair) until all pairs are served, kMost at a time, and no more rows
/// of x than there are (or the next power of two).
template <int kMost, class Body>
__device__ __forceinline__ void for_pairs(unsigned count, const Body& body) {
  for (unsigned at = 0; at < count; at += kMost) {
    const unsigned left = count - at;
    if constexpr (kMost >= 8) {
      if (left > 4) {
        body(std::integral_constant<int, 8>{}, at);
        continue;
      }
    }
    if constexpr (kMost >= 4) {
      if (left > 2) {
        body(std::integral_constant<int, 4>{}, at);
        continue;
      }
    }
    if constexpr (kMost >= 2) {
      if (left > 1) {
        body(std::integral_constant<int, 2>{}, at);
        continue;
      }
    }
    body(std::integral_constant<int, 1>{}, at);
  }
}

/// A half-warp has two rows of gate and the same two of up.
template <Code kCode, int kMost>
__global__ void __launch_bounds__(kFewThreads, kBlocksAtOnce<kMost>) inner_few(Experts a, TileOf tile_of) {
  STOKER_SHARED(ChunkBuffer, buffers, [kFewHalfWarps]);
  const Work w = work_of(a);
  const unsigned half_warp = threadIdx.x / 16;
  const unsigned first = (blockIdx.x * kFewHalfWarps + half_warp) * 2;
  const RowView rows[4] = {row_of<kCode>(w.gate, first), row_of<kCode>(w.gate, first + 1),
                           row_of<kCode>(w.up, first), row_of<kCode>(w.up, first + 1)};
  for_pairs<kMost>(w.count, [&](auto number, unsigned at) {
    constexpr int kX = decltype(number)::value;
    unsigned x_at[kX];
    STOKER_UNROLL
    for (unsigned i = 0; i < kX; ++i) x_at[i] = static_cast<unsigned>(input_at(a, w, at + i));
    float acc[4 * kX];
    few_rows<kCode, kX>(rows, a.hidden, tile_of, a.h, x_at, buffers[half_warp], acc);
    for_lane_sums(acc, [&](unsigned o, float sum, bool mine) {
      put_inner(a, w, at + o % kX, first + o / kX % 2, sum, mine);
    });
  });
}

template <Code kCode, int kMost>
__global__ void __launch_bounds__(kFewThreads, kBlocksAtOnce<kMost>) down_few(Experts a, TileOf tile_of) {
  STOKER_SHARED(ChunkBuffer, buffers, [kFewHalfWarps]);
  const Work w = work_of(a);
  const unsigned half_warp = threadIdx.x / 16;
  const unsigned first = (blockIdx.x * kFewHalfWarps + half_warp) * 4;
  RowView rows[4];
  STOKER_UNROLL
  for (unsigned r = 0; r < 4; ++r) rows[r] = row_of<kCode>(w.down, first + r);
  for_pairs<kMost>(w.count, [&](auto number, unsigned at) {
    constexpr int kX = decltype(number)::value;
    unsigned x_at[kX];
    STOKER_UNROLL
    for (unsigned i = 0; i < kX; ++i) x_at[i] = static_cast<unsigned>(inner_at(a, w, at + i));
    float acc[4 * kX];
    few_rows<kCode, kX>(rows, a.inner, tile_of, a.gate, x_at, buffers[half_warp], acc);
    for_lane_sums(acc, [&](unsigned o, float sum, bool mine) {
      if (mine) put_out(a, w, at + o % kX, first + o / kX, sum);
    });
  });
}

/// A half-warp's eight rows are four of gate and the same four of up.
template <Code kCode>
__global__ void __launch_bounds__(kTileThreads, 2) inner_tile(Experts a) {
  STOKER_SHARED(TileBuffer, tile, [1]);
  const Work w = work_of(a);
  const unsigned first_row = blockIdx.z * (kTileW / 2);
  const unsigned staged = threadIdx.x % kTileW;
  const RowView row = row_of<kCode>(staged % 8 < 4 ? w.gate : w.up, first_row + staged / 8 * 4 + staged % 4);
  for (unsigned at = blockIdx.x * kTileX; at < w.count; at += gridDim.x * kTileX) {
    float acc[kTileSums];
    tile_product<kCode>(row, a.h + input_at(a, w, at + threadIdx.x % kTileX), a.hidden, a.block_cols, tile[0],
                        acc);
    for_lane_sums(acc, [&](unsigned o, float sum, bool mine) {
      put_inner(a, w, at + tile_first_x() + o % 8, first_row + tile_first_w() / 2 + o / 8 % 4, sum, mine);
    });
  }
}

template <Code kCode>
__global__ void __launch_bounds__(kTileThreads, 2) down_tile(Experts a) {
  STOKER_SHARED(TileBuffer, tile, [1]);
  const Work w = work_of(a);
  const unsigned first_row = blockIdx.z * kTileW;
  const RowView row = row_of<kCode>(w.down, first_row + threadIdx.x % kTileW);
  for (unsigned at = blockIdx.x * kTileX; at < w.count; at += gridDim.x * kTileX) {
    float acc[kTileSums];
    tile_product<kCode>(row, a.gate + inner_at(a, w, at + threadIdx.x % kTileX), a.inner, a.block_cols,
                        tile[0], acc);
    for_lane_sums(acc, [&](unsigned o, float sum, bool) {
      put_out(a, w, at + tile_first_x() + o % 8, first_row + tile_first_w() + o / 8, sum);
    });
  }
}

template <Code kCode>
__global__ void __launch_bounds__(kFewThreads) inner_any(Experts a) {
  const Work w = work_of(a);
  const unsigned row = blockIdx.x * kFewHalfWarps + threadIdx.x / 16;
  for (unsigned at = 0; at < w.count; at += kAnyPairs) {
    unsigned x_at[kAnyPairs];
    STOKER_UNROLL
    for (unsigned i = 0; i < kAnyPairs; ++i) x_at[i] = static_cast<unsigned>(input_at(a, w, at + i));
    float gate[kAnyPairs];
    float up[kAnyPairs];
    any_row<kCode>(row_of<kCode>(w.gate, row), a.hidden, a.block_cols, a.h, x_at, gate);
    any_row<kCode>(row_of<kCode>(w.up, row), a.hidden, a.block_cols, a.h, x_at, up);
    STOKER_UNROLL
    for (unsigned i = 0; i < kAnyPairs; ++i) {
      if (lane16() == i && at + i < w.count && row < a.inner)
        a.gate[inner_at(a, w, at + i) + row] = silu_lane(gate[i]) * up[i];
    }
  }
}

template <Code kCode>
__global__ void __launch_bounds__(kFewThreads) down_any(Experts a) {
  const Work w = work_of(a);
  const unsigned row = blockIdx.x * kFewHalfWarps + threadIdx.x / 16;
  for (unsigned at = 0; at < w.count; at += kAnyPairs) {
    unsigned x_at[kAnyPairs];
    STOKER_UNROLL
    for (unsigned i = 0; i < kAnyPairs; ++i) x_at[i] = static_cast<unsigned>(inner_at(a, w, at + i));
    float sums[kAnyPairs];
    any_row<kCode>(row_of<kCode>(w.down, row), a.inner, a.block_cols, a.gate, x_at, sums);
    STOKER_UNROLL
    for (unsigned i = 0; i < kAnyPairs; ++i) {
      if (lane16() == i) put_out(a, w, at + i, row, sums[i]);
    }
  }
}

constexpr unsigned blocks(unsigned rows, unsigned per_block) { return (rows + per_block - 1) / per_block; }

template <Code kCode>
Status inner_as(const Experts& a, Stream* s) {
  if (a.most_pairs <= kFewPairs && few_rows_fit(kCode, a.hidden, a.block_cols)) {
    const dim3 grid(blocks(a.inner, 2 * kFewHalfWarps), a.count);
    const TileOf tiles = tile_of(a.hidden, a.block_cols);
    if (a.most_pairs == 1) return STOKER_LAUNCH((inner_few<kCode, 1>), grid, kFewThreads, 0, s, a, tiles);
    if (a.most_pairs == 2) return STOKER_LAUNCH((inner_few<kCode, 2>), grid, kFewThreads, 0, s, a, tiles);
    if (a.most_pairs <= 4) return STOKER_LAUNCH((inner_few<kCode, 4>), grid, kFewThreads, 0, s, a, tiles);
    return STOKER_LAUNCH((inner_few<kCode, 8>), grid, kFewThreads, 0, s, a, tiles);
  }
  if (tile_fits(a.h, a.hidden, kCode, a.hidden, a.block_cols)) {
    const dim3 grid(min(blocks(a.most_pairs, kTileX), kTilesAtOnce), a.count, blocks(a.inner, kTileW / 2));
    return STOKER_LAUNCH(inner_tile<kCode>, grid, kTileThreads, 0, s, a);
  }
  return STOKER_LAUNCH(inner_any<kCode>, dim3(blocks(a.inner, kFewHalfWarps), a.count), kFewThreads, 0, s, a);
}

template <Code kCode>
Status down_as(const Experts& a, Stream* s) {
  if (a.most_pairs <= kFewPairs && few_rows_fit(kCode, a.inner, a.block_cols)) {
    const dim3 grid(blocks(a.hidden, 4 * kFewHalfWarps), a.count);
    const TileOf tiles = tile_of(a.inner, a.block_cols);
    if (a.most_pairs == 1) return STOKER_LAUNCH((down_few<kCode, 1>), grid, kFewThreads, 0, s, a, tiles);
    if (a.most_pairs == 2) return STOKER_LAUNCH((down_few<kCode, 2>), grid, kFewThreads, 0, s, a, tiles);
    if (a.most_pairs <= 4) return STOKER_LAUNCH((down_few<kCode, 4>), grid, kFewThreads, 0, s, a, tiles);
    return STOKER_LAUNCH((down_few<kCode, 8>), grid, kFewThreads, 0, s, a, tiles);
  }
  if (tile_fits(a.gate, a.inner, kCode, a.inner, a.block_cols)) {
    const dim3 grid(min(blocks(a.most_pairs, kTileX), kTilesAtOnce), a.count, blocks(a.hidden, kTileW));
    return STOKER_LAUNCH(down_tile<kCode>, grid, kTileThreads, 0, s, a);
  }
  return STOKER_LAUNCH(down_any<kCode>, dim3(blocks(a.hidden, kFewHalfWarps), a.count), kFewThreads, 0, s, a);
}

template <Code kCode>
Status experts_as(const Experts& a, Stream* s) {
  if (const Status bad = inner_as<kCode>(a, s)) return bad;
  return down_as<kCode>(a, s);
}

}  // namespace

Status launch_experts(const Experts& a, Stream* s) {
  if (a.count == 0 || a.most_pairs == 0) return nullptr;
  if (a.count > 65'535) return "experts: more than 65535 experts in a batch";
  if (a.k == 0 || a.hidden == 0 || a.inner == 0 || std::uint64_t{a.hidden} * a.inner > 0xFFFF'FFFFU)
    return "experts: k, hidden and inner must be positive, and a matrix have less than 2^32 weights";
  switch (a.code) {
    case Code::f8_e4m3:
      if (a.block_rows == 0 || a.block_cols == 0) return "experts: FP8 needs the size of the tiles";
      return experts_as<Code::f8_e4m3>(a, s);
    case Code::bf16:
      return experts_as<Code::bf16>(a, s);
    case Code::f16:
      return experts_as<Code::f16>(a, s);
    case Code::f32:
      return experts_as<Code::f32>(a, s);
  }
  return "experts: unknown code of weights";
}

}  // namespace stoker::device
