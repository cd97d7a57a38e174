// The kernels of the device module, run in the emulation, against the CPU's: every bit must agree. And
// against double precision, so that both cannot be wrong together. This file: norms, products, the choice of
// experts.
#include <algorithm>
#include <limits>

#include "gpu-worker/scalar_math.h"
#include "tests/unit/cuda/kernels_rig.h"
#include "tests/unit/cuda/kernels_seeds.h"

namespace stoker::testing {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Shape {
  std::uint32_t rows, cols, block_rows, block_cols;
};

/// One product on the GPU: add and scatter when given; y has gaps between its rows, which stay untouched.
struct Product {
  std::uint32_t n, x_gap = 0;
  bool add = false;
  const std::vector<std::uint32_t>* scatter = nullptr;

  void check(Gpu& gpu, Random& random, const Stored& w) const {
    const std::uint32_t x_stride = w.cols + x_gap, y_stride = w.rows + 3;
    auto x = randoms(random, std::size_t{n} * x_stride);
    // With several rows of x, one whose products underflow, to -0 too, and one of zeros.
    for (std::size_t i = 0; i < w.cols && n > 1; ++i) x[i] *= 1e-44F;
    for (std::size_t i = 0; i < w.cols && n > 2; ++i) x[x_stride + i] = 0;
    // What lies between rows of x is not to be used, not even times zero.
    for (std::size_t i = 0; i < x.size(); ++i) {
      if (i % x_stride >= w.cols) x[i] = kNan;
    }
    const auto before =
        add ? randoms(random, std::size_t{n} * y_stride) : untouched_floats(std::size_t{n} * y_stride);
    float* y = add ? gpu.put(before) : gpu.alloc<float>(before.size());
    const std::uint32_t* on_gpu = scatter == nullptr ? nullptr : gpu.put(*scatter);
    Gpu::must(gpu.api().matmul({w.on(gpu), gpu.put(x), y, x_stride, y_stride, on_gpu, n, add}, gpu.stream()));
    const auto got = gpu.get(y, before.size());
    for (const Kernels* k : cpu_tables()) {
      std::vector<float> want(before.size());
      cpu_matmul(*k, w.cpu(), x.data(), x_stride, n, want.data(), y_stride,
                 scatter ? scatter->data() : nullptr);
      for (std::size_t i = 0; i < want.size(); ++i) {
        if (i % y_stride >= w.rows) {
          want[i] = before[i];
        } else if (add) {
          want[i] = before[i] + want[i];
        }
      }
      check_bits(got, want);
    }
    const auto exact = w.values();
    for (std::uint32_t i = 0; i < n; ++i) {
      for (std::uint32_t r = 0; r < w.rows; ++r) {
        const std::size_t at = std::size_t{i} * y_stride + (scatter ? (*scatter)[r] : r);
        double sum = add ? static_cast<double>(before[at]) : 0, magnitude = std::fabs(sum);
        for (std::uint32_t c = 0; c < w.cols; ++c) {
          const double term =
              exact[std::size_t{r} * w.cols + c] * static_cast<double>(x[std::size_t{i} * x_stride + c]);
          sum += term;
          magnitude += std::fabs(term);
        }
        check_near(got[at], sum, magnitude);
      }
    }
  }
};

}  // namespace

TEST_CASE("rms_norm: bits of the CPU, rows by index") {
  for (const unsigned seed : seeds()) {
    for (const std::uint32_t n : {1U, 5U, 16U, 17U, 100U, 128U, 2048U}) {
      INFO("seed " << seed << ", n " << n);
      Gpu gpu(seed);
      Random random(seed * 100 + n);
      const auto x = randoms(random, std::size_t{4} * n, 3), w = randoms(random, n);
      const std::vector<std::uint32_t> from = {3, 0, 3};
      for (const bool indexed : {false, true}) {
        float* y = gpu.alloc<float>(std::size_t{3} * n);
        Gpu::must(gpu.api().rms_norm(
            {gpu.put(x), indexed ? gpu.put(from) : nullptr, gpu.put(w), y, 3, n, 1e-6F}, gpu.stream()));
        const auto got = gpu.get(y, std::size_t{3} * n);
        std::vector<float> want(got.size());
        for (std::uint32_t i = 0; i < 3; ++i) {
          const float* row = x.data() + std::size_t{indexed ? from[i] : i} * n;
          for (const Kernels* k : cpu_tables()) k->rms_norm(row, w.data(), n, 1e-6F, want.data() + i * n);
          double squares = 0;
          for (std::uint32_t j = 0; j < n; ++j)
            squares += static_cast<double>(row[j]) * static_cast<double>(row[j]);
          for (std::uint32_t j = 0; j < n; ++j) {
            const double y64 =
                static_cast<double>(row[j]) / std::sqrt(squares / n + 1e-6) * static_cast<double>(w[j]);
            check_near(got[i * n + j], y64, std::fabs(y64));
          }
        }
        check_bits(got, want);
      }
    }
  }
}

