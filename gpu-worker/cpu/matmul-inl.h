// Products of stored weights and rows of x over 16 virtual lanes (vec-inl.h), and decoding of weights.
// Included like kernels-inl.h, before it; not a stand-alone header.

#if defined(STOKER_PORTABLE)
inline constexpr std::size_t kTileX = 2;  ///< rows of x per tile
inline constexpr std::size_t kTileW = 4;  ///< rows of W per tile when x has many rows
#else
// AVX-512 has 32 registers: 4 x 4 accumulators. AVX2 has 16, and needs two per accumulator: 2 x 2.
inline constexpr std::size_t kTileX = kParts == 1 ? 4 : 2;
inline constexpr std::size_t kTileW = kParts == 1 ? 4 : 2;
#endif
inline constexpr std::size_t kVectorW = 4;  ///< rows of W together for one row of x: hides the latency of fma
/// Least distance of prefetches: covers the latency of memory at 10-20 GB/s per core.
inline constexpr std::size_t kPrefetchBytes = 8192;
/// From this many rows of x on, rows of W are decoded once into a panel.
inline constexpr std::uint32_t kPanelFrom = std::uint32_t{kTileX} + 1;
static_assert(kPanelRows % kTileW == 0);

struct F8 {
  static constexpr std::size_t bytes = 1;
  static constexpr bool scaled = true;
  static STOKER_INLINE V load(const std::byte* p) { return v_load_f8(p); }
};
struct Bf16 {
  static constexpr std::size_t bytes = 2;
  static constexpr bool scaled = false;
  static STOKER_INLINE V load(const std::byte* p) { return v_load_bf16(p); }
};
struct F16 {
  static constexpr std::size_t bytes = 2;
  static constexpr bool scaled = false;
  static STOKER_INLINE V load(const std::byte* p) { return v_load_f16(p); }
};
struct F32 {
  static constexpr std::size_t bytes = 4;
  static constexpr bool scaled = false;
  static STOKER_INLINE V load(const std::byte* p) { return v_load(reinterpret_cast<const float*>(p)); }
};

/// 64 weights.
template <class W>
STOKER_INLINE void load_four(const std::byte* p, V (&out)[4]) {
  if constexpr (W::scaled) {
    v_load_f8x4(p, out);
  } else {
    for (std::size_t j = 0; j < 4; ++j) out[j] = W::load(p + 16 * W::bytes * j);
  }
}

/// The same, but on CPUs that are slower with NaN codes these become +-480: mark_nan_rows() has to follow.
template <class W>
STOKER_INLINE void load_four_finite(const std::byte* p, V (&out)[4]) {
#if defined(STOKER_F8_NAN_APART)
  if constexpr (W::scaled) return v_load_f8x4_finite(p, out);
#endif
  load_four<W>(p, out);
}
/// R rows of `cols` weights, which are in L1 by now: a row with a NaN code has no other sum.
template <class W, std::size_t R>
STOKER_INLINE void mark_nan_rows([[maybe_unused]] const std::byte* rows, [[maybe_unused]] std::size_t cols,
                                 [[maybe_unused]] V (&acc)[R]) {
#if defined(STOKER_F8_NAN_APART)
  if constexpr (W::scaled) {
    for (std::size_t r = 0; r < R; ++r)
      if (has_nan_code(rows + r * cols, cols)) acc[r] = v_set(std::numeric_limits<float>::quiet_NaN());
  }
#endif
}

template <class W>
STOKER_INLINE V load_tail(const std::byte* p, std::size_t n) {
  std::byte padded[16 * W::bytes] = {};
  std::memcpy(padded, p, n * W::bytes);
  return W::load(padded);
}

