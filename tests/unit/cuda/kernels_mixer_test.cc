// The kernels of the mixers, in the emulation: convolution, delta rule, attention. Bits of the CPU for segments
// of every length, states and pages included, and double precision.
#include <algorithm>

#include "gpu-worker/cpu/rope.h"
#include "gpu-worker/scalar_math.h"
#include "tests/unit/cuda/kernels_rig.h"

namespace stoker::testing {
namespace {

/// A step of segments with `rows[s]` tokens, the first at position `before[s]`. States are one array per kind;
/// pages are found through tables, as in the engine.
struct Step {
  std::vector<device::Row> rows;
  std::vector<device::Segment> segments;

  Step(const std::vector<std::uint32_t>& counts, const std::vector<std::uint32_t>& before) {
    for (std::uint32_t s = 0; s < counts.size(); ++s) {
      segments.push_back({static_cast<std::uint32_t>(rows.size()), counts[s], nullptr, nullptr, nullptr});
      for (std::uint32_t t = 0; t < counts[s]; ++t) rows.push_back({s, before[s] + t});
    }
  }
  explicit Step(const std::vector<std::uint32_t>& counts) : Step(counts, std::vector<std::uint32_t>(counts.size(), 0)) {}

  device::StepTables on(Gpu& gpu) const {
    return {gpu.put(rows), gpu.put(segments), static_cast<std::uint32_t>(rows.size()),
            static_cast<std::uint32_t>(segments.size())};
  }
};

struct Conv {
  std::uint32_t channels, taps, gap;

  void check(Gpu& gpu, unsigned seed, const std::vector<std::uint32_t>& counts) const {
    Random random(seed);
    Step step(counts);
    const std::uint32_t history = taps - 1, stride = channels + gap, layer = 1;
    const std::size_t per_segment = std::size_t{2} * history * channels;  // two layers
    auto state = randoms(random, per_segment * counts.size());
    const auto in = randoms(random, step.rows.size() * stride), w = randoms(random, std::size_t{taps} * channels);
    float* states = gpu.put(state);
    for (std::size_t s = 0; s < counts.size(); ++s) step.segments[s].conv = states + s * per_segment;
    const std::size_t n = step.rows.size() * channels;
    float* out = gpu.alloc<float>(n);
    Gpu::must(gpu.api().convolution({step.on(gpu), gpu.put(in), gpu.put(w), out, stride, channels, taps, layer},
                                    gpu.stream()));
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
            const double term = static_cast<double>(w[std::size_t{j} * channels + c]) * static_cast<double>(u[j][c]);
            sum += term;
            magnitude += std::fabs(term);
          }
          check_near(got[std::size_t{step.segments[s].first_row + t} * channels + c], silu(sum), 2 * magnitude);
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
    for (std::uint32_t h = 0; h < value_heads; ++h) in.neg_exp_a.push_back(-0.3F - 0.2F * static_cast<float>(h));
    auto state = randoms(random, per_segment() * counts.size(), 0.5F);
    const auto state_before = state;
    float* states = gpu.put(state);
    for (std::size_t s = 0; s < counts.size(); ++s) step.segments[s].recurrent = states + s * per_segment();
    const std::size_t n = rows * value_heads * dv;
    float* out = gpu.alloc<float>(n);
    Gpu::must(gpu.api().delta_rule({step.on(gpu), gpu.put(in.qkv), gpu.put(in.ba), gpu.put(in.z), gpu.put(in.neg_exp_a),
                                    gpu.put(in.dt_bias), gpu.put(in.norm), out, in.z_stride, key_heads, value_heads, dk,
                                    dv, in.q_scale, kEps, kEps, kLayer},
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
        k.delta_step({state + (std::size_t{kLayer} * value_heads + h) * dk * dv, dk, dv, &c[key], &c[key_dim() + key],
                      &c[2 * key_dim() + h * dv], delta_decay(in.neg_exp_a[h], b[value_heads + h], in.dt_bias[h]),
                      sigmoid_exact(b[h]), o});
        k.gated_norm(o, &in.z[std::size_t{row} * in.z_stride + h * dv], in.norm.data(), dv, kEps, o);
      }
    }
  }

