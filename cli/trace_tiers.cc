#include "cli/trace_tiers.h"

#include <nlohmann/json.hpp>

#include "cli/statistics.h"

namespace stoker::cli {
namespace {

/// Experts per token over each edge.
struct Edges {
  double vram = 0;      ///< found in device memory and read there
  double copied = 0;    ///< over PCIe, then read in device memory
  double promoted = 0;  ///< of these: stay there
  double cpu = 0;       ///< computed out of the pool
  double disk = 0;      ///< read into the pool
};

Edges edges_of(const TieredReplayResult& r) {
  const auto per_token = [&](std::uint64_t n) {
    return static_cast<double>(n) / static_cast<double>(r.tokens);
  };
  return {.vram = per_token(r.vram),
          .copied = per_token(r.copied),
          .promoted = per_token(r.promoted),
          .cpu = per_token(r.pool + r.disk - r.copied),
          .disk = per_token(r.disk)};
}

double share(std::uint64_t part, const TieredReplayResult& r) {
  return static_cast<double>(part) / static_cast<double>(r.uses());
}

std::string head(bool bytes) {
  const std::string unit = bytes ? ", MB per token" : ", experts per token";
  return "| VRAM slots | pool slots | found in VRAM, % | in the pool, % | on disk, % | found in VRAM" + unit +
         " | copied over PCIe | of these promoted | computed on the CPU | read from disk |\n"
         "|---|---|---|---|---|---|---|---|---|---|\n";
}

std::string row(const TieredReplayOptions& how, const TieredReplayResult& r, std::uint64_t expert_bytes) {
  std::string text = "| " + std::to_string(how.vram_slots) + " | " + std::to_string(how.pool_slots);
  for (const std::uint64_t n : {r.vram, r.pool, r.disk})
    text += " | " + number_text("%.1f", 100 * share(n, r));
  const Edges edges = edges_of(r);
  const double unit = expert_bytes == 0 ? 1 : static_cast<double>(expert_bytes) / 1e6;
  for (const double experts : {edges.vram, edges.copied, edges.promoted, edges.cpu, edges.disk})
    text += " | " + number_text("%.1f", experts * unit);
  return text + " |\n";
}

nlohmann::ordered_json to_json(const TieredReplayOptions& how, const TieredReplayResult& r,
                               std::uint64_t expert_bytes) {
  const Edges edges = edges_of(r);
  nlohmann::ordered_json out{{"vram_slots", how.vram_slots},
                             {"pool_slots", how.pool_slots},
                             {"tokens", r.tokens},
                             {"steps", r.steps},
                             {"uses", r.uses()},
                             {"vram", r.vram},
                             {"pool", r.pool},
                             {"disk", r.disk},
                             {"compulsory", r.compulsory},
                             {"copied", r.copied},
                             {"promoted", r.promoted}};
  if (expert_bytes > 0) {
    const auto bytes = [&](double experts) { return experts * static_cast<double>(expert_bytes); };
    // A copy is written and then read in device memory.
    out["bytes_per_token"] = {{"vram", bytes(edges.vram + 2 * edges.copied)},
                              {"pcie", bytes(edges.copied)},
                              {"pcie_promoted", bytes(edges.promoted)},
                              {"cpu", bytes(edges.cpu)},
                              {"disk", bytes(edges.disk)}};
  }
  // [vram, pool, disk, copied, promoted, events like this]: what a model of time per layer needs.
  for (const auto& [tiers, count] : r.events)
    out["events"].push_back({tiers.vram, tiers.pool, tiers.disk, tiers.copied, tiers.promoted, count});
  return out;
}

}  // namespace

int replay_tiers(const Trace& trace, const TierReplay& options, Context& context) {
  const std::uint64_t expert_bytes =
      options.expert_bytes > 0 ? options.expert_bytes : trace.shape.expert_bytes;
  nlohmann::ordered_json json{{"file", options.file},
                              {"tokens", trace.tokens.size()},
                              {"layers", trace.shape.layers},
                              {"experts", trace.shape.experts},
                              {"top_k", trace.shape.top_k},
                              {"expert_bytes", expert_bytes},
                              {"tiers", nlohmann::json::array()}};
  std::string table = head(expert_bytes > 0);
  for (const std::uint32_t size : options.slots_per_layer)
    for (const std::uint32_t vram_slots : options.vram_slots) {
      context.terminal.progress(std::to_string(vram_slots) + " VRAM slots, " + std::to_string(size) +
                                " pool slots per layer");
      TieredReplayOptions how = options.how;
      how.vram_slots = vram_slots;
      how.pool_slots = size * trace.shape.layers;
      const TieredReplayResult result = tiered_replay(trace, how);
      table += row(how, result, expert_bytes);
      json["tiers"].push_back(to_json(how, result, expert_bytes));
    }
  context.terminal.clear_progress();
  return context.terminal.write_answer(options.json ? json.dump() + "\n" : table)
             ? kOk
             : report(kFailure, "stdout", "the result could not be written");
}

}  // namespace stoker::cli
