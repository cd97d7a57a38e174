// What the kernels' tests share: an emulated GPU behind the module's table, matrices as a checkpoint stores
// them, and comparisons bit by bit and against double precision.
#pragma once

#include <catch2/catch.hpp>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "gpu-worker/cpu/buffer.h"
#include "gpu-worker/cpu/kernels.h"
#include "gpu-worker/cuda/device_module.h"

namespace stoker::testing {

/// The CPU's kernels that results are compared with: the portable ones, and the best of this machine.
inline std::vector<const Kernels*> cpu_tables() {
  return {*select_kernels(Simd::scalar), *select_kernels(Simd::automatic)};
}

inline std::string text_of(device::Status status) { return status == nullptr ? "" : status; }

/// An open GPU for the length of a test, emulated unless STOKER_TEST_DEVICE says cuda. Its memory is NaN
/// until written; closing the emulated one checks that nothing was written beside an allocation (on a real
/// one that is compute-sanitizer's matter). A real one stays open until the process ends: hundreds of tests
/// would wait for a new context each, for longer under a sanitizer.
class Gpu {
 public:
  explicit Gpu(unsigned seed) {
    ::setenv("STOKER_EMULATION_SEED", std::to_string(seed).c_str(), 1);
    ::setenv("STOKER_EMULATED_VRAM", "1000000000", 1);
    const char* kind = std::getenv("STOKER_TEST_DEVICE");
    auto opened = DeviceModule::open(kind == nullptr ? "emulation" : kind);
    if (!opened) FAIL(opened.error().text());
    module_.emplace(std::move(*opened));
    static bool open = false;
    if (!open || emulated()) {
      device::Info info{};
      must(api().open(0, &info));
      open = true;
    }
    must(api().new_stream(false, &stream_));
  }
  ~Gpu() {
    if (emulated()) {
      api().close();
      return;
    }
    CHECK(text_of(api().synchronize(stream_)) == "");
    for (void* p : allocations_) api().free(p);
    api().free_stream(stream_);
  }
  Gpu(const Gpu&) = delete;
  Gpu& operator=(const Gpu&) = delete;

  [[nodiscard]] const device::Api& api() const { return module_->api(); }
  [[nodiscard]] device::Stream* stream() { return stream_; }
  static void must(device::Status status) { REQUIRE(text_of(status) == ""); }

  template <class T>
  T* alloc(std::size_t count) {
    void* p = nullptr;
    must(api().alloc(count * sizeof(T), &p));
    if (!emulated()) {
      allocations_.push_back(p);
      send(p, std::vector<std::uint8_t>(count * sizeof(T), 0xFF));
    }
    return static_cast<T*>(p);
  }
  template <class T>
  T* put(const std::vector<T>& values) {
    T* p = alloc<T>(values.size());
    if (!values.empty()) send(p, values);
    return p;
  }
  template <class T>
  std::vector<T> get(const T* p, std::size_t count) {
    std::vector<T> values(count);
    must(api().to_host(values.data(), p, count * sizeof(T), stream_));
    must(api().synchronize(stream_));
    return values;
  }

 private:
  [[nodiscard]] bool emulated() const { return std::string(api().kind) == "emulation"; }
  template <class T>
  void send(void* to, const std::vector<T>& values) {
    must(api().to_device(to, values.data(), values.size() * sizeof(T), stream_));
    // `values` may be gone before a GPU that reads all of the host's memory comes to them.
    if (!emulated()) must(api().synchronize(stream_));
  }

  std::optional<DeviceModule> module_;
  std::vector<void*> allocations_;  ///< of a device that stays open
  device::Stream* stream_ = nullptr;
};

using Random = std::mt19937;

inline std::vector<float> randoms(Random& random, std::size_t n, float scale = 1) {
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> v(n);
  for (float& x : v) x = normal(random);
  return v;
}

/// Fresh device memory has all bits set: a NaN that no arithmetic makes.
inline bool untouched(float x) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &x, sizeof bits);
  return bits == 0xFFFF'FFFFU;
}
inline std::vector<float> untouched_floats(std::size_t n) {
  std::vector<float> v(n);
  std::memset(v.data(), 0xFF, n * sizeof(float));
  return v;
}

