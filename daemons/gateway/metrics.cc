#include "daemons/gateway/metrics.h"

#include <prometheus/text_serializer.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>
#include <vector>

namespace stoker::gateway {
namespace {

using prometheus::BuildCounter;
using prometheus::BuildGauge;
using prometheus::BuildHistogram;
using prometheus::MetricFamily;
using prometheus::MetricType;

using Buckets = prometheus::Histogram::BucketBoundaries;

/// A number of the worker's status.
struct Exported {
  const char* name;
  const char* help;
  MetricType type;
  const char* label;  ///< "name=value", or ""
  const char* section;
  const char* key;
};
constexpr auto kCounter = MetricType::Counter;
constexpr auto kGauge = MetricType::Gauge;
/// Entries of one name stand together.
constexpr std::array kExported = {
    Exported{"stoker_prompt_tokens_total", "Prompt tokens computed", kCounter, "", "tokens", "prompt"},
    Exported{"stoker_prompt_cached_tokens_total", "Prompt tokens that a kept sequence had", kCounter, "",
             "tokens", "prompt_cached"},
    Exported{"stoker_generation_tokens_total", "Tokens generated", kCounter, "", "tokens", "generated"},
    Exported{"stoker_step_seconds_total", "Time in steps of the model", kCounter, "phase=prefill", "tokens",
             "prefill_seconds"},
    Exported{"stoker_step_seconds_total", "", kCounter, "phase=decode", "tokens", "decode_seconds"},
    Exported{"stoker_stall_seconds_total", "Time in which computation waited for weights", kCounter, "",
             "tokens", "stall_seconds"},
    Exported{"stoker_requests", "Requests at the worker", kGauge, "state=queued", "requests", "queued"},
    Exported{"stoker_requests", "", kGauge, "state=prefilling", "requests", "prefilling"},
    Exported{"stoker_requests", "", kGauge, "state=decoding", "requests", "decoding"},
    Exported{"stoker_requests_total", "Requests that ended at the worker", kCounter, "end=done", "requests",
             "done"},
    Exported{"stoker_requests_total", "", kCounter, "end=failed", "requests", "failed"},
    Exported{"stoker_requests_total", "", kCounter, "end=cancelled", "requests", "cancelled"},
    Exported{"stoker_requests_total", "", kCounter, "end=refused", "requests", "refused"},
    Exported{"stoker_expert_uses_total", "Experts used, by where they were", kCounter, "tier=pool", "experts",
             "pool"},
    Exported{"stoker_expert_uses_total", "", kCounter, "tier=pool_hinted", "experts", "pool_hinted"},
    Exported{"stoker_expert_uses_total", "", kCounter, "tier=disk", "experts", "disk"},
    Exported{"stoker_expert_uses_total", "", kCounter, "tier=disk_late_hint", "experts", "disk_late_hint"},
    Exported{"stoker_expert_uses_total", "", kCounter, "tier=vram", "worker", "experts_from_vram"},
    Exported{"stoker_disk_read_bytes_total", "Bytes read by the loader", kCounter, "", "loader",
             "read_bytes"},
    Exported{"stoker_disk_reads_total", "Reads by the loader", kCounter, "", "loader", "reads"},
    Exported{"stoker_disk_busy_seconds_total", "Time with a read under way", kCounter, "", "loader",
             "disk_busy_seconds"},
    Exported{"stoker_disk_read_errors_total", "Reads that failed", kCounter, "", "loader", "read_errors"},
    Exported{"stoker_hints_total", "Prefetch hints", kCounter, "fate=issued", "loader", "hints_issued"},
    Exported{"stoker_hints_total", "", kCounter, "fate=promoted", "loader", "hints_promoted"},
    Exported{"stoker_hints_total", "", kCounter, "fate=wasted", "loader", "hints_wasted"},
    Exported{"stoker_hints_total", "", kCounter, "fate=dropped", "loader", "hints_dropped"},
    Exported{"stoker_evictions_total", "Experts that gave up their slot", kCounter, "", "loader",
             "evictions"},
    Exported{"stoker_pool_slots", "Slots of the pool", kGauge, "state=free", "pool", "free"},
    Exported{"stoker_pool_slots", "", kGauge, "state=filling", "pool", "filling"},
    Exported{"stoker_pool_slots", "", kGauge, "state=ready", "pool", "ready"},
    Exported{"stoker_pool_slots", "", kGauge, "state=retiring", "pool", "retiring"},
    Exported{"stoker_pool_slots", "", kGauge, "state=quarantined", "pool", "quarantined"},
    Exported{"stoker_pool_bytes", "Size of the pool", kGauge, "", "pool", "bytes"},
    Exported{"stoker_worker_resident_bytes", "Memory of the worker process", kGauge, "", "memory",
             "resident_bytes"},
    Exported{"stoker_sequence_bytes", "State of running sequences", kGauge, "", "memory", "sequence_bytes"},
};

std::optional<double> number_in(const Json& status, const Exported& exported) {
  const auto section = status.find(exported.section);
  if (section == status.end() || !section->is_object()) return std::nullopt;
  const auto value = section->find(exported.key);
  if (value == section->end() || !value->is_number()) return std::nullopt;
  return value->get<double>();
}

prometheus::ClientMetric metric_of(const Exported& exported, double value) {
  prometheus::ClientMetric metric;
  const std::string label = exported.label;
  if (const std::size_t equals = label.find('='); equals != std::string::npos)
    metric.label.push_back({label.substr(0, equals), label.substr(equals + 1)});
  (exported.type == kCounter ? metric.counter.value : metric.gauge.value) = value;
  return metric;
}

/// Stands at the first entry of a name, of which the status may have no number.
std::string help_of(const char* name) {
  const auto same = [&](const Exported& exported) { return std::string_view(exported.name) == name; };
  return std::find_if(kExported.begin(), kExported.end(), same)->help;
}

std::vector<MetricFamily> families_of(const Json& status) {
  std::vector<MetricFamily> families;
  for (const Exported& exported : kExported) {
    const auto value = number_in(status, exported);
    if (!value) continue;
    if (families.empty() || families.back().name != exported.name)
      families.push_back(
          {.name = exported.name, .help = help_of(exported.name), .type = exported.type, .metric = {}});
    families.back().metric.push_back(metric_of(exported, *value));
  }
  return families;
}

}  // namespace

Metrics::Metrics()
    : responses_(BuildCounter()
                     .Name("stoker_http_responses_total")
                     .Help("HTTP responses by path and status")
                     .Register(registry_)),
      running_(BuildGauge()
                   .Name("stoker_http_generations")
                   .Help("Generations in progress")
                   .Register(registry_)
                   .Add({})),
      disconnects_(BuildCounter()
                       .Name("stoker_http_disconnects_total")
                       .Help("Clients that went away before their answer was complete")
                       .Register(registry_)
                       .Add({})),
      first_token_(BuildHistogram()
                       .Name("stoker_time_to_first_token_seconds")
                       .Help("From arrival at the worker to the first token")
                       .Register(registry_)
                       .Add({}, Buckets{0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500})),
      between_tokens_(BuildHistogram()
                          .Name("stoker_inter_token_seconds")
                          .Help("Time per token after the first, one observation per request")
                          .Register(registry_)
                          .Add({}, Buckets{0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5})),
      whole_(BuildHistogram()
                 .Name("stoker_request_seconds")
                 .Help("From arrival at the worker to the last token")
                 .Register(registry_)
                 .Add({}, Buckets{0.1, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500})) {}

void Metrics::count_response(const std::string& path, unsigned status) {
  responses_.Add({{"path", path}, {"status", std::to_string(status)}}).Increment();
}

void Metrics::count_generation(const wire::Stats& stats) {
  if (stats.generated_tokens() == 0) return;
  first_token_.Observe(stats.ttft_seconds());
  whole_.Observe(stats.ttft_seconds() + stats.decode_seconds());
  if (stats.generated_tokens() > 1)
    between_tokens_.Observe(stats.decode_seconds() / (stats.generated_tokens() - 1));
}

std::string Metrics::text(const std::optional<Json>& worker) const {
  std::vector<MetricFamily> families = registry_.Collect();
  MetricFamily up{
      .name = "stoker_worker_up", .help = "Whether the worker answers", .type = kGauge, .metric = {}};
  up.metric.emplace_back();
  up.metric.back().gauge.value = worker ? 1 : 0;
  families.push_back(std::move(up));
  if (worker)
    for (MetricFamily& family : families_of(*worker)) families.push_back(std::move(family));
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace stoker::gateway