/// acc[r][i] += W rows x x rows over columns [k0, k1), multiplying weights by scale[r] when W is scaled.
template <class W, std::size_t R, std::size_t N>
STOKER_INLINE void tile_columns(const std::byte* const* w, const float* scale, const float* const* x,
                                std::size_t row_bytes, std::size_t k0, std::size_t k1, V (&acc)[R][N]) {
  V scales[R];
  for (std::size_t r = 0; r < R; ++r) scales[r] = v_set(scale[r]);
  std::size_t k = k0;
  if constexpr (N == 1 || W::scaled) {
    // Few rows of x: the weights come from memory, and the rows after these are next.
    const std::size_t ahead = std::max<std::size_t>(R * row_bytes, kPrefetchBytes);
    for (; k + 64 <= k1; k += 64) {
      for (std::size_t r = 0; r < R; ++r) {
        const std::byte* p = w[r] + k * W::bytes;
        for (std::size_t line = 0; line < W::bytes; ++line) STOKER_PREFETCH(p + ahead + 64 * line);
        V weights[4];
        load_four<W>(p, weights);
        for (std::size_t j = 0; j < 4; ++j) {
          if constexpr (W::scaled) weights[j] = v_mul(weights[j], scales[r]);
          for (std::size_t i = 0; i < N; ++i)
            acc[r][i] = v_fma(weights[j], v_load(x[i] + k + 16 * j), acc[r][i]);
        }
      }
    }
  }
  for (; k + 16 <= k1; k += 16) {
    V xs[N];
    for (std::size_t i = 0; i < N; ++i) xs[i] = v_load(x[i] + k);
    for (std::size_t r = 0; r < R; ++r) {
      V weights = W::load(w[r] + k * W::bytes);
      if constexpr (W::scaled) weights = v_mul(weights, scales[r]);
      for (std::size_t i = 0; i < N; ++i) acc[r][i] = v_fma(weights, xs[i], acc[r][i]);
    }
  }
  if (k == k1) return;
  for (std::size_t r = 0; r < R; ++r) {
    V weights = load_tail<W>(w[r] + k * W::bytes, k1 - k);
    if constexpr (W::scaled) weights = v_mul(weights, scales[r]);
    for (std::size_t i = 0; i < N; ++i) acc[r][i] = v_fma(weights, v_load_n(x[i] + k, k1 - k), acc[r][i]);
  }
}

/// Rows row .. row + R of W against one row of x, where columns come in whole 64s of one scale: what decoding
/// does. No ends, rows by stride: the accumulators and all constants stay in registers.
template <class W, std::size_t R>
STOKER_INLINE void vector_rows(const Matrix& m, std::uint32_t row, const float* x, V (&acc)[R]) {
  const std::size_t stride = m.cols * W::bytes;
  const std::byte* p = m.data + row * stride;
  const std::byte* ahead = p + std::max(R * stride, kPrefetchBytes);
  const float* const x_end = x + m.cols;
  const std::size_t width = W::scaled ? m.block_cols : m.cols;
  for (std::size_t block = 0; x < x_end; ++block) {
    V scale[R];
    for (std::size_t r = 0; W::scaled && r < R; ++r)
      scale[r] = v_set(m.scales[(row + r) / m.block_rows * m.scale_cols() + block] * kF8Fold);
    const float* const block_end = std::min(x + width, x_end);
    for (; x < block_end; x += 64, p += 64 * W::bytes, ahead += 64 * W::bytes) {
      for (std::size_t r = 0; r < R; ++r) {
        for (std::size_t line = 0; line < W::bytes; ++line) STOKER_PREFETCH(ahead + r * stride + 64 * line);
        V weights[4];
        load_four_finite<W>(p + r * stride, weights);
        for (std::size_t j = 0; j < 4; ++j) {
          if constexpr (W::scaled) weights[j] = v_mul(weights[j], scale[r]);
          acc[r] = v_fma(weights[j], v_load(x + 16 * j), acc[r]);
        }
      }
    }
  }
  mark_nan_rows<W, R>(m.data + row * stride, m.cols, acc);
}