/// Equal in every bit; a NaN equals any NaN, unless `want` was not to be written.
inline void check_bits(const std::vector<float>& got, const std::vector<float>& want) {
  REQUIRE(got.size() == want.size());
  for (std::size_t i = 0; i < want.size(); ++i) {
    if (std::memcmp(&got[i], &want[i], sizeof(float)) == 0) continue;
    if (std::isnan(got[i]) && std::isnan(want[i]) && !untouched(got[i]) && !untouched(want[i])) continue;
    FAIL("index " << i << " of " << want.size() << ": " << got[i] << " instead of " << want[i]);
  }
  SUCCEED();
}

/// |got - want| <= tolerance * magnitude, where magnitude is what was added up.
inline void check_near(float got, double want, double magnitude, double tolerance = 2e-6) {
  if (!(std::fabs(static_cast<double>(got) - want) <= tolerance * magnitude + 1e-30))
    FAIL(got << " instead of " << want);
}

inline double silu(double x) { return x / (1 + std::exp(-x)); }
inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

/// Random weights as stored: every FP8 code but NaN, halves with subnormals; scales like a checkpoint's
/// (BF16).
struct Stored {
  DType dtype;
  std::uint32_t rows, cols, block_rows, block_cols;
  std::vector<std::uint8_t> data;
  std::vector<float> scales;

  Stored(Random& random, DType type, std::uint32_t r, std::uint32_t c, std::uint32_t br = 128,
         std::uint32_t bc = 128)
      : dtype(type), rows(r), cols(c), block_rows(br), block_cols(bc) {
    std::uniform_real_distribution<float> around(0.5F, 2.0F);
    const std::size_t n = std::size_t{r} * c;
    data.resize(n * dtype_bytes(type));
    for (std::size_t i = 0; i < n; ++i) {
      const float value = std::normal_distribution<float>(0, 1)(random);
      if (type == DType::f8_e4m3) {
        const auto code = static_cast<std::uint8_t>(random());
        data[i] = (code & 0x7F) == 0x7F ? 1 : code;
      } else if (type == DType::f16) {
        const auto bits = static_cast<std::uint16_t>((random() & 0x83FFU) |
                                                     (i % 17 == 0 ? 0U : (10U + random() % 10U) << 10));
        std::memcpy(&data[2 * i], &bits, 2);
      } else if (type == DType::bf16) {
        std::memcpy(&data[2 * i], reinterpret_cast<const std::uint8_t*>(&value) + 2, 2);
      } else {
        std::memcpy(&data[4 * i], &value, 4);
      }
    }
    if (type != DType::f8_e4m3) return;
    for (std::size_t i = 0; i < scale_count(); ++i) {
      float scale = around(random) / 64;
      std::uint32_t bits = 0;
      std::memcpy(&bits, &scale, 4);
      bits &= 0xFFFF'0000U;
      std::memcpy(&scale, &bits, 4);
      scales.push_back(scale);
    }
  }

