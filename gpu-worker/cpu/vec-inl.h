// 16 virtual float lanes, in two spellings with the same bits: an array of floats (STOKER_PORTABLE) or
// Highway vectors. Included once per instruction set, before matmul-inl.h; not a stand-alone header.
// Every operation is one IEEE operation per lane (contraction is off, see CMakeLists.txt).

#if defined(STOKER_PORTABLE)

struct V {
  float a[16];
};

inline V v_set(float x) {
  V r;
  for (float& e : r.a) e = x;
  return r;
}
inline V v_load(const float* p) {
  V r;
  std::memcpy(r.a, p, sizeof r.a);
  return r;
}
inline void v_store(const V& v, float* p) { std::memcpy(p, v.a, sizeof v.a); }

#define STOKER_LANEWISE(name, expression)             \
  inline V name(const V& x, const V& y) {             \
    V r;                                              \
    for (int i = 0; i < 16; ++i) r.a[i] = expression; \
    return r;                                         \
  }
STOKER_LANEWISE(v_add, x.a[i] + y.a[i])
STOKER_LANEWISE(v_sub, x.a[i] - y.a[i])
STOKER_LANEWISE(v_mul, x.a[i] * y.a[i])
STOKER_LANEWISE(v_div, x.a[i] / y.a[i])
STOKER_LANEWISE(v_max, x.a[i] > y.a[i] ? x.a[i] : y.a[i])
#undef STOKER_LANEWISE

inline V v_fma(const V& x, const V& y, const V& z) {
  V r;
  for (int i = 0; i < 16; ++i) r.a[i] = std::fma(x.a[i], y.a[i], z.a[i]);
  return r;
}
inline float v_sum(const V& v) {
  float s[8];
  for (int i = 0; i < 8; ++i) s[i] = v.a[i] + v.a[i + 8];
  for (int i = 0; i < 4; ++i) s[i] += s[i + 4];
  return (s[0] + s[2]) + (s[1] + s[3]);
}
/// x >= 0 or not clamped NaN: callers clamp first. 2^n for integral n in [-126, 127].
inline V v_pow2(const V& n) {
  V r;
  for (int i = 0; i < 16; ++i) r.a[i] = std::bit_cast<float>((static_cast<std::int32_t>(n.a[i]) + 127) << 23);
  return r;
}
inline V v_round(const V& x) {
  V r;
  for (int i = 0; i < 16; ++i) r.a[i] = std::nearbyint(x.a[i]);
  return r;
}
/// Lanes of x between lo and hi; NaN becomes lo.
inline V v_clamp(const V& x, float lo, float hi) {
  V r;
  for (int i = 0; i < 16; ++i) r.a[i] = x.a[i] > lo ? (x.a[i] < hi ? x.a[i] : hi) : lo;
  return r;
}
/// x where x is NaN, else y.
inline V v_keep_nan(const V& x, const V& y) {
  V r;
  for (int i = 0; i < 16; ++i) r.a[i] = x.a[i] != x.a[i] ? x.a[i] : y.a[i];
  return r;
}

/// 16 weights from memory as floats. F8 comes out divided by kF8Fold.
inline constexpr float kF8Fold = 1.0F;
inline V v_load_f8(const std::byte* p) {
  V r;
  for (int i = 0; i < 16; ++i) r.a[i] = f8_e4m3_value(std::to_integer<std::uint8_t>(p[i]));
  return r;
}
inline void v_load_f8x4(const std::byte* p, V (&out)[4]) {
  for (int j = 0; j < 4; ++j) out[j] = v_load_f8(p + 16 * j);
}
inline V v_load_bf16(const std::byte* p) {
  V r;
  for (int i = 0; i < 16; ++i) {
    std::uint16_t bits;
    std::memcpy(&bits, p + 2 * i, 2);
    r.a[i] = std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
  }
  return r;
}
inline float f16_value(std::uint16_t h) {
  const float sign = (h & 0x8000U) != 0 ? -1.0F : 1.0F;
  const int exponent = (h >> 10) & 31;
  const int mantissa = h & 1023;
  if (exponent == 31) return mantissa != 0 ? std::numeric_limits<float>::quiet_NaN() : sign * HUGE_VALF;
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(mantissa), -24);
  return sign * std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25);
}
inline V v_load_f16(const std::byte* p) {
  V r;
  for (int i = 0; i < 16; ++i) {
    std::uint16_t bits;
    std::memcpy(&bits, p + 2 * i, 2);
    r.a[i] = f16_value(bits);
  }
  return r;
}

#else  // Highway