  /// The unfused recurrence of model.md 3.4.
  void check_doubles(const Inputs& in, const device::Segment& segment, std::uint32_t head, const float* before,
                     const std::vector<float>& got) const {
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
        const double d = sigmoid(static_cast<double>(b[head])) * (static_cast<double>(c[2 * key_dim() + head * dv + j]) - m);
        for (std::uint32_t i = 0; i < dk; ++i) {
          s[i * dv + j] += static_cast<double>(k[i]) / std::sqrt(k_size) * d;
          o[j] += s[i * dv + j] * static_cast<double>(q[i]) / std::sqrt(q_size) * static_cast<double>(in.q_scale);
        }
        squares += o[j] * o[j];
      }
      for (std::uint32_t j = 0; j < dv; ++j) {
        const double gate = static_cast<double>(in.norm[j]) * silu(static_cast<double>(in.z[std::size_t{row} * in.z_stride + head * dv + j]));
        const double want = o[j] / std::sqrt(squares / dv + 1e-6) * gate;
        check_near(got[(std::size_t{row} * value_heads + head) * dv + j], want, (1 + std::sqrt(dv)) * std::fabs(gate), 1e-4);
      }
    }
  }
};

/// Pages of a few sequences, in one device array, in an order that has nothing to do with positions.
struct Cache {
  std::uint32_t kv_heads, head_dim, layers;
  std::vector<float> floats;
  std::vector<std::vector<std::size_t>> page_at;  ///< [segment][page], floats

  [[nodiscard]] std::size_t page_floats() const {
    return std::size_t{layers} * 2 * kv_heads * device::kPagePositions * head_dim;
  }
  [[nodiscard]] std::size_t at(std::size_t segment, std::uint32_t position, std::uint32_t layer, std::uint32_t which,
                               std::uint32_t head) const {
    return page_at[segment][position / device::kPagePositions] +
           (((std::size_t{layer} * 2 + which) * kv_heads + head) * device::kPagePositions + position % device::kPagePositions) * head_dim;
  }
  /// Pages for the given lengths; uploads them and points the segments to them.
  float* on(Gpu& gpu, Step& step) const {
    float* memory = gpu.put(floats);
    for (std::size_t s = 0; s < page_at.size(); ++s) {
      std::vector<float*> pages;
      for (const std::size_t offset : page_at[s]) pages.push_back(memory + offset);
      step.segments[s].pages = gpu.put(pages);
    }
    return memory;
  }
  void make(const std::vector<std::uint32_t>& lengths) {
    std::size_t count = 0;
    for (const std::uint32_t length : lengths) count += (length + device::kPagePositions - 1) / device::kPagePositions;
    std::size_t next = count;
    for (const std::uint32_t length : lengths) {
      page_at.emplace_back();
      for (std::uint32_t p = 0; p * device::kPagePositions < length; ++p) page_at.back().push_back(--next * page_floats());
    }
    floats = untouched_floats(count * page_floats());
  }
};

struct Heads {
  std::uint32_t heads, kv_heads, dim, rotary;
};

void check_store(Gpu& gpu, unsigned seed, const Heads& h) {
  Random random(seed);
  Step step({1, 3, 2}, {0, 255, 600});
  Cache cache{h.kv_heads, h.dim, 2, {}, {}};
  cache.make({1, 258, 602});
  const auto n = static_cast<std::uint32_t>(step.rows.size());
  const std::uint32_t q_stride = 2 * h.heads * h.dim + 1, layer = 1;
  auto q = randoms(random, std::size_t{n} * q_stride);
  const auto kv = randoms(random, std::size_t{n} * 2 * h.kv_heads * h.dim);
  const auto q_norm = randoms(random, h.dim), k_norm = randoms(random, h.dim);
  std::vector<float> angles(std::size_t{n} * h.rotary);
  for (std::uint32_t i = 0; i < n && h.rotary > 0; ++i)
    rope_angles(inverse_frequencies(5e6, h.rotary), step.rows[i].position, &angles[std::size_t{i} * h.rotary]);
  float* pages = cache.on(gpu, step);
  float* q_on_gpu = gpu.put(q);
  Gpu::must(gpu.api().attention_store({step.on(gpu), q_on_gpu, gpu.put(kv), gpu.put(angles), gpu.put(q_norm),
                                       gpu.put(k_norm), q_stride, h.heads, h.kv_heads, h.dim, h.rotary, 1e-6F, layer, 2},
                                      gpu.stream()));
  const auto got_q = gpu.get(q_on_gpu, q.size());
  const auto got_pages = gpu.get(pages, cache.floats.size());
  for (std::uint32_t i = 0; i < n; ++i) {
    const device::Row row = step.rows[i];
    const float* cos_sin = angles.data() + std::size_t{i} * h.rotary;
    for (std::uint32_t head = 0; head < h.heads; ++head) {
      float* x = &q[std::size_t{i} * q_stride + head * h.dim];
      const std::vector<float> raw(x, x + h.dim);
      cpu_tables()[i % 2]->rms_norm(x, q_norm.data(), h.dim, 1e-6F, x);
      rotate(x, cos_sin, h.rotary / 2);
      double squares = 0;
      for (const float e : raw) squares += static_cast<double>(e) * static_cast<double>(e) / h.dim;
      const auto normed = [&](std::uint32_t d) {
        return static_cast<double>(raw[d]) / std::sqrt(squares + 1e-6) * static_cast<double>(q_norm[d]);
      };
      for (std::uint32_t d = 0; d < h.rotary / 2; ++d) {
        const double angle = row.position * std::pow(5e6, -2.0 * d / h.rotary);
        const double a = normed(d), b = normed(d + h.rotary / 2), size = std::fabs(a) + std::fabs(b);
        const float* got = &got_q[std::size_t{i} * q_stride + head * h.dim + d];
        check_near(got[0], a * std::cos(angle) - b * std::sin(angle), size, 1e-4);  // angles are F32
        check_near(got[h.rotary / 2], b * std::cos(angle) + a * std::sin(angle), size, 1e-4);
      }
      for (std::uint32_t d = h.rotary; d < h.dim; ++d)
        check_near(got_q[std::size_t{i} * q_stride + head * h.dim + d], normed(d), std::fabs(normed(d)));
    }
    for (std::uint32_t head = 0; head < h.kv_heads; ++head) {
      const float* k = &kv[(std::size_t{i} * 2 * h.kv_heads + head) * h.dim];
      float* key = &cache.floats[cache.at(row.segment, row.position, layer, 0, head)];
      cpu_tables()[i % 2]->rms_norm(k, k_norm.data(), h.dim, 1e-6F, key);
      rotate(key, cos_sin, h.rotary / 2);
      const float* v = k + std::size_t{h.kv_heads} * h.dim;
      std::copy(v, v + h.dim, &cache.floats[cache.at(row.segment, row.position, layer, 1, head)]);
    }
  }
  check_bits(got_q, q);
  check_bits(got_pages, cache.floats);
}

