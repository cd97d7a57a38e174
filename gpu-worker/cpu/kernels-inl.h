// The kernels over 16 virtual lanes (vec-inl.h). Included once per instruction set, inside that set's
// namespace, by kernels.cc and kernels_portable.cc; not a stand-alone header.

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

STOKER_INLINE float dot_inline(const float* a, const float* b, std::size_t n) {
  V acc = v_set(0.0F);
  std::size_t k = 0;
  for (; k + 16 <= n; k += 16) acc = v_fma(v_load(a + k), v_load(b + k), acc);
  if (k < n) acc = v_fma(v_load_n(a + k, n - k), v_load_n(b + k, n - k), acc);
  return v_sum(acc);
}
float dot(const float* a, const float* b, std::size_t n) { return dot_inline(a, b, n); }

/// y[i] = op(inputs of lane i) for n elements, the tail through zero-padded lanes.
#define STOKER_MAP(n, i, body_full, body_tail) \
  do {                                         \
    std::size_t i = 0;                         \
    for (; i + 16 <= (n); i += 16) {           \
      body_full;                               \
    }                                          \
    if (i < (n)) {                             \
      const std::size_t tail = (n)-i;          \
      body_tail;                               \
    }                                          \
  } while (false)

void rms_norm(const float* x, const float* w, std::size_t n, float eps, float* y) {
  const float mean = dot_inline(x, x, n) / static_cast<float>(n);
  const V r = v_set(1.0F / std::sqrt(mean + eps));
  STOKER_MAP(n, i, v_store(v_mul(v_mul(v_load(x + i), r), v_load(w + i)), y + i),
             v_store_n(v_mul(v_mul(v_load_n(x + i, tail), r), v_load_n(w + i, tail)), y + i, tail));
}

void gated_norm(const float* o, const float* z, const float* w, std::size_t n, float eps, float* y) {
  const float mean = dot_inline(o, o, n) / static_cast<float>(n);
  const V r = v_set(1.0F / std::sqrt(mean + eps));
  STOKER_MAP(
      n, i, v_store(v_mul(v_mul(v_mul(v_load(o + i), r), v_load(w + i)), v_silu(v_load(z + i))), y + i),
      v_store_n(
          v_mul(v_mul(v_mul(v_load_n(o + i, tail), r), v_load_n(w + i, tail)), v_silu(v_load_n(z + i, tail))),
          y + i, tail));
}

void l2_norm(float* x, std::size_t n, float eps, float scale) {
  const V r = v_set(1.0F / std::sqrt(dot_inline(x, x, n) + eps));
  const V s = v_set(scale);
  STOKER_MAP(n, i, v_store(v_mul(v_mul(v_load(x + i), r), s), x + i),
             v_store_n(v_mul(v_mul(v_load_n(x + i, tail), r), s), x + i, tail));
}

STOKER_INLINE V conv_lanes(const float* const* u, const float* w, std::size_t stride, std::uint32_t taps,
                           std::size_t i) {
  V acc = v_set(0.0F);
  for (std::uint32_t j = 0; j < taps; ++j) acc = v_fma(v_load(w + j * stride + i), v_load(u[j] + i), acc);
  return v_silu(acc);
}
STOKER_INLINE V conv_tail(const float* const* u, const float* w, std::size_t stride, std::uint32_t taps,
                          std::size_t i, std::size_t n) {
  V acc = v_set(0.0F);
  for (std::uint32_t j = 0; j < taps; ++j) {
    acc = v_fma(v_load_n(w + j * stride + i, n), v_load_n(u[j] + i, n), acc);
  }
  return v_silu(acc);
}
void conv_silu(const float* const* u, const float* w, std::size_t w_stride, std::uint32_t taps, std::size_t n,
               float* y) {
  STOKER_MAP(n, i, v_store(conv_lanes(u, w, w_stride, taps, i), y + i),
             v_store_n(conv_tail(u, w, w_stride, taps, i, tail), y + i, tail));
}