namespace hn = hwy::HWY_NAMESPACE;
using DF = hn::CappedTag<float, 16>;
inline constexpr int kLanes = static_cast<int>(hn::MaxLanes(DF()));
inline constexpr int kParts = 16 / kLanes;

struct V {
  hn::Vec<DF> p[kParts];
};

#define STOKER_EACH for (int i = 0; i < kParts; ++i)

HWY_INLINE V v_set(float x) {
  V r;
  STOKER_EACH r.p[i] = hn::Set(DF(), x);
  return r;
}
HWY_INLINE V v_load(const float* p) {
  V r;
  STOKER_EACH r.p[i] = hn::LoadU(DF(), p + i * kLanes);
  return r;
}
HWY_INLINE void v_store(const V& v, float* p) { STOKER_EACH hn::StoreU(v.p[i], DF(), p + i * kLanes); }

#define STOKER_LANEWISE(name, op)                \
  HWY_INLINE V name(const V& x, const V& y) {    \
    V r;                                         \
    STOKER_EACH r.p[i] = hn::op(x.p[i], y.p[i]); \
    return r;                                    \
  }
STOKER_LANEWISE(v_add, Add)
STOKER_LANEWISE(v_sub, Sub)
STOKER_LANEWISE(v_mul, Mul)
STOKER_LANEWISE(v_div, Div)
#undef STOKER_LANEWISE

