// `stoker bench`: how fast a model runs here, why not faster, and what the machine would allow. Rows as
// llama-bench has them, cold and warm apart. Each repetition of each test has a stack of its own.
#include <memory>

#include "cli/bench_history.h"
#include "cli/bench_plan.h"
#include "cli/context.h"
#include "cli/statistics.h"

namespace stoker::cli {

using Json = nlohmann::ordered_json;

namespace {

constexpr const char* kExamples =
    "Examples:\n"
    "  stoker bench MODEL_DIR --ram 24GiB\n"
    "  stoker bench MODEL_DIR -p 0 -n 64,256 -r 3 --state warm -o jsonl\n"
    "  stoker bench MODEL_DIR --tokens-file ids.txt --history bench.jsonl --compare\n";

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
  auto prepared = prepare_bench(options, context);
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
