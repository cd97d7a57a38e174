#include "cli/bench_plan.h"

#include <algorithm>
#include <ctime>
#include <filesystem>
#include <random>

#include "cli/bench_history.h"
#include "cli/commit.h"
#include "cli/input.h"
#include "cli/machine.h"
#include "cli/version.h"
#include "daemons/common/size.h"
#include "shm/base/cpus.h"

namespace stoker::cli {

using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

namespace {

std::vector<BenchTest> tests_of(const BenchOptions& options) {
  std::vector<BenchTest> tests;
  const auto has = [&](const char* state) {
    return std::find(options.states.begin(), options.states.end(), state) != options.states.end();
  };
  const auto add = [&](BenchTest::Kind kind, const std::vector<std::uint32_t>& sizes) {
    for (const std::uint32_t tokens : sizes) {
      if (tokens > 0 && has("cold")) tests.push_back({kind, tokens, false});
      if (tokens > 0 && has("warm") && options.warm_up > 0) tests.push_back({kind, tokens, true});
    }
  };
  add(BenchTest::Kind::prefill, options.prompts);
  add(BenchTest::Kind::decode, options.decodes);
  return tests;
}

/// The ids that all engines and runs are made to compute, and a word on where they are from.
Result<std::string> choose_ids(const BenchOptions& options, const Checkpoint& checkpoint,
                               std::uint64_t needed, std::vector<std::uint32_t>& ids) {
  const std::uint32_t vocabulary = checkpoint.config().vocab_size;
  std::error_code error;
  std::string file = options.tokens_file, from = options.tokens_file;
  if (file.empty() && fs::exists(checkpoint.directory() + "/routing_tokens.txt", error)) {
    from = "routing_tokens.txt";
    file = checkpoint.directory() + "/" + from;
  }
  if (file.empty()) {
    std::mt19937_64 random(options.seed);
    for (std::uint64_t i = 0; i < needed; ++i)
      ids.push_back(static_cast<std::uint32_t>(random() % vocabulary));
    return "pseudo-random, seed " + std::to_string(options.seed);
  }
  STOKER_TRY(ids, read_ids(file));
  if (ids.size() < needed) {
    return fail(Errc::invalid,
                file + " has " + std::to_string(ids.size()) + " ids, and " + std::to_string(needed) +
                    " are needed (warm-up, longest test, one more). Give a longer file, or less "
                    "-p, -n or --warm-up");
  }
  ids.resize(needed);
  const auto bad = std::find_if(ids.begin(), ids.end(), [&](std::uint32_t id) { return id >= vocabulary; });
  if (bad != ids.end()) {
    return fail(Errc::invalid, file + ": id " + std::to_string(*bad) + " is not in the vocabulary of " +
                                   std::to_string(vocabulary));
  }
  return from;
}

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  ::gmtime_r(&now, &parts);
  char text[32];
  return {text, std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts)};
}

Json head_of(const Checkpoint& checkpoint, const ModelCosts& costs, const std::string& ids_from) {
  const ModelConfig& config = checkpoint.config();
  return {{"date", utc_now()},
          {"version", kVersion},
          {"commit", kCommit},
          {"cpu", cpu_model()},
          {"cores", usable_cpus()},
          {"memory_bytes", machine_memory()},
          {"model", fs::path(checkpoint.directory()).filename().string()},
          {"model_dir", checkpoint.directory()},
          {"layers", config.layers},
          {"experts", config.experts},
          {"experts_per_token", config.experts_per_token},
          {"expert_bytes", costs.expert_bytes},
          {"resident_bytes", costs.resident_bytes},
          {"head_bytes", costs.head_bytes},
          {"state_bytes", costs.state_bytes},
          {"ids_from", ids_from}};
}

tl::expected<void, ExitReport> prepare_history(const BenchOptions& options, Bench& bench) {
  if (options.comparing) {
    const std::string path = options.compare.empty() ? options.history : options.compare;
    if (path.empty()) return stop(kUsage, "--compare", "name a history: --compare FILE, or --history FILE");
    std::error_code error;
    // The first run of a history has nothing to compare with yet.
    if (fs::exists(path, error) || path != options.history) {
      const auto text = read_input(path);
      if (!text) return stop(text.error(), "--compare");
      auto history = parse_history(*text, path);
      if (!history) return stop(history.error(), "--compare");
      bench.history = *std::move(history);
    }
  }
  if (!options.history.empty()) {
    if (const auto writable = append_history(options.history, {}); !writable)
      return stop(writable.error(), "--history");
  }
  return {};
}

tl::expected<void, ExitReport> prepare_model(const BenchOptions& options, const Config& settings,
                                             Bench& bench) {
  std::error_code error;
  const fs::path model = fs::canonical(bench.plan.session.stack.model_dir, error);
  if (error || !fs::is_directory(model, error)) {
    return stop(kModel, bench.plan.session.stack.model_dir,
                "there is no such model directory. Give the directory that holds config.json");
  }
  const auto checkpoint = Checkpoint::open(model.string());
  if (!checkpoint) return stop(checkpoint.error(), "model");
  const auto costs = ModelCosts::of(*checkpoint);
  if (!costs) return stop(costs.error(), "model");
  bench.costs = *costs;

  BenchPlan& plan = bench.plan;
  std::uint64_t needed = 0;
  for (const BenchTest& test : bench.tests) needed = std::max(needed, ids_needed(plan, test));
  const auto from = choose_ids(options, *checkpoint, needed, plan.ids);
  if (!from) return stop(from.error(), options.tokens_file.empty() ? "ids" : "--tokens-file");
  bench.head = head_of(*checkpoint, bench.costs, *from);

  plan.threads = options.session.stack.threads.value_or(settings.threads);
  if (plan.threads == 0) plan.threads = usable_cpus();
  plan.disk.read_bytes = costs->expert_bytes;
  plan.disk.seconds = options.raw_seconds;
  plan.disk.engine = options.session.stack.engine;
  for (const ShardFile& file : checkpoint->files()) plan.disk.files.push_back(file.path);
  return {};
}

}  // namespace

tl::expected<Bench, ExitReport> prepare_bench(const BenchOptions& options, Context& context) {
  Bench bench;
  bench.tests = tests_of(options);
  if (bench.tests.empty())
    return stop(kUsage, "bench", "there is nothing to measure: -p, -n, --state and --warm-up leave no test");
  const auto format = parse_bench_format(options.output);
  if (!format) return stop(format.error(), "--output");
  bench.format = *format;
  const auto settings = load_settings();
  if (!settings) return stop(settings.error(), "configuration");
  bench.plan.session = options.session;
  bench.plan.session.always_private = true;
  bench.plan.warm_up = options.warm_up;
  std::string& model_dir = bench.plan.session.stack.model_dir;
  if (model_dir.empty()) model_dir = settings->model_dir;
  if (model_dir.empty()) return stop(kUsage, "bench", "name a model: stoker bench MODEL_DIR");
  if (auto ready = prepare_history(options, bench); !ready) return tl::unexpected(ready.error());
  if (auto ready = prepare_model(options, *settings, bench); !ready) return tl::unexpected(ready.error());
  if (worker_listens(settings->run_dir))
    context.terminal.note("stoker: a stack is running in " + settings->run_dir +
                          "; its work disturbs the measurement");
  return bench;
}

}  // namespace stoker::cli
