// y = W x: one of three kernels, by the number of rows of x and the shape of W. All give the same bits.
#include "gpu-worker/cuda/kernels/few_rows.cuh"
#include "gpu-worker/cuda/kernels/tile.cuh"
#include "gpu-worker/cuda/module.h"

namespace stoker::device {
namespace {

constexpr unsigned kFewX = 8;  ///< most rows of x for matmul_few
constexpr unsigned kAnyX = 4;  ///< rows of x at a time in matmul_any

__device__ __forceinline__ void put(const Matmul& a, unsigned i, unsigned row, float sum) {
  if (i >= a.rows || row >= a.w.rows) return;
  const unsigned column = a.scatter == nullptr ? row : a.scatter[row];
  float* y = a.y + std::size_t{i} * a.y_stride + column;
  *y = a.add ? *y + sum : sum;
}

template <Code kCode, int kX>
__global__ void __launch_bounds__(kFewThreads) matmul_few(Matmul a, TileOf tile_of) {
  STOKER_SHARED(ChunkBuffer, buffers, [kFewHalfWarps]);
  const unsigned half_warp = threadIdx.x / 16;
  const unsigned first = (blockIdx.x * kFewHalfWarps + half_warp) * 4;
  RowView rows[4];
  STOKER_UNROLL
  for (unsigned r = 0; r < 4; ++r) rows[r] = row_of<kCode>(a.w, first + r);
  unsigned x_at[kX];
  STOKER_UNROLL
  for (unsigned i = 0; i < kX; ++i) x_at[i] = min(i, a.rows - 1) * a.x_stride;
  float acc[4 * kX];
  few_rows<kCode, kX>(rows, a.w.cols, tile_of, a.x, x_at, buffers[half_warp], acc);
  for_lane_sums(acc, [&](unsigned o, float sum, bool mine) {
    if (mine) put(a, o % kX, first + o / kX, sum);
  });
}

template <Code kCode>
__global__ void __launch_bounds__(kTileThreads, 2) matmul_tile(Matmul a) {
  STOKER_SHARED(TileBuffer, tile, [1]);
  // Blocks that share rows of W run at the same time: the grid's fast dimension is x.
  const unsigned first_x = blockIdx.x * kTileX;
  const unsigned first_w = blockIdx.y * kTileW;
  const unsigned i = min(first_x + threadIdx.x % kTileX, a.rows - 1);
  float acc[kTileSums];
  tile_product<kCode>(row_of<kCode>(a.w, first_w + threadIdx.x % kTileW), a.x + std::size_t{i} * a.x_stride,
                      a.w.cols, a.w.block_cols, tile[0], acc);
  for_lane_sums(acc, [&](unsigned o, float sum, bool) {
    put(a, first_x + tile_first_x() + o % 8, first_w + tile_first_w() + o / 8, sum);
  });
}

template <Code kCode>
__global__ void __launch_bounds__(kFewThreads) matmul_any(Matmul a) {
  const unsigned row = blockIdx.x * kFewHalfWarps + threadIdx.x / 16;
  const unsigned first_x = blockIdx.y * kAnyX;
  unsigned x_at[kAnyX];
  STOKER_UNROLL
  for (unsigned i = 0; i < kAnyX; ++i) x_at[i] = min(first_x + i, a.rows - 1) * a.x_stride;
  float sums[kAnyX];
  any_row<kCode>(row_of<kCode>(a.w, row), a.w.cols, a.w.block_cols, a.x, x_at, sums);
  STOKER_UNROLL
  for (unsigned i = 0; i < kAnyX; ++i) {
    if (lane16() == i) put(a, first_x + i, row, sums[i]);
  }
}

template <Code kCode>
Status matmul_as(const Matmul& a, Stream* s) {
  const Matrix& w = a.w;
  if (a.rows <= kFewX && few_rows_fit(kCode, w.cols, w.block_cols)) {
    const dim3 grid((w.rows + 4 * kFewHalfWarps - 1) / (4 * kFewHalfWarps));
    const TileOf tiles = tile_of(w.cols, w.block_cols);
    if (a.rows == 1) return STOKER_LAUNCH((matmul_few<kCode, 1>), grid, kFewThreads, 0, s, a, tiles);
    if (a.rows == 2) return STOKER_LAUNCH((matmul_few<kCode, 2>), grid, kFewThreads, 0, s, a, tiles);
    if (a.rows <= 4) return STOKER_LAUNCH((matmul_few<kCode, 4>), grid, kFewThreads, 0, s, a, tiles);
    return STOKER_LAUNCH((matmul_few<kCode, 8>), grid, kFewThreads, 0, s, a, tiles);
  }
  if (tile_fits(a.x, a.x_stride, kCode, w.cols, w.block_cols)) {
    const dim3 grid((a.rows + kTileX - 1) / kTileX, (w.rows + kTileW - 1) / kTileW);
    return STOKER_LAUNCH(matmul_tile<kCode>, grid, kTileThreads, 0, s, a);
  }
  const dim3 grid((w.rows + kFewHalfWarps - 1) / kFewHalfWarps, (a.rows + kAnyX - 1) / kAnyX);
  return STOKER_LAUNCH(matmul_any<kCode>, grid, kFewThreads, 0, s, a);
}

}  // namespace

Status launch_matmul(const Matmul& a, Stream* s) {
  if (a.rows == 0 || a.w.rows == 0) return nullptr;
  if (reinterpret_cast<std::uintptr_t>(a.w.data) % 16 != 0) return "matmul: weights must be 16-byte aligned";
  if (std::uint64_t{a.rows} * a.x_stride > 0xFFFF'FFFFU) return "matmul: x has more than 2^32 floats";
  if (a.rows > 200'000) return "matmul: more than 200000 rows of x";
  if (a.w.rows > 4'000'000) return "matmul: more than 4 million rows of W";
  switch (a.w.code) {
    case Code::f8_e4m3:
      if (a.w.scales == nullptr || a.w.block_rows == 0 || a.w.block_cols == 0)
        return "matmul: an FP8 matrix needs scales and the size of their tiles";
      return matmul_as<Code::f8_e4m3>(a, s);
    case Code::bf16:
      return matmul_as<Code::bf16>(a, s);
    case Code::f16:
      return matmul_as<Code::f16>(a, s);
    case Code::f32:
      return matmul_as<Code::f32>(a, s);
  }
  return "matmul: unknown code of weights";
}

}  // namespace stoker::device
