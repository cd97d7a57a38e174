// The kernels over 16 virtual lanes (vec-inl.h), but products (matmul-inl.h), and their table. Included once
// per instruction set, inside that set's namespace, by kernels.cc and kernels_portable.cc; not a stand-alone
// header.

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
