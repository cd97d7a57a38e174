// The arithmetic of the CPU backend as one table of functions per instruction set.
//
// Every kernel computes with 16 virtual lanes (one AVX-512 register, two AVX2 registers, or an array of 16
// floats), with fused multiply-add and a fixed reduction tree, so that the portable, AVX2 and AVX-512 tables
// give the same bits. A dot product of one (row of W, row of x) pair is the same sequence of operations
// whether it is computed alone or inside a tile:
//
//   acc[l] = fma(W[16 j + l], x[16 j + l], acc[l])   j ascending, missing elements of the tail are 0
//   8 lanes: acc[l] + acc[l + 8]; then + 4, + 2, + 1
//
// W is the exactly dequantised weight (model.md 4.1): code times tile scale, at most 12 significant bits with
// BF16 scales, hence exact. So an FP8 matrix and its dequantised F32 twin also give the same bits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "checkpoint/safetensors.h"
#include "gpu-worker/decode.h"
#include "shm/base/result.h"

namespace stoker {

/// A row-major [rows, cols] weight matrix as stored; `data` may have any alignment.
struct Matrix {
  const std::byte* data = nullptr;
  DType dtype = DType::other;  ///< f8_e4m3, bf16, f16 or f32
  std::uint32_t rows = 0, cols = 0;
  /// FP8 only: row-major [ceil(rows/block_rows), ceil(cols/block_cols)].
  const float* scales = nullptr;
  std::uint32_t block_rows = 0, block_cols = 0;

  [[nodiscard]] std::size_t bytes() const { return std::size_t{rows} * cols * dtype_bytes(dtype); }
  [[nodiscard]] std::uint32_t scale_cols() const {
    return block_cols == 0 ? 0 : (cols + block_cols - 1) / block_cols;
  }
};

/// y[i][scatter ? scatter[r] : r] = sum_k W[r][k] x[i][k] for r in [row_begin, row_end), i in [0, n).
struct MatmulArgs {
  Matrix w;
  const float* const* x = nullptr;  ///< n rows of w.cols floats
  float* const* y = nullptr;        ///< n rows
  std::uint32_t n = 0;
  const std::uint32_t* scatter = nullptr;  ///< destination column of each row of W; null: identity
};

/// Rows of W decoded at a time when many rows of x share them; MatmulArgs users provide this many * cols
/// floats of per-thread scratch (it stays in the L1/L2 cache; nothing larger is ever dequantised).
inline constexpr std::uint32_t kPanelRows = 8;

/// One token of one value head (model.md 3.4 step 8, fused form). state is [dk][dv], row = key dim.
struct DeltaArgs {
  float* state = nullptr;
  std::uint32_t dk = 0, dv = 0;
  const float* q = nullptr;  ///< l2-normalised and scaled
  const float* k = nullptr;  ///< l2-normalised
  const float* v = nullptr;
  float decay = 0, beta = 0;
  float* o = nullptr;
};

struct Kernels {
  const char* name;  ///< "scalar", "avx2", "avx512", "avx512vbmi"

  /// scratch: kPanelRows * w.cols floats, 64-byte aligned.
  void (*matmul)(const MatmulArgs& args, std::uint32_t row_begin, std::uint32_t row_end, float* scratch);
  /// One row of W as F32, exactly dequantised (embedding lookup).
  void (*decode_row)(const Matrix& w, std::uint32_t row, float* out);
  float (*dot)(const float* a, const float* b, std::size_t n);
  /// y = x * rsqrt(mean(x^2) + eps) * w. w is 1 + weight for RMSNorm0 (model.md 3.2). x may be y.
  void (*rms_norm)(const float* x, const float* w, std::size_t n, float eps, float* y);
  /// y = o * rsqrt(mean(o^2) + eps) * w * silu(z) (model.md 3.3).
  void (*gated_norm)(const float* o, const float* z, const float* w, std::size_t n, float eps, float* y);
  /// x = x * rsqrt(sum(x^2) + eps) * scale (model.md trap 8).
  void (*l2_norm)(float* x, std::size_t n, float eps, float scale);
  /// y = silu(sum_j w[j * w_stride] * u[j]), taps oldest first (model.md 3.4 step 3).
  void (*conv_silu)(const float* const* u, const float* w, std::size_t w_stride, std::uint32_t taps,
                    std::size_t n, float* y);
  void (*delta_step)(const DeltaArgs& args);
  /// g = silu(g) * u
  void (*silu_mul)(float* g, const float* u, std::size_t n);
  /// In place. Lanes sum in the canonical order.
  void (*softmax)(float* x, std::size_t n);
  float (*largest)(const float* x, std::size_t n);  ///< n > 0
  /// x = e^(x - top) in place; their sum in the canonical order.
  float (*exp_sum)(float* x, std::size_t n, float top);
  /// y = y / total * sigmoid(g)
  void (*attention_finish)(float* y, float total, const float* g, std::size_t n);
  /// y += a * x, fused.
  void (*axpy)(float* y, float a, const float* x, std::size_t n);
  void (*add)(float* y, const float* x, std::size_t n);
  bool (*all_finite)(const float* x, std::size_t n);
  /// scores[g * score_stride + t] = scale * (q[g] . k[t]) for `count` keys of `dim` floats.
  void (*attention_scores)(const float* q, std::uint32_t heads, const float* k, std::uint32_t count,
                           std::uint32_t dim, float scale, float* scores, std::size_t score_stride);
  /// out[g] += sum_t p[g * p_stride + t] * v[t], t ascending, fused.
  void (*attention_values)(const float* p, std::size_t p_stride, std::uint32_t heads, const float* v,
                           std::uint32_t count, std::uint32_t dim, float* out);
  /// True when the stored matrix holds a NaN or infinity (FP8: a NaN code).
  bool (*has_non_finite)(const std::byte* data, DType dtype, std::size_t elements);
};

/// The table for `simd`; automatic picks the best this CPU has. Errc::unsupported when the CPU lacks it.
Result<const Kernels*> select_kernels(Simd simd);

/// Value of an E4M3FN code (model.md 4.1); 0x7F and 0xFF are NaN.
float f8_e4m3_value(std::uint8_t code);

namespace portable {
const Kernels* kernel_table();
}  // namespace portable

}  // namespace stoker
