#include "daemons/worker/status.h"

#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "daemons/common/endpoints.h"
#include "daemons/common/size.h"

namespace stoker {
namespace {

using Json = nlohmann::ordered_json;

std::uint64_t get(const std::atomic<std::uint64_t>& value) { return value.load(std::memory_order_relaxed); }

bool process_exists(std::int64_t pid) {
  return pid > 0 && pid < (1 << 23) && (::kill(static_cast<pid_t>(pid), 0) == 0 || errno == EPERM);
}

double share(std::uint64_t part, std::uint64_t whole) {
  return whole == 0 ? 0 : static_cast<double>(part) / static_cast<double>(whole);
}

Json pool_json(const Pool& pool) {
  static constexpr const char* kStates[kSlotStates] = {"free", "filling", "ready", "retiring", "quarantined"};
  const PoolCensus slots = census(pool);
  Json out = {{"slots", pool.slot_count()},
              {"slot_bytes", pool.slot_bytes()},
              {"bytes", pool.slot_count() * pool.slot_bytes()},
              {"experts", pool.expert_count()},
              {"pages", pool.page_note()},
              {"step", pool.header().step.load(std::memory_order_relaxed)}};
  for (unsigned s = 0; s < kSlotStates; ++s) out[kStates[s]] = slots.by_state[s];
  out["leased"] = slots.leased;
  return out;
}

/// Experts by tier since the pool was made, all workers together.
Json tiers_json(const PoolCounters::Worker& w) {
  const std::uint64_t pool = get(w.pool_hits), hinted = get(w.hint_hits);
  const std::uint64_t disk = get(w.disk_misses), late = get(w.late_hints);
  const std::uint64_t all = pool + hinted + disk + late;
  return {{"used", all},
          {"pool", pool},
          {"pool_hinted", hinted},
          {"disk", disk},
          {"disk_late_hint", late},
          {"hit_rate", share(pool + hinted, all)},
          {"stall_seconds", static_cast<double>(get(w.stall_ns)) * 1e-9}};
}

Json loader_json(const Pool& pool) {
  const PoolHeader& header = pool.header();
  const PoolCounters::Loader& c = pool.counters().loader;
  const std::uint32_t pid = header.loader_pid.load(std::memory_order_relaxed);
  return {{"pid", pid},
          {"alive", process_exists(pid)},
          {"epoch", header.epoch.load(std::memory_order_relaxed)},
          {"read_bytes", get(c.read_bytes)},
          {"reads", get(c.reads)},
          {"read_errors", get(c.read_errors)},
          {"retries", get(c.retries)},
          {"short_reads", get(c.short_reads)},
          {"demand_busy_seconds", static_cast<double>(get(c.demand_busy_ns)) * 1e-9},
          {"disk_busy_seconds", static_cast<double>(get(c.disk_busy_ns)) * 1e-9},
          {"read_seconds", static_cast<double>(get(c.read_ns_total)) * 1e-9},
          {"demand_fills", get(c.demand_fills)},
          {"hint_fills", get(c.hint_fills)},
          {"evictions", get(c.evictions)},
          {"warm_planned", get(c.warm_planned)},
          {"warm_fills", get(c.warm_fills)},
          {"hints_received", get(c.hints_received)},
          {"hints_dropped", get(c.hints_dropped)},
          {"hints_issued", get(c.hints_issued)},
          {"hints_promoted", get(c.hints_promoted)},
          {"hints_wasted", get(c.hints_wasted)},
          {"wasted_bytes", get(c.wasted_bytes)},
          {"quarantined", get(c.quarantined)},
          {"reclaimed_processes", get(c.reclaimed_processes)}};
}

/// The predictor's own report, null when none runs.
Json predictor_json(const std::string& path) {
  constexpr std::streamsize kReportMax = 1 << 20;
  std::ifstream in(path);
  if (!in) return nullptr;
  std::string text(static_cast<std::size_t>(kReportMax), '\0');
  in.read(text.data(), kReportMax);
  text.resize(static_cast<std::size_t>(in.gcount()));
  Json report = Json::parse(text, nullptr, false);
  if (!report.is_object() || !report.contains("pid") || !report["pid"].is_number_integer()) return nullptr;
  if (!process_exists(report["pid"].get<std::int64_t>())) return nullptr;
  return report;
}

Json scheduler_json(const SchedulerStatus& s) {
  return {{"queued", s.queued},
          {"prefilling", s.prefilling},
          {"decoding", s.decoding},
          {"done", s.requests_done},
          {"failed", s.requests_failed},
          {"cancelled", s.requests_cancelled},
          {"refused", s.requests_refused},
          {"gave_way", s.requests_gave_way}};
}

Json tokens_json(const SchedulerStatus& s) {
  return {{"prompt", s.prompt_tokens},
          {"prompt_cached", s.cached_tokens},
          {"generated", s.generated_tokens},
          {"generated_per_second_1s", s.generated_per_second_1s},
          {"generated_per_second_60s", s.generated_per_second_60s},
          {"prompt_per_second_60s", s.prompt_per_second_60s},
          {"prefill_steps", s.prefill_steps},
          {"decode_steps", s.decode_steps},
          {"prefill_seconds", s.prefill_seconds},
          {"decode_seconds", s.decode_seconds},
          {"stall_seconds", s.stall_seconds}};
}

}  // namespace

std::string status_json(const StatusFacts& facts, const SchedulerStatus& scheduler, Duration now) {
  const Config& config = *facts.config;
  const Json out = {
      {"worker",
       {{"pid", ::getpid()},
        {"uptime_seconds", seconds(now - facts.started)},
        {"run_dir", config.run_dir},
        {"backend", facts.backend},
        {"context", facts.context},
        {"max_sequences", config.max_sequences},
        {"chunk", config.chunk},
        {"experts_from_vram", scheduler.experts_vram},
        {"experts_copied", scheduler.experts_copied},
        {"experts_on_cpu_lane", scheduler.experts_on_cpu},
        {"experts_copied_ahead", scheduler.experts_copied_ahead},
        {"vram_bytes_per_second", facts.rates.memory},
        {"copy_bytes_per_second", facts.rates.copies},
        {"cpu_lane_bytes_per_second", facts.rates.cpu},
        {"predictor_samples", config.samples}}},
      {"model",
       {{"dir", config.model_dir},
        {"architecture", facts.model->architecture},
        {"layers", facts.model->layers},
        {"experts", facts.model->experts},
        {"experts_per_token", facts.model->experts_per_token},
        {"vocab_size", facts.model->vocab_size},
        {"tokenizer", facts.has_tokenizer},
        {"chat_template", facts.has_chat_template}}},
      {"requests", scheduler_json(scheduler)},
      {"tokens", tokens_json(scheduler)},
      {"memory",
       {{"resident_bytes", resident_memory()},
        {"weights_bytes", facts.weights_bytes},
        {"sequence_bytes", scheduler.sequence_bytes},
        {"sequence_reserved_bytes", scheduler.reserved_bytes},
        {"sequence_kept_bytes", scheduler.kept_bytes},
        {"sequences_kept", scheduler.kept_sequences},
        {"sequence_budget_bytes", facts.sequence_memory}}},
      {"pool", pool_json(*facts.pool)},
      {"experts", tiers_json(facts.pool->counters().worker)},
      {"loader", loader_json(*facts.pool)},
      {"predictor", predictor_json(endpoint::predictor_report(config.run_dir))},
  };
  // Paths need not be UTF-8.
  return out.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace stoker
