// Rows of stored weight matrices, and the product of any shape. few_rows.cuh and tile.cuh are the fast ones.
#pragma once

#include "gpu-worker/cuda/kernels/lanes.cuh"

namespace stoker::device {

template <Code kCode>
constexpr unsigned kBytesOf = kCode == Code::f8_e4m3 ? 1
                              : kCode == Code::f32   ? 4
                                                     : 2;

/// One row of a matrix as stored. scales: FP8 only, of the tiles that the row crosses.
struct RowView {
  const unsigned char* data;
  const float* scales;
};

/// Row `row`, or the last one for an index beyond: kernels compute such rows and drop them.
template <Code kCode>
__device__ __forceinline__ RowView row_of(const Matrix& m, unsigned row) {
  const unsigned at = min(row, m.rows - 1);
  RowView view{static_cast<const unsigned char*>(m.data) + std::size_t{at} * m.cols * kBytesOf<kCode>,
               nullptr};
  if constexpr (kCode == Code::f8_e4m3) {
    const unsigned scale_cols = (m.cols + m.block_cols - 1) / m.block_cols;
    view.scales = m.scales + std::size_t{at / m.block_rows} * scale_cols;
  }
  return view;
}

/// The exact value of one weight.
template <Code kCode>
__device__ __forceinline__ float weight_at(const RowView& row, unsigned k, unsigned block_cols) {
  if constexpr (kCode == Code::f8_e4m3) {
    const unsigned code = row.data[k];
    float value[4];
    f8_values(code, value);
    return value[0] * row.scales[k / block_cols];
  } else if constexpr (kCode == Code::bf16) {
    return __uint_as_float(unsigned{reinterpret_cast<const std::uint16_t*>(row.data)[k]} << 16);
  } else if constexpr (kCode == Code::f16) {
    return half_to_float(reinterpret_cast<const std::uint16_t*>(row.data)[k]);
  } else {
    return reinterpret_cast<const float*>(row.data)[k];
  }
}

/// sums[i] = row . (x + x_at[i]) by a half-warp, for rows of any length and alignment.
template <Code kCode, int kX>
__device__ __forceinline__ void any_row(const RowView& row, unsigned cols, unsigned block_cols,
                                        const float* x, const unsigned (&x_at)[kX], float (&sums)[kX]) {
  STOKER_UNROLL
  for (int i = 0; i < kX; ++i) sums[i] = 0.0F;
  for (unsigned base = 0; base < cols; base += 16) {
    const unsigned k = base + lane16();
    const float w = k < cols ? weight_at<kCode>(row, k, block_cols) : 0.0F;
    STOKER_UNROLL
    for (int i = 0; i < kX; ++i) sums[i] = fmaf(w, k < cols ? x[x_at[i] + k] : 0.0F, sums[i]);
  }
  STOKER_UNROLL
  for (int i = 0; i < kX; ++i) sums[i] = lane_sum(sums[i]);
}

}  // namespace stoker::device