  [[nodiscard]] std::size_t scale_count() const {
    return std::size_t{(rows + block_rows - 1) / block_rows} * ((cols + block_cols - 1) / block_cols);
  }
  [[nodiscard]] device::Code code() const {
    return dtype == DType::f8_e4m3 ? device::Code::f8_e4m3
           : dtype == DType::bf16  ? device::Code::bf16
           : dtype == DType::f16   ? device::Code::f16
                                   : device::Code::f32;
  }
  [[nodiscard]] Matrix cpu() const {
    return {reinterpret_cast<const std::byte*>(data.data()),
            dtype,
            rows,
            cols,
            scales.data(),
            block_rows,
            block_cols};
  }
  [[nodiscard]] device::Matrix on(Gpu& gpu) const {
    return {gpu.put(data), gpu.put(scales), rows, cols, block_rows, block_cols, code()};
  }
  /// Decoded here, from the formats' definitions.
  [[nodiscard]] double value(std::uint32_t row, std::uint32_t col) const {
    const std::size_t i = std::size_t{row} * cols + col;
    std::uint16_t half = 0;
    float full = 0;
    if (dtype == DType::f8_e4m3) {
      const int e = data[i] >> 3 & 15, m = data[i] & 7;
      if (e == 15 && m == 7) return std::nan("");
      const double v = e == 0 ? std::ldexp(m, -9) : std::ldexp(8 + m, e - 10);
      const std::size_t tile =
          std::size_t{row / block_rows} * ((cols + block_cols - 1) / block_cols) + col / block_cols;
      return (data[i] & 0x80 ? -v : v) * static_cast<double>(scales[tile]);
    }
    std::memcpy(&half, &data[i * dtype_bytes(dtype)], 2);
    if (dtype == DType::f16) {
      const int e = half >> 10 & 31, m = half & 1023;
      const double v = e == 0 ? std::ldexp(m, -24) : std::ldexp(1024 + m, e - 25);
      return half & 0x8000 ? -v : v;
    }
    if (dtype == DType::bf16) {
      std::memcpy(reinterpret_cast<std::uint8_t*>(&full) + 2, &half, 2);
    } else {
      std::memcpy(&full, &data[4 * i], 4);
    }
    return static_cast<double>(full);
  }
  [[nodiscard]] std::vector<double> values() const {
    std::vector<double> all;
    for (std::uint32_t r = 0; r < rows; ++r) {
      for (std::uint32_t c = 0; c < cols; ++c) all.push_back(value(r, c));
    }
    return all;
  }
};

/// y[i][scatter[r]] = W[r] . x[i] on the CPU; rows of x and y begin `*_stride` apart.
inline void cpu_matmul(const Kernels& k, const Matrix& w, const float* x, std::size_t x_stride,
                       std::uint32_t n, float* y, std::size_t y_stride,
                       const std::uint32_t* scatter = nullptr) {
  std::vector<const float*> xs;
  std::vector<float*> ys;
  for (std::uint32_t i = 0; i < n; ++i) {
    xs.push_back(x + i * x_stride);
    ys.push_back(y + i * y_stride);
  }
  FloatBuffer scratch(std::size_t{kPanelRows} * w.cols);
  k.matmul({w, xs.data(), ys.data(), n, scatter}, 0, w.rows, scratch.data());
}

/// A step of segments with `rows[s]` tokens, the first at position `before[s]`. States are one array per
/// kind; pages are found through tables, as in the engine.
struct Step {
  std::vector<device::Row> rows;
  std::vector<device::Segment> segments;

  Step(const std::vector<std::uint32_t>& counts, const std::vector<std::uint32_t>& before) {
    for (std::uint32_t s = 0; s < counts.size(); ++s) {
      segments.push_back({static_cast<std::uint32_t>(rows.size()), counts[s], nullptr, nullptr, nullptr});
      for (std::uint32_t t = 0; t < counts[s]; ++t) rows.push_back({s, before[s] + t});
    }
  }
  explicit Step(const std::vector<std::uint32_t>& counts)
      : Step(counts, std::vector<std::uint32_t>(counts.size(), 0)) {}

  device::StepTables on(Gpu& gpu) const {
    return {gpu.put(rows), gpu.put(segments), static_cast<std::uint32_t>(rows.size()),
            static_cast<std::uint32_t>(segments.size())};
  }
};

constexpr DType kDTypes[] = {DType::f8_e4m3, DType::bf16, DType::f16, DType::f32};

}  // namespace stoker::testing