/// The CPU's attention of one query head (cpu/gated_attention.cc), on a cache that is one array.
struct OneHead {
  const std::vector<float>&keys, &values;  ///< [length][dim]
  const float* q;
  const float* gate;
  std::uint32_t length, dim;
  float scale;

  [[nodiscard]] std::vector<float> on_cpu(const Kernels& k) const {
    std::vector<float> scores(length), out(dim, 0.0F), page(dim);
    k.attention_scores(q, 1, keys.data(), length, dim, scale, scores.data(), length);
    float total = 0;
    const float top = k.largest(scores.data(), length);
    for (std::uint32_t first = 0; first < length; first += device::kPagePositions) {
      const std::uint32_t count = std::min(device::kPagePositions, length - first);
      total += k.exp_sum(&scores[first], count, top);
      std::fill(page.begin(), page.end(), 0.0F);
      k.attention_values(&scores[first], length, 1, &values[std::size_t{first} * dim], count, dim, page.data());
      k.add(out.data(), page.data(), dim);
    }
    k.attention_finish(out.data(), total, gate, dim);
    return out;
  }

  void check_doubles(const float* got) const {
    std::vector<double> p(length), out(dim);
    double top = -1e300, total = 0;
    for (std::uint32_t t = 0; t < length; ++t) {
      for (std::uint32_t d = 0; d < dim; ++d)
        p[t] += static_cast<double>(q[d]) * static_cast<double>(keys[std::size_t{t} * dim + d]) * static_cast<double>(scale);
      top = std::max(top, p[t]);
    }
    for (std::uint32_t t = 0; t < length; ++t) {
      p[t] = std::exp(p[t] - top);
      total += p[t];
      for (std::uint32_t d = 0; d < dim; ++d) out[d] += p[t] * static_cast<double>(values[std::size_t{t} * dim + d]);
    }
    for (std::uint32_t d = 0; d < dim; ++d)
      check_near(got[d], out[d] / total * sigmoid(static_cast<double>(gate[d])), 4, 1e-5);
  }
};

