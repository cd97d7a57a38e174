// The DeltaNet mixer's kernels, in the emulation: bits of the CPU for segments of every length, states
// included, and double precision.
#include "gpu-worker/scalar_math.h"
#include "tests/unit/cuda/kernels_rig.h"
#include "tests/unit/cuda/kernels_seeds.h"

namespace stoker::testing {
namespace {

struct Conv {
  std::uint32_t channels, taps, gap;

  void check(Gpu& gpu, unsigned seed, const std::vector<std::uint32_t>& counts) const {
    Random random(seed);
    Step step(counts);
    const std::uint32_t history = taps - 1, stride = channels + gap, layer = 1;
    const std::size_t per_segment = std::size_t{2} * history * channels;  // two layers
    auto state = randoms(random, per_segment * counts.size());
    const auto in = randoms(random, step.rows.size() * stride),
               w = randoms(random, std::size_t{taps} * channels);
    float* states = gpu.put(state);
    for (std::size_t s = 0; s < counts.size(); ++s) step.segments[s].conv = states + s * per_segment;
    const std::size_t n = step.rows.size() * channels;
    float* out = gpu.alloc<float>(n);
    Gpu::must(gpu.api().convolution(
        {step.on(gpu), gpu.put(in), gpu.put(w), out, stride, channels, taps, layer}, gpu.stream()));
    const auto got = gpu.get(out, n);
    const auto got_state = gpu.get(states, state.size());
    std::vector<float> want(n);
    for (std::size_t s = 0; s < counts.size(); ++s) {
      // The inputs as one list: what the state remembers, then the tokens.
      float* kept = state.data() + s * per_segment + std::size_t{layer} * history * channels;
      std::vector<float> all(kept, kept + std::size_t{history} * channels);
      for (std::uint32_t t = 0; t < counts[s]; ++t) {
        const float* row = in.data() + std::size_t{step.segments[s].first_row + t} * stride;
        all.insert(all.end(), row, row + channels);
      }
      for (std::uint32_t t = 0; t < counts[s]; ++t) {
        std::vector<const float*> u;
        for (std::uint32_t j = 0; j < taps; ++j) u.push_back(all.data() + std::size_t{t + j} * channels);
        float* y = want.data() + std::size_t{step.segments[s].first_row + t} * channels;
        for (const Kernels* k : cpu_tables()) k->conv_silu(u.data(), w.data(), channels, taps, channels, y);
        for (std::uint32_t c = 0; c < channels; ++c) {
          double sum = 0, magnitude = 0;
          for (std::uint32_t j = 0; j < taps; ++j) {
            const double term =
                static_cast<double>(w[std::size_t{j} * channels + c]) * static_cast<double>(u[j][c]);
            sum += term;
            magnitude += std::fabs(term);
          }
          check_near(got[std::size_t{step.segments[s].first_row + t} * channels + c], silu(sum),
                     2 * magnitude);
        }
      }
      std::copy(all.end() - static_cast<std::ptrdiff_t>(std::size_t{history} * channels), all.end(), kept);
    }
    check_bits(got, want);
    check_bits(got_state, state);
  }
};

struct Delta {
  std::uint32_t key_heads, value_heads, dk, dv;
  static constexpr std::uint32_t kLayers = 2, kLayer = 1;
  static constexpr float kEps = 1e-6F;

  [[nodiscard]] std::uint32_t key_dim() const { return key_heads * dk; }
  [[nodiscard]] std::uint32_t channels() const { return 2 * key_dim() + value_heads * dv; }
  [[nodiscard]] std::size_t per_segment() const { return std::size_t{kLayers} * value_heads * dk * dv; }

  struct Inputs {
    std::vector<float> qkv, ba, z, neg_exp_a, dt_bias, norm;
    std::uint32_t z_stride;
    float q_scale;
  };

  void check(Gpu& gpu, unsigned seed, const std::vector<std::uint32_t>& counts) const {
    Random random(seed);
    Step step(counts);
    const std::size_t rows = step.rows.size();
    Inputs in{randoms(random, rows * channels()),
              randoms(random, rows * 2 * value_heads, 2),
              {},
              {},
              randoms(random, value_heads),
              randoms(random, dv),
              value_heads * dv + 5,
              static_cast<float>(1 / std::sqrt(static_cast<double>(dk)))};
    in.z = randoms(random, rows * in.z_stride);
    for (std::uint32_t h = 0; h < value_heads; ++h)
      in.neg_exp_a.push_back(-0.3F - 0.2F * static_cast<float>(h));
    auto state = randoms(random, per_segment() * counts.size(), 0.5F);
    const auto state_before = state;
    float* states = gpu.put(state);
    for (std::size_t s = 0; s < counts.size(); ++s) step.segments[s].recurrent = states + s * per_segment();
    const std::size_t n = rows * value_heads * dv;
    float* out = gpu.alloc<float>(n);
    Gpu::must(
        gpu.api().delta_rule({step.on(gpu), gpu.put(in.qkv), gpu.put(in.ba), gpu.put(in.z),
                              gpu.put(in.neg_exp_a), gpu.put(in.dt_bias), gpu.put(in.norm), out, in.z_stride,
                              key_heads, value_heads, dk, dv, in.q_scale, kEps, kEps, kLayer},
                             gpu.stream()));
    const auto got = gpu.get(out, n);
    const auto got_state = gpu.get(states, state.size());
    for (const Kernels* k : cpu_tables()) {
      state = state_before;
      std::vector<float> want(n);
      for (std::size_t s = 0; s < counts.size(); ++s)
        on_cpu(*k, in, step.segments[s], state.data() + s * per_segment(), want);
      check_bits(got, want);
      check_bits(got_state, state);
    }
    for (std::size_t s = 0; s < counts.size(); ++s) {
      for (std::uint32_t head = 0; head < value_heads; ++head)
        check_doubles(in, step.segments[s], head, state_before.data() + s * per_segment(), got);
    }
  }

