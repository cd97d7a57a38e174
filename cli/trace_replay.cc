// `stoker trace replay`: policies and sizes side by side, or device memory in front of the pool.
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/trace_input.h"
#include "cli/trace_tiers.h"
#include "trace/replay.h"

namespace stoker::cli {
namespace {

struct ReplayVerb {
  TraceInput input;
  std::vector<std::string> policies{"lru", "lfu-decay", "lfru", "stoker", "belady"};
  bool json = false;
  std::vector<std::uint32_t> vram_slots;
  std::uint64_t expert_bytes = 0;
  std::uint32_t second_touch = VramCacheOptions{}.second_touch_within;
  std::string pool_hears = "misses", copies = "in-order";
  std::vector<double> lanes{0, 0};
};

/// Slots per layer to try: what was asked for, or an eighth, a quarter, half of the experts.
std::vector<std::uint32_t> sizes_of(const TraceInput& input, const TraceShape& shape) {
  if (!input.slots_per_layer.empty()) return input.slots_per_layer;
  return {std::max(1U, shape.experts / 8), std::max(1U, shape.experts / 4), std::max(1U, shape.experts / 2)};
}

TieredReplayOptions tiers_of(const ReplayVerb& options) {
  TieredReplayOptions how{.skip = options.input.skip, .vram = {.second_touch_within = options.second_touch}};
  how.cpu_rate = options.lanes[0];
  how.copy_rate = options.lanes[1];
  if (options.copies == "hottest") how.copies = CopyChoice::hottest;
  if (options.pool_hears == "all-uses") how.pool_hears = PoolHears::all_uses;
  if (options.pool_hears == "exclusive") how.pool_hears = PoolHears::exclusive;
  return how;
}

int replay_all(const ReplayVerb& options, Context& context) {
  const auto trace = load_trace(options.input.file, context);
  if (!trace) return report(trace.error());
  if (const auto ok = check_skip(options.input, *trace); !ok) return report(ok.error());
  const auto sizes = sizes_of(options.input, trace->shape);
  if (!options.vram_slots.empty()) {
    return replay_tiers(*trace,
                        {.file = options.input.file,
                         .vram_slots = options.vram_slots,
                         .slots_per_layer = sizes,
                         .expert_bytes = options.expert_bytes,
                         .how = tiers_of(options),
                         .json = options.json},
                        context);
  }
  nlohmann::ordered_json json{
      {"file", options.input.file}, {"tokens", trace->tokens.size()}, {"replays", nlohmann::json::array()}};
  std::string head = "| hit rate, % at slots per layer", rule = "|---", body;
  for (const std::uint32_t size : sizes) {
    head += " | " + std::to_string(size);
    rule += "|---";
  }
  for (const std::string& name : options.policies) {
    const auto policy = parse_policy(name);
    if (!policy)
      return report(kUsage, "--policy", name + " is not one of lru, lfu-decay, lfru, stoker, belady");
    body += "| " + name;
    for (const std::uint32_t size : sizes) {
      context.terminal.progress(name + ", " + std::to_string(size) + " slots per layer");
      const ReplayOptions how{.policy = *policy,
                              .slots = size * trace->shape.layers,
                              .per_layer = options.input.per_layer,
                              .skip = options.input.skip};
      const ReplayResult result = replay(*trace, how);
      body += " | " + cell("%.1f", 100 * result.hit_rate());
      json["replays"].push_back({{"policy", name},
                                 {"slots", how.slots},
                                 {"per_layer", options.input.per_layer},
                                 {"hits", result.hits},
                                 {"misses", result.misses},
                                 {"compulsory", result.compulsory},
                                 {"hit_rate", result.hit_rate()}});
    }
    body += " |\n";
  }
  context.terminal.clear_progress();
  const std::string out = options.json ? json.dump() + "\n" : head + " |\n" + rule + "|\n" + body;
  return context.terminal.write_answer(out) ? kOk
                                            : report(kFailure, "stdout", "the result could not be written");
}

/// Device memory in front of the pool, instead of policies side by side.
void add_tier_options(CLI::App& verb, ReplayVerb& options) {
  CLI::Option* vram = verb.add_option("--vram-slots", options.vram_slots,
                                      "Slots in device memory for the whole model, N[,N...]: replays the "
                                      "worker's VRAM cache before a pool with the loader's policy")
                          ->delimiter(',')
                          ->check(CLI::Range(0U, 1U << 24))
                          ->excludes(verb.get_option("--policy"))
                          ->excludes(verb.get_option("--per-layer"));
  verb.add_option("--lanes", options.lanes,
                  "CPU,PCIE: speeds of the two ways to compute what is not in device memory, in any unit "
                  "(without: all "
                  "of it is copied)")
      ->delimiter(',')
      ->expected(2)
      ->check(CLI::PositiveNumber)
      ->needs(vram);
  verb.add_option("--copies", options.copies, "Which experts are copied: in-order, or the hottest")
      ->check(CLI::IsMember({"in-order", "hottest"}))
      ->capture_default_str()
      ->needs(vram);
  verb.add_option("--second-touch", options.second_touch,
                  "Steps between two touches for a copied expert to stay; 0: each stays")
      ->capture_default_str()
      ->needs(vram);
  verb.add_option(
          "--pool-hears", options.pool_hears,
          "What the pool's policy learns of VRAM hits: misses (nothing), all-uses, exclusive (nothing, "
          "and a promoted expert goes first)")
      ->check(CLI::IsMember({"misses", "all-uses", "exclusive"}))
      ->capture_default_str()
      ->needs(vram);
  verb.add_option("--expert-bytes", options.expert_bytes,
                  "Of one expert's weights, where the trace does not say")
      ->needs(vram);
}

}  // namespace

void add_trace_replay(CLI::App& trace, Action& action) {
  auto options = std::make_shared<ReplayVerb>();
  CLI::App* verb = trace.add_subcommand("replay", "Hit rates of cache policies and sizes on a trace");
  verb->add_option("FILE", options->input.file,
                   "Trace file: of `trace record`, MTRC1, route_trace or event CSV")
      ->required();
  verb->add_option("--policy", options->policies, "lru, lfu-decay, lfru, stoker, belady (default: all)")
      ->delimiter(',');
  add_cache_options(*verb, options->input, "1/8, 1/4, 1/2");
  add_tier_options(*verb, *options);
  verb->add_flag("--json", options->json, "Print JSON");
  verb->callback([options, &action] { action = [options](Context& c) { return replay_all(*options, c); }; });
}

}  // namespace stoker::cli
