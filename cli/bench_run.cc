#include "cli/bench_run.h"

#include "cli/generate.h"
#include "cli/machine.h"
#include "cli/memory_bandwidth.h"

namespace stoker::cli {

using namespace std::chrono_literals;
using Json = nlohmann::ordered_json;

namespace {

constexpr Duration kStatusWait = 30s;

/// Growth of a counter of the status between two looks.
std::uint64_t growth(const Json& before, const Json& after, const char* group, const char* name) {
  return after.at(group).at(name).get<std::uint64_t>() - before.at(group).at(name).get<std::uint64_t>();
}

void read_facts(const Json& status, StackFacts& facts) {
  facts.backend = status.at("worker").at("backend").get<std::string>();
  facts.chunk = status.at("worker").at("chunk").get<std::uint32_t>();
  facts.pool_slots = status.at("pool").at("slots").get<std::uint64_t>();
  facts.pool_bytes = status.at("pool").at("bytes").get<std::uint64_t>();
  facts.weights_bytes = status.at("memory").at("weights_bytes").get<std::uint64_t>();
}

void read_counters(const Json& before, const Json& after, BenchSample& sample) {
  const auto grown = [&](const char* group, const char* name) { return growth(before, after, group, name); };
  sample.uses_vram = grown("worker", "experts_from_vram");
  sample.uses_copied = grown("worker", "experts_copied");
  sample.uses_on_cpu = grown("worker", "experts_on_cpu_lane");
  sample.copied_ahead = grown("worker", "experts_copied_ahead");
  sample.uses_pool = grown("experts", "pool");
  sample.uses_prefetched = grown("experts", "pool_hinted");
  sample.uses_disk = grown("experts", "disk");
  sample.uses_late_hint = grown("experts", "disk_late_hint");
  sample.read_bytes = grown("loader", "read_bytes");
  const auto busy = [](const Json& status) {
    return status.at("loader").at("disk_busy_seconds").get<double>();
  };
  sample.disk_busy_seconds = std::max(0.0, busy(after) - busy(before));
  sample.wasted_bytes = grown("loader", "wasted_bytes");
  sample.hints_issued = grown("loader", "hints_issued");
  sample.hints_wasted = grown("loader", "hints_wasted");
}

/// A GPU worker measured its bandwidths as it started, moments ago. What this program's threads read at says
/// nothing about it.
void read_bandwidths(const Json& worker, double memory, BenchSample& sample) {
  sample.raw_copy_bandwidth = worker.at("copy_bytes_per_second").get<double>();
  sample.raw_cpu_lane_bandwidth = worker.at("cpu_lane_bytes_per_second").get<double>();
  sample.raw_memory_bandwidth = sample.on_gpu() ? worker.at("vram_bytes_per_second").get<double>() : memory;
}

}  // namespace

tl::expected<Json, ExitReport> BenchRunner::status(Session& session) {
  const auto text = session.client().status(kStatusWait);
  if (!text) return stop(text.error(), "status");
  Json json = Json::parse(*text, nullptr, false);
  if (!json.is_object()) return stop(kFailure, "status", "the worker's answer is not JSON");
  return json;
}

/// Decodes ids from `first` on, whatever the model would have said.
tl::expected<wire::Stats, ExitReport> BenchRunner::request(Session& session, std::size_t first,
                                                           std::uint32_t prompt, std::uint32_t generated) {
  wire::GenerateRequest request;
  request.set_id(next_request_id(++requests_));
  request.set_max_tokens(generated);
  request.set_ignore_eos(true);
  request.set_no_reuse(true);
  const auto id = plan_.ids.begin() + static_cast<std::ptrdiff_t>(first);
  for (std::uint32_t i = 0; i < prompt; ++i) request.mutable_tokens()->add_ids(id[i]);
  for (std::uint32_t i = prompt; i < prompt + generated; ++i) request.add_forced(id[i]);
  const auto outcome = generate(session.client(), request, {}, interrupts_, std::nullopt, context_.clock);
  if (!outcome) return stop(outcome.error(), "worker");
  if (outcome->end != GenerateOutcome::End::done)
    return stop(exit_code_of_signal(outcome->signal), "interrupted", "the benchmark was not complete");
  const wire::Stats& stats = outcome->done->stats();
  if (stats.generated_tokens() != generated || stats.cached_tokens() > 0) {
    return stop(kFailure, "worker",
                "computed " + std::to_string(stats.generated_tokens()) + " of " + std::to_string(generated) +
                    " tokens and took " + std::to_string(stats.cached_tokens()) +
                    " from a cache: that would not measure what was asked for");
  }
  return stats;
}

/// A tg test is a prompt of one token and N tokens after it: N forward passes of one row each, all of which
/// count, so that times and counters cover the same work. A pp test ends with its first token.
tl::expected<BenchSample, ExitReport> BenchRunner::measure_on(Session& session, const BenchTest& test,
                                                              double memory_bandwidth) {
  const auto started = status(session);
  if (!started) return tl::unexpected(started.error());
  try {
    read_facts(*started, facts_);
    PeakMemory memory(siblings_of(started->at("worker").at("pid").get<pid_t>()), context_.clock);
    if (test.warm) {
      if (const auto warm = request(session, 0, 1, plan_.warm_up); !warm) return tl::unexpected(warm.error());
    }
    const auto before = status(session);
    if (!before) return tl::unexpected(before.error());
    const bool decode = test.kind == BenchTest::Kind::decode;
    const auto stats = request(session, plan_.warm_up, decode ? 1 : test.tokens, decode ? test.tokens : 1);
    if (!stats) return tl::unexpected(stats.error());
    const auto after = status(session);
    if (!after) return tl::unexpected(after.error());

    BenchSample sample{.tokens = test.tokens, .steps = test.steps(facts_.chunk), .heads = test.heads()};
    sample.seconds = stats->prefill_seconds() + stats->decode_seconds();
    sample.stall_late_hint_seconds = stats->stall_late_hint_seconds();
    sample.stall_demand_seconds = stats->stall_seconds() - stats->stall_late_hint_seconds();
    read_counters(*before, *after, sample);
    read_bandwidths(after->at("worker"), memory_bandwidth, sample);
    sample.peak_bytes = memory.stop();
    return sample;
  } catch (const Json::exception& e) {
    return stop(kFailure, "status",
                std::string("a field is missing; is the worker of another version? ") + e.what());
  }
}

tl::expected<BenchSample, ExitReport> BenchRunner::measure(const BenchTest& test) {
  const auto disk = measure_disk(plan_.disk, interrupts_);
  if (!disk) return tl::unexpected(disk.error());
  const auto memory = measure_memory(plan_.threads, context_.clock);
  if (!memory) return stop(memory.error(), "bench");
  auto session = Session::open(context_, interrupts_, plan_.session);
  if (!session) return tl::unexpected(session.error());
  auto sample = measure_on(*session, test, *memory);
  if (!sample) return sample;
  facts_.disk_direct = disk->direct;
  sample->raw_disk_bandwidth = disk->bytes_per_second;
  return sample;
}

}  // namespace stoker::cli