/// R rows of W from `row`, N rows of x. `w` points to the rows; scales are looked up by row.
template <class W, std::size_t R, std::size_t N>
STOKER_INLINE void tile(const Matrix& m, std::uint32_t row, const std::byte* const* w, const float* const* x,
                        float* const* y, const std::uint32_t* scatter) {
  V acc[R][N];
  for (std::size_t r = 0; r < R; ++r) {
    for (std::size_t i = 0; i < N; ++i) acc[r][i] = v_set(0.0F);
  }
  float scale[R] = {};
  const std::size_t row_bytes = m.cols * W::bytes;
  if constexpr (W::scaled) {
    const std::uint32_t scale_cols = m.scale_cols();
    for (std::uint32_t b = 0; b < scale_cols; ++b) {
      for (std::size_t r = 0; r < R; ++r) {
        const std::size_t tile_row = (row + static_cast<std::uint32_t>(r)) / m.block_rows;
        scale[r] = m.scales[tile_row * scale_cols + b] * kF8Fold;
      }
      const std::size_t k0 = std::size_t{b} * m.block_cols;
      tile_columns<W, R, N>(w, scale, x, row_bytes, k0, std::min<std::size_t>(k0 + m.block_cols, m.cols),
                            acc);
    }
  } else {
    tile_columns<W, R, N>(w, scale, x, row_bytes, 0, m.cols, acc);
  }
  for (std::size_t r = 0; r < R; ++r) {
    const std::uint32_t at = row + static_cast<std::uint32_t>(r);
    const std::uint32_t column = scatter == nullptr ? at : scatter[at];
    for (std::size_t i = 0; i < N; ++i) y[i][column] = v_sum(acc[r][i]);
  }
}

/// All rows of x against R rows of W that lie at `w`.
template <class W, std::size_t R, std::size_t NMax>
STOKER_INLINE void row_group(const MatmulArgs& a, std::uint32_t row, const std::byte* const* w) {
  std::size_t i = 0;
  for (; i + NMax <= a.n; i += NMax) tile<W, R, NMax>(a.w, row, w, a.x + i, a.y + i, a.scatter);
  if constexpr (NMax > 2) {
    if (i + 2 <= a.n) {
      tile<W, R, 2>(a.w, row, w, a.x + i, a.y + i, a.scatter);
      i += 2;
    }
  }
  if (i < a.n) tile<W, R, 1>(a.w, row, w, a.x + i, a.y + i, a.scatter);
}

template <class W, std::size_t R>
STOKER_INLINE void row_pointers(const Matrix& m, std::uint32_t row, const std::byte** w) {
  for (std::size_t r = 0; r < R; ++r)
    w[r] = m.data + (row + static_cast<std::uint32_t>(r)) * m.cols * W::bytes;
}

/// Few rows of x: weights go from memory straight into the tile.
template <class W>
void matmul_direct(const MatmulArgs& a, std::uint32_t begin, std::uint32_t end) {
  constexpr std::size_t kRows = kVectorW;
  const std::byte* w[kRows];
  std::uint32_t row = begin;
  if (a.n == 1) {
    const bool whole = a.w.cols % 64 == 0 && (!W::scaled || a.w.block_cols % 64 == 0);
    for (; whole && row + kRows <= end; row += std::uint32_t{kRows}) {
      V acc[kRows];
      for (V& sum : acc) sum = v_set(0.0F);
      vector_rows<W, kRows>(a.w, row, a.x[0], acc);
      for (std::uint32_t r = 0; r < kRows; ++r)
        a.y[0][a.scatter == nullptr ? row + r : a.scatter[row + r]] = v_sum(acc[r]);
    }
    for (; row + kRows <= end; row += std::uint32_t{kRows}) {
      row_pointers<W, kRows>(a.w, row, w);
      tile<W, kRows, 1>(a.w, row, w, a.x, a.y, a.scatter);
    }
  } else {
    for (; row + kTileW <= end; row += std::uint32_t{kTileW}) {
      row_pointers<W, kTileW>(a.w, row, w);
      row_group<W, kTileW, kTileX>(a, row, w);
    }
  }
  for (; row < end; ++row) {
    row_pointers<W, 1>(a.w, row, w);
    row_group<W, 1, kTileX>(a, row, w);
  }
}

