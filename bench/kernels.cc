// Speed of the CPU kernels at the shapes of Qwen3-Coder-Next (hidden 2048, experts 512 wide), in GB/s of
// weights read. "cold": many experts in turn, so that weights come from memory; "warm": one expert over and
// over, from cache. Arguments: threads, rows of x.
//   bench_kernels [--benchmark_filter=...]     STOKER_SIMD=scalar|avx2|avx512|avx512vbmi forces an
//   instruction set
#include <benchmark/benchmark.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "cli/memory_bandwidth.h"
#include "gpu-worker/cpu/buffer.h"
#include "gpu-worker/cpu/kernels.h"
#include "gpu-worker/cpu/thread_pool.h"

namespace {

using stoker::DType;
using stoker::FloatBuffer;
using stoker::Kernels;
using stoker::Matrix;
using stoker::ThreadPool;

constexpr std::uint32_t kHidden = 2048;
constexpr std::uint32_t kInner = 512;
constexpr std::size_t kExpertBytes = std::size_t{3} * kHidden * kInner;

const Kernels& kernels() {
  static const Kernels* const table = [] {
    const char* simd = std::getenv("STOKER_SIMD");
    const std::string name = simd == nullptr ? "" : simd;
    const auto choice = name == "scalar"       ? stoker::Simd::scalar
                        : name == "avx2"       ? stoker::Simd::avx2
                        : name == "avx512"     ? stoker::Simd::avx512
                        : name == "avx512vbmi" ? stoker::Simd::avx512vbmi
                                               : stoker::Simd::automatic;
    const auto result = stoker::select_kernels(choice);
    if (!result) {
      std::fprintf(stderr, "%s\n", result.error().message.c_str());
      std::exit(1);
    }
    return *result;
  }();
  return *table;
}

/// Weights in anonymous memory, huge pages if asked for and to be had.
class Weights {
 public:
  Weights(std::size_t bytes, bool huge) : bytes_(bytes) {
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) std::abort();
    madvise(p, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    data_ = static_cast<std::byte*>(p);
    std::uint32_t x = 1;
    for (std::size_t i = 0; i + 4 <= bytes; i += 4) {
      x = x * 1664525U + 1013904223U;
      const std::uint32_t codes = x & 0xBFBFBFBFU;  // finite as FP8 and as BF16
      std::memcpy(data_ + i, &codes, 4);
    }
  }
  ~Weights() { munmap(data_, bytes_); }
  Weights(const Weights&) = delete;
  Weights& operator=(const Weights&) = delete;
  [[nodiscard]] const std::byte* data() const { return data_; }

 private:
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

/// Rows of x and y for n tokens, and scratch per thread.
struct Rows {
  Rows(std::uint32_t n, std::uint32_t width, std::uint32_t out, unsigned threads)
      : x(std::size_t{n} * width),
        y(std::size_t{n} * out),
        scratch(std::size_t{stoker::kPanelRows} * width * threads),
        stride(std::size_t{stoker::kPanelRows} * width) {
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 17) * 0.125F - 1.0F;
    for (std::uint32_t i = 0; i < n; ++i) {
      xs.push_back(x.data() + std::size_t{i} * width);
      ys.push_back(y.data() + std::size_t{i} * out);
    }
  }
  FloatBuffer x, y, scratch;
  std::size_t stride;
  std::vector<const float*> xs;
  std::vector<float*> ys;
};

void multiply(ThreadPool& pool, const Matrix& w, const float* const* x, float* const* y, std::uint32_t n,
              Rows& rows) {
  const stoker::MatmulArgs args{w, x, y, n, nullptr};
  pool.run(w.rows, std::max<std::size_t>(w.rows / (pool.threads() * 8), 8),
           [&](std::size_t a, std::size_t b, unsigned t) {
             kernels().matmul(args, static_cast<std::uint32_t>(a), static_cast<std::uint32_t>(b),
                              rows.scratch.data() + t * rows.stride);
           });
}

void report(benchmark::State& state, std::size_t bytes, double macs) {
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations()) * static_cast<std::int64_t>(bytes));
  state.counters["GMAC/s"] =
      benchmark::Counter(macs * static_cast<double>(state.iterations()) * 1e-9, benchmark::Counter::kIsRate);
  state.SetLabel(kernels().name);
}

/// One expert: gate, up, silu, down; as CpuModel::run_expert does it.
void expert(benchmark::State& state, std::size_t experts, bool huge) {
  const auto threads = static_cast<unsigned>(state.range(0));
  const auto n = static_cast<std::uint32_t>(state.range(1));
  ThreadPool pool(threads);
  const Weights weights(experts * kExpertBytes + 64, huge);
  const std::vector<float> scales(192, 0.01F);
  Rows in(n, kHidden, kInner, threads), up(n, kHidden, kInner, threads), out(n, kInner, kHidden, threads);
  std::size_t which = 0;
  for (auto _ : state) {
    const std::byte* base =
        weights.data() + which * kExpertBytes + 1;  // odd address, as in the published files
    which = (which + 1) % experts;
    const stoker::MatmulArgs g{{base, DType::f8_e4m3, kInner, kHidden, scales.data(), 128, 128},
                               in.xs.data(),
                               in.ys.data(),
                               n,
                               nullptr};
    const stoker::MatmulArgs u{
        {base + kExpertBytes / 3, DType::f8_e4m3, kInner, kHidden, scales.data() + 64, 128, 128},
        in.xs.data(),
        up.ys.data(),
        n,
        nullptr};
    pool.run(kInner, 32, [&](std::size_t a, std::size_t b, unsigned t) {
      float* scratch = in.scratch.data() + t * in.stride;
      kernels().matmul(g, static_cast<std::uint32_t>(a), static_cast<std::uint32_t>(b), scratch);
      kernels().matmul(u, static_cast<std::uint32_t>(a), static_cast<std::uint32_t>(b), scratch);
      for (std::uint32_t i = 0; i < n; ++i) kernels().silu_mul(in.ys[i] + a, up.ys[i] + a, b - a);
    });
    std::vector<const float*> act(in.ys.begin(), in.ys.end());
    multiply(pool,
             {base + kExpertBytes / 3 * 2, DType::f8_e4m3, kHidden, kInner, scales.data() + 128, 128, 128},
             act.data(), out.ys.data(), n, out);
    benchmark::DoNotOptimize(out.y.data());
  }
  report(state, kExpertBytes, static_cast<double>(kExpertBytes) * n);
}
void expert_cold_huge(benchmark::State& state) { expert(state, 256, true); }
void expert_cold_4k(benchmark::State& state) { expert(state, 256, false); }
void expert_warm(benchmark::State& state) { expert(state, 1, true); }

