// `stoker tokenize`, `detokenize`, `template`: offline, no stack. The tokenizer and the template renderer
// are the worker's own (gpu-worker/text is the one part of it that the CLI links), so ids agree.
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/context.h"
#include "cli/input.h"
#include "gpu-worker/text/chat_template.h"
#include "gpu-worker/text/tokenizer.h"

namespace stoker::cli {
namespace {

struct TextOptions {
  std::string model_dir, text = "-";
  bool json = false, no_added = false, skip_special = false, no_generation_prompt = false;
};

int put(Context& context, std::string_view text) {
  const bool written = context.terminal.write_answer(text);
  context.terminal.end_answer();
  return written ? kOk : report(kFailure, "stdout", "the result could not be written");
}

/// The argument itself, or stdin for "-".
Result<std::string> text_or_stdin(const std::string& argument) {
  if (argument != "-") return argument;
  return read_input("-");
}

int tokenize(const TextOptions& options, Context& context) {
  const auto tokenizer = Tokenizer::load(options.model_dir + "/tokenizer.json");
  if (!tokenizer) return report(tokenizer.error(), "tokenizer");
  const auto text = text_or_stdin(options.text);
  if (!text) return report(text.error(), "tokenize");
  const auto ids = tokenizer->encode(*text, options.no_added ? AddedTokens::ignore : AddedTokens::match);
  if (!ids) return report(ids.error(), "tokenize");
  if (options.json) return put(context, nlohmann::json{{"tokens", *ids}}.dump() + "\n");
  std::string line;
  for (const std::uint32_t id : *ids) line += (line.empty() ? "" : ",") + std::to_string(id);
  return put(context, line + "\n");
}

int detokenize(const TextOptions& options, Context& context) {
  const auto tokenizer = Tokenizer::load(options.model_dir + "/tokenizer.json");
  if (!tokenizer) return report(tokenizer.error(), "tokenizer");
  const auto text = text_or_stdin(options.text);
  if (!text) return report(text.error(), "detokenize");
  const auto ids = parse_ids(*text);
  if (!ids) return report(ids.error(), "detokenize");
  const auto bytes = tokenizer->decode(*ids, options.skip_special);
  if (!bytes) return report(bytes.error(), "detokenize");
  if (!options.json) return put(context, *bytes);
  const nlohmann::json out{{"text", *bytes}};
  return put(context, out.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

int render(const TextOptions& options, Context& context) {
  const auto chat = ChatTemplate::load(options.model_dir);
  if (!chat) return report(chat.error(), "chat template");
  const auto conversation = read_input(options.text);
  if (!conversation) return report(conversation.error(), "template");
  const auto prompt = chat->render(*conversation, !options.no_generation_prompt);
  if (!prompt) return report(prompt.error(), "template");
  if (!options.json) return put(context, *prompt);
  const nlohmann::json out{{"prompt", *prompt}};
  return put(context, out.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

CLI::App* add_verb(CLI::App& app, const char* name, const char* help,
                   const std::shared_ptr<TextOptions>& options) {
  CLI::App* verb = app.add_subcommand(name, help);
  verb->add_option("MODEL_DIR", options->model_dir, "Checkpoint directory")->required();
  verb->add_flag("--json", options->json, "Print JSON");
  return verb;
}

}  // namespace

void add_tokenize(CLI::App& app, Action& action) {
  auto options = std::make_shared<TextOptions>();
  CLI::App* verb = add_verb(app, "tokenize", "Text to token ids: 1,5,9", options);
  verb->add_option("TEXT", options->text, "Text, or - for stdin (the default)");
  verb->add_flag("--no-added-tokens", options->no_added, "Take <|im_end|> and the like as plain text");
  verb->callback([options, &action] { action = [options](Context& c) { return tokenize(*options, c); }; });
}

void add_detokenize(CLI::App& app, Action& action) {
  auto options = std::make_shared<TextOptions>();
  CLI::App* verb = add_verb(app, "detokenize", "Token ids to text, byte for byte", options);
  verb->add_option("IDS", options->text, "1,5,9, or - for stdin (the default)");
  verb->add_flag("--skip-special", options->skip_special, "Leave out special tokens");
  verb->callback([options, &action] { action = [options](Context& c) { return detokenize(*options, c); }; });
}

void add_template(CLI::App& app, Action& action) {
  auto options = std::make_shared<TextOptions>();
  CLI::App* verb = add_verb(app, "template", "Conversation JSON to prompt text", options);
  verb->add_option("FILE", options->text,
                   "{\"messages\": [...], \"tools\": [...]}, or - for stdin (the default)");
  verb->add_flag("--no-generation-prompt", options->no_generation_prompt, "Do not open the assistant's turn");
  verb->callback([options, &action] { action = [options](Context& c) { return render(*options, c); }; });
}

}  // namespace stoker::cli