template <class W>
void decode_row_as(const Matrix& m, std::uint32_t row, float* out) {
  const std::byte* w = m.data + std::size_t{row} * m.cols * W::bytes;
  const float* scales = nullptr;  ///< of this row's tiles
  if constexpr (W::scaled) {
    scales = m.scales + std::size_t{row / m.block_rows} * m.scale_cols();
    if (m.block_cols % 16 != 0) {
      // Odd tile widths exist in no published checkpoint: element by element.
      for (std::uint32_t k = 0; k < m.cols; ++k) {
        out[k] = f8_e4m3_value(std::to_integer<std::uint8_t>(w[k])) * scales[k / m.block_cols];
      }
      return;
    }
  }
  std::size_t k = 0;
  if (!W::scaled || m.block_cols % 64 == 0) {
    for (; k + 64 <= m.cols; k += 64) {
      STOKER_PREFETCH(w + k * W::bytes + kPrefetchBytes);
      V v[4];
      load_four<W>(w + k * W::bytes, v);
      if constexpr (W::scaled) {
        const V scale = v_set(scales[k / m.block_cols] * kF8Fold);
        for (V& four : v) four = v_mul(four, scale);
      }
      for (std::size_t j = 0; j < 4; ++j) v_store(v[j], out + k + 16 * j);
    }
  }
  for (; k < m.cols; k += 16) {
    const std::size_t n = std::min<std::size_t>(16, m.cols - k);
    V v = n == 16 ? W::load(w + k * W::bytes) : load_tail<W>(w + k * W::bytes, n);
    if constexpr (W::scaled) {
      v = v_mul(v, v_set(scales[k / m.block_cols] * kF8Fold));
    }
    if (n == 16) {
      v_store(v, out + k);
    } else {
      v_store_n(v, out + k, n);
    }
  }
}

void decode_row(const Matrix& m, std::uint32_t row, float* out) {
  switch (m.dtype) {
    case DType::f8_e4m3:
      return decode_row_as<F8>(m, row, out);
    case DType::bf16:
      return decode_row_as<Bf16>(m, row, out);
    case DType::f16:
      return decode_row_as<F16>(m, row, out);
    default:
      return decode_row_as<F32>(m, row, out);
  }
}

/// Many rows of x: kPanelRows rows of W are decoded into scratch and meet all of x there.
void matmul_panel(const MatmulArgs& a, std::uint32_t begin, std::uint32_t end, float* scratch) {
  const std::byte* w[kPanelRows];
  for (std::uint32_t row = begin; row < end; row += kPanelRows) {
    const std::uint32_t rows = std::min(kPanelRows, end - row);
    for (std::uint32_t r = 0; r < rows; ++r) {
      float* out = scratch + std::size_t{r} * a.w.cols;
      decode_row(a.w, row + r, out);
      w[r] = reinterpret_cast<const std::byte*>(out);
    }
    std::uint32_t r = 0;
    for (; r + kTileW <= rows; r += std::uint32_t{kTileW}) row_group<F32, kTileW, kTileX>(a, row + r, w + r);
    for (; r < rows; ++r) row_group<F32, 1, kTileX>(a, row + r, w + r);
  }
}

void matmul(const MatmulArgs& a, std::uint32_t begin, std::uint32_t end, float* scratch) {
  const bool odd_tiles = a.w.dtype == DType::f8_e4m3 && a.w.block_cols % 16 != 0;
  if (odd_tiles || (a.n >= kPanelFrom && a.w.dtype != DType::f32))
    return matmul_panel(a, begin, end, scratch);
  switch (a.w.dtype) {
    case DType::f8_e4m3:
      return matmul_direct<F8>(a, begin, end);
    case DType::bf16:
      return matmul_direct<Bf16>(a, begin, end);
    case DType::f16:
      return matmul_direct<F16>(a, begin, end);
    default:
      return matmul_direct<F32>(a, begin, end);
  }
}