void projection(benchmark::State& state, std::uint32_t rows, std::uint32_t cols, DType dtype) {
  const auto threads = static_cast<unsigned>(state.range(0));
  const auto n = static_cast<std::uint32_t>(state.range(1));
  ThreadPool pool(threads);
  const std::size_t bytes = std::size_t{rows} * cols * stoker::dtype_bytes(dtype);
  const std::size_t copies = (std::size_t{600} << 20) / bytes + 1;
  const Weights weights(copies * bytes, true);
  const std::vector<float> scales(std::size_t{(rows + 127) / 128} * ((cols + 127) / 128), 0.01F);
  Rows io(n, cols, rows, threads);
  std::size_t which = 0;
  for (auto _ : state) {
    const Matrix w{weights.data() + which * bytes, dtype, rows, cols, scales.data(), 128, 128};
    which = (which + 1) % copies;
    multiply(pool, w, io.xs.data(), io.ys.data(), n, io);
    benchmark::DoNotOptimize(io.y.data());
  }
  report(state, bytes, static_cast<double>(rows) * cols * n);
}
void in_proj_qkvz(benchmark::State& state) { projection(state, 12288, 2048, DType::f8_e4m3); }
void out_proj(benchmark::State& state) { projection(state, 2048, 4096, DType::f8_e4m3); }
void router(benchmark::State& state) { projection(state, 512, 2048, DType::bf16); }
void lm_head(benchmark::State& state) { projection(state, 151936, 2048, DType::bf16); }

/// 32 value heads of one layer, one token: the state is read and written once.
void delta_rule(benchmark::State& state) {
  const auto threads = static_cast<unsigned>(state.range(0));
  constexpr std::uint32_t kDim = 128, kHeads = 32, kLayers = 36;
  ThreadPool pool(threads);
  FloatBuffer s(std::size_t{kLayers} * kHeads * kDim * kDim);
  FloatBuffer q(kDim), k(kDim), v(kDim), o(std::size_t{kHeads} * kDim);
  for (std::size_t i = 0; i < kDim; ++i) q[i] = k[i] = v[i] = 0.05F;
  std::size_t layer = 0;
  for (auto _ : state) {
    float* base = s.data() + layer * kHeads * kDim * kDim;
    layer = (layer + 1) % kLayers;
    pool.run(kHeads, 1, [&](std::size_t a, std::size_t b, unsigned) {
      for (std::size_t h = a; h < b; ++h) {
        kernels().delta_step({base + h * kDim * kDim, kDim, kDim, q.data(), k.data(), v.data(), 0.9F, 0.5F,
                              o.data() + h * kDim});
      }
    });
    benchmark::DoNotOptimize(o.data());
  }
  report(state, std::size_t{2} * 4 * kHeads * kDim * kDim, 3.0 * kHeads * kDim * kDim);
}

/// A plain read of memory, as `stoker bench` measures it: what the kernels are measured against.
void memory_read(benchmark::State& state) {
  const stoker::SteadyClock clock;
  double best = 0;
  for (auto _ : state) {
    const auto measured = stoker::cli::measure_memory(static_cast<unsigned>(state.range(0)), clock);
    if (!measured) return state.SkipWithError(measured.error().message.c_str());
    best = std::max(best, *measured);
  }
  state.counters["bytes_per_second"] = benchmark::Counter(best, {}, benchmark::Counter::kIs1024);
}

}  // namespace

BENCHMARK(memory_read)->Arg(1)->Arg(2)->Iterations(3);
BENCHMARK(expert_cold_huge)->ArgsProduct({{1, 2}, {1, 2, 4, 10}})->UseRealTime();
BENCHMARK(expert_cold_4k)->ArgsProduct({{1, 2}, {1}})->UseRealTime();
BENCHMARK(expert_warm)->ArgsProduct({{1, 2}, {1, 10, 64}})->UseRealTime();
BENCHMARK(in_proj_qkvz)->ArgsProduct({{1, 2}, {1, 4, 512}})->UseRealTime();
BENCHMARK(out_proj)->ArgsProduct({{1, 2}, {1}})->UseRealTime();
BENCHMARK(router)->ArgsProduct({{1, 2}, {1}})->UseRealTime();
BENCHMARK(lm_head)->ArgsProduct({{1, 2}, {1}})->UseRealTime();
BENCHMARK(delta_rule)->ArgsProduct({{1, 2}, {1}})->UseRealTime();
BENCHMARK_MAIN();
