// What the kernels of a device module reach at the shapes of Qwen3-Coder-Next, against what the device can: a
// Markdown table with bytes moved, GB/s and percent of the measured copy bandwidth. Weights, states and KV
// rotate through more memory than any L2 cache holds, and are pseudo-random: with zeros a card draws less
// power and clocks higher than with a model. Times are of device events over a captured round, median and
// spread of the repeats.
//
//   device_bench [--kind cuda] [--small]      --small: tiny shapes, to see that it works (emulation)
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "gpu-worker/cuda/device.h"
#include "gpu-worker/cuda/device_module.h"

namespace stoker {
namespace {

constexpr std::uint64_t kRotate = 512ULL << 20;  ///< bytes of weights that a measurement walks through
constexpr std::size_t kNoise = 16 << 20;         ///< bytes of pseudo-random values, repeated as needed
constexpr int kRepeats = 9;

struct Shapes {
  bool small;
  std::uint32_t hidden, inner, vocab, qkvz, q_rows, core, experts_per_token, experts;
  std::uint32_t key_heads, value_heads, dk, dv, heads, kv_heads, head_dim;
  std::vector<std::uint32_t> contexts;
};
const Shapes kReal{false,
                   2048,
                   512,
                   151'936,
                   12'288,
                   8192,
                   4096,
                   10,
                   512,
                   16,
                   32,
                   128,
                   128,
                   16,
                   2,
                   256,
                   {4096, 32'768, 131'072}};
const Shapes kSmall{true, 128, 64, 256, 256, 256, 128, 2, 16, 2, 4, 16, 16, 4, 2, 32, {300}};

/// Pseudo-random weights, none of them a NaN: all other codes of FP8; else of either sign and 2^-7 to 2.
std::vector<std::uint32_t> noise(std::size_t bytes, device::Code code) {
  std::mt19937 random(1);
  std::vector<std::uint32_t> words((bytes + 3) / 4);
  for (std::uint32_t& word : words) {
    word = static_cast<std::uint32_t>(random());
    if (code == device::Code::f8_e4m3) {
      word ^= (((word & 0x7F7F'7F7FU) + 0x0101'0101U) & 0x8080'8080U) >> 7;  // 0x7F becomes 0x7E
    } else if (code == device::Code::bf16) {
      word = (word & 0x83FF'83FFU) | 0x3C00'3C00U;
    } else {
      word = (word & 0x83FF'FFFFU) | 0x3C00'0000U;
    }
  }
  return words;
}

class Bench {
 public:
  Bench(const device::Api& api, const Shapes& shapes) : api_(api), s_(shapes) {}
  Result<void> run();

 private:
  using Enqueue = std::function<device::Status(std::uint32_t round)>;
  template <class T>
  Result<T*> make(std::size_t count) {
    STOKER_TRY(auto array, DeviceArray<std::byte>::make(api_, count * sizeof(T)));
    STOKER_DEVICE("clearing", api_.clear(array.data(), array.bytes(), stream_.get()));
    auto* p = reinterpret_cast<T*>(array.data());
    memory_.push_back(std::move(array));
    return p;
  }
  template <class T = float>
  Result<T*> make_random(std::size_t count, device::Code code = device::Code::f32) {
    STOKER_TRY(auto* p, make<T>(count));
    const std::size_t bytes = count * sizeof(T);
    const auto values = noise(std::min(bytes, kNoise), code);
    for (std::size_t at = 0; at < bytes; at += kNoise)
      STOKER_DEVICE("sending", api_.to_device(reinterpret_cast<std::byte*>(p) + at, values.data(),
                                              std::min(bytes - at, kNoise), stream_.get()));
    STOKER_DEVICE("sending", api_.synchronize(stream_.get()));
    return p;
  }
  /// How many of them a measurement walks through: kRotate bytes, but at most half of the memory that is
  /// free.
  [[nodiscard]] std::uint32_t copies_of(std::uint64_t bytes) const {
    if (s_.small) return 2;
    std::uint64_t free = 0;
    std::uint64_t total = 0;
    if (api_.memory(&free, &total) != nullptr) free = 0;
    const std::uint64_t wanted = std::clamp<std::uint64_t>(kRotate / bytes, 2, 256);
    return static_cast<std::uint32_t>(std::max<std::uint64_t>(std::min(wanted, free / 2 / bytes), 1));
  }
  Result<std::vector<double>> time(std::uint32_t rounds, const Enqueue& enqueue);
  Result<void> line(const std::string& name, double bytes, std::uint32_t rounds, const Enqueue& enqueue);
  Result<void> bandwidths();
  Result<void> product(const std::string& name, std::uint32_t rows, std::uint32_t cols, device::Code code,
                       std::uint32_t n);
  Result<void> experts(std::uint32_t n);
  Result<void> delta(std::uint32_t n);
  Result<void> attention(std::uint32_t context);
  Result<void> small_ones();

  const device::Api& api_;
  Shapes s_;
  DeviceStream stream_;
  DeviceEvent from_, to_;
  std::vector<DeviceArray<std::byte>> memory_;
  double copy_ = 1;  ///< bytes/s that a copy on the device reads and writes
};

/// Seconds per round.
Result<std::vector<double>> Bench::time(std::uint32_t rounds, const Enqueue& enqueue) {
  STOKER_DEVICE("capturing", api_.begin_capture(stream_.get()));
  device::Status bad = nullptr;
  for (std::uint32_t i = 0; i < rounds && bad == nullptr; ++i) bad = enqueue(i);
  const std::string why = bad == nullptr ? "" : bad;
  device::Graph* made = nullptr;
  STOKER_DEVICE("capturing", api_.end_capture(stream_.get(), &made));
  const DeviceGraph graph(api_, made);
  if (!why.empty()) return fail(Errc::invalid, why);
  std::vector<double> times;
  for (int r = -1; r < kRepeats; ++r) {
    STOKER_DEVICE("timing", api_.record(from_.get(), stream_.get()));
    STOKER_DEVICE("timing", api_.launch(graph.get(), stream_.get()));
    STOKER_DEVICE("timing", api_.record(to_.get(), stream_.get()));
    STOKER_DEVICE("timing", api_.wait_host(to_.get()));
    float ms = 0;
    STOKER_DEVICE("timing", api_.elapsed(from_.get(), to_.get(), &ms));
    if (r >= 0) times.push_back(static_cast<double>(ms) / 1e3 / rounds);  // the first one warms up
  }
  std::sort(times.begin(), times.end());
  return times;
}

Result<void> Bench::line(const std::string& name, double bytes, std::uint32_t rounds,
                         const Enqueue& enqueue) {
  STOKER_TRY(const std::vector<double> t, time(rounds, enqueue));
  const double median = std::max(t[t.size() / 2], 1e-9);
  std::printf("| %s | %.2f | %.1f (%.1f-%.1f) | %.1f | %.0f %% |\n", name.c_str(), bytes / 1e6, median * 1e6,
              t.front() * 1e6, t.back() * 1e6, bytes / median / 1e9, 100 * bytes / median / copy_);
  std::fflush(stdout);
  memory_.clear();
  return {};
}

Result<void> Bench::bandwidths() {
  const std::uint64_t bytes = s_.small ? 1 << 16 : 1ULL << 30;
  STOKER_TRY(auto* a, make_random<std::byte>(bytes));
  STOKER_TRY(auto* b, make<std::byte>(bytes));
  STOKER_TRY(const auto t,
             time(4, [&](std::uint32_t) { return api_.on_device(a, b, bytes, stream_.get()); }));
  copy_ = 2.0 * static_cast<double>(bytes) / std::max(t[t.size() / 2], 1e-9);
  std::printf("copy on the device %.0f GB/s (read and written)", copy_ / 1e9);
  STOKER_TRY(const auto host, PinnedArray<std::byte>::make(api_, bytes));
  std::memset(host.data(), 0, host.bytes());
  STOKER_TRY(const auto up,
             time(2, [&](std::uint32_t) { return api_.to_host(host.data(), a, bytes, stream_.get()); }));
  STOKER_TRY(const auto down,
             time(2, [&](std::uint32_t) { return api_.to_device(a, host.data(), bytes, stream_.get()); }));
  const auto rate = [&](const std::vector<double>& x) {
    return static_cast<double>(bytes) / std::max(x[x.size() / 2], 1e-9) / 1e9;
  };
  std::printf(", pinned to device %.1f GB/s, back %.1f GB/s\n\n", rate(down), rate(up));
  std::printf("| kernel | MB | us, median (min-max) | GB/s | of copy |\n|---|---|---|---|---|\n");
  memory_.clear();
  return {};
}

std::uint32_t code_bytes(device::Code code) {
  return code == device::Code::f8_e4m3 ? 1 : code == device::Code::f32 ? 4 : 2;
}

Result<void> Bench::product(const std::string& name, std::uint32_t rows, std::uint32_t cols,
                            device::Code code, std::uint32_t n) {
  const std::uint64_t bytes = std::uint64_t{rows} * cols * code_bytes(code);
  const std::uint32_t copies = copies_of(bytes);
  STOKER_TRY(auto* w, make_random<std::byte>(bytes * copies, code));
  STOKER_TRY(auto* scales, make_random(std::size_t{(rows + 127) / 128} * ((cols + 127) / 128)));
  STOKER_TRY(auto* x, make_random(std::size_t{n} * cols));
  STOKER_TRY(auto* y, make<float>(std::size_t{n} * rows));
  return line(name + " [" + std::to_string(rows) + " x " + std::to_string(cols) + "], " + std::to_string(n) +
                  (n == 1 ? " row" : " rows"),
              static_cast<double>(bytes), copies, [&](std::uint32_t i) {
                return api_.matmul({.w = {w + bytes * (i % copies), scales, rows, cols, 128, 128, code},
                                    .x = x,
                                    .y = y,
                                    .x_stride = cols,
                                    .y_stride = rows,
                                    .scatter = nullptr,
                                    .rows = n,
                                    .add = false},
                                   stream_.get());
              });
}

Result<void> Bench::experts(std::uint32_t n) {
  const std::uint64_t matrix = std::uint64_t{s_.hidden} * s_.inner;
  const std::uint32_t count = std::min(s_.experts, n * s_.experts_per_token);
  const std::uint32_t copies = copies_of(3 * matrix * count);
  const std::size_t tiles = 3ULL * ((s_.inner + 127) / 128) * ((s_.hidden + 127) / 128);
  STOKER_TRY(auto* w, make_random<std::byte>(3 * matrix * count * copies, device::Code::f8_e4m3));
  STOKER_TRY(auto* scales, make_random(tiles));
  const std::size_t pairs = std::size_t{n} * s_.experts_per_token;
  STOKER_TRY(auto* h, make_random(std::size_t{n} * s_.hidden));
  STOKER_TRY(auto* gate, make<float>(pairs * s_.inner));
  STOKER_TRY(auto* out, make<float>(pairs * s_.hidden));
  STOKER_TRY(auto* list, make<device::Expert>(std::size_t{count} * copies));
  STOKER_TRY(auto* pair_list, make<std::uint32_t>(pairs));
  std::vector<device::Expert> experts;
  std::vector<std::uint32_t> numbers(pairs);
  for (std::uint32_t i = 0; i < pairs; ++i) numbers[i] = i;
  for (std::uint32_t i = 0; i < count * copies; ++i) {
    const std::byte* at = w + 3 * matrix * i;
    experts.push_back({at, at + matrix, at + 2 * matrix, scales, i % count, 1});
  }
  STOKER_DEVICE("sending",
                api_.to_device(list, experts.data(), experts.size() * sizeof(experts[0]), stream_.get()));
  STOKER_DEVICE("sending",
                api_.to_device(pair_list, numbers.data(), pairs * sizeof(numbers[0]), stream_.get()));
  return line(std::to_string(count) + " experts FP8, gate, up and down",
              static_cast<double>(3 * matrix * count), copies, [&](std::uint32_t i) {
                return api_.experts({.experts = list + std::size_t{i % copies} * count,
                                     .pairs = pair_list,
                                     .count = count,
                                     .most_pairs = 1,
                                     .k = s_.experts_per_token,
                                     .hidden = s_.hidden,
                                     .inner = s_.inner,
                                     .block_rows = 128,
                                     .block_cols = 128,
                                     .code = device::Code::f8_e4m3,
                                     .h = h,
                                     .gate = gate,
                                     .out = out},
                                    stream_.get());
              });
}

Result<void> Bench::delta(std::uint32_t n) {
  const std::uint32_t channels = 2 * s_.key_heads * s_.dk + s_.value_heads * s_.dv;
  const std::size_t state = std::size_t{s_.value_heads} * s_.dk * s_.dv;
  const std::uint32_t copies = copies_of(state * sizeof(float));
  STOKER_TRY(auto* recurrent, make_random(state * copies));
  STOKER_TRY(auto* qkv, make_random(std::size_t{n} * channels));
  STOKER_TRY(auto* side, make_random(std::size_t{n} * 2 * s_.value_heads));
  STOKER_TRY(auto* z, make_random(std::size_t{n} * s_.value_heads * s_.dv));
  // Zeros: the decay is 1, and the state neither grows nor dies out over the rounds.
  STOKER_TRY(auto* small, make<float>(2 * s_.value_heads + s_.dv));
  STOKER_TRY(auto* out, make<float>(std::size_t{n} * s_.value_heads * s_.dv));
  STOKER_TRY(auto* rows, make<device::Row>(n));
  STOKER_TRY(auto* segment, make<device::Segment>(1));
  std::vector<device::Row> row_list(n);
  for (std::uint32_t i = 0; i < n; ++i) row_list[i] = {0, i};
  const device::Segment one{0, n, recurrent, nullptr, nullptr};
  STOKER_DEVICE("sending", api_.to_device(rows, row_list.data(), n * sizeof(device::Row), stream_.get()));
  STOKER_DEVICE("sending", api_.to_device(segment, &one, sizeof one, stream_.get()));
  return line("delta rule, " + std::to_string(n) + (n == 1 ? " token" : " tokens of one sequence"),
              2.0 * static_cast<double>(state * sizeof(float)), copies, [&](std::uint32_t i) {
                return api_.delta_rule({.step = {rows, segment, n, 1},
                                        .qkv = qkv,
                                        .ba = side,
                                        .z = z,
                                        .neg_exp_a = small,
                                        .dt_bias = small + s_.value_heads,
                                        .norm = small + 2 * s_.value_heads,
                                        .out = out,
                                        .z_stride = s_.value_heads * s_.dv,
                                        .key_heads = s_.key_heads,
                                        .value_heads = s_.value_heads,
                                        .dk = s_.dk,
                                        .dv = s_.dv,
                                        .q_scale = 1,
                                        .l2_eps = 1e-6F,
                                        .norm_eps = 1e-6F,
                                        .layer = i % copies},
                                       stream_.get());
              });
}

Result<void> Bench::attention(std::uint32_t context) {
  const std::uint32_t pages = (context + device::kPagePositions - 1) / device::kPagePositions;
  const std::size_t page = 2ULL * s_.kv_heads * device::kPagePositions * s_.head_dim;
  const std::uint32_t copies = copies_of(page * pages * sizeof(float));
  STOKER_TRY(auto* kv, make_random(page * pages * copies));
  STOKER_TRY(auto* table, make<float*>(std::size_t{pages} * copies));
  STOKER_TRY(auto* rows, make<device::Row>(1));
  STOKER_TRY(auto* segments, make<device::Segment>(copies));
  STOKER_TRY(auto* q, make_random(2ULL * s_.heads * s_.head_dim));
  STOKER_TRY(auto* out, make<float>(std::size_t{s_.heads} * s_.head_dim));
  const std::uint64_t floats = api_.attention_workspace(s_.heads, s_.head_dim, context);
  STOKER_TRY(auto* workspace, make<float>(floats));
  std::vector<float*> list;
  std::vector<device::Segment> sequences;
  for (std::uint32_t i = 0; i < pages * copies; ++i) list.push_back(kv + page * i);
  for (std::uint32_t i = 0; i < copies; ++i)
    sequences.push_back({0, 1, nullptr, nullptr, table + std::size_t{pages} * i});
  const device::Row row{0, context - 1};
  STOKER_DEVICE("sending", api_.to_device(table, list.data(), list.size() * sizeof(float*), stream_.get()));
  STOKER_DEVICE("sending", api_.to_device(rows, &row, sizeof row, stream_.get()));
  STOKER_DEVICE("sending",
                api_.to_device(segments, sequences.data(), copies * sizeof(device::Segment), stream_.get()));
  return line("attention, one row, " + std::to_string(context) + " positions",
              2.0 * context * s_.kv_heads * s_.head_dim * sizeof(float), std::max(copies, 4U),
              [&](std::uint32_t i) {
                return api_.attention({.step = {rows, segments + i % copies, 1, 1},
                                       .q = q,
                                       .gate = q + s_.heads * s_.head_dim,
                                       .out = out,
                                       .q_stride = 2 * s_.heads * s_.head_dim,
                                       .heads = s_.heads,
                                       .kv_heads = s_.kv_heads,
                                       .head_dim = s_.head_dim,
                                       .scale = 0.0625F,
                                       .layer = 0,
                                       .layers = 1,
                                       .longest = context,
                                       .workspace = workspace,
                                       .workspace_floats = floats},
                                      stream_.get());
              });
}

/// Latency, not bandwidth: what a layer pays besides its weights.
Result<void> Bench::small_ones() {
  STOKER_TRY(auto* x, make_random(s_.hidden));
  STOKER_TRY(auto* w, make_random(s_.hidden));
  STOKER_TRY(auto* y, make<float>(s_.hidden));
  STOKER_TRY_VOID(line("rms norm", 3.0 * s_.hidden * sizeof(float), 64, [&](std::uint32_t) {
    return api_.rms_norm({.x = x, .from = nullptr, .w = w, .y = y, .rows = 1, .n = s_.hidden, .eps = 1e-6F},
                         stream_.get());
  }));
  STOKER_TRY(auto* p, make_random(s_.experts));
  STOKER_TRY(auto* ids, make<std::uint32_t>(s_.experts_per_token));
  STOKER_TRY(auto* weights, make<float>(s_.experts_per_token));
  return line("softmax and top-k", 2.0 * s_.experts * sizeof(float), 64, [&](std::uint32_t) {
    return api_.top_k({.p = p,
                       .ids = ids,
                       .weights = weights,
                       .rows = 1,
                       .experts = s_.experts,
                       .k = s_.experts_per_token,
                       .normalise = true},
                      stream_.get());
  });
}

Result<void> Bench::run() {
  device::Info info{};
  STOKER_DEVICE("opening", api_.open(0, &info));
  STOKER_TRY(stream_, make_stream(api_, true));
  STOKER_TRY(from_, make_event(api_, true));
  STOKER_TRY(to_, make_event(api_, true));
  std::printf("%s, compute capability %u.%u, %u multiprocessors, %.1f GiB; ", info.name, info.major,
              info.minor, info.multiprocessors, static_cast<double>(info.memory_total) / (1 << 30));
  if (std::string(api_.kind) != "cuda") std::printf("(no real device: the times below are virtual) ");
  STOKER_TRY_VOID(bandwidths());
  using device::Code;
  for (const std::uint32_t n : {1U, 8U, s_.small ? 16U : 512U}) {
    STOKER_TRY_VOID(product("qkvz FP8", s_.qkvz, s_.hidden, Code::f8_e4m3, n));
    STOKER_TRY_VOID(product("out FP8", s_.hidden, s_.core, Code::f8_e4m3, n));
    STOKER_TRY_VOID(product("q FP8", s_.q_rows, s_.hidden, Code::f8_e4m3, n));
    STOKER_TRY_VOID(product("router BF16", s_.experts, s_.hidden, Code::bf16, n));
    if (n <= 8) STOKER_TRY_VOID(product("lm_head BF16", s_.vocab, s_.hidden, Code::bf16, n));
  }
  STOKER_TRY_VOID(experts(1));
  STOKER_TRY_VOID(experts(s_.small ? 2 : 4));
  for (const std::uint32_t n : {1U, s_.small ? 8U : 512U}) STOKER_TRY_VOID(delta(n));
  for (const std::uint32_t context : s_.contexts) STOKER_TRY_VOID(attention(context));
  return small_ones();
}

int main_checked(int argc, char** argv) {
  std::string kind = "cuda";
  bool small = false;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--small") {
      small = true;
    } else if (word == "--kind" && i + 1 < argc) {
      kind = argv[++i];
    } else {
      std::fprintf(stderr, "usage: device_bench [--kind cuda|emulation] [--small]\n");
      return 2;
    }
  }
  auto module = DeviceModule::open(kind);
  if (!module) {
    std::fprintf(stderr, "device_bench: %s\n", module.error().text().c_str());
    return 1;
  }
  Result<void> done;
  {
    Bench bench(module->api(), small ? kSmall : kReal);
    done = bench.run();
  }
  module->api().close();
  if (done) return 0;
  std::fprintf(stderr, "device_bench: %s\n", done.error().text().c_str());
  return 1;
}

}  // namespace
}  // namespace stoker

int main(int argc, char** argv) { return stoker::main_checked(argc, argv); }
