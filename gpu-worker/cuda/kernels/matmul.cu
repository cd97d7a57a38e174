// y = W x: one of three kernels, by the number of rows of x and the shape of W. All give the same bits.
// With few rows of x several products go out in one launch.
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

/// Products with the same number of rows of x in one launch: product i has the blocks before end[i].
struct MatmulGroup {
  Matmul list[kMatmulsMax];
  TileOf tiles[kMatmulsMax];
  unsigned end[kMatmulsMax];
};

template <Code kCode, int kX>
__device__ __forceinline__ void few_block(const Matmul& a, TileOf tile_of, unsigned block,
                                          ChunkBuffer& buffer) {
  const unsigned first = (block * kFewHalfWarps + threadIdx.x / 16) * 4;
  RowView rows[4];
  STOKER_UNROLL
  for (unsigned r = 0; r < 4; ++r) rows[r] = row_of<kCode>(a.w, first + r);
  unsigned x_at[kX];
  STOKER_UNROLL
  for (unsigned i = 0; i < kX; ++i) x_at[i] = min(i, a.rows - 1) * a.x_stride;
  float acc[4 * kX];
  few_rows<kCode, kX>(rows, a.w.cols, tile_of, a.x, x_at, buffer, acc);
  for_lane_sums(acc, [&](unsigned o, float sum, bool mine) {
    if (mine) put(a, o % kX, first + o / kX, sum);
  });
}

