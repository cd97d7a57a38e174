// `stoker logits`: the model's raw output for given token ids, through the real stack. The hook for oracles.
#include <bit>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/context.h"
#include "cli/generate.h"
#include "cli/input.h"
#include "cli/session.h"

namespace stoker::cli {
namespace {

static_assert(std::endian::native == std::endian::little,
              "rows are written as they come: little-endian fp32");

struct LogitsOptions {
  SessionOptions session;
  std::string tokens, out;
  bool all_positions = false, json = false;
  std::uint32_t split = 0;
};

/// Rows in order of position; refuses gaps and rows of different length.
struct Rows {
  std::string bytes;
  std::size_t row_bytes = 0;
  std::uint32_t count = 0, first_position = 0;
  bool broken = false;

  bool add(const wire::LogitsEvent& event) {
    if (count == 0) {
      first_position = event.position();
      row_bytes = event.logits().size();
    }
    broken = broken || event.logits().size() != row_bytes || event.position() != first_position + count;
    bytes += event.logits();
    ++count;
    return !broken;
  }
};

int logits(const LogitsOptions& options, Context& context) {
  const auto ids = parse_ids(options.tokens);
  if (!ids) return report(ids.error(), "--tokens");
  if (options.split >= ids->size()) {
    return report(kUsage, "--split", "must be below the number of tokens, " + std::to_string(ids->size()));
  }
  auto interrupts = Interrupts::open();
  if (!interrupts) return report(interrupts.error(), "logits");
  auto session = Session::open(context, *interrupts, options.session);
  if (!session) return report(session.error());

  wire::GenerateRequest request;
  request.set_id(next_request_id(1));
  for (const std::uint32_t id : *ids) request.mutable_tokens()->add_ids(id);
  request.set_logits(true);
  request.set_all_positions(options.all_positions);
  request.set_prefill_split(options.split);
  Rows rows;
  GenerateHooks hooks;
  hooks.on_logits = [&](const wire::LogitsEvent& event) { return rows.add(event); };
  const auto outcome = generate(session->client(), request, hooks, *interrupts, std::nullopt, context.clock);
  if (!outcome) return report(outcome.error(), "worker");
  if (outcome->end == GenerateOutcome::End::signalled) return exit_code_of_signal(outcome->signal);
  const std::size_t expected = options.all_positions ? ids->size() : 1;
  if (rows.broken || rows.count != expected || rows.row_bytes % sizeof(float) != 0) {
    return report(kFailure, "worker",
                  "sent " + std::to_string(rows.count) + " rows of logits, not " + std::to_string(expected) +
                      " of one length in order");
  }
  if (const auto written = write_file(options.out, rows.bytes); !written)
    return report(written.error(), "logits");
  if (!options.json) return kOk;
  const nlohmann::ordered_json shape{{"file", options.out},
                                     {"dtype", "float32"},
                                     {"shape", {rows.count, rows.row_bytes / sizeof(float)}},
                                     {"first_position", rows.first_position}};
  return context.terminal.write_answer(shape.dump() + "\n") ? kOk : kFailure;
}

}  // namespace

void add_logits(CLI::App& app, Action& action) {
  auto options = std::make_shared<LogitsOptions>();
  CLI::App* verb =
      app.add_subcommand("logits", "Write the logits for token ids to a file (little-endian fp32)");
  verb->add_option("MODEL_DIR", options->session.stack.model_dir, "Checkpoint directory");
  verb->add_option("--tokens", options->tokens, "Token ids: 1,5,9")->required();
  verb->add_flag("--all-positions", options->all_positions, "One row per token instead of the last one only");
  verb->add_option("--split", options->split, "Run the first N tokens in a forward of their own");
  verb->add_option("-o,--out", options->out, "File to write: rows of vocab_size floats")->required();
  verb->add_flag("--json", options->json, "Print file, dtype and shape as JSON");
  add_session_options(*verb, options->session);
  verb->callback(
      [options, &action] { action = [options](Context& context) { return logits(*options, context); }; });
}

}  // namespace stoker::cli