TEST_CASE("silu_mul and not_finite: every length, every kind of number") {
  Gpu gpu(2);
  for (const std::size_t n : {1U, 4U, 17U, 300U, 5000U}) {
    Random random(static_cast<unsigned>(n));
    auto g = randoms(random, n, 20);
    const auto u = randoms(random, n);
    const float special[] = {0, -0.0F, 1e30F, -1e30F, kInf, -kInf, kNan, 1e-40F, 88.4F, -88.4F, 87.33F};
    for (std::size_t i = 0; n > 100 && i < std::size(special); ++i) g[i * 7] = special[i];
    float* on_gpu = gpu.put(g);
    Gpu::must(gpu.api().silu_mul({on_gpu, gpu.put(u), n}, gpu.stream()));
    const auto got = gpu.get(on_gpu, n);
    for (const Kernels* k : cpu_tables()) {
      auto want = g;
      k->silu_mul(want.data(), u.data(), n);
      check_bits(got, want);
    }
    for (std::size_t i = 0; i < n; ++i) {
      if (!std::isfinite(g[i])) continue;
      const double want = silu(static_cast<double>(g[i])) * static_cast<double>(u[i]);
      check_near(got[i], want, std::fabs(want) + (g[i] < -80.0F ? 0.1 : 0.0));
    }
  }
  std::vector<float> x(std::size_t{5} * 1000, 1e38F);
  x[1999] = kNan;
  x[2000] = -kInf;
  x[4500] = kInf;
  auto* flags = gpu.alloc<std::uint32_t>(5);
  Gpu::must(gpu.api().not_finite({gpu.put(x), flags, 5, 1000}, gpu.stream()));
  CHECK(gpu.get(flags, 5) == std::vector<std::uint32_t>{0, 1, 1, 0, 1});
}

TEST_CASE("matmul: bits of the CPU for every code, shape and number of rows") {
  const Shape shapes[] = {{1, 1, 128, 128},      {3, 5, 128, 128},  {17, 40, 16, 16},     {33, 130, 128, 128},
                          {9, 256, 32, 64},      {12, 100, 5, 7},   {70, 512, 128, 128},  {21, 515, 128, 256},
                          {65, 272, 128, 128},   {40, 384, 3, 128}, {37, 1296, 128, 256}, {5, 48, 128, 128},
                          {130, 1416, 128, 128}, {6, 1296, 3, 384}, {5, 1040, 4, 2000}};
  unsigned seed = 0;
  for (const DType dtype : kDTypes) {
    for (const Shape& s : shapes) {
      Gpu gpu(++seed % 3 + 1);
      Random random(seed);
      const bool tiles = dtype == DType::f8_e4m3;  // others have none, as in a model
      const Stored w(random, dtype, s.rows, s.cols, tiles ? s.block_rows : 0, tiles ? s.block_cols : 0);
      std::vector<std::uint32_t> scatter(s.rows);
      for (std::uint32_t r = 0; r < s.rows; ++r) scatter[r] = s.rows - 1 - r;
      for (const std::uint32_t n : {1U, 2U, 3U, 5U, 8U, 9U, 33U}) {
        INFO(dtype_name(dtype) << " " << s.rows << "x" << s.cols << ", " << n << " rows of x, seed " << seed);
        Product{n}.check(gpu, random, w);
        Product{n, 1, n % 2 == 1, &scatter}.check(gpu, random, w);
        Product{n, 6, n % 2 == 0}.check(gpu, random, w);
      }
    }
  }
}