/// C * 16 columns of the state from column j. Fused form: m = decay * (S^T k), d = beta * (v - m),
/// o = decay * (S^T q) + d * (k . q), S = decay * S + k d^T. The second walk finds the columns in L1/L2.
template <std::size_t C>
STOKER_INLINE void delta_columns(const DeltaArgs& a, std::size_t j, float kq) {
  V sk[C];
  V sq[C];
  for (std::size_t c = 0; c < C; ++c) sk[c] = sq[c] = v_set(0.0F);
  for (std::uint32_t i = 0; i < a.dk; ++i) {
    const V k = v_set(a.k[i]);
    const V q = v_set(a.q[i]);
    const float* row = a.state + std::size_t{i} * a.dv + j;
    for (std::size_t c = 0; c < C; ++c) {
      const V s = v_load(row + 16 * c);
      sk[c] = v_fma(s, k, sk[c]);
      sq[c] = v_fma(s, q, sq[c]);
    }
  }
  const V decay = v_set(a.decay);
  V d[C];
  for (std::size_t c = 0; c < C; ++c) {
    d[c] = v_mul(v_set(a.beta), v_sub(v_load(a.v + j + 16 * c), v_mul(decay, sk[c])));
    v_store(v_fma(d[c], v_set(kq), v_mul(decay, sq[c])), a.o + j + 16 * c);
  }
  for (std::uint32_t i = 0; i < a.dk; ++i) {
    const V k = v_set(a.k[i]);
    float* row = a.state + std::size_t{i} * a.dv + j;
    for (std::size_t c = 0; c < C; ++c)
      v_store(v_fma(k, d[c], v_mul(decay, v_load(row + 16 * c))), row + 16 * c);
  }
}
/// The last n (< 16) columns, through padded lanes; same operations per column.
STOKER_INLINE void delta_tail(const DeltaArgs& a, std::size_t j, std::size_t n, float kq) {
  V sk = v_set(0.0F);
  V sq = v_set(0.0F);
  for (std::uint32_t i = 0; i < a.dk; ++i) {
    const V s = v_load_n(a.state + std::size_t{i} * a.dv + j, n);
    sk = v_fma(s, v_set(a.k[i]), sk);
    sq = v_fma(s, v_set(a.q[i]), sq);
  }
  const V decay = v_set(a.decay);
  const V d = v_mul(v_set(a.beta), v_sub(v_load_n(a.v + j, n), v_mul(decay, sk)));
  v_store_n(v_fma(d, v_set(kq), v_mul(decay, sq)), a.o + j, n);
  for (std::uint32_t i = 0; i < a.dk; ++i) {
    float* row = a.state + std::size_t{i} * a.dv + j;
    v_store_n(v_fma(v_set(a.k[i]), d, v_mul(decay, v_load_n(row, n))), row, n);
  }
}
void delta_step(const DeltaArgs& a) {
  const float kq = dot_inline(a.k, a.q, a.dk);
  std::size_t j = 0;
  for (; j + 64 <= a.dv; j += 64) delta_columns<4>(a, j, kq);
  for (; j + 16 <= a.dv; j += 16) delta_columns<1>(a, j, kq);
  if (j < a.dv) delta_tail(a, j, a.dv - j, kq);
}

void silu_mul(float* g, const float* u, std::size_t n) {
  STOKER_MAP(n, i, v_store(v_mul(v_silu(v_load(g + i)), v_load(u + i)), g + i),
             v_store_n(v_mul(v_silu(v_load_n(g + i, tail)), v_load_n(u + i, tail)), g + i, tail));
}
void axpy(float* y, float a, const float* x, std::size_t n) {
  const V s = v_set(a);
  STOKER_MAP(n, i, v_store(v_fma(s, v_load(x + i), v_load(y + i)), y + i),
             v_store_n(v_fma(s, v_load_n(x + i, tail), v_load_n(y + i, tail)), y + i, tail));
}
void add(float* y, const float* x, std::size_t n) {
  STOKER_MAP(n, i, v_store(v_add(v_load(y + i), v_load(x + i)), y + i),
             v_store_n(v_add(v_load_n(y + i, tail), v_load_n(x + i, tail)), y + i, tail));
}

float largest(const float* x, std::size_t n) {
  if (n < 16) return *std::max_element(x, x + n);
  V top = v_load(x);
  for (std::size_t i = 16; i + 16 <= n; i += 16) top = v_max(v_load(x + i), top);
  top = v_max(v_load(x + n - 16), top);
  float lanes[16];
  v_store(top, lanes);
  return *std::max_element(lanes, lanes + 16);
}

float exp_sum(float* x, std::size_t n, float top) {
  const V shift = v_set(top);
  V sum = v_set(0.0F);
  std::size_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const V e = v_exp(v_sub(v_load(x + i), shift));
    v_store(e, x + i);
    sum = v_add(sum, e);
  }
  if (i < n) {
    v_store_n(v_exp(v_sub(v_load_n(x + i, n - i), shift)), x + i, n - i);
    sum = v_add(sum, v_load_n(x + i, n - i));
  }
  return v_sum(sum);
}