HWY_INLINE V v_max(const V& x, const V& y) {
  V r;
  STOKER_EACH r.p[i] = hn::IfThenElse(hn::Gt(x.p[i], y.p[i]), x.p[i], y.p[i]);
  return r;
}
HWY_INLINE V v_fma(const V& x, const V& y, const V& z) {
  V r;
  STOKER_EACH r.p[i] = hn::MulAdd(x.p[i], y.p[i], z.p[i]);
  return r;
}
/// The canonical tree: halves are added until four lanes are left.
template <class D>
HWY_INLINE float tree_sum(D d, hn::Vec<D> v) {
  if constexpr (hn::MaxLanes(D()) > 4) {
    const hn::Half<D> half;
    return tree_sum(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
  } else {
    float s[4];
    hn::StoreU(v, d, s);
    return (s[0] + s[2]) + (s[1] + s[3]);
  }
}
HWY_INLINE float v_sum(const V& v) {
  V t = v;
  for (int parts = kParts; parts > 1; parts /= 2) {
    for (int i = 0; i < parts / 2; ++i) t.p[i] = hn::Add(t.p[i], t.p[i + parts / 2]);
  }
  return tree_sum(DF(), t.p[0]);
}
HWY_INLINE V v_pow2(const V& n) {
  const hn::RebindToSigned<DF> di;
  V r;
  STOKER_EACH r.p[i] =
      hn::BitCast(DF(), hn::ShiftLeft<23>(hn::Add(hn::ConvertTo(di, n.p[i]), hn::Set(di, 127))));
  return r;
}
HWY_INLINE V v_round(const V& x) {
  V r;
  STOKER_EACH r.p[i] = hn::Round(x.p[i]);
  return r;
}
HWY_INLINE V v_clamp(const V& x, float lo, float hi) {
  const auto vlo = hn::Set(DF(), lo);
  const auto vhi = hn::Set(DF(), hi);
  V r;
  STOKER_EACH {
    const auto top = hn::IfThenElse(hn::Lt(x.p[i], vhi), x.p[i], vhi);
    r.p[i] = hn::IfThenElse(hn::Gt(x.p[i], vlo), top, vlo);
  }
  return r;
}
HWY_INLINE V v_keep_nan(const V& x, const V& y) {
  V r;
  STOKER_EACH r.p[i] = hn::IfThenElse(hn::Eq(x.p[i], x.p[i]), y.p[i], x.p[i]);
  return r;
}

#if HWY_TARGET == HWY_AVX3_DL

inline constexpr float kF8Fold = 1.0F;
/// The upper half of each positive code's F32 (the lower half is 0), split into bytes.
struct F8Bytes {
  alignas(64) std::uint8_t low[128] = {};
  alignas(64) std::uint8_t high[128] = {};
};
constexpr F8Bytes make_f8_bytes() {
  F8Bytes bytes;
  for (std::uint32_t code = 0; code < 128; ++code) {
    const std::uint32_t upper = std::bit_cast<std::uint32_t>(decode_f8_e4m3(code)) >> 16;
    bytes.low[code] = static_cast<std::uint8_t>(upper & 0xFFU);
    bytes.high[code] = static_cast<std::uint8_t>(upper >> 8);
  }
  return bytes;
}
alignas(64) inline constexpr F8Bytes kF8Bytes = make_f8_bytes();

/// Where the zip of low and high bytes wants the codes: in dword l code l beside code 16 + l, then 32 + l
/// beside 48 + l.
struct F8Order {
  alignas(64) std::uint8_t at[64] = {};
};
constexpr F8Order make_f8_order() {
  F8Order order;
  for (std::size_t lane = 0; lane < 4; ++lane) {
    for (std::size_t i = 0; i < 16; ++i) {
      const std::size_t vector = i / 8 * 2 + i % 2;
      order.at[16 * lane + i] = static_cast<std::uint8_t>(16 * vector + 4 * lane + i % 8 / 2);
    }
  }
  return order;
}
alignas(64) inline constexpr F8Order kF8Order = make_f8_order();

/// 64 codes as floats, codes 16 j .. 16 j + 15 in out[j]: two byte look-ups, a zip to pairs of upper halves,
/// and each pair taken apart.
HWY_INLINE void f8_floats(__m512i in_order, V (&out)[4]) {
  const __m512i codes = _mm512_permutexvar_epi8(_mm512_load_si512(kF8Order.at), in_order);
  const __m512i low =
      _mm512_permutex2var_epi8(_mm512_load_si512(kF8Bytes.low), codes, _mm512_load_si512(kF8Bytes.low + 64));
  const __m512i magnitude = _mm512_permutex2var_epi8(_mm512_load_si512(kF8Bytes.high), codes,
                                                     _mm512_load_si512(kF8Bytes.high + 64));
  // magnitude | (codes & 0x80)
  const __m512i high = _mm512_ternarylogic_epi32(magnitude, codes, _mm512_set1_epi8(-128), 0xF8);
  const __m512i first = _mm512_unpacklo_epi8(low, high);
  const __m512i second = _mm512_unpackhi_epi8(low, high);
  const __m512i upper = _mm512_set1_epi32(-65536);
  out[0].p[0].raw = _mm512_castsi512_ps(_mm512_slli_epi32(first, 16));
  out[1].p[0].raw = _mm512_castsi512_ps(_mm512_and_si512(first, upper));
  out[2].p[0].raw = _mm512_castsi512_ps(_mm512_slli_epi32(second, 16));
  out[3].p[0].raw = _mm512_castsi512_ps(_mm512_and_si512(second, upper));
}
HWY_INLINE void v_load_f8x4(const std::byte* p, V (&out)[4]) { f8_floats(_mm512_loadu_si512(p), out); }
HWY_INLINE V v_load_f8(const std::byte* p) {
  V v[4];
  f8_floats(_mm512_castsi128_si512(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), v);
  return v[0];
}

#else

inline constexpr float kF8Fold = 256.0F;
/// Bytes -> fp16 bits ((c & 0x80) << 8 | (c & 0x7F) << 7), whose value is the code's divided by 256, exact
/// for subnormals too (model.md 4.1). NaN codes have payload 0x3F80 there and get the bits of an fp16 NaN,
/// if `kNan`; otherwise they come out as +-480.
template <bool kNan, class D>
HWY_INLINE hn::Vec<D> f8_halves(D d16, const std::byte* p) {
  const hn::Rebind<std::int8_t, D> d8;
  const auto wide =
      hn::ShiftLeft<7>(hn::PromoteTo(d16, hn::LoadU(d8, reinterpret_cast<const std::int8_t*>(p))));
  const auto half = hn::And(wide, hn::Set(d16, static_cast<std::int16_t>(0xBFFF)));
  if constexpr (!kNan) return half;
  const auto payload = hn::Set(d16, 0x3F80);
  return hn::Or(half, hn::VecFromMask(d16, hn::Eq(hn::And(wide, payload), payload)));
}
HWY_INLINE V v_load_f8(const std::byte* p) {
  const hn::Rebind<std::int16_t, DF> d16;
  const hn::Rebind<hwy::float16_t, DF> dh;
  V r;
  STOKER_EACH r.p[i] = hn::PromoteTo(DF(), hn::BitCast(dh, f8_halves<true>(d16, p + i * kLanes)));
  return r;
}
/// Whole registers of halves, each of which makes two of floats: half as many instructions as v_load_f8.
template <bool kNan>
HWY_INLINE void f8_floats(const std::byte* p, V (&out)[4]) {
  const hn::Repartition<std::int16_t, DF> d16;
  const hn::Repartition<hwy::float16_t, DF> dh;
  const hn::Half<decltype(dh)> one;
  for (int i = 0; i < 4 * kParts; i += 2) {
    const auto halves = hn::BitCast(dh, f8_halves<kNan>(d16, p + i * kLanes));
    out[i / kParts].p[i % kParts] = hn::PromoteTo(DF(), hn::LowerHalf(one, halves));
    out[(i + 1) / kParts].p[(i + 1) % kParts] = hn::PromoteTo(DF(), hn::UpperHalf(one, halves));
  }
}
HWY_INLINE void v_load_f8x4(const std::byte* p, V (&out)[4]) { f8_floats<true>(p, out); }

#define STOKER_F8_NAN_APART
/// For codes that has_nan_code() looks at too: of six instructions per 16 codes three were for NaN.
HWY_INLINE void v_load_f8x4_finite(const std::byte* p, V (&out)[4]) { f8_floats<false>(p, out); }
/// Among n codes, a multiple of 64. 0x7F is the largest magnitude there is.
HWY_INLINE bool has_nan_code(const std::byte* p, std::size_t n) {
  const hn::Repartition<std::uint8_t, DF> d8;
  const auto magnitude = hn::Set(d8, 0x7F);
  auto largest = hn::Zero(d8);
  for (std::size_t i = 0; i < n; i += hn::Lanes(d8))
    largest =
        hn::Max(largest, hn::And(hn::LoadU(d8, reinterpret_cast<const std::uint8_t*>(p + i)), magnitude));
  return !hn::AllFalse(d8, hn::Eq(largest, magnitude));
}

#endif

HWY_INLINE V v_load_bf16(const std::byte* p) {
  const hn::Rebind<std::uint16_t, DF> d16;
  const hn::RebindToUnsigned<DF> du;
  const auto* bits = reinterpret_cast<const std::uint16_t*>(p);
  V r;
  STOKER_EACH r.p[i] =
      hn::BitCast(DF(), hn::ShiftLeft<16>(hn::PromoteTo(du, hn::LoadU(d16, bits + i * kLanes))));
  return r;
}
HWY_INLINE V v_load_f16(const std::byte* p) {
  const hn::Rebind<hwy::float16_t, DF> dh;
  const hn::Rebind<std::uint16_t, DF> d16;
  const auto* bits = reinterpret_cast<const std::uint16_t*>(p);
  V r;
  STOKER_EACH r.p[i] = hn::PromoteTo(DF(), hn::BitCast(dh, hn::LoadU(d16, bits + i * kLanes)));
  return r;
}
#undef STOKER_EACH

#endif

/// Asks for a cache line in L2 (in L1 the rows of a tile, 4 KiB apart, would evict each other); any address
/// will do.
#define STOKER_PREFETCH(p) __builtin_prefetch(p, 0, 2)

#if defined(STOKER_PORTABLE)
#define STOKER_INLINE inline
#else
#define STOKER_INLINE HWY_INLINE
#endif

/// The first n (< 16) floats, the other lanes 0.
STOKER_INLINE V v_load_n(const float* p, std::size_t n) {
  float a[16] = {};
  std::memcpy(a, p, n * sizeof(float));
  return v_load(a);
}
STOKER_INLINE void v_store_n(const V& v, float* p, std::size_t n) {
  float a[16];
  v_store(v, a);
  std::memcpy(p, a, n * sizeof(float));
}

/// e^x to about 1 ulp (Cephes expf polynomial); NaN stays NaN, below -87.33 gives about 1e-38, not 0.
STOKER_INLINE V v_exp(const V& x) {
  const V c = v_clamp(x, -87.33F, 88.37F);
  const V n = v_round(v_mul(c, v_set(1.44269504088896341F)));
  V r = v_fma(n, v_set(-0.693359375F), c);
  r = v_fma(n, v_set(2.12194440e-4F), r);
  V p = v_set(1.9875691500e-4F);
  p = v_fma(p, r, v_set(1.3981999507e-3F));
  p = v_fma(p, r, v_set(8.3334519073e-3F));
  p = v_fma(p, r, v_set(4.1665795894e-2F));
  p = v_fma(p, r, v_set(1.6666665459e-1F));
  p = v_fma(p, r, v_set(5.0000001201e-1F));
  p = v_add(v_fma(p, v_mul(r, r), r), v_set(1.0F));
  return v_keep_nan(x, v_mul(p, v_pow2(n)));
}
/// 1 / (1 + e^-x)
STOKER_INLINE V v_sigmoid(const V& x) {
  const V one = v_set(1.0F);
  return v_div(one, v_add(one, v_exp(v_sub(v_set(0.0F), x))));
}
/// x / (1 + e^-x)
STOKER_INLINE V v_silu(const V& x) { return v_div(x, v_add(v_set(1.0F), v_exp(v_sub(v_set(0.0F), x)))); }
