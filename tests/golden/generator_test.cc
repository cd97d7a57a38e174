// Golden T1 and the first numbers of T0 (model.md appendix A), for our quantiser and for the kernels'
// decoder.
#include <catch2/catch.hpp>
#include <cmath>

#include "gpu-worker/cpu/kernels.h"
#include "tests/golden/generator.h"

namespace stoker::golden {
namespace {

constexpr std::uint64_t kSize = 256;

struct T1 {
  Quantised q;
  std::vector<float> x;
};

T1 make_t1() {
  std::vector<double> u(kSize * kSize), v(kSize);
  fill_uniform(fnv1a32("T1.weight"), u);
  fill_uniform(fnv1a32("T1.x"), v);
  std::vector<float> w(u.size());
  for (std::uint64_t r = 0; r < kSize; ++r)
    for (std::uint64_t c = 0; c < kSize; ++c) {
      const double factor = 1.0 + 3.0 * static_cast<double>(r / kTile) + 0.5 * static_cast<double>(c / kTile);
      w[r * kSize + c] = static_cast<float>(u[r * kSize + c] * factor);
    }
  T1 t1{quantise(w, kSize, kSize, true), {}};
  for (double value : v) t1.x.push_back(static_cast<float>(2 * value));
  return t1;
}

const std::pair<std::size_t, double> kExpectedY[] = {{0, -2.4976106},   {1, 4.7608142},   {127, -4.7416211},
                                                     {128, 13.5171808}, {200, 3.7567800}, {255, -4.7714668}};

}  // namespace

TEST_CASE("generator: the first numbers of T0") {
  CHECK(fnv1a32("model.norm.weight") == 0xBE0496C4U);
  const auto norm = make_tensor("model.norm.weight", {16}, "", Rules::appendix_a);
  CHECK(norm[0] == Approx(-0.062977582).margin(1e-8));
  CHECK(norm[1] == Approx(0.458589584).margin(1e-8));
  CHECK(norm[2] == Approx(0.071294695).margin(1e-8));
  const auto embed = make_tensor("model.embed_tokens.weight", {32, 16}, "", Rules::appendix_a);
  CHECK(embed[16] == Approx(0.457161248).margin(1e-7));
  CHECK(embed[17] == Approx(0.882500589).margin(1e-7));
  CHECK(embed[18] == Approx(0.746262014).margin(1e-7));
}

TEST_CASE("generator: every finite E4M3 code and bf16 value survives a round trip") {
  for (unsigned code = 0; code < 256; ++code) {
    const float value = from_e4m3(static_cast<std::uint8_t>(code));
    if (std::isnan(value)) continue;
    CHECK(to_e4m3(value) == code);
    CHECK(f8_e4m3_value(static_cast<std::uint8_t>(code)) == value);
  }
  CHECK(from_e4m3(0x01) == 0.001953125F);
  CHECK(from_e4m3(0x07) == 0.013671875F);
  CHECK(to_e4m3(1000.0F) == 0x7E);
  CHECK(to_e4m3(-1000.0F) == 0xFE);
  CHECK(from_bf16(to_bf16(1.00390625F)) == 1.0F);  // a tie goes to even
  CHECK(from_bf16(to_bf16(1.01171875F)) == 1.015625F);
}

TEST_CASE("golden: T1 of model.md appendix A") {
  const T1 t1 = make_t1();
  REQUIRE(t1.q.scales.size() == 4);
  CHECK(to_bf16(t1.q.scales[0]) == 0x3A92);
  CHECK(to_bf16(t1.q.scales[1]) == 0x3ADB);
  CHECK(to_bf16(t1.q.scales[2]) == 0x3B92);
  CHECK(to_bf16(t1.q.scales[3]) == 0x3BA5);
  const std::vector<std::uint8_t> start(t1.q.codes.begin(), t1.q.codes.begin() + 8);
  CHECK(start == std::vector<std::uint8_t>{0xF4, 0x6B, 0x7B, 0xFB, 0xDB, 0xFD, 0x6A, 0x6C});
  CHECK(fnv1a32(std::as_bytes(std::span(t1.q.codes))) == 0x52144293U);

  for (Simd simd : {Simd::scalar, Simd::avx2, Simd::avx512, Simd::avx512vbmi}) {
    const auto kernels = select_kernels(simd);
    if (!kernels) {
      WARN("skipped: " << kernels.error().text());
      continue;
    }
    CAPTURE((*kernels)->name);
    Matrix w{reinterpret_cast<const std::byte*>(t1.q.codes.data()),
             DType::f8_e4m3,
             kSize,
             kSize,
             t1.q.scales.data(),
             kTile,
             kTile};
    std::vector<float> y(kSize);
    alignas(64) static float scratch[kPanelRows * kSize];
    const float* x_rows[] = {t1.x.data()};
    float* y_rows[] = {y.data()};
    MatmulArgs args{w, x_rows, y_rows, 1, nullptr};
    (*kernels)->matmul(args, 0, kSize, scratch);
    for (const auto& [row, want] : kExpectedY) CHECK(y[row] == Approx(want).margin(5e-6));
  }
}

}  // namespace stoker::golden
