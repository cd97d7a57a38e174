// Products with few rows of x (decoding): bound by memory, so each weight is read once, 16 bytes per thread.
//
// A half-warp has four rows of W. 16 bytes are up to 16 consecutive columns, but lane l may only sum columns
// 16 j + l; so weights change lanes through shared memory. Before, the four rows are interleaved column by
// column: one read brings a lane the four weights of its column, and one x serves four rows.
#pragma once

#include "gpu-worker/cuda/kernels/weights.cuh"

namespace stoker::device {

constexpr unsigned kFewThreads = 128;
constexpr unsigned kFewHalfWarps = kFewThreads / 16;

/// One chunk of four rows: 16 slots (one per lane that wrote) of four quarters of 16 bytes. The size puts the
/// other half-warp of the warp 16 banks further.
struct __align__(16) ChunkBuffer {
  uint4 quarters[64];
  float4 scales[2];  ///< FP8: of the four rows, for the chunk's first and last 128 columns
  uint4 padding[2];
};
static_assert(sizeof(ChunkBuffer) % 128 == 64, "16 banks further");

template <Code kCode>
struct Chunk {
  static constexpr unsigned kPerLoad = 16 / kBytesOf<kCode>;
  static constexpr unsigned kColumns = 16 * kPerLoad;
  static constexpr unsigned kGroups = kColumns / 16;
  static constexpr unsigned kRun =
      kGroups < 8 ? kGroups : 8;  ///< groups of 16 columns with one set of scales
};

/// Whether few_rows() can do it: whole 16-byte loads, and one scale per 128 columns at least.
inline bool few_rows_fit(Code code, std::uint32_t cols, std::uint32_t block_cols) {
  switch (code) {
    case Code::f8_e4m3:
      return cols % 16 == 0 && cols < 128U << 16 && (block_cols % 128 == 0 || block_cols >= cols);
    case Code::f32:
      return cols % 4 == 0;
    default:
      return cols % 8 == 0;
  }
}

/// Which tile of a row 128 columns belong to, without a division or a branch: the 128 columns' number times
/// the reciprocal of how many a tile has, rounded up. 0: tiles of 128 columns, their number is the tile's.
struct TileOf {
  unsigned reciprocal;
  __device__ __forceinline__ unsigned operator()(unsigned part) const {
    const unsigned tile = static_cast<unsigned>(std::uint64_t{part} * reciprocal >> 32);
    return reciprocal == 0 ? part : tile;
  }
};
/// For rows that few_rows() can do. Right while the parts of a row are fewer than 2^16.
inline TileOf tile_of(std::uint32_t cols, std::uint32_t block_cols) {
  if (block_cols == 0) return {0};  // not FP8: no tiles
  const std::uint32_t parts = cols / 128 + 1;
  const std::uint32_t of_tile = block_cols / 128 < parts && block_cols % 128 == 0 ? block_cols / 128 : parts;
  return {of_tile == 1 ? 0 : 0xFFFF'FFFFU / of_tile + 1};
}

/// Quarter q of a slot lies elsewhere in every second slot, so that neither the 8 threads that store at a
/// time nor those that read meet in a bank.
__device__ __forceinline__ unsigned quarter_at(unsigned slot, unsigned q) {
  return slot * 4 + (q ^ (slot / 2 % 4));
}

/// One word of each of four rows, rearranged by column: four columns of FP8, two of 16 bits, one of 32.
template <Code kCode>
__device__ __forceinline__ uint4 interleave(unsigned a, unsigned b, unsigned c, unsigned d) {
  if constexpr (kCode == Code::f8_e4m3) {
    const unsigned ab01 = __byte_perm(a, b, 0x5140);
    const unsigned ab23 = __byte_perm(a, b, 0x7362);
    const unsigned cd01 = __byte_perm(c, d, 0x5140);
    const unsigned cd23 = __byte_perm(c, d, 0x7362);
    return make_uint4(__byte_perm(ab01, cd01, 0x5410), __byte_perm(ab01, cd01, 0x7632),
                      __byte_perm(ab23, cd23, 0x5410), __byte_perm(ab23, cd23, 0x7632));
  } else if constexpr (kCode == Code::f32) {
    return make_uint4(a, b, c, d);
  } else {
    return make_uint4(__byte_perm(a, b, 0x5410), __byte_perm(c, d, 0x5410), __byte_perm(a, b, 0x7632),
                      __byte_perm(c, d, 0x7632));
  }
}

/// Where a lane finds its column's weights in the chunk: column 16 j + lane at offset 16 j + offsets[j's
/// variant], in units of what column_weights() reads. Made once: nothing is computed per read.
template <Code kCode>
struct LaneOffsets {
  unsigned offsets[4];
  __device__ __forceinline__ LaneOffsets() {
    const unsigned lane = lane16();
    STOKER_UNROLL
    for (unsigned v = 0; v < 4; ++v) {
      if constexpr (kCode == Code::f8_e4m3) {
        offsets[v] = quarter_at(2 * v, lane / 4) * 4 + lane % 4 - 2 * v * 16;
      } else if constexpr (kCode == Code::f32) {
        offsets[v] = quarter_at(4 * v + lane / 4, lane % 4) - v * 16;
      } else {
        offsets[v] = quarter_at(2 * v + lane / 8, lane % 8 / 2) * 2 + lane % 2 - v * 16;
      }
    }
  }
  __device__ __forceinline__ unsigned at(unsigned j) const {
    return 16 * j + offsets[(kCode == Code::f8_e4m3 ? j / 2 : j) % 4];
  }
};

/// The four rows' weights of this lane's column in group j of the chunk. nans: marks of NaN codes, a byte
/// each row; they are applied once at the end, since a NaN stays one.
template <Code kCode>
__device__ __forceinline__ void column_weights(const ChunkBuffer& buffer, unsigned at, const float4& scales,
                                               float (&w)[4], unsigned& nans) {
  if constexpr (kCode == Code::f8_e4m3) {
    const unsigned codes = reinterpret_cast<const unsigned*>(buffer.quarters)[at];
    if (!kF8NanIsNan) nans |= f8_nans(codes);
    f8_folded(codes, w);
    w[0] *= scales.x;
    w[1] *= scales.y;
    w[2] *= scales.z;
    w[3] *= scales.w;
  } else if constexpr (kCode == Code::f32) {
    const uint4 u = buffer.quarters[at];
    w[0] = __uint_as_float(u.x);
    w[1] = __uint_as_float(u.y);
    w[2] = __uint_as_float(u.z);
    w[3] = __uint_as_float(u.w);
  } else {
    const uint2 u = reinterpret_cast<const uint2*>(buffer.quarters)[at];
    if constexpr (kCode == Code::bf16) {
      w[0] = __uint_as_float(u.x << 16);
      w[1] = __uint_as_float(u.x & 0xFFFF'0000U);
      w[2] = __uint_as_float(u.y << 16);
      w[3] = __uint_as_float(u.y & 0xFFFF'0000U);
    } else {
      w[0] = half_to_float(static_cast<std::uint16_t>(u.x));
      w[1] = half_to_float(static_cast<std::uint16_t>(u.x >> 16));
      w[2] = half_to_float(static_cast<std::uint16_t>(u.y));
      w[3] = half_to_float(static_cast<std::uint16_t>(u.y >> 16));
    }
  }
}

/// acc[r * kX + i] += the chunk of row r times x i, columns from `base` on.
template <Code kCode, int kX, bool kWhole>
__device__ __forceinline__ void multiply_chunk(const ChunkBuffer& buffer, const LaneOffsets<kCode>& lanes,
                                               const float* x, const unsigned (&x_at)[kX], unsigned base,
                                               unsigned cols, float (&acc)[4 * kX], unsigned& nans) {
  using C = Chunk<kCode>;
  STOKER_UNROLL_BY(1)
  for (unsigned run = 0; run < C::kGroups / C::kRun; ++run) {
    const float4 scales = kCode == Code::f8_e4m3 ? buffer.scales[run] : float4{};
    const unsigned begin = base + run * C::kRun * 16 + lane16();
    const float* from[kX];  // what is added below are constants
    STOKER_UNROLL
    for (int n = 0; n < kX; ++n) from[n] = x + x_at[n] + begin;
    const unsigned group = run * C::kRun;
    STOKER_UNROLL
    for (unsigned i = 0; i < C::kRun; ++i) {
      if (!kWhole && base + 16 * (group + i) >= cols) break;
      float w[4];
      column_weights<kCode>(buffer, 16 * group + lanes.at(i), scales, w, nans);
      STOKER_UNROLL
      for (int n = 0; n < kX; ++n) {
        const float xk = kWhole || begin + 16 * i < cols ? __ldg(from[n] + 16 * i) : 0.0F;
        STOKER_UNROLL
        for (int r = 0; r < 4; ++r) acc[r * kX + n] = fmaf(w[r], xk, acc[r * kX + n]);
      }
    }
  }
}

/// Four rows of W on their way through one half-warp.
template <Code kCode>
class FourRows {
 public:
  __device__ FourRows(const RowView (&rows)[4], unsigned cols, TileOf tile_of, ChunkBuffer& buffer)
      : buffer_(buffer), cols_(cols), tile_of_(tile_of) {
    STOKER_UNROLL
    for (unsigned r = 0; r < 4; ++r) {
      data_[r] = rows[r].data + lane16() * 16;
      if (r == 0 || lane16() % 4 == r) scales_ = rows[r].scales;
    }
  }

  /// What one lane has asked memory for: its 16 bytes of each row and one scale, lanes 8 to 15 those of 0 to
  /// 7 again, which costs nothing and needs no branch.
  struct Load {
    uint4 bytes[4];
    float scale;
  };
  /// kWhole: the chunk lies within the rows.
  template <bool kWhole>
  __device__ __forceinline__ void load(unsigned base, Load& out) const {
    STOKER_UNROLL
    for (int r = 0; r < 4; ++r) {
      out.bytes[r] =
          kWhole || base + lane16() * Chunk<kCode>::kPerLoad < cols_
              ? __ldg(reinterpret_cast<const uint4*>(data_[r] + std::size_t{base} * kBytesOf<kCode>))
              : make_uint4(0, 0, 0, 0);
    }
    if constexpr (kCode == Code::f8_e4m3) {
      const unsigned part = base / 128 + lane16() / 4 % 2;
      out.scale = kWhole || part * 128 < cols_ ? __ldg(scales_ + tile_of_(part)) * kF8Fold : 0.0F;
    }
  }
  __device__ __forceinline__ void store(const Load& in) {
    const uint4(&b)[4] = in.bytes;
    const unsigned slot = lane16();
    buffer_.quarters[quarter_at(slot, 0)] = interleave<kCode>(b[0].x, b[1].x, b[2].x, b[3].x);
    buffer_.quarters[quarter_at(slot, 1)] = interleave<kCode>(b[0].y, b[1].y, b[2].y, b[3].y);
    buffer_.quarters[quarter_at(slot, 2)] = interleave<kCode>(b[0].z, b[1].z, b[2].z, b[3].z);
    buffer_.quarters[quarter_at(slot, 3)] = interleave<kCode>(b[0].w, b[1].w, b[2].w, b[3].w);
    if constexpr (kCode == Code::f8_e4m3) {
      if (slot < 8) reinterpret_cast<float*>(buffer_.scales)[slot] = in.scale;
    }
  }

 private:
  ChunkBuffer& buffer_;
  const unsigned char* data_[4];  ///< this lane's part
  const float* scales_;           ///< of row lane % 4
  unsigned cols_;
  TileOf tile_of_;
};

/// acc[r * kX + n] = this lane's part of rows[r] . (x + x_at[n]); see for_lane_sums. Whole warps, cols alike.
/// Loads run kDepth chunks ahead: with few rows of x, waiting is all there is to do.
template <Code kCode, int kX>
__device__ __forceinline__ void few_rows(const RowView (&rows)[4], unsigned cols, TileOf tile_of,
                                         const float* x, const unsigned (&x_at)[kX], ChunkBuffer& buffer,
                                         float (&acc)[4 * kX]) {
  constexpr unsigned kColumns = Chunk<kCode>::kColumns;
  constexpr unsigned kDepth = kX == 1 ? 4 : kX == 8 ? 1 : 2;
  FourRows<kCode> w(rows, cols, tile_of, buffer);
  const LaneOffsets<kCode> lanes;
  const unsigned whole = cols / kColumns * kColumns;
  unsigned nans = 0;
  STOKER_UNROLL
  for (int i = 0; i < 4 * kX; ++i) acc[i] = 0.0F;
  typename FourRows<kCode>::Load ahead[kDepth];
  STOKER_UNROLL
  for (unsigned d = 0; d < kDepth; ++d)
    if (d * kColumns < whole) w.template load<true>(d * kColumns, ahead[d]);
  for (unsigned base = 0; base < whole; base += kDepth * kColumns) {
    STOKER_UNROLL
    for (unsigned d = 0; d < kDepth; ++d) {
      const unsigned at = base + d * kColumns;
      if (at >= whole) break;
      w.store(ahead[d]);
      __syncwarp();
      if (at + kDepth * kColumns < whole) w.template load<true>(at + kDepth * kColumns, ahead[d]);
      multiply_chunk<kCode, kX, true>(buffer, lanes, x, x_at, at, cols, acc, nans);
      __syncwarp();
    }
  }
  if (whole < cols) {
    w.template load<false>(whole, ahead[0]);
    w.store(ahead[0]);
    __syncwarp();
    multiply_chunk<kCode, kX, false>(buffer, lanes, x, x_at, whole, cols, acc, nans);
    __syncwarp();
  }
  STOKER_UNROLL
  for (unsigned r = 0; r < 4; ++r) {
    if ((nans & (0x80U << (8 * r))) == 0) continue;
    STOKER_UNROLL
    for (int n = 0; n < kX; ++n) acc[static_cast<int>(r) * kX + n] = quiet_nan();
  }
}

}  // namespace stoker::device
