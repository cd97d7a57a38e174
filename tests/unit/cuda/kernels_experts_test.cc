// The experts of a batch, in the emulation: bits of the CPU for every code, shape and distribution of pairs,
// and double precision. Last, what launches refuse.
#include <algorithm>

#include "tests/unit/cuda/kernels_rig.h"

namespace stoker::testing {
namespace {

struct Layer {
  DType dtype;
  std::uint32_t hidden, inner, block_rows, block_cols;
};

struct HostExpert {
  Stored gate, up, down;
  HostExpert(Random& random, const Layer& l)
      : gate(random, l.dtype, l.inner, l.hidden, l.block_rows, l.block_cols),
        up(random, l.dtype, l.inner, l.hidden, l.block_rows, l.block_cols),
        down(random, l.dtype, l.hidden, l.inner, l.block_rows, l.block_cols) {
    for (Stored* m : {&gate, &up, &down}) {
      for (float& scale : m->scales) scale /= 16;
    }
  }
  [[nodiscard]] device::Expert on(Gpu& gpu, std::uint32_t first, std::uint32_t count) const {
    std::vector<float> scales = gate.scales;
    scales.insert(scales.end(), up.scales.begin(), up.scales.end());
    scales.insert(scales.end(), down.scales.begin(), down.scales.end());
    return {gpu.put(gate.data), gpu.put(up.data), gpu.put(down.data), gpu.put(scales), first, count};
  }
};

/// A batch: counts[e] pairs for expert e; pair numbers are a permutation, so outputs land in no order.
struct Batch {
  Layer layer;
  std::vector<std::uint32_t> counts;
  std::uint32_t k;

  void check(Gpu& gpu, unsigned seed, bool with_doubles) const {
    Random random(seed);
    std::uint32_t total = 0;
    for (const std::uint32_t count : counts) total += count;
    const std::uint32_t rows = (total + k - 1) / k + 1;  // some pairs belong to experts that are not here
    std::vector<std::uint32_t> pairs(std::size_t{rows} * k);
    for (std::uint32_t i = 0; i < pairs.size(); ++i) pairs[i] = i;
    std::shuffle(pairs.begin(), pairs.end(), random);
    const auto h = randoms(random, std::size_t{rows} * layer.hidden);
    std::vector<HostExpert> experts;
    std::vector<device::Expert> table;
    std::uint32_t first = 0;
    for (const std::uint32_t count : counts) {
      experts.emplace_back(random, layer);
      table.push_back(experts.back().on(gpu, first, count));
      first += count;
    }
    float* gate = gpu.alloc<float>(std::size_t{total} * layer.inner);
    const std::size_t out_floats = pairs.size() * layer.hidden;
    float* out = gpu.alloc<float>(out_floats);
    Gpu::must(
        gpu.api().experts({gpu.put(table), gpu.put(pairs), static_cast<std::uint32_t>(counts.size()),
                           *std::max_element(counts.begin(), counts.end()), k, layer.hidden, layer.inner,
                           layer.block_rows, layer.block_cols, experts[0].gate.code(), gpu.put(h), gate, out},
                          gpu.stream()));
    const auto got = gpu.get(out, out_floats);
    for (const Kernels* kernels : cpu_tables())
      check_bits(got, on_cpu(*kernels, experts, pairs, h, out_floats));
    if (with_doubles) check_doubles(experts, pairs, h, got);
  }

  [[nodiscard]] std::vector<float> on_cpu(const Kernels& kernels, const std::vector<HostExpert>& experts,
                                          const std::vector<std::uint32_t>& pairs,
                                          const std::vector<float>& h, std::size_t out_floats) const {
    auto want = untouched_floats(out_floats);
    std::size_t at = 0;
    for (std::size_t e = 0; e < counts.size(); ++e) {
      for (std::uint32_t i = 0; i < counts[e]; ++i, ++at) {
        std::vector<float> g(layer.inner), u(layer.inner);
        const float* x = &h[std::size_t{pairs[at]} / k * layer.hidden];
        cpu_matmul(kernels, experts[e].gate.cpu(), x, 0, 1, g.data(), 0);
        cpu_matmul(kernels, experts[e].up.cpu(), x, 0, 1, u.data(), 0);
        kernels.silu_mul(g.data(), u.data(), layer.inner);
        cpu_matmul(kernels, experts[e].down.cpu(), g.data(), 0, 1,
                   &want[std::size_t{pairs[at]} * layer.hidden], 0);
      }
    }
    return want;
  }