TEST_CASE("matmuls: one launch or several, the bits of each alone") {
  const std::vector<DType> groups[] = {
      {DType::f8_e4m3, DType::bf16},           {DType::bf16, DType::f8_e4m3, DType::f8_e4m3},
      {DType::bf16, DType::bf16, DType::bf16}, {DType::f16, DType::f16},
      {DType::f32, DType::f32, DType::bf16},   {DType::f8_e4m3, DType::bf16, DType::f32}};
  const std::uint32_t rows[] = {70, 1, 130}, cols = 272;
  unsigned seed = 0;
  for (const auto& dtypes : groups) {
    for (const std::uint32_t n : {1U, 2U, 3U, 8U, 9U}) {
      INFO(dtype_name(dtypes[0]) << " and " << dtype_name(dtypes.back()) << ", " << n << " rows of x");
      Gpu gpu(++seed % 3 + 1);
      Random random(seed);
      const auto x = randoms(random, std::size_t{n} * cols);
      const float* x_on_gpu = gpu.put(x);
      std::vector<Stored> weights;
      std::vector<device::Matmul> list;
      for (std::size_t i = 0; i < dtypes.size(); ++i) {
        const std::uint32_t tile = dtypes[i] == DType::f8_e4m3 ? 128 : 0;
        weights.emplace_back(random, dtypes[i], rows[i], cols, tile, tile);
        float* y = gpu.alloc<float>(std::size_t{n} * rows[i]);
        list.push_back({weights[i].on(gpu), x_on_gpu, y, cols, rows[i], nullptr, n, false});
      }
      // One without rows is as if it were not there, even beyond the most.
      device::Matmul none = list[0];
      none.rows = 0;
      list.insert(list.begin() + 1, none);
      Gpu::must(gpu.api().matmuls(list.data(), static_cast<std::uint32_t>(list.size()), gpu.stream()));
      list.erase(list.begin() + 1);
      for (std::size_t i = 0; i < dtypes.size(); ++i) {
        std::vector<float> want(std::size_t{n} * rows[i]);
        cpu_matmul(*cpu_tables()[i % 2], weights[i].cpu(), x.data(), cols, n, want.data(), rows[i]);
        check_bits(gpu.get(list[i].y, want.size()), want);
      }
    }
  }
}

TEST_CASE("matmul: the shapes of decoding") {
  for (const DType dtype : {DType::f8_e4m3, DType::bf16}) {
    Gpu gpu(3);
    Random random(31);
    const Stored w(random, dtype, 512, 2048);
    Product{1}.check(gpu, random, w);
    Product{4}.check(gpu, random, w);
  }
}

TEST_CASE("matmul: every FP8 code under every kind of scale") {
  for (const float scale : {1.0F, 0.0009765625F, 0.0017089844F, 127.99F, 1e-30F, 1e-37F, 3e-39F, 0.3F}) {
    Gpu gpu(1);
    // One code per row; x picks it.
    Stored w = [] {
      Random random(1);
      return Stored(random, DType::f8_e4m3, 256, 256, 256, 256);
    }();
    std::fill(w.data.begin(), w.data.end(), std::uint8_t{0});
    for (std::size_t code = 0; code < 256; ++code)
      w.data[code * 256 + code * 37 % 256] = static_cast<std::uint8_t>(code);
    w.scales = {scale};
    for (const std::uint32_t n : {1U, 8U, 16U}) {
      const std::vector<float> x(std::size_t{n} * 256, 1.0F);
      float* y = gpu.alloc<float>(std::size_t{n} * 256);
      Gpu::must(gpu.api().matmul({w.on(gpu), gpu.put(x), y, 256, 256, nullptr, n, false}, gpu.stream()));
      const auto got = gpu.get(y, std::size_t{n} * 256);
      for (const Kernels* k : cpu_tables()) {
        std::vector<float> want(got.size());
        cpu_matmul(*k, w.cpu(), x.data(), 256, n, want.data(), 256);
        check_bits(got, want);
      }
      for (std::size_t i = 0; i < got.size(); ++i) {
        const auto code = static_cast<std::uint32_t>(i % 256);
        const float exact = static_cast<float>(w.value(code, code * 37 % 256));
        CHECK(((code & 127) == 127 ? std::isnan(got[i]) : got[i] == exact));
      }
    }
  }
}

