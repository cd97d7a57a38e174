// `stoker bench`: how fast a model runs here, why not faster, and what the machine would allow. Rows as
// llama-bench has them, cold and warm apart. Each repetition of each test has a stack of its own.
#include <algorithm>
#include <ctime>
#include <filesystem>
#include <memory>
#include <random>

#include "cli/bench_history.h"
#include "cli/bench_report.h"
#include "cli/bench_run.h"
#include "cli/commit.h"
#include "cli/context.h"
#include "cli/input.h"
#include "cli/machine.h"
#include "cli/statistics.h"
#include "cli/version.h"
#include "daemons/common/size.h"

namespace stoker::cli {
namespace {

using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

constexpr const char* kExamples =
    "Examples:\n"
    "  stoker bench MODEL_DIR --ram 24GiB\n"
    "  stoker bench MODEL_DIR -p 0 -n 64,256 -r 3 --state warm -o jsonl\n"
    "  stoker bench MODEL_DIR --tokens-file ids.txt --history bench.jsonl --compare\n";

struct BenchOptions {
  SessionOptions session;
  std::vector<std::uint32_t> prompts = {512}, decodes = {64};
  std::uint32_t repetitions = 5, warm_up = 96;
  std::vector<std::string> states = {"cold", "warm"};
  std::string tokens_file, output = "md", history, compare;
  bool comparing = false;
  double raw_seconds = 0.5;
  std::uint64_t seed = 1;
};

/// Everything that is known before the first stack is started.
struct Bench {
  BenchPlan plan;
  std::vector<BenchTest> tests;
  ModelCosts costs;
  Json head;  ///< what all rows have in common
  Rows history;
  BenchFormat format = BenchFormat::md;
};

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

/// Refuses what can be refused before minutes have been spent.
tl::expected<void, ExitReport> prepare_history(const BenchOptions& options, Bench& bench) {
  const auto stop = [](const Error& error, const char* what) {
    return tl::unexpected(ExitReport::of(error, what));
  };
  if (options.comparing) {
    const std::string path = options.compare.empty() ? options.history : options.compare;
    if (path.empty())
      return tl::unexpected(
          ExitReport{kUsage, "--compare", "name a history: --compare FILE, or --history FILE"});
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
    return tl::unexpected(
        ExitReport{kModel, bench.plan.session.stack.model_dir,
                   "there is no such model directory. Give the directory that holds config.json"});
  }
  const auto checkpoint = Checkpoint::open(model.string());
  if (!checkpoint) return tl::unexpected(ExitReport::of(checkpoint.error(), "model"));
  const auto costs = ModelCosts::of(*checkpoint);
  if (!costs) return tl::unexpected(ExitReport::of(costs.error(), "model"));
  bench.costs = *costs;

  BenchPlan& plan = bench.plan;
  std::uint64_t needed = 0;
  for (const BenchTest& test : bench.tests) needed = std::max(needed, ids_needed(plan, test));
  const auto from = choose_ids(options, *checkpoint, needed, plan.ids);
  if (!from)
    return tl::unexpected(
        ExitReport::of(from.error(), options.tokens_file.empty() ? "ids" : "--tokens-file"));
  bench.head = head_of(*checkpoint, bench.costs, *from);

  plan.threads = options.session.stack.threads.value_or(settings.threads);
  if (plan.threads == 0) plan.threads = usable_cpus();
  plan.disk.read_bytes = costs->expert_bytes;
  plan.disk.seconds = options.raw_seconds;
  plan.disk.engine = options.session.stack.engine;
  for (const ShardFile& file : checkpoint->files()) plan.disk.files.push_back(file.path);
  return {};
}

tl::expected<Bench, ExitReport> prepare(const BenchOptions& options, Context& context) {
  Bench bench;
  bench.tests = tests_of(options);
  if (bench.tests.empty())
    return tl::unexpected(ExitReport{
        kUsage, "bench", "there is nothing to measure: -p, -n, --state and --warm-up leave no test"});
  const auto format = parse_bench_format(options.output);
  if (!format) return tl::unexpected(ExitReport::of(format.error(), "--output"));
  bench.format = *format;
  const auto settings = load_settings();
  if (!settings) return tl::unexpected(ExitReport::of(settings.error(), "configuration"));
  bench.plan.session = options.session;
  bench.plan.session.always_private = true;
  bench.plan.warm_up = options.warm_up;
  std::string& model_dir = bench.plan.session.stack.model_dir;
  if (model_dir.empty()) model_dir = settings->model_dir;
  if (model_dir.empty())
    return tl::unexpected(ExitReport{kUsage, "bench", "name a model: stoker bench MODEL_DIR"});
  if (auto ready = prepare_history(options, bench); !ready) return tl::unexpected(ready.error());
  if (auto ready = prepare_model(options, *settings, bench); !ready) return tl::unexpected(ready.error());
  if (worker_listens(settings->run_dir))
    context.terminal.note("stoker: a stack is running in " + settings->run_dir +
                          "; its work disturbs the measurement");
  return bench;
}

/// Repetitions on the outside: what drifts on the machine drifts for all tests alike.
tl::expected<std::vector<std::vector<BenchSample>>, ExitReport> measure_all(const BenchOptions& options,
                                                                            const Bench& bench,
                                                                            BenchRunner& runner,
                                                                            Context& context) {
  std::vector<std::vector<BenchSample>> samples(bench.tests.size());
  for (std::uint32_t r = 0; r < options.repetitions; ++r) {
    for (std::size_t i = 0; i < bench.tests.size(); ++i) {
      const BenchTest& test = bench.tests[i];
      const std::string what = test.name() + (test.warm ? " warm" : " cold") + ", repetition " +
                               std::to_string(r + 1) + " of " + std::to_string(options.repetitions);
      context.terminal.progress(what);
      const auto sample = runner.measure(test);
      context.terminal.clear_progress();
      if (!sample) return tl::unexpected(sample.error());
      samples[i].push_back(*sample);
      context.terminal.note("stoker: " + what +
                            number_text(": %.2f t/s", static_cast<double>(sample->tokens) / sample->seconds));
    }
  }
  return samples;
}

void add_stack_facts(const StackFacts& facts, const BenchPlan& plan, Json& head) {
  head["backend"] = facts.backend;
  head["threads"] = plan.threads;
  head["chunk"] = facts.chunk;
  head["pool_slots"] = facts.pool_slots;
  head["pool_share"] =
      static_cast<double>(facts.pool_slots) / (head["layers"].get<double>() * head["experts"].get<double>());
  head["budget_bytes"] = facts.pool_bytes + facts.weights_bytes;
  head["disk_direct"] = facts.disk_direct;
}

int bench(const BenchOptions& options, Context& context) {
  if (!options.session.run_dir.empty()) {
    return report(
        kUsage, "--run-dir",
        "bench measures on stacks of its own, so that no other client disturbs. Leave --run-dir out");
  }
  auto interrupts = Interrupts::open();
  if (!interrupts) return report(interrupts.error(), "bench");
  auto prepared = prepare(options, context);
  if (!prepared) return report(prepared.error());
  BenchRunner runner(prepared->plan, *interrupts, context);
  const auto samples = measure_all(options, *prepared, runner, context);
  if (!samples) return report(samples.error());

  add_stack_facts(runner.facts(), prepared->plan, prepared->head);
  Rows rows;
  for (std::size_t i = 0; i < samples->size(); ++i)
    rows.push_back(
        bench_row(prepared->head, prepared->tests[i], options.warm_up, (*samples)[i], prepared->costs));
  if (options.comparing) add_changes(rows, prepared->history);
  if (!runner.facts().disk_direct)
    context.terminal.note(
        "stoker: no O_DIRECT on this file system: figures of the disk are the page cache's");
  if (!options.history.empty()) {
    if (const auto kept = append_history(options.history, rows); !kept)
      return report(kept.error(), "--history");
  }
  return context.terminal.write_answer(bench_text(rows, prepared->format))
             ? kOk
             : report(kFailure, "stdout", "the report could not be written");
}

void add_tests(CLI::App& verb, BenchOptions& o) {
  verb.add_option("-p,--n-prompt", o.prompts, "Prompt tokens to process, N[,N...]; 0: no such test")
      ->delimiter(',')
      ->check(CLI::Range(0U, 1U << 20))
      ->capture_default_str();
  verb.add_option("-n,--n-gen", o.decodes, "Tokens to decode, N[,N...]; 0: no such test")
      ->delimiter(',')
      ->check(CLI::Range(0U, 1U << 20))
      ->capture_default_str();
  verb.add_option("-r,--repetitions", o.repetitions, "Repetitions of each test, each on a new stack")
      ->check(CLI::Range(1U, 1000U))
      ->capture_default_str();
  verb.add_option("--state", o.states, "cold: the pool is empty; warm: after --warm-up (default: both)")
      ->delimiter(',')
      ->check(CLI::IsMember({"cold", "warm"}));
  verb.add_option("--warm-up", o.warm_up, "Tokens decoded before a warm test, not measured")
      ->check(CLI::Range(0U, 1U << 20))
      ->capture_default_str();
  verb.add_option("--tokens-file", o.tokens_file,
                  "Ids to compute, so that all engines do the same work (default: the checkpoint's "
                  "routing_tokens.txt, else pseudo-random ones)")
      ->check(CLI::ExistingFile);
  verb.add_option("--seed", o.seed, "Of pseudo-random ids")->capture_default_str();
  verb.add_option("--raw-seconds", o.raw_seconds, "Time per depth for the disk's own bandwidth")
      ->check(CLI::Range(0.01, 60.0))
      ->capture_default_str();
}

}  // namespace

void add_bench(CLI::App& app, Action& action) {
  auto options = std::make_shared<BenchOptions>();
  CLI::App* verb = app.add_subcommand("bench", "Measure speed, and how far it is from the machine's limit");
  verb->footer(kExamples);
  verb->add_option("MODEL_DIR", options->session.stack.model_dir, "Checkpoint directory");
  add_tests(*verb, *options);
  verb->add_option("-o,--output", options->output, "md, csv, json or jsonl")
      ->check(CLI::IsMember({"md", "csv", "json", "jsonl"}))
      ->capture_default_str();
  verb->add_option("--history", options->history, "Append the rows to this JSONL file");
  auto* compare = verb->add_option("--compare", options->compare,
                                   "Show the change since the last such rows of FILE (default: of --history)")
                      ->expected(0, 1)
                      ->type_name("[FILE]");
  // Known only to be refused with a reason.
  verb->add_option("--run-dir", options->session.run_dir)->group("");
  add_stack_options(*verb, options->session.stack);
  verb->callback([options, compare, &action] {
    options->comparing = compare->count() > 0;
    action = [options](Context& context) { return bench(*options, context); };
  });
}

}  // namespace stoker::cli
