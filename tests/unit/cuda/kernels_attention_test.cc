// Attention's kernels, in the emulation: bits of the CPU at every position, pages included, and double
// precision.
#include <algorithm>

#include "gpu-worker/cpu/rope.h"
#include "tests/unit/cuda/kernels_rig.h"
#include "tests/unit/cuda/kernels_seeds.h"

namespace stoker::testing {
namespace {

/// Pages of a few sequences, in one device array, in an order that has nothing to do with positions.
struct Cache {
  std::uint32_t kv_heads, head_dim, layers;
  std::vector<float> floats;
  std::vector<std::vector<std::size_t>> page_at;  ///< [segment][page], floats

  [[nodiscard]] std::size_t page_floats() const {
    return std::size_t{layers} * 2 * kv_heads * device::kPagePositions * head_dim;
  }
  [[nodiscard]] std::size_t at(std::size_t segment, std::uint32_t position, std::uint32_t layer,
                               std::uint32_t which, std::uint32_t head) const {
    return page_at[segment][position / device::kPagePositions] +
           (((std::size_t{layer} * 2 + which) * kv_heads + head) * device::kPagePositions +
            position % device::kPagePositions) *
               head_dim;
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
    for (const std::uint32_t length : lengths)
      count += (length + device::kPagePositions - 1) / device::kPagePositions;
    std::size_t next = count;
    for (const std::uint32_t length : lengths) {
      page_at.emplace_back();
      for (std::uint32_t p = 0; p * device::kPagePositions < length; ++p)
        page_at.back().push_back(--next * page_floats());
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
    rope_angles(inverse_frequencies(5e6, h.rotary), step.rows[i].position,
                &angles[std::size_t{i} * h.rotary]);
  float* pages = cache.on(gpu, step);
  float* q_on_gpu = gpu.put(q);
  Gpu::must(gpu.api().attention_store(
      {step.on(gpu), q_on_gpu, gpu.put(kv), gpu.put(angles), gpu.put(q_norm), gpu.put(k_norm), q_stride,
       h.heads, h.kv_heads, h.dim, h.rotary, 1e-6F, layer, 2},
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
      k.attention_values(&scores[first], length, 1, &values[std::size_t{first} * dim], count, dim,
                         page.data());
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
        p[t] += static_cast<double>(q[d]) * static_cast<double>(keys[std::size_t{t} * dim + d]) *
                static_cast<double>(scale);
      top = std::max(top, p[t]);
    }
    for (std::uint32_t t = 0; t < length; ++t) {
      p[t] = std::exp(p[t] - top);
      total += p[t];
      for (std::uint32_t d = 0; d < dim; ++d)
        out[d] += p[t] * static_cast<double>(values[std::size_t{t} * dim + d]);
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
  Gpu::must(
      gpu.api().attention({step.on(gpu), on_gpu, on_gpu + h.heads * h.dim, out, q_stride, h.heads, h.kv_heads,
                           h.dim, scale, kLayer, 2, kLongest, gpu.alloc<float>(workspace), workspace},
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
      const OneHead one{keys,  values, query, query + h.heads * h.dim, step.rows[i].position + 1,
                        h.dim, scale};
      const auto o = one.on_cpu(*cpu_tables()[head % 2]);
      want.insert(want.end(), o.begin(), o.end());
      if (spread < 10) one.check_doubles(&got[(std::size_t{i} * h.heads + head) * h.dim]);
    }
  }
  check_bits(got, want);
}

}  // namespace

TEST_CASE("attention_store: bits of the CPU, across pages, nothing else written") {
  for (const unsigned seed : seeds()) {
    for (const Heads& h :
         {Heads{16, 2, 256, 64}, Heads{2, 1, 24, 8}, Heads{3, 3, 40, 40}, Heads{1, 1, 17, 0}}) {
      INFO("seed " << seed << ", head_dim " << h.dim);
      Gpu gpu(seed);
      check_store(gpu, seed, h);
    }
  }
}

TEST_CASE("attention: bits of the CPU, at every length, in any workspace") {
  for (const unsigned seed : seeds()) {
    for (const Heads& h : {Heads{8, 1, 24, 0}, Heads{4, 4, 16, 0}, Heads{6, 2, 40, 0}, Heads{2, 1, 17, 0},
                           Heads{24, 2, 32, 0}, Heads{2, 1, 100, 0}}) {
      INFO("seed " << seed << ", " << h.heads << " heads of " << h.dim);
      Gpu gpu(seed);
      check_attention(gpu, seed, h, seed == 1 ? 1 : 2 * seed - 1, seed == 3 ? 30.0F : 1.0F);
    }
  }
  Gpu gpu(2);
  check_attention(gpu, 7, {16, 2, 256, 0}, 100, 1);
}

}  // namespace stoker::testing
