#include "cli/bench_figures.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "checkpoint/tensor_list.h"
#include "shm/base/check.h"

namespace stoker::cli {

std::string BenchTest::name() const { return (kind == Kind::prefill ? "pp" : "tg") + std::to_string(tokens); }

std::uint64_t BenchTest::steps(std::uint32_t chunk) const {
  return kind == Kind::decode ? tokens : (tokens + chunk - 1) / chunk;
}

Result<ModelCosts> ModelCosts::of(const Checkpoint& checkpoint) {
  STOKER_TRY(const ExpertPlan plan, ExpertPlan::make(checkpoint));
  const ModelConfig& config = checkpoint.config();
  ModelCosts costs{.expert_bytes = plan.expert_bytes()};
  for (const TensorSpec& spec : resident_tensors(config)) {
    std::uint64_t bytes = 0;
    for (const std::string& name : {spec.name, spec.name + kScaleSuffix})
      if (const TensorRef* tensor = checkpoint.find(name)) bytes += tensor->info.bytes;
    if (spec.role == TensorRole::lm_head ||
        (spec.role == TensorRole::embedding && config.tie_word_embeddings))
      costs.head_bytes += bytes;
    else if (spec.role != TensorRole::embedding)  // of the embedding, a token reads one row
      costs.resident_bytes += bytes;
  }
  const auto recurrent = std::count(config.mixers.begin(), config.mixers.end(), MixerType::linear_attention);
  costs.state_bytes = static_cast<std::uint64_t>(recurrent) * config.linear_value_heads *
                      config.linear_key_dim * config.linear_value_dim * sizeof(float);
  return costs;
}

std::uint64_t device_bytes(const BenchSample& sample, const ModelCosts& costs) {
  const std::uint64_t experts =
      sample.on_gpu() ? sample.uses_vram + 2 * sample.uses_copied + sample.copied_ahead : sample.uses();
  return sample.steps * (costs.resident_bytes + 2 * costs.state_bytes) + sample.heads * costs.head_bytes +
         experts * costs.expert_bytes;
}

std::uint64_t copied_bytes(const BenchSample& sample, const ModelCosts& costs) {
  return (sample.uses_copied + sample.copied_ahead) * costs.expert_bytes;
}

BenchLimit limit_of(const BenchSample& sample, const ModelCosts& costs) {
  const auto time = [](std::uint64_t bytes, double bandwidth) {
    return bandwidth > 0 ? static_cast<double>(bytes) / bandwidth : 0;
  };
  const std::uint64_t needed = sample.read_bytes - std::min(sample.read_bytes, sample.wasted_bytes);
  return {.disk_seconds = time(needed, sample.raw_disk_bandwidth),
          .memory_seconds = time(device_bytes(sample, costs), sample.raw_memory_bandwidth),
          .copy_seconds = time(copied_bytes(sample, costs), sample.raw_copy_bandwidth),
          .cpu_lane_seconds = time(sample.uses_on_cpu * costs.expert_bytes, sample.raw_cpu_lane_bandwidth)};
}

double BenchLimit::seconds() const {
  return std::max({disk_seconds, memory_seconds, copy_seconds, cpu_lane_seconds});
}

const char* BenchLimit::by() const {
  const double most = seconds();
  if (most == memory_seconds) return "memory";
  if (most == disk_seconds) return "disk";
  return most == copy_seconds ? "pcie" : "cpu_lane";
}

Spread spread_of(std::vector<double> values) {
  STOKER_CHECK(!values.empty());
  std::sort(values.begin(), values.end());
  const std::size_t n = values.size();
  Spread s{.median = (values[(n - 1) / 2] + values[n / 2]) / 2, .min = values.front(), .max = values.back()};
  s.mean = std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(n);
  double squares = 0;
  for (const double v : values) squares += (v - s.mean) * (v - s.mean);
  if (n > 1) s.stddev = std::sqrt(squares / static_cast<double>(n - 1));
  return s;
}

}  // namespace stoker::cli