/// row_groups: how many rows the workspace has room for.
void check_attention(Gpu& gpu, unsigned seed, const Heads& h, std::uint64_t room_for, float spread) {
  Random random(seed);
  Step step({1, 3, 1, 2}, {0, 254, 63, 598});
  Cache cache{h.kv_heads, h.dim, 2, {}, {}};
  cache.make({1, 257, 64, 600});
  constexpr std::uint32_t kLayer = 1, kLongest = 600;
  for (std::size_t s = 0; s < step.segments.size(); ++s) {
    const std::uint32_t last = step.rows[step.segments[s].first_row + step.segments[s].rows - 1].position;
    for (std::uint32_t t = 0; t <= last; ++t) {  // what lies behind stays NaN
      for (std::uint32_t head = 0; head < h.kv_heads; ++head) {
        for (std::uint32_t which = 0; which < 2; ++which) {
          const auto x = randoms(random, h.dim, which == 0 ? spread : 1);
          std::copy(x.begin(), x.end(), &cache.floats[cache.at(s, t, kLayer, which, head)]);
        }
      }
    }
  }
  const auto n = static_cast<std::uint32_t>(step.rows.size());
  const std::uint32_t q_stride = 2 * h.heads * h.dim;
  const float scale = static_cast<float>(1 / std::sqrt(static_cast<double>(h.dim)));
  const auto q = randoms(random, std::size_t{n} * q_stride);
  cache.on(gpu, step);
  float* on_gpu = gpu.put(q);
  const std::size_t floats = std::size_t{n} * h.heads * h.dim;
  float* out = gpu.alloc<float>(floats);
  const std::uint64_t workspace = room_for * gpu.api().attention_workspace(h.heads, h.dim, kLongest);
  Gpu::must(gpu.api().attention({step.on(gpu), on_gpu, on_gpu + h.heads * h.dim, out, q_stride, h.heads, h.kv_heads, h.dim,
                                 scale, kLayer, 2, kLongest, gpu.alloc<float>(workspace), workspace},
                                gpu.stream()));
  const auto got = gpu.get(out, floats);
  std::vector<float> want;
  for (std::uint32_t i = 0; i < n; ++i) {
    for (std::uint32_t head = 0; head < h.heads; ++head) {
      std::vector<float> keys, values;
      for (std::uint32_t t = 0; t <= step.rows[i].position; ++t) {
        const std::uint32_t kv_head = head / (h.heads / h.kv_heads);
        const float* k = &cache.floats[cache.at(step.rows[i].segment, t, kLayer, 0, kv_head)];
        const float* v = &cache.floats[cache.at(step.rows[i].segment, t, kLayer, 1, kv_head)];
        keys.insert(keys.end(), k, k + h.dim);
        values.insert(values.end(), v, v + h.dim);
      }
      const float* query = &q[std::size_t{i} * q_stride + head * h.dim];
      const OneHead one{keys, values, query, query + h.heads * h.dim, step.rows[i].position + 1, h.dim, scale};
      const auto o = one.on_cpu(*cpu_tables()[head % 2]);
      want.insert(want.end(), o.begin(), o.end());
      if (spread < 10) one.check_doubles(&got[(std::size_t{i} * h.heads + head) * h.dim]);
    }
  }
  check_bits(got, want);
}

}  // namespace

TEST_CASE("convolution: bits and state of the CPU, segments shorter than the taps too") {
  for (const unsigned seed : {1U, 2U, 3U}) {
    for (const Conv& c : {Conv{20, 4, 0}, Conv{300, 4, 7}, Conv{33, 2, 1}, Conv{16, 1, 0}, Conv{40, 8, 2}}) {
      INFO("seed " << seed << ", " << c.channels << " channels, " << c.taps << " taps");
      Gpu gpu(seed);
      c.check(gpu, seed, {1, 2, 0, 5, 3, 33});
    }
  }
}

TEST_CASE("delta rule: bits and state of the CPU, any cut into segments") {
  for (const unsigned seed : {1U, 2U, 3U}) {
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

TEST_CASE("attention_store: bits of the CPU, across pages, nothing else written") {
  for (const unsigned seed : {1U, 2U, 3U}) {
    for (const Heads& h : {Heads{16, 2, 256, 64}, Heads{2, 1, 24, 8}, Heads{3, 3, 40, 40}, Heads{1, 1, 17, 0}}) {
      INFO("seed " << seed << ", head_dim " << h.dim);
      Gpu gpu(seed);
      check_store(gpu, seed, h);
    }
  }
}

TEST_CASE("attention: bits of the CPU, at every length, in any workspace") {
  for (const unsigned seed : {1U, 2U, 3U}) {
    for (const Heads& h : {Heads{8, 1, 24, 0}, Heads{4, 4, 16, 0}, Heads{6, 2, 40, 0}, Heads{2, 1, 17, 0}, Heads{24, 2, 32, 0}}) {
      INFO("seed " << seed << ", " << h.heads << " heads of " << h.dim);
      Gpu gpu(seed);
      check_attention(gpu, seed, h, seed == 1 ? 1 : 2 * seed - 1, seed == 3 ? 30.0F : 1.0F);
    }
  }
  Gpu gpu(2);
  check_attention(gpu, 7, {16, 2, 256, 0}, 100, 1);
}

}  // namespace stoker::testing