  void check_doubles(const std::vector<HostExpert>& experts, const std::vector<std::uint32_t>& pairs,
                     const std::vector<float>& h, const std::vector<float>& got) const {
    std::size_t at = 0;
    for (std::size_t e = 0; e < counts.size(); ++e) {
      const auto gate = experts[e].gate.values(), up = experts[e].up.values(),
                 down = experts[e].down.values();
      for (std::uint32_t i = 0; i < counts[e]; ++i, ++at) {
        std::vector<double> middle(layer.inner), size(layer.inner);
        for (std::uint32_t r = 0; r < layer.inner; ++r) {
          double g = 0, u = 0, u_size = 0;
          for (std::uint32_t c = 0; c < layer.hidden; ++c) {
            const auto x = static_cast<double>(h[std::size_t{pairs[at]} / k * layer.hidden + c]);
            g += gate[std::size_t{r} * layer.hidden + c] * x;
            u += up[std::size_t{r} * layer.hidden + c] * x;
            u_size += std::fabs(up[std::size_t{r} * layer.hidden + c] * x);
          }
          middle[r] = silu(g) * u;
          size[r] = (std::fabs(silu(g)) + 1) * u_size;
        }
        for (std::uint32_t r = 0; r < layer.hidden; ++r) {
          double want = 0, magnitude = 0;
          for (std::uint32_t c = 0; c < layer.inner; ++c) {
            want += down[std::size_t{r} * layer.inner + c] * middle[c];
            magnitude += std::fabs(down[std::size_t{r} * layer.inner + c]) * size[c];
          }
          check_near(got[std::size_t{pairs[at]} * layer.hidden + r], want, magnitude, 1e-5);
        }
      }
    }
  }
};

}  // namespace

TEST_CASE("experts: every code, shape and number of pairs") {
  unsigned seed = 0;
  for (const DType dtype : kDTypes) {
    for (const Layer& l :
         {Layer{dtype, 256, 128, 128, 128}, Layer{dtype, 40, 24, 16, 16}, Layer{dtype, 72, 33, 5, 7},
          Layer{dtype, 328, 144, 128, 128}, Layer{dtype, 272, 32, 128, 256}}) {
      for (const std::vector<std::uint32_t>& counts : {std::vector<std::uint32_t>{1, 1, 0, 1},
                                                       {2, 1, 0, 2},
                                                       {3, 1, 4},
                                                       {2, 1, 5},
                                                       {8, 3, 16, 4},
                                                       {33, 0, 7},
                                                       {90, 1}}) {
        INFO(dtype_name(dtype) << " hidden " << l.hidden << " inner " << l.inner << ", first count "
                               << counts[0]);
        Gpu gpu(++seed % 3 + 1);
        Batch{l, counts, 3}.check(gpu, seed, true);
      }
    }
  }
}

TEST_CASE("experts: the shape of decoding") {
  Gpu gpu(1);
  Batch{{DType::f8_e4m3, 2048, 512, 128, 128}, std::vector<std::uint32_t>(10, 1), 10}.check(gpu, 5, false);
}

TEST_CASE("experts: the shape of prefill") {
  Gpu gpu(2);
  Batch{{DType::f8_e4m3, 1024, 128, 128, 128}, {17, 2, 40}, 10}.check(gpu, 6, false);
}

TEST_CASE("launches refuse what they cannot do, and nothing to do is no error") {
  Gpu gpu(1);
  const device::Api& api = gpu.api();
  device::Stream* s = gpu.stream();
  const auto says = [](device::Status status, const char* part) {
    INFO(text_of(status));
    return text_of(status).find(part) != std::string::npos;
  };
  CHECK(says(api.rms_norm({nullptr, nullptr, nullptr, nullptr, 1, 20000, 0}, s), "12284"));
  device::Matmul m{};
  m.rows = m.w.rows = m.w.cols = 1;
  m.w.data = gpu.alloc<char>(64) + 1;
  CHECK(says(api.matmul(m, s), "16-byte"));
  m.w.data = gpu.alloc<char>(64);
  CHECK(says(api.matmul(m, s), "scales"));
  device::Convolution c{};
  c.step.row_count = c.step.segment_count = c.channels = 1;
  c.taps = 9;
  CHECK(says(api.convolution(c, s), "taps"));
  device::DeltaRule d{};
  d.step.row_count = d.step.segment_count = 1;
  d.key_heads = 2;
  d.value_heads = 3;
  d.dk = d.dv = 16;
  CHECK(says(api.delta_rule(d, s), "multiple"));
  device::Attention a{};
  a.step.row_count = 1;
  a.heads = a.kv_heads = 1;
  a.head_dim = 16;
  a.longest = 10;
  a.workspace_floats = api.attention_workspace(1, 16, 10) - 1;
  CHECK(says(api.attention(a, s), "workspace"));
  device::AttentionStore store{};
  store.step.row_count = 1;
  store.head_dim = 16;
  store.rotary = 18;
  CHECK(says(api.attention_store(store, s), "rotary"));
  CHECK(says(api.top_k({nullptr, nullptr, nullptr, 1, 4, 5, true}, s), "larger"));
  device::Experts e{};
  e.count = e.most_pairs = 1;
  CHECK(says(api.experts(e, s), "positive"));

  Gpu::must(api.rms_norm({}, s));
  Gpu::must(api.matmul({}, s));
  Gpu::must(api.silu_mul({}, s));
  Gpu::must(api.convolution({}, s));
  Gpu::must(api.delta_rule({}, s));
  Gpu::must(api.attention_store({}, s));
  Gpu::must(api.attention({}, s));
  Gpu::must(api.top_k({}, s));
  Gpu::must(api.experts({}, s));
  Gpu::must(api.combine({}, s));
  Gpu::must(api.not_finite({}, s));
}

}  // namespace stoker::testing