TEST_CASE("matmul: the sign of a sum of products that all underflow to -0") {
  Gpu gpu(1);
  Random random(1);
  for (const std::uint32_t cols : {16U, 40U, 48U, 80U, 304U, 5U}) {
    Stored w(random, DType::bf16, 5, cols);
    for (std::size_t i = 0; i < w.data.size(); i += 2) {
      w.data[i] = 0x80;  // 0.25
      w.data[i + 1] = 0x3E;
    }
    for (const std::uint32_t n : {1U, 9U}) {
      INFO(cols << " columns, " << n << " rows of x");
      const std::vector<float> x(std::size_t{n} * cols, -1e-45F);
      float* y = gpu.alloc<float>(std::size_t{n} * 5);
      Gpu::must(gpu.api().matmul({w.on(gpu), gpu.put(x), y, cols, 5, nullptr, n, false}, gpu.stream()));
      const auto got = gpu.get(y, std::size_t{n} * 5);
      CHECK(std::signbit(got[0]) == (cols % 16 == 0));  // lanes without a last column add 0
      for (const Kernels* k : cpu_tables()) {
        std::vector<float> want(got.size());
        cpu_matmul(*k, w.cpu(), x.data(), cols, n, want.data(), 5);
        check_bits(got, want);
      }
    }
  }
}

TEST_CASE("matmul: a NaN code reaches its row and no other") {
  for (const std::uint32_t cols : {64U, 1000U, 2048U}) {
    Gpu gpu(1);
    Random random(7);
    Stored w(random, DType::f8_e4m3, 70, cols);
    w.data[std::size_t{6} * cols + cols - 1] = 0x7F;
    w.data[std::size_t{69} * cols] = 0xFF;
    for (const std::uint32_t n : {1U, 3U, 8U, 17U}) {
      const std::vector<float> x(std::size_t{n} * cols, 0.0F);  // even times zero
      float* y = gpu.alloc<float>(std::size_t{n} * 70);
      Gpu::must(gpu.api().matmul({w.on(gpu), gpu.put(x), y, cols, 70, nullptr, n, false}, gpu.stream()));
      const auto got = gpu.get(y, std::size_t{n} * 70);
      for (std::size_t i = 0; i < got.size(); ++i) CHECK(std::isnan(got[i]) == (i % 70 == 6 || i % 70 == 69));
    }
  }
}

TEST_CASE("top_k: softmax with the bits of the CPU, descending, ties by id") {
  struct Case {
    std::uint32_t experts, k;
  };
  for (const unsigned seed : seeds()) {
    for (const Case c : {Case{512, 10}, Case{8, 8}, Case{33, 5}, Case{1, 1}, Case{130, 1}, Case{100, 40},
                         Case{513, 3}, Case{600, 70}}) {
      for (const bool normalise : {false, true}) {
        INFO("seed " << seed << ", " << c.k << " of " << c.experts);
        Gpu gpu(seed);
        Random random(seed);
        constexpr std::uint32_t kRows = 4;
        auto logits = randoms(random, std::size_t{kRows} * c.experts, 4);
        for (std::uint32_t i = 0; i < c.experts; ++i) {
          logits[c.experts + i] = static_cast<float>(i % 3);                 // ties
          logits[2 * c.experts + i] = i == c.experts / 2 ? 1000.0F : -1000;  // one takes all
          if (i == c.experts - 1) logits[3 * c.experts + i] = kNan;
        }
        float* p = gpu.put(logits);
        auto* ids = gpu.alloc<std::uint32_t>(std::size_t{kRows} * c.k);
        float* weights = gpu.alloc<float>(std::size_t{kRows} * c.k);
        Gpu::must(gpu.api().top_k({p, ids, weights, kRows, c.experts, c.k, normalise}, gpu.stream()));
        const auto got_ids = gpu.get(ids, std::size_t{kRows} * c.k);
        const auto got_p = gpu.get(p, logits.size());
        std::vector<float> want_weights;
        std::vector<std::uint32_t> want_ids;
        auto want_p = logits;
        for (std::uint32_t r = 0; r < kRows; ++r) {
          float* row = want_p.data() + std::size_t{r} * c.experts;
          cpu_tables()[r % 2]->softmax(row, c.experts);
          std::vector<std::uint32_t> order(c.experts);
          for (std::uint32_t i = 0; i < c.experts; ++i) order[i] = i;
          std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return row[a] > row[b]; });
          float sum = 0;
          for (std::uint32_t i = 0; i < c.k; ++i) sum += row[order[i]];
          for (std::uint32_t i = 0; i < c.k; ++i) {
            want_ids.push_back(order[i]);
            want_weights.push_back(normalise ? row[order[i]] / sum : row[order[i]]);
          }
        }
        CHECK(got_ids == want_ids);
        check_bits(gpu.get(weights, want_weights.size()), want_weights);
        check_bits(got_p, want_p);
        double total = 0, top = -1e30;
        for (std::uint32_t i = 0; i < c.experts; ++i) top = std::max(top, static_cast<double>(logits[i]));
        for (std::uint32_t i = 0; i < c.experts; ++i) total += std::exp(static_cast<double>(logits[i]) - top);
        for (std::uint32_t i = 0; i < c.experts; ++i) {
          const double want = std::exp(static_cast<double>(logits[i]) - top) / total;
          check_near(got_p[i], want, want);
        }
      }
    }
  }
}

