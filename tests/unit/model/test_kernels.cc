// Kernels against the numbers of model.md Appendix A, against double precision, and against each other's
// bits.
#include <algorithm>
#include <bit>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "gpu-worker/cpu/buffer.h"
#include "gpu-worker/cpu/kernels.h"
#include "gpu-worker/cpu/rope.h"
#include "tests/unit/model/tiny_model.h"

namespace stoker::testing {
namespace {

/// All tables this CPU can run; the first is the portable one.
std::vector<const Kernels*> tables() {
  std::vector<const Kernels*> result;
  for (const Simd simd : {Simd::scalar, Simd::avx2, Simd::avx512, Simd::avx512vbmi}) {
    const auto table = select_kernels(simd);
    if (table) {
      result.push_back(*table);
    } else {
      WARN("skipped: " << table.error().message);
    }
  }
  return result;
}

std::vector<float> randoms(std::mt19937& random, std::size_t n, float scale = 1) {
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> v(n);
  for (float& x : v) x = normal(random);
  return v;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

void check_near(const std::vector<float>& got, const std::vector<double>& want, double tolerance) {
  REQUIRE(got.size() == want.size());
  for (std::size_t i = 0; i < want.size(); ++i) {
    INFO("index " << i);
    CHECK(static_cast<double>(got[i]) == Approx(want[i]).margin(tolerance));
  }
}

struct Shape {
  std::uint32_t rows, cols, block_rows, block_cols;
};

/// A random matrix at an odd address, and its exact values.
struct Case {
  std::vector<std::byte> storage;
  Encoded encoded;
  std::vector<float> values;
  Matrix matrix;
  Case(std::mt19937& random, const Shape& s, DType dtype) {
    const std::vector<float> r = randoms(random, std::size_t{s.rows} * s.cols);
    if (dtype == DType::f16) {
      values.resize(r.size());
      storage.resize(1 + 2 * r.size());
      for (std::size_t i = 0; i < r.size(); ++i) {
        // sign, exponent 10..20, any mantissa; a few subnormals
        const auto bits = static_cast<std::uint16_t>((random() & 0x83FFU) |
                                                     (i % 17 == 0 ? 0U : (10U + random() % 10U) << 10));
        std::memcpy(storage.data() + 1 + 2 * i, &bits, 2);
        const int e = (bits >> 10) & 31;
        const float m = static_cast<float>((bits & 1023) + (e == 0 ? 0 : 1024));
        values[i] = std::ldexp((bits & 0x8000) != 0 ? -m : m, e == 0 ? -24 : e - 25);
      }
      matrix = {storage.data() + 1, dtype, s.rows, s.cols, nullptr, 0, 0};
      return;
    }
    encoded = encode({r.begin(), r.end()}, s.rows, s.cols, dtype, s.block_rows, s.block_cols);
    values = dequantise(encoded, s.rows, s.cols, dtype, s.block_rows, s.block_cols);
    storage.resize(1 + encoded.data.size());
    std::copy(encoded.data.begin(), encoded.data.end(), storage.begin() + 1);
    matrix = {storage.data() + 1, dtype, s.rows, s.cols, encoded.scales.data(), s.block_rows, s.block_cols};
  }
};

std::vector<float> multiply(const Kernels& k, const Matrix& m, const std::vector<float>& x, std::uint32_t n,
                            std::uint32_t begin, std::uint32_t end, float poison,
                            const std::uint32_t* scatter = nullptr) {
  std::vector<float> y(std::size_t{n} * m.rows, poison);
  std::vector<const float*> xs;
  std::vector<float*> ys;
  for (std::uint32_t i = 0; i < n; ++i) {
    xs.push_back(x.data() + std::size_t{i} * m.cols);
    ys.push_back(y.data() + std::size_t{i} * m.rows);
  }
  FloatBuffer scratch(std::size_t{kPanelRows} * m.cols);
  k.matmul({m, xs.data(), ys.data(), n, scatter}, begin, end, scratch.data());
  return y;
}

}  // namespace

TEST_CASE("A1: every E4M3 code, in every table") {
  CHECK(f8_e4m3_value(0x00) == 0.0F);
  CHECK(f8_e4m3_value(0x01) == 0.001953125F);
  CHECK(f8_e4m3_value(0x07) == 0.013671875F);
  CHECK(f8_e4m3_value(0x08) == 0.015625F);
  CHECK(f8_e4m3_value(0x38) == 1.0F);
  CHECK(f8_e4m3_value(0x40) == 2.0F);
  CHECK(f8_e4m3_value(0x7E) == 448.0F);
  CHECK(f8_e4m3_value(0xB8) == -1.0F);
  CHECK(f8_e4m3_value(0xFE) == -448.0F);
  CHECK(std::isnan(f8_e4m3_value(0x7F)));
  CHECK(std::isnan(f8_e4m3_value(0xFF)));
  std::vector<std::byte> codes(257);
  for (std::size_t i = 0; i < 256; ++i) codes[i + 1] = std::byte{static_cast<std::uint8_t>(i)};
  const float one = 1.0F;
  for (const Kernels* k : tables()) {
    INFO(k->name);
    std::vector<float> row(256);
    k->decode_row({codes.data() + 1, DType::f8_e4m3, 1, 256, &one, 1, 256}, 0, row.data());
    for (std::size_t i = 0; i < 256; ++i) {
      INFO("code " << i);
      const int e = static_cast<int>(i >> 3 & 15);
      const double m = static_cast<double>(i & 7);
      double want = e == 0 ? std::ldexp(m, -9) : std::ldexp(1 + m / 8, e - 7);
      if (i >= 128) want = -want;
      if ((i & 127) == 127) {
        CHECK(std::isnan(row[i]));
      } else {
        CHECK(static_cast<double>(row[i]) == want);
        CHECK(std::signbit(row[i]) == (i >= 128));
      }
    }
    CHECK(k->has_non_finite(codes.data() + 1, DType::f8_e4m3, 256));
    CHECK_FALSE(k->has_non_finite(codes.data() + 1, DType::f8_e4m3, 127));
  }
}

TEST_CASE("A2, A3, A4, A6: norms, conv, router") {
  for (const Kernels* k : tables()) {
    INFO(k->name);
    const std::vector<float> x = {1, -2, 3, -4};
    std::vector<float> y(4);
    k->rms_norm(x.data(), std::vector<float>{1.5F, 0.75F, 1, 2}.data(), 4, 1e-6F, y.data());
    check_near(y, {0.547722521, -0.547722521, 1.095445042, -2.921186779}, 3e-7);
    k->gated_norm(x.data(), std::vector<float>{0.5F, -1, 2, 0}.data(),
                  std::vector<float>{1, 2, 0.5F, 3}.data(), 4, 1e-6F, y.data());
    check_near(y, {0.113644998, 0.392814062, 0.964864792, 0}, 3e-7);

    const std::vector<float> u = {0, 0, 0, 1, 2, -1, 0.5F, 3};
    const std::vector<float> taps = {0.1F, -0.2F, 0.3F, 0.5F};
    std::vector<float> c(5);
    for (std::size_t t = 0; t < 5; ++t) {
      const float* inputs[] = {&u[t], &u[t + 1], &u[t + 2], &u[t + 3]};
      k->conv_silu(inputs, taps.data(), 1, 4, 1, &c[t]);
    }
    check_near(c, {0.311229666, 1.021585478, -0.047502081, -0.144683847, 1.816192618}, 3e-7);

    std::vector<float> p = {0.1F, 2, -1, 1.5F, 0.7F, 1.9F};
    k->softmax(p.data(), p.size());
    const float three = p[1] + p[5] + p[3];
    check_near({p[1] / three, p[5] / three, p[3] / three}, {0.398189341, 0.360296615, 0.241514044}, 2e-7);
  }
}

TEST_CASE("A5: rotary frequencies and rotation") {
  const auto f = inverse_frequencies(5e6, 64);
  REQUIRE(f.size() == 32);
  CHECK(f[0] == 1.0F);
  CHECK(static_cast<double>(f[1]) == Approx(6.175287581e-01).epsilon(1e-7));
  CHECK(static_cast<double>(f[2]) == Approx(3.813417671e-01).epsilon(1e-7));
  CHECK(static_cast<double>(f[16]) == Approx(4.472135955e-04).epsilon(1e-7));
  CHECK(static_cast<double>(f[31]) == Approx(3.238715564e-07).epsilon(1e-7));
  std::vector<float> x(66), cos_sin(64);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i + 1);
  rope_angles(f, 3, cos_sin.data());
  rotate(x.data(), cos_sin.data(), 32);
  check_near({x[0], x[1], x[2], x[31], x[32], x[33], x[63]},
             {-5.646953, -33.215165, -30.618947, 31.999938, -32.528632, -7.533447, 64.000031}, 5e-6);
  CHECK(x[64] == 65.0F);  // beyond the rotary dims
  // Far positions: the angle is the fp32 product, reduced exactly.
  rope_angles(f, 262143, cos_sin.data());
  const auto angle = static_cast<double>(262143.0F * f[1]);
  CHECK(static_cast<double>(cos_sin[1]) == Approx(std::cos(angle)).margin(1e-7));
  CHECK(static_cast<double>(cos_sin[33]) == Approx(std::sin(angle)).margin(1e-7));
}

TEST_CASE("A7: the delta rule") {
  const double q[3][2] = {{1, 2}, {0.5, -1}, {-2, 1}};
  const double key[3][2] = {{2, 1}, {-1, 1}, {1, 3}};
  const float v[3][2] = {{1, -1}, {2, 0.5F}, {-0.5F, 3}};
  const float g[3] = {-2.206372098F, -0.948153968F, -4.253856022F};
  const float beta[3] = {0.5F, 0.880797078F, 0.268941421F};
  for (const Kernels* k : tables()) {
    INFO(k->name);
    std::vector<float> state(4);
    std::vector<float> out;
    for (int t = 0; t < 3; ++t) {
      float qn[2] = {static_cast<float>(q[t][0]), static_cast<float>(q[t][1])};
      float kn[2] = {static_cast<float>(key[t][0]), static_cast<float>(key[t][1])};
      k->l2_norm(qn, 2, 1e-6F, static_cast<float>(std::sqrt(0.5)));
      k->l2_norm(kn, 2, 1e-6F, 1);
      float o[2];
      k->delta_step({state.data(), 2, 2, qn, kn, v[t], std::exp(g[t]), beta[t], o});
      out.insert(out.end(), o, o + 2);
    }
    check_near(out, {0.282842656, -0.282842656, -1.217909606, -0.259231039, 0.002328104, 0.085520112}, 1e-6);
    check_near(state, {-0.059449783, 0.248752036, -0.111537455, 0.767942440}, 1e-6);
  }
}

TEST_CASE("T1: quantised codes and products of Appendix A") {
  const auto u = generate("T1.weight", 0, 1, 65536);
  std::vector<double> w(65536);
  for (std::size_t i = 0; i < w.size(); ++i) {
    const double r = static_cast<double>(i / 256 / 128);
    const double c = static_cast<double>(i % 256 / 128);
    w[i] = static_cast<double>(static_cast<float>(u[i] * (1 + 3 * r + 0.5 * c)));
  }
  const Encoded e = encode(w, 256, 256, DType::f8_e4m3, 128, 128);
  const std::uint32_t scale_bits[] = {0x3A92, 0x3ADB, 0x3B92, 0x3BA5};
  for (std::size_t i = 0; i < 4; ++i) CHECK(std::bit_cast<std::uint32_t>(e.scales[i]) >> 16 == scale_bits[i]);
  std::uint32_t hash = 0x811C9DC5U;
  for (const std::byte b : e.data) hash = (hash ^ std::to_integer<std::uint32_t>(b)) * 0x01000193U;
  CHECK(hash == 0x52144293U);
  std::vector<float> x;
  for (const double value : generate("T1.x", 0, 1, 256)) x.push_back(static_cast<float>(2 * value));
  const Matrix m{e.data.data(), DType::f8_e4m3, 256, 256, e.scales.data(), 128, 128};
  for (const Kernels* k : tables()) {
    INFO(k->name);
    const auto y = multiply(*k, m, x, 1, 0, 256, NAN);
    check_near({y[0], y[1], y[127], y[128], y[200], y[255]},
               {-2.4976106, 4.7608142, -4.7416211, 13.5171808, 3.7567800, -4.7714668}, 5e-6);
  }
}

TEST_CASE("matmul: right against double precision, the same bits in every table, tile and batch") {
  std::mt19937 random(11);
  const Shape shapes[] = {{1, 1, 128, 128},    {3, 5, 128, 128},   {8, 16, 128, 128}, {17, 40, 16, 16},
                          {33, 130, 128, 128}, {9, 260, 32, 64},   {12, 100, 5, 7},   {64, 256, 128, 128},
                          {5, 384, 3, 128},    {21, 515, 128, 256}};
  for (const DType dtype : {DType::f8_e4m3, DType::bf16, DType::f16, DType::f32}) {
    for (const Shape& s : shapes) {
      const Case c(random, s, dtype);
      const std::uint32_t n_max = 11;
      const std::vector<float> x = randoms(random, std::size_t{n_max} * s.cols);
      std::vector<float> golden;
      for (const Kernels* k : tables()) {
        INFO(k->name << " dtype " << dtype_name(dtype) << " " << s.rows << "x" << s.cols);
        const std::vector<float> all = multiply(*k, c.matrix, x, n_max, 0, s.rows, NAN);
        for (std::uint32_t i = 0; i < n_max; ++i) {
          for (std::uint32_t r = 0; r < s.rows; ++r) {
            double want = 0, magnitude = 0;
            for (std::uint32_t j = 0; j < s.cols; ++j) {
              const double t = static_cast<double>(c.values[std::size_t{r} * s.cols + j]) *
                               static_cast<double>(x[std::size_t{i} * s.cols + j]);
              want += t;
              magnitude += std::fabs(t);
            }
            const double got = static_cast<double>(all[std::size_t{i} * s.rows + r]);
            if (!(std::fabs(got - want) <= 1e-6 * magnitude + 1e-30)) {
              FAIL("row " << r << " of x " << i << ": " << got << " instead of " << want);
            }
          }
        }
        if (golden.empty()) golden = all;
        CHECK(same_bits(all, golden));
        // Fewer rows of x at a time: the same bits.
        for (const std::uint32_t n : {1U, 2U, 3U, 4U, 7U}) {
          const std::vector<float> some = multiply(*k, c.matrix, x, n, 0, s.rows, NAN);
          CHECK(same_bits(some,
                          {all.begin(), all.begin() + static_cast<std::ptrdiff_t>(std::size_t{n} * s.rows)}));
        }
        // A range of rows writes its rows and nothing else.
        const std::uint32_t from = s.rows / 3;
        const std::uint32_t to = s.rows - s.rows / 4;
        const std::vector<float> part = multiply(*k, c.matrix, x, 5, from, to, -77.0F);
        for (std::uint32_t i = 0; i < 5; ++i) {
          for (std::uint32_t r = 0; r < s.rows; ++r) {
            const std::size_t at = std::size_t{i} * s.rows + r;
            if (part[at] != (r >= from && r < to ? all[at] : -77.0F))
              FAIL("range " << from << ".." << to << " row " << r);
          }
        }
      }
    }
  }
}

TEST_CASE("matmul: scatter puts row r into column scatter[r]") {
  std::mt19937 random(12);
  const Case c(random, {13, 48, 128, 128}, DType::bf16);
  const std::vector<float> x = randoms(random, std::size_t{6} * 48);
  std::vector<std::uint32_t> scatter(13);
  for (std::uint32_t r = 0; r < 13; ++r) scatter[r] = r * 5 % 13;
  for (const Kernels* k : tables()) {
    const auto plain = multiply(*k, c.matrix, x, 6, 0, 13, NAN);
    const auto moved = multiply(*k, c.matrix, x, 6, 0, 13, NAN, scatter.data());
    for (std::uint32_t i = 0; i < 6; ++i) {
      for (std::uint32_t r = 0; r < 13; ++r) CHECK(moved[i * 13 + scatter[r]] == plain[i * 13 + r]);
    }
  }
}

TEST_CASE("a NaN code poisons its output row, alone and in a batch, and no other row") {
  std::mt19937 random(13);
  constexpr std::uint32_t kCols = 192;
  Case c(random, {10, kCols, 128, 128}, DType::f8_e4m3);
  const std::vector<float> x(std::size_t{9} * kCols, 0.0F);  // even times zero
  // Rows in a group of four and after the last group; columns at the ends and in the middle.
  for (const std::uint32_t row : {0U, 6U, 9U}) {
    for (const std::uint32_t col : {0U, 31U, 64U, kCols - 1}) {
      for (const std::uint8_t nan : {std::uint8_t{0x7F}, std::uint8_t{0xFF}}) {
        std::byte& code = c.storage[1 + row * kCols + col];
        const std::byte before = std::exchange(code, std::byte{nan});
        for (const Kernels* k : tables()) {
          for (const std::uint32_t n : {1U, 2U, 9U}) {
            INFO(k->name << ", row " << row << " column " << col << ", " << n << " rows of x");
            const auto y = multiply(*k, c.matrix, x, n, 0, 10, 1);
            for (std::size_t i = 0; i < y.size(); ++i) CHECK(std::isnan(y[i]) == (i % 10 == row));
            CHECK_FALSE(k->all_finite(y.data(), 10));
          }
        }
        code = before;
      }
    }
  }
}

TEST_CASE("element-wise kernels: right, and the same bits in every table, at every length") {
  std::mt19937 random(14);
  for (const std::size_t n : {1U, 4U, 15U, 16U, 17U, 64U, 100U, 128U, 513U}) {
    const auto x = randoms(random, n, 8), z = randoms(random, n, 8), w = randoms(random, n);
    std::vector<std::vector<float>> golden;
    for (const Kernels* k : tables()) {
      INFO(k->name << " n " << n);
      std::vector<std::vector<float>> got;
      std::vector<float> y = x;
      k->silu_mul(y.data(), z.data(), n);
      for (std::size_t i = 0; i < n; ++i) {
        const double want = static_cast<double>(x[i]) / (1 + std::exp(-static_cast<double>(x[i]))) *
                            static_cast<double>(z[i]);
        CHECK(static_cast<double>(y[i]) == Approx(want).epsilon(1e-6).margin(1e-12));
      }
      got.push_back(y);
      y = x;
      k->attention_finish(y.data(), 1.75F, z.data(), n);
      for (std::size_t i = 0; i < n; ++i) {
        const double want = static_cast<double>(x[i]) / 1.75 / (1 + std::exp(-static_cast<double>(z[i])));
        CHECK(static_cast<double>(y[i]) == Approx(want).epsilon(1e-6).margin(1e-12));
      }
      got.push_back(y);
      y = x;
      k->softmax(y.data(), n);
      CHECK(k->largest(x.data(), n) == *std::max_element(x.begin(), x.end()));
      double sum = 0, top = -1e30;
      for (const float e : x) top = std::max(top, static_cast<double>(e));
      for (const float e : x) sum += std::exp(static_cast<double>(e) - top);
      for (std::size_t i = 0; i < n; ++i) {
        CHECK(static_cast<double>(y[i]) ==
              Approx(std::exp(static_cast<double>(x[i]) - top) / sum).epsilon(2e-6).margin(1e-30));
      }
      got.push_back(y);
      y = x;
      k->axpy(y.data(), 0.3F, z.data(), n);
      got.push_back(y);
      k->add(y.data(), x.data(), n);
      got.push_back(y);
      k->rms_norm(x.data(), w.data(), n, 1e-6F, y.data());
      got.push_back(y);
      k->gated_norm(x.data(), z.data(), w.data(), n, 1e-6F, y.data());
      got.push_back(y);
      y = x;
      k->l2_norm(y.data(), n, 1e-6F, 0.25F);
      got.push_back(y);
      got.push_back({k->dot(x.data(), z.data(), n)});
      if (golden.empty()) golden = got;
      for (std::size_t i = 0; i < got.size(); ++i) {
        INFO("kernel " << i);
        CHECK(same_bits(got[i], golden[i]));
      }
    }
  }
}

TEST_CASE("extreme inputs: saturated gates, NaN stays NaN") {
  for (const Kernels* k : tables()) {
    INFO(k->name);
    std::vector<float> g = {-1e30F, -200, 200, 1e30F, std::numeric_limits<float>::quiet_NaN(), 0};
    const std::vector<float> ones(g.size(), 1.0F);
    k->silu_mul(g.data(), ones.data(), g.size());
    CHECK(std::fabs(g[0]) < 1e-7F);
    CHECK(std::fabs(g[1]) < 1e-30F);
    CHECK(g[2] == 200.0F);
    CHECK(g[3] == 1e30F);
    CHECK(std::isnan(g[4]));
    CHECK(g[5] == 0.0F);
  }
}

TEST_CASE("delta rule, conv and attention: right, and the same bits in every table, at ragged sizes") {
  std::mt19937 random(15);
  const std::uint32_t sizes[][2] = {{4, 4}, {16, 20}, {128, 128}, {24, 72}, {64, 200}};
  for (const auto& [dk, dv] : sizes) {
    const auto state = randoms(random, std::size_t{dk} * dv), q = randoms(random, dk),
               key = randoms(random, dk), v = randoms(random, dv);
    std::vector<std::vector<float>> golden;
    for (const Kernels* k : tables()) {
      INFO(k->name << " " << dk << "x" << dv);
      std::vector<float> s = state, o(dv);
      const float decay = 0.75F, beta = 0.4F;
      k->delta_step({s.data(), dk, dv, q.data(), key.data(), v.data(), decay, beta, o.data()});
      for (std::uint32_t j = 0; j < dv; ++j) {
        // The unfused recurrence of model.md 3.4, step 8, in double.
        double m = 0, out = 0;
        for (std::uint32_t i = 0; i < dk; ++i)
          m += 0.75 * static_cast<double>(state[i * dv + j]) * static_cast<double>(key[i]);
        const double d = static_cast<double>(beta) * (static_cast<double>(v[j]) - m);
        for (std::uint32_t i = 0; i < dk; ++i) {
          const double next = 0.75 * static_cast<double>(state[i * dv + j]) + static_cast<double>(key[i]) * d;
          CHECK(static_cast<double>(s[i * dv + j]) == Approx(next).margin(1e-4));
          out += next * static_cast<double>(q[i]);
        }
        CHECK(static_cast<double>(o[j]) == Approx(out).margin(2e-3));
      }
      const std::uint32_t heads = 3, count = 37;
      std::mt19937 again(dk);
      const auto qs = randoms(again, std::size_t{heads} * dv), ks = randoms(again, std::size_t{count} * dv),
                 vs = randoms(again, std::size_t{count} * dv);
      std::vector<float> scores(std::size_t{heads} * 40, 0.0F), out(std::size_t{heads} * dv, 0.0F);
      k->attention_scores(qs.data(), heads, ks.data(), count, dv, 0.5F, scores.data(), 40);
      k->attention_values(scores.data(), 40, heads, vs.data(), count, dv, out.data());
      for (std::uint32_t h = 0; h < heads; ++h) {
        for (std::uint32_t t = 0; t < count; ++t)
          CHECK(scores[h * 40 + t] == k->dot(&qs[h * dv], &ks[t * dv], dv) * 0.5F);
        for (std::uint32_t j = 0; j < dv; ++j) {
          double want = 0;
          for (std::uint32_t t = 0; t < count; ++t)
            want += static_cast<double>(scores[h * 40 + t]) * static_cast<double>(vs[t * dv + j]);
          CHECK(static_cast<double>(out[h * dv + j]) == Approx(want).margin(1e-2).epsilon(1e-5));
        }
      }
      if (golden.empty()) golden = {s, o, scores, out};
      CHECK(same_bits(s, golden[0]));
      CHECK(same_bits(o, golden[1]));
      CHECK(same_bits(scores, golden[2]));
      CHECK(same_bits(out, golden[3]));
    }
  }
}

TEST_CASE("a forced instruction set is used or refused, automatic takes the best") {
  REQUIRE(select_kernels(Simd::scalar));
  CHECK((*select_kernels(Simd::scalar))->name == std::string("scalar"));
  const auto avx512 = select_kernels(Simd::avx512);
  const auto best = select_kernels(Simd::automatic);
  REQUIRE(best);
  if (avx512) {
    CHECK((*avx512)->name == std::string("avx512"));
    const auto vbmi = select_kernels(Simd::avx512vbmi);
    if (vbmi) CHECK((*vbmi)->name == std::string("avx512vbmi"));
    CHECK(*best == (vbmi ? *vbmi : *avx512));
  } else {
    CHECK(avx512.error().code == Errc::unsupported);
    CHECK(avx512.error().message.find("avx512") != std::string::npos);
  }
}

}  // namespace stoker::testing