/// kOther: another code that some of the products may have. The bound: with two bodies nvcc takes more than
/// the 128 registers of either (sm_86), and a multiprocessor has room for a block less.
template <Code kCode, Code kOther, int kX>
__global__ void __launch_bounds__(kFewThreads, kX == 1 ? 4 : 0) matmul_few(MatmulGroup g) {
  STOKER_SHARED(ChunkBuffer, buffers, [kFewHalfWarps]);
  unsigned which = 0;
  unsigned block = blockIdx.x;
  STOKER_UNROLL
  for (unsigned i = 1; i < kMatmulsMax; ++i) {
    if (blockIdx.x < g.end[i - 1]) continue;
    which = i;
    block = blockIdx.x - g.end[i - 1];
  }
  const Matmul& a = g.list[which];
  const TileOf tiles = g.tiles[which];
  ChunkBuffer& buffer = buffers[threadIdx.x / 16];
  if constexpr (kOther != kCode) {
    if (a.w.code == kOther) {
      few_block<kOther, kX>(a, tiles, block, buffer);
      return;
    }
  }
  few_block<kCode, kX>(a, tiles, block, buffer);
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

template <Code kCode, Code kOther>
Status few_as(const MatmulGroup& g, Stream* s) {
  const unsigned grid = g.end[kMatmulsMax - 1];
  const unsigned rows = g.list[0].rows;
  if (rows == 1) return STOKER_LAUNCH((matmul_few<kCode, kOther, 1>), grid, kFewThreads, 0, s, g);
  if (rows == 2) return STOKER_LAUNCH((matmul_few<kCode, kOther, 2>), grid, kFewThreads, 0, s, g);
  if (rows <= 4) return STOKER_LAUNCH((matmul_few<kCode, kOther, 4>), grid, kFewThreads, 0, s, g);
  return STOKER_LAUNCH((matmul_few<kCode, kOther, 8>), grid, kFewThreads, 0, s, g);
}

/// Products that all fit matmul_few, with the codes that `code` and `other` say.
Status few(const Matmul* list, unsigned count, Code code, Code other, Stream* s) {
  MatmulGroup g{};
  unsigned blocks = 0;
  for (unsigned i = 0; i < kMatmulsMax; ++i) {
    if (i < count) {
      g.list[i] = list[i];
      g.tiles[i] = tile_of(list[i].w.cols, list[i].w.block_cols);
      blocks += (list[i].w.rows + 4 * kFewHalfWarps - 1) / (4 * kFewHalfWarps);
    }
    g.end[i] = blocks;
  }
  if (code != other) return few_as<Code::f8_e4m3, Code::bf16>(g, s);  // see in_one_launch
  switch (code) {
    case Code::f8_e4m3:
      return few_as<Code::f8_e4m3, Code::f8_e4m3>(g, s);
    case Code::bf16:
      return few_as<Code::bf16, Code::bf16>(g, s);
    case Code::f16:
      return few_as<Code::f16, Code::f16>(g, s);
    case Code::f32:
      return few_as<Code::f32, Code::f32>(g, s);
  }
  return nullptr;
}

bool fits_few(const Matmul& a) { return a.rows <= kFewX && few_rows_fit(a.w.code, a.w.cols, a.w.block_cols); }

/// Whether matmul_few can do all of them in one launch; which codes they have.
bool in_one_launch(const Matmul* list, unsigned count, Code& code, Code& other) {
  code = other = list[0].w.code;
  for (unsigned i = 0; i < count; ++i) {
    if (!fits_few(list[i]) || list[i].rows != list[0].rows) return false;
    const Code found = list[i].w.code;
    if (found == code || found == other) continue;
    if (other != code) return false;
    other = found;
  }
  return code == other || (code == Code::f8_e4m3 && other == Code::bf16) ||
         (code == Code::bf16 && other == Code::f8_e4m3);
}

template <Code kCode>
Status many_as(const Matmul& a, Stream* s) {
  const Matrix& w = a.w;
  if (tile_fits(a.x, a.x_stride, kCode, w.cols, w.block_cols)) {
    const dim3 grid((a.rows + kTileX - 1) / kTileX, (w.rows + kTileW - 1) / kTileW);
    return STOKER_LAUNCH(matmul_tile<kCode>, grid, kTileThreads, 0, s, a);
  }
  const dim3 grid((w.rows + kFewHalfWarps - 1) / kFewHalfWarps, (a.rows + kAnyX - 1) / kAnyX);
  return STOKER_LAUNCH(matmul_any<kCode>, grid, kFewThreads, 0, s, a);
}

Status alone(const Matmul& a, Stream* s) {
  if (fits_few(a)) return few(&a, 1, a.w.code, a.w.code, s);
  switch (a.w.code) {
    case Code::f8_e4m3:
      return many_as<Code::f8_e4m3>(a, s);
    case Code::bf16:
      return many_as<Code::bf16>(a, s);
    case Code::f16:
      return many_as<Code::f16>(a, s);
    case Code::f32:
      return many_as<Code::f32>(a, s);
  }
  return nullptr;
}

/// What no kernel can do, or null.
Status refuse(const Matmul& a) {
  if (reinterpret_cast<std::uintptr_t>(a.w.data) % 16 != 0) return "matmul: weights must be 16-byte aligned";
  if (std::uint64_t{a.rows} * a.x_stride > 0xFFFF'FFFFU) return "matmul: x has more than 2^32 floats";
  if (a.rows > 200'000) return "matmul: more than 200000 rows of x";
  if (a.w.rows > 4'000'000) return "matmul: more than 4 million rows of W";
  if (a.w.code > Code::f32) return "matmul: unknown code of weights";
  if (a.w.code == Code::f8_e4m3 && (a.w.scales == nullptr || a.w.block_rows == 0 || a.w.block_cols == 0))
    return "matmul: an FP8 matrix needs scales and the size of their tiles";
  return nullptr;
}

}  // namespace

Status launch_matmul(const Matmul& a, Stream* s) { return launch_matmuls(&a, 1, s); }

Status launch_matmuls(const Matmul* list, std::uint32_t count, Stream* s) {
  Matmul left[kMatmulsMax];
  unsigned n = 0;
  for (unsigned i = 0; i < count; ++i) {
    if (list[i].rows == 0 || list[i].w.rows == 0) continue;
    if (n == kMatmulsMax) return "matmul: more products at once than kMatmulsMax";
    if (const Status bad = refuse(list[i])) return bad;
    left[n++] = list[i];
  }
  if (n == 0) return nullptr;
  Code code{};
  Code other{};
  if (in_one_launch(left, n, code, other)) return few(left, n, code, other, s);
  for (unsigned i = 0; i < n; ++i) {
    if (const Status bad = alone(left[i], s)) return bad;
  }
  return nullptr;
}

}  // namespace stoker::device