TEST_CASE("combine: ranks in order, then the shared expert; which ranks are not finite") {
  for (const std::uint32_t k : {1U, 4U, 8U, 10U, 33U}) {
    for (const bool shared : {false, true}) {
      INFO("k " << k);
      Gpu gpu(k % 3 + 1);
      Random random(k);
      constexpr std::uint32_t kRows = 3, kHidden = 530;
      const auto x = randoms(random, kRows * kHidden), add = randoms(random, kRows * kHidden);
      const auto weights = randoms(random, std::size_t{kRows} * k), gates = randoms(random, kRows, 3);
      auto out = randoms(random, std::size_t{kRows} * k * kHidden);
      out[(std::size_t{1} * k + k - 1) * kHidden + 529] = kInf;  // row 1, last rank
      out[std::size_t{2} * k * kHidden] = kNan;                  // row 2, rank 0
      float* on_gpu = gpu.put(x);
      constexpr std::uint32_t kSlots = device::combine_slots(kHidden);
      auto* bad = gpu.alloc<std::uint32_t>(kRows * kSlots);
      Gpu::must(gpu.api().combine({on_gpu, gpu.put(out), gpu.put(weights), shared ? gpu.put(add) : nullptr,
                                   shared ? gpu.put(gates) : nullptr, bad, kRows, k, kHidden},
                                  gpu.stream()));
      const auto got = gpu.get(on_gpu, x.size());
      // Row 1 in its last slot, row 2 in its first.
      CHECK(gpu.get(bad, kRows * kSlots) ==
            std::vector<std::uint32_t>{0, 0, 0, 0, 0, 1U << std::min(k - 1, 31U), 1, 0, 0});
      for (const Kernels* kernels : cpu_tables()) {
        auto want = x;
        for (std::uint32_t r = 0; r < kRows; ++r) {
          std::vector<float> y(kHidden, 0.0F);
          for (std::uint32_t i = 0; i < k; ++i)
            kernels->axpy(y.data(), weights[r * k + i], &out[(std::size_t{r} * k + i) * kHidden], kHidden);
          if (shared)
            kernels->axpy(y.data(), sigmoid_exact(gates[r]), &add[std::size_t{r} * kHidden], kHidden);
          kernels->add(&want[std::size_t{r} * kHidden], y.data(), kHidden);
        }
        check_bits(got, want);
      }
      for (std::uint32_t c = 0; c < kHidden; ++c) {  // row 0
        double want = static_cast<double>(x[c]), magnitude = std::fabs(want);
        const auto term = [&](double weight, float value) {
          want += weight * static_cast<double>(value);
          magnitude += std::fabs(weight * static_cast<double>(value));
        };
        for (std::uint32_t i = 0; i < k; ++i)
          term(static_cast<double>(weights[i]), out[std::size_t{i} * kHidden + c]);
        if (shared) term(sigmoid(static_cast<double>(gates[0])), add[c]);
        check_near(got[c], want, magnitude);
      }
    }
  }
}

}  // namespace stoker::testing