  void on_cpu(const Kernels& k, const Inputs& in, const device::Segment& segment, float* state,
              std::vector<float>& out) const {
    for (std::uint32_t row = segment.first_row; row < segment.first_row + segment.rows; ++row) {
      std::vector<float> c(in.qkv.begin() + static_cast<std::ptrdiff_t>(std::size_t{row} * channels()),
                           in.qkv.begin() + static_cast<std::ptrdiff_t>(std::size_t{row + 1} * channels()));
      for (std::uint32_t h = 0; h < key_heads; ++h) {
        k.l2_norm(&c[h * dk], dk, kEps, in.q_scale);
        k.l2_norm(&c[key_dim() + h * dk], dk, kEps, 1.0F);
      }
      const float* b = &in.ba[std::size_t{row} * 2 * value_heads];
      for (std::uint32_t h = 0; h < value_heads; ++h) {
        const std::uint32_t key = h / (value_heads / key_heads) * dk;
        float* o = &out[(std::size_t{row} * value_heads + h) * dv];
        k.delta_step({state + (std::size_t{kLayer} * value_heads + h) * dk * dv, dk, dv, &c[key],
                      &c[key_dim() + key], &c[2 * key_dim() + h * dv],
                      delta_decay(in.neg_exp_a[h], b[value_heads + h], in.dt_bias[h]), sigmoid_exact(b[h]),
                      o});
        k.gated_norm(o, &in.z[std::size_t{row} * in.z_stride + h * dv], in.norm.data(), dv, kEps, o);
      }
    }
  }

  /// The unfused recurrence of model.md 3.4.
  void check_doubles(const Inputs& in, const device::Segment& segment, std::uint32_t head,
                     const float* before, const std::vector<float>& got) const {
    const float* from = before + (std::size_t{kLayer} * value_heads + head) * dk * dv;
    std::vector<double> s(from, from + std::size_t{dk} * dv);
    for (std::uint32_t row = segment.first_row; row < segment.first_row + segment.rows; ++row) {
      const float* c = &in.qkv[std::size_t{row} * channels()];
      const float* q = c + head / (value_heads / key_heads) * dk;
      const float* k = q + key_dim();
      double q_size = 1e-6, k_size = 1e-6, squares = 0;
      for (std::uint32_t i = 0; i < dk; ++i) {
        q_size += static_cast<double>(q[i]) * static_cast<double>(q[i]);
        k_size += static_cast<double>(k[i]) * static_cast<double>(k[i]);
      }
      const float* b = &in.ba[std::size_t{row} * 2 * value_heads];
      const double a = static_cast<double>(b[value_heads + head]) + static_cast<double>(in.dt_bias[head]);
      const double decay = std::exp(static_cast<double>(in.neg_exp_a[head]) * std::log1p(std::exp(a)));
      std::vector<double> o(dv);
      for (std::uint32_t j = 0; j < dv; ++j) {
        double m = 0;
        for (std::uint32_t i = 0; i < dk; ++i) {
          s[i * dv + j] *= decay;
          m += s[i * dv + j] * static_cast<double>(k[i]) / std::sqrt(k_size);
        }
        const double d = sigmoid(static_cast<double>(b[head])) *
                         (static_cast<double>(c[2 * key_dim() + head * dv + j]) - m);
        for (std::uint32_t i = 0; i < dk; ++i) {
          s[i * dv + j] += static_cast<double>(k[i]) / std::sqrt(k_size) * d;
          o[j] +=
              s[i * dv + j] * static_cast<double>(q[i]) / std::sqrt(q_size) * static_cast<double>(in.q_scale);
        }
        squares += o[j] * o[j];
      }
      for (std::uint32_t j = 0; j < dv; ++j) {
        const double gate = static_cast<double>(in.norm[j]) *
                            silu(static_cast<double>(in.z[std::size_t{row} * in.z_stride + head * dv + j]));
        const double want = o[j] / std::sqrt(squares / dv + 1e-6) * gate;
        check_near(got[(std::size_t{row} * value_heads + head) * dv + j], want,
                   (1 + std::sqrt(dv)) * std::fabs(gate), 1e-4);
      }
    }
  }
};

}  // namespace

TEST_CASE("convolution: bits and state of the CPU, segments shorter than the taps too") {
  for (const unsigned seed : seeds()) {
    for (const Conv& c : {Conv{20, 4, 0}, Conv{300, 4, 7}, Conv{33, 2, 1}, Conv{16, 1, 0}, Conv{40, 8, 2}}) {
      INFO("seed " << seed << ", " << c.channels << " channels, " << c.taps << " taps");
      Gpu gpu(seed);
      c.check(gpu, seed, {1, 2, 0, 5, 3, 33});
    }
  }
}

TEST_CASE("delta rule: bits and state of the CPU, any cut into segments") {
  for (const unsigned seed : seeds()) {
    for (const Delta& d : {Delta{1, 2, 4, 4}, Delta{2, 2, 16, 20}, Delta{1, 3, 24, 72}, Delta{1, 1, 64, 200},
                           Delta{2, 4, 128, 128}, Delta{1, 2, 128, 24}, Delta{1, 1, 256, 128}}) {
      INFO("seed " << seed << ", " << d.dk << " x " << d.dv);
      Gpu gpu(seed);
      d.check(gpu, seed, {1, 0, 3, 17, 33});
    }
  }
  Gpu gpu(1);
  Delta{16, 32, 128, 128}.check(gpu, 9, {1});
}

}  // namespace stoker::testing
