// Products with many rows of x (prefill): bound by arithmetic. A block decodes 64 rows of W and 16 rows of x
// into shared memory, 32 columns at a time; each half-warp sums 8 x 8 of the products, lane l the columns
// 16 j + l of all 64. So the sums have the canonical order, and 16 floats read serve 64 fused multiply-adds.
#pragma once

#include "gpu-worker/cuda/kernels/weights.cuh"

namespace stoker::device {

constexpr unsigned kTileThreads = 256;
constexpr unsigned kTileW = 64;
constexpr unsigned kTileX = 16;
constexpr unsigned kTileColumns = 32;
constexpr int kTileSums = 64;  ///< per half-warp; sum 8 * r + i is of its row r of W and row i of x

/// Two buffers, so that one barrier a step is enough. A column's rows lie side by side and are read by fours;
/// the strides keep the 8 lanes that read at a time in different banks.
struct __align__(16) TileBuffer {
  float w[2][kTileColumns][kTileW + 4];
  float x[2][kTileColumns][kTileX + 4];
};

inline bool tile_fits(const void* x, std::uint32_t x_stride, Code code, std::uint32_t cols,
                      std::uint32_t block_cols) {
  return cols % 8 == 0 && x_stride % 2 == 0 && reinterpret_cast<std::uintptr_t>(x) % 8 == 0 &&
         (code != Code::f8_e4m3 || block_cols % 8 == 0);
}

/// This thread's part of the next step, while it is on its way: 8 columns of one row of W, 2 of one row of x.
struct TileLoad {
  uint4 w[2];
  float scale;
  float2 x;
};

template <Code kCode>
__device__ __forceinline__ void load_tile(const RowView& row, const float* x, unsigned base, unsigned cols,
                                          unsigned block_cols, TileLoad& out) {
  const unsigned column = base + threadIdx.x / kTileW * 8;
  const unsigned x_column = base + threadIdx.x / kTileX * 2;
  out.w[0] = out.w[1] = make_uint4(0, 0, 0, 0);
  out.scale = 0.0F;
  if (column < cols) {
    const unsigned char* p = row.data + std::size_t{column} * kBytesOf<kCode>;
    if constexpr (kCode == Code::f8_e4m3) {
      const uint2 codes = __ldg(reinterpret_cast<const uint2*>(p));
      out.w[0].x = codes.x;
      out.w[0].y = codes.y;
      out.scale = __ldg(row.scales + column / block_cols);
    } else {
      out.w[0] = __ldg(reinterpret_cast<const uint4*>(p));
      if constexpr (kCode == Code::f32) out.w[1] = __ldg(reinterpret_cast<const uint4*>(p) + 1);
    }
  }
  out.x = x_column < cols ? *reinterpret_cast<const float2*>(x + x_column) : make_float2(0.0F, 0.0F);
}

template <Code kCode>
__device__ __forceinline__ void decode_eight(const TileLoad& in, float (&out)[8]) {
  const unsigned words[8] = {in.w[0].x, in.w[0].y, in.w[0].z, in.w[0].w,
                             in.w[1].x, in.w[1].y, in.w[1].z, in.w[1].w};
  if constexpr (kCode == Code::f8_e4m3) {
    STOKER_UNROLL
    for (unsigned half = 0; half < 2; ++half) {
      float value[4];
      f8_values(words[half], value);
      STOKER_UNROLL
      for (unsigned i = 0; i < 4; ++i) out[4 * half + i] = value[i] * in.scale;
    }
  } else {
    STOKER_UNROLL
    for (unsigned i = 0; i < 8; ++i) {
      const unsigned bits = words[i / 2] >> (i % 2 * 16) & 0xFFFFU;
      if constexpr (kCode == Code::f32) {
        out[i] = __uint_as_float(words[i]);
      } else if constexpr (kCode == Code::bf16) {
        out[i] = __uint_as_float(bits << 16);
      } else {
        out[i] = half_to_float(static_cast<std::uint16_t>(bits));
      }
    }
  }
}

template <Code kCode>
__device__ __forceinline__ void store_tile(const TileLoad& in, unsigned buffer, TileBuffer& tile) {
  float w[8];
  decode_eight<kCode>(in, w);
  const unsigned column = threadIdx.x / kTileW * 8;
  STOKER_UNROLL
  for (unsigned i = 0; i < 8; ++i) tile.w[buffer][column + i][threadIdx.x % kTileW] = w[i];
  const unsigned x_column = threadIdx.x / kTileX * 2;
  tile.x[buffer][x_column][threadIdx.x % kTileX] = in.x.x;
  tile.x[buffer][x_column + 1][threadIdx.x % kTileX] = in.x.y;
}

/// Which rows of the tile are this half-warp's: the two of a warp share rows of W, so its reads coincide.
__device__ __forceinline__ unsigned tile_first_w() { return threadIdx.x / 32 * 8; }
__device__ __forceinline__ unsigned tile_first_x() { return threadIdx.x / 16 % 2 * 8; }

/// `groups` groups of 16 columns of one buffer. Columns beyond the end of a row are stored as 0.
__device__ __forceinline__ void multiply_tile(const TileBuffer& tile, unsigned buffer, unsigned groups,
                                              float (&acc)[kTileSums]) {
  for (unsigned j = 0; j < groups; ++j) {
    const unsigned k = 16 * j + lane16();
    const auto* w4 = reinterpret_cast<const float4*>(&tile.w[buffer][k][tile_first_w()]);
    const auto* x4 = reinterpret_cast<const float4*>(&tile.x[buffer][k][tile_first_x()]);
    const float4 w_low = w4[0], w_high = w4[1], x_low = x4[0], x_high = x4[1];
    const float w[8] = {w_low.x, w_low.y, w_low.z, w_low.w, w_high.x, w_high.y, w_high.z, w_high.w};
    const float x[8] = {x_low.x, x_low.y, x_low.z, x_low.w, x_high.x, x_high.y, x_high.z, x_high.w};
    STOKER_UNROLL
    for (int r = 0; r < 8; ++r) {
      STOKER_UNROLL
      for (int i = 0; i < 8; ++i) acc[8 * r + i] = fmaf(w[r], x[i], acc[8 * r + i]);
    }
  }
}

/// acc = this lane's part of the half-warp's products; see for_lane_sums. row: row threadIdx.x % kTileW of
/// the tile's rows of W; x: row threadIdx.x % kTileX of its rows of x.
template <Code kCode>
__device__ __forceinline__ void tile_product(const RowView& row, const float* x, unsigned cols,
                                             unsigned block_cols, TileBuffer& tile, float (&acc)[kTileSums]) {
  STOKER_UNROLL
  for (int i = 0; i < kTileSums; ++i) acc[i] = 0.0F;
  TileLoad ahead;
  load_tile<kCode>(row, x, 0, cols, block_cols, ahead);
  store_tile<kCode>(ahead, 0, tile);
  __syncthreads();
  unsigned buffer = 0;
  STOKER_UNROLL_BY(1)
  for (unsigned base = 0; base < cols; base += kTileColumns) {
    const bool more = base + kTileColumns < cols;
    if (more) load_tile<kCode>(row, x, base + kTileColumns, cols, block_cols, ahead);
    multiply_tile(tile, buffer, min((cols - base + 15) / 16, kTileColumns / 16), acc);
    buffer ^= 1;
    if (more) store_tile<kCode>(ahead, buffer, tile);
    __syncthreads();
  }
}

}  // namespace stoker::device