void softmax(float* x, std::size_t n) {
  const V total = v_set(exp_sum(x, n, largest(x, n)));
  STOKER_MAP(n, j, v_store(v_div(v_load(x + j), total), x + j),
             v_store_n(v_div(v_load_n(x + j, tail), total), x + j, tail));
}

void attention_finish(float* y, float total, const float* g, std::size_t n) {
  const V t = v_set(total);
  STOKER_MAP(
      n, i, v_store(v_mul(v_div(v_load(y + i), t), v_sigmoid(v_load(g + i))), y + i),
      v_store_n(v_mul(v_div(v_load_n(y + i, tail), t), v_sigmoid(v_load_n(g + i, tail))), y + i, tail));
}

/// x * 0 is 0 for finite x and NaN otherwise.
bool all_finite(const float* x, std::size_t n) {
  V acc = v_set(0.0F);
  const V zero = acc;
  STOKER_MAP(n, i, acc = v_fma(v_load(x + i), zero, acc), acc = v_fma(v_load_n(x + i, tail), zero, acc));
  return v_sum(acc) == 0.0F;
}

void attention_scores(const float* q, std::uint32_t heads, const float* k, std::uint32_t count,
                      std::uint32_t dim, float scale, float* scores, std::size_t score_stride) {
  for (std::uint32_t t = 0; t < count; ++t) {
    const float* key = k + std::size_t{t} * dim;
    for (std::uint32_t g = 0; g < heads; ++g) {
      scores[g * score_stride + t] = dot_inline(q + std::size_t{g} * dim, key, dim) * scale;
    }
  }
}

template <std::size_t C>
STOKER_INLINE void value_columns(const float* p, const float* v, std::uint32_t count, std::uint32_t dim,
                                 float* out) {
  V acc[C];
  for (std::size_t c = 0; c < C; ++c) acc[c] = v_load(out + 16 * c);
  for (std::uint32_t t = 0; t < count; ++t) {
    const V weight = v_set(p[t]);
    for (std::size_t c = 0; c < C; ++c)
      acc[c] = v_fma(weight, v_load(v + std::size_t{t} * dim + 16 * c), acc[c]);
  }
  for (std::size_t c = 0; c < C; ++c) v_store(acc[c], out + 16 * c);
}
void attention_values(const float* p, std::size_t p_stride, std::uint32_t heads, const float* v,
                      std::uint32_t count, std::uint32_t dim, float* out) {
  for (std::uint32_t g = 0; g < heads; ++g) {
    const float* weights = p + g * p_stride;
    float* y = out + std::size_t{g} * dim;
    std::uint32_t j = 0;
    for (; j + 64 <= dim; j += 64) value_columns<4>(weights, v + j, count, dim, y + j);
    for (; j + 16 <= dim; j += 16) value_columns<1>(weights, v + j, count, dim, y + j);
    if (j == dim) continue;
    V acc = v_load_n(y + j, dim - j);
    for (std::uint32_t t = 0; t < count; ++t) {
      acc = v_fma(v_set(weights[t]), v_load_n(v + std::size_t{t} * dim + j, dim - j), acc);
    }
    v_store_n(acc, y + j, dim - j);
  }
}

template <class Int>
bool has_exponent_ones(const std::byte* data, std::size_t n, Int mask) {
  Int any = 0;
  for (std::size_t i = 0; i < n; ++i) {
    Int bits;
    std::memcpy(&bits, data + i * sizeof(Int), sizeof(Int));
    any = static_cast<Int>(any | static_cast<Int>((bits & mask) == mask ? 1 : 0));
  }
  return any != 0;
}
bool has_non_finite(const std::byte* data, DType dtype, std::size_t n) {
  switch (dtype) {
    case DType::f8_e4m3:
      return has_exponent_ones<std::uint8_t>(data, n, 0x7F);
    case DType::bf16:
      return has_exponent_ones<std::uint16_t>(data, n, 0x7F80);
    case DType::f16:
      return has_exponent_ones<std::uint16_t>(data, n, 0x7C00);
    default:
      return has_exponent_ones<std::uint32_t>(data, n, 0x7F80'0000U);
  }
}

const Kernels* table() {
  static constexpr Kernels kTable = {
      STOKER_TABLE_NAME, matmul,           decode_row, dot,      rms_norm,   gated_norm,
      l2_norm,           conv_silu,        delta_step, silu_mul, softmax,    largest,
      exp_sum,           attention_finish, axpy,       add,      all_finite, attention_scores,
      attention_values,  has_non_finite};
  return &kTable;
}
#undef STOKER_F8_NAN_APART
#undef STOKER_MAP
#undef STOKER_INLINE
#undef STOKER_PREFETCH
