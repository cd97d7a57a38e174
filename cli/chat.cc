// `stoker chat`: a conversation, on a terminal or through pipes.
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstring>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/context.h"
#include "cli/generate.h"
#include "cli/input.h"
#include "cli/line_reader.h"
#include "cli/sampling_options.h"
#include "cli/session.h"
#include "cli/statistics.h"

namespace stoker::cli {
namespace {

using nlohmann::ordered_json;

constexpr const char* kHelp = R"(/help                this text
/clear               forget the conversation (the system message stays)
/system [TEXT]       show or set the system message
/set [KEY VALUE]     show or set temperature, top_k, top_p, min_p, repetition_penalty, seed, max_tokens
/stats               statistics of the last answer
/save FILE           write the conversation as JSON
/load FILE           read one back
/bye                 leave (also Ctrl-D)
"""                  starts and ends a text of several lines
Ctrl-C               stops the answer; twice at the prompt: leave)";

struct ChatOptions {
  SessionOptions session;
  SamplingOptions sampling;
  std::string system;
};

template <class T>
bool parse_number(const std::string& text, T& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

template <class T>
bool set_number(std::optional<T>& target, const std::string& text) {
  T value{};
  if (!parse_number(text, value)) return false;
  target = value;
  return true;
}

class Chat {
 public:
  Chat(Context& context, Interrupts& interrupts, Session& session, ChatOptions options)
      : context_(context), interrupts_(interrupts), session_(session), options_(std::move(options)) {
    clear();
  }
  int loop(LineReader& reader, bool interactive);

 private:
  enum class Next { go_on, leave };
  void clear();
  Next command(const std::string& line);
  void set(const std::string& key, const std::string& value);
  void save(const std::string& path);
  void load(const std::string& path);
  /// Exit code of this turn; kOk also after a Ctrl-C that only stopped the answer.
  int turn(const std::string& text);
  void say(const std::string& text) { context_.terminal.note(text); }

  Context& context_;
  Interrupts& interrupts_;
  Session& session_;
  ChatOptions options_;
  ordered_json messages_;
  std::optional<wire::Stats> last_;
  unsigned requests_ = 0;
};

void Chat::clear() {
  messages_ = ordered_json::array();
  if (!options_.system.empty()) messages_.push_back({{"role", "system"}, {"content", options_.system}});
}

void Chat::set(const std::string& key, const std::string& value) {
  SamplingOptions& s = options_.sampling;
  const bool known = (key == "temperature" && set_number(s.temperature, value)) ||
                     (key == "top_k" && set_number(s.top_k, value)) ||
                     (key == "top_p" && set_number(s.top_p, value)) ||
                     (key == "min_p" && set_number(s.min_p, value)) ||
                     (key == "repetition_penalty" && set_number(s.repetition_penalty, value)) ||
                     (key == "seed" && set_number(s.seed, value)) ||
                     (key == "max_tokens" && parse_number(value, s.max_tokens));
  if (!known) say("/set: \"" + key + " " + value + "\" is not a setting with a number; see /help");
}

void Chat::save(const std::string& path) {
  std::ofstream file(path);
  file << ordered_json{{"messages", messages_}}.dump(2, ' ', false, ordered_json::error_handler_t::replace)
       << "\n";
  file.close();
  say(file ? "saved " + path : "cannot write " + path + ": " + std::strerror(errno));
}

void Chat::load(const std::string& path) {
  const auto text = read_input(path);
  if (!text) return say(text.error().text());
  const auto json = ordered_json::parse(*text, nullptr, false);
  if (!json.is_object() || !json.contains("messages") || !json["messages"].is_array()) {
    return say(path + " is not a conversation: {\"messages\": [...]} is needed");
  }
  messages_ = json["messages"];
  say("loaded " + std::to_string(messages_.size()) + " messages");
}

Chat::Next Chat::command(const std::string& line) {
  const auto space = line.find(' ');
  const std::string verb = line.substr(0, space);
  const auto start = space == std::string::npos ? space : line.find_first_not_of(' ', space);
  const std::string rest = start == std::string::npos ? "" : line.substr(start);
  if (verb == "/bye" || verb == "/exit" || verb == "/quit") return Next::leave;
  if (verb == "/help") {
    say(kHelp);
  } else if (verb == "/clear") {
    clear();
  } else if (verb == "/system") {
    if (rest.empty()) {
      say(options_.system.empty() ? "(no system message)" : options_.system);
    } else {
      options_.system = rest;
      clear();
    }
  } else if (verb == "/set") {
    const auto gap = rest.find(' ');
    if (gap == std::string::npos) {
      wire::GenerateRequest now;
      options_.sampling.apply_to(now);
      const wire::Sampling& s = now.sampling();
      const auto show = [](bool has, auto value) {
        return has ? std::to_string(value) : std::string("default");
      };
      say("temperature " + show(s.has_temperature(), s.temperature()) + ", top_k " +
          show(s.has_top_k(), s.top_k()) + ", top_p " + show(s.has_top_p(), s.top_p()) + ", min_p " +
          show(s.has_min_p(), s.min_p()) + ", repetition_penalty " +
          show(s.has_repetition_penalty(), s.repetition_penalty()) + ", seed " +
          show(s.has_seed(), s.seed()) + ", max_tokens " + show(now.max_tokens() > 0, now.max_tokens()));
    } else {
      set(rest.substr(0, gap), rest.substr(gap + 1));
    }
  } else if (verb == "/stats") {
    say(last_ ? statistics_line(*last_) : "no answer yet");
  } else if (verb == "/save" && !rest.empty()) {
    save(rest);
  } else if (verb == "/load" && !rest.empty()) {
    load(rest);
  } else {
    say(verb + (verb == "/save" || verb == "/load" ? " needs a file name" : " is not a command") +
        "; see /help");
  }
  return Next::go_on;
}

int Chat::turn(const std::string& text) {
  if (const auto valid = check_utf8(text, "the message"); !valid) return report(valid.error(), "chat");
  messages_.push_back({{"role", "user"}, {"content", text}});
  wire::GenerateRequest request;
  request.set_id(next_request_id(++requests_));
  options_.sampling.apply_to(request);
  request.set_conversation_json(
      ordered_json{{"messages", messages_}}.dump(-1, ' ', false, ordered_json::error_handler_t::replace));
  std::string answer;
  GenerateHooks hooks;
  hooks.on_token = [&](const wire::TokenEvent& event) {
    answer += event.text();
    return context_.terminal.write_answer(event.text());
  };
  hooks.on_progress = [&](const wire::ProgressEvent& event) {
    context_.terminal.progress("prompt " + std::to_string(event.prompt_done()) + " of " +
                               std::to_string(event.prompt_total()) + " tokens");
  };
  const auto outcome = generate(session_.client(), request, hooks, interrupts_, std::nullopt, context_.clock);
  context_.terminal.clear_progress();
  if (!outcome) {
    context_.terminal.end_answer();
    messages_.erase(messages_.size() - 1);  // the question can be asked again
    const int code = report(outcome.error(), "worker");
    const Errc why = outcome.error().code;
    if (why == Errc::peer_gone || why == Errc::device_lost) {
      say("stoker: waiting for the worker to come back");
      if (auto back = session_.reconnect(context_, interrupts_); !back) return report(back.error());
    }
    return code;
  }
  bool written = true;
  if (outcome->done) {
    answer += outcome->done->text();
    written = context_.terminal.write_answer(outcome->done->text());
    last_ = outcome->done->stats();
  }
  written = context_.terminal.write_answer("\n") && written;
  messages_.push_back({{"role", "assistant"}, {"content", answer}});
  if (last_) context_.terminal.dim(statistics_line(*last_));
  if (!written || outcome->end == GenerateOutcome::End::stopped_by_hook) return kFailure;
  if (outcome->end == GenerateOutcome::End::signalled && outcome->signal != SIGINT) return kTerminated;
  return kOk;
}

int Chat::loop(LineReader& reader, bool interactive) {
  std::optional<std::string> block;  // inside """
  bool warned = false;
  for (;;) {
    const auto input = reader.read(block ? "... " : ">>> ");
    if (input.kind == LineReader::Kind::end) return kOk;
    if (input.kind == LineReader::Kind::interrupted) {
      context_.terminal.note("");
      if (input.signal != SIGINT || warned || !interactive) return exit_code_of_signal(input.signal);
      warned = true;
      block.reset();
      say("(Ctrl-C again, Ctrl-D or /bye to leave)");
      continue;
    }
    warned = false;
    std::string line = input.line;
    constexpr std::string_view kQuotes = "\"\"\"";
    const bool ends_block = line.size() >= 3 && line.compare(line.size() - 3, 3, kQuotes) == 0;
    if (!block && line.compare(0, 3, kQuotes) == 0 && !(ends_block && line.size() >= 6)) {
      block = line.size() > 3 ? line.substr(3) + "\n" : "";
      continue;
    }
    if (block) {
      *block += ends_block ? line.substr(0, line.size() - 3) : line + "\n";
      if (!ends_block) continue;
      line = *std::exchange(block, std::nullopt);
    } else if (ends_block && line.compare(0, 3, kQuotes) == 0) {
      line = line.substr(3, line.size() - 6);
    } else if (!line.empty() && line.front() == '/') {
      if (command(line) == Next::leave) return kOk;
      continue;
    }
    if (line.find_first_not_of(" \t\n") == std::string::npos) continue;
    const int code = turn(line);
    // A person can try again; a script must not go on after a failure. SIGTERM ends both.
    if (code == kTerminated || (code != kOk && !interactive)) return code;
  }
}

int chat(ChatOptions options, Context& context) {
  auto interrupts = Interrupts::open();
  if (!interrupts) return report(interrupts.error(), "chat");
  auto session = Session::open(context, *interrupts, options.session);
  if (!session) return report(session.error());
  if (!has_chat_template(session->model_dir())) {
    return report(kModel, "chat",
                  session->model_dir() +
                      " has no chat template (chat_template.jinja, or the key in tokenizer_config.json). "
                      "Use `stoker run --raw` for plain text");
  }
  const bool interactive = context.terminal.stdin_is_tty() && context.terminal.stderr_is_tty();
  LineReader reader(*interrupts, interactive, interactive ? history_path() : "");
  if (interactive) context.terminal.dim(session->model_dir() + " · /help for commands");
  Chat conversation(context, *interrupts, *session, std::move(options));
  return conversation.loop(reader, interactive);
}

}  // namespace

void add_chat(CLI::App& app, Action& action) {
  auto options = std::make_shared<ChatOptions>();
  CLI::App* verb = app.add_subcommand("chat", "Talk: a conversation on the terminal or through pipes");
  verb->add_option("MODEL_DIR", options->session.stack.model_dir,
                   "Checkpoint directory (not needed when a stack is running)");
  verb->add_option("-s,--system", options->system, "System message");
  add_sampling_options(*verb, options->sampling);
  add_session_options(*verb, options->session);
  verb->callback(
      [options, &action] { action = [options](Context& context) { return chat(*options, context); }; });
}

}  // namespace stoker::cli
