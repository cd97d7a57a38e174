// OpenAI's chat completions (object "chat.completion" and "chat.completion.chunk").
#include <utility>

#include "daemons/gateway/openai_parts.h"

namespace stoker::gateway {
namespace {

Json bytes_of(const std::string& text) {
  Json bytes = Json::array();
  for (const char c : text) bytes.push_back(static_cast<unsigned char>(c));
  return bytes;
}

Json logprob_entry(const wire::TokenLogprob& token) {
  return {{"token", token.text()}, {"logprob", token.logprob()}, {"bytes", bytes_of(token.text())}};
}

class ChatReply final : public Reply {
 public:
  ChatReply(const Plan& plan, const ReplyContext& context)
      : context_(context),
        usage_(plan.usage_chunk),
        progress_(plan.progress_chunks),
        logprobs_(plan.logprobs),
        top_(plan.top_logprobs) {}

  void on_token(const wire::TokenEvent& event) override {
    if (!logprobs_) return;
    Json entry = logprob_entry(event.logprob());
    entry["top_logprobs"] = Json::array();
    for (int i = 0; i < event.top_size() && i < static_cast<int>(top_); ++i)
      entry["top_logprobs"].push_back(logprob_entry(event.top(i)));
    pending_.push_back(std::move(entry));
  }

  std::string begin(std::uint32_t) override {
    return sse("", chunk({{"role", "assistant"}, {"content", ""}}, nullptr));
  }

  std::string more(const AnswerEvent& event, const Answer& answer) override {
    const ToolCall* call = event.kind == AnswerEvent::Kind::text ? nullptr : &answer.calls()[event.call];
    switch (event.kind) {
      case AnswerEvent::Kind::text:
        return sse("", chunk({{"content", event.text}}, nullptr));
      case AnswerEvent::Kind::call:
        return sse("", chunk(tool_delta({{"index", event.call},
                                         {"id", call->id},
                                         {"type", "function"},
                                         {"function", {{"name", call->name}, {"arguments", ""}}}}),
                             nullptr));
      case AnswerEvent::Kind::arguments:
        return sse("", chunk(tool_delta({{"index", event.call}, {"function", {{"arguments", event.text}}}}),
                             nullptr));
      case AnswerEvent::Kind::end:
        break;
    }
    return {};
  }

  std::string progress(const wire::ProgressEvent& progress) override {
    if (!progress_) return progress_comment(progress);
    Json json = chunk(Json::object(), nullptr);
    json["prompt_progress"] = prompt_progress(progress);
    return sse("", json);
  }

  std::string ping() override { return kSsePing; }

  std::string end(const Answer& answer, const wire::DoneEvent& done) override {
    const Json last = chunk(Json::object(), openai_finish_reason(answer, done));
    return openai_end(last, usage_ ? chunk(Json::object(), nullptr) : Json(), done.stats());
  }

  std::string error(const ApiError& error) override { return "data: " + openai_error(error) + "\n\n"; }

  std::string whole(const Answer& answer, const wire::DoneEvent& done) override {
    Json message = {{"role", "assistant"}, {"content", answer.text()}, {"refusal", nullptr}};
    if (!answer.calls().empty()) {
      if (answer.text().empty()) message["content"] = nullptr;
      message["tool_calls"] = Json::array();
      for (const ToolCall& call : answer.calls())
        message["tool_calls"].push_back({{"id", call.id},
                                         {"type", "function"},
                                         {"function", {{"name", call.name}, {"arguments", call.arguments}}}});
    }
    Json choice = {{"index", 0}, {"message", message}, {"logprobs", take_logprobs()}};
    choice["finish_reason"] = openai_finish_reason(answer, done);
    Json json = object("chat.completion");
    json["choices"] = Json::array({choice});
    json["usage"] = openai_usage(done.stats());
    json["timings"] = timings(done.stats());
    return to_text(json);
  }

  std::string tokens(const wire::TokensEvent&) override { return {}; }

 private:
  [[nodiscard]] Json object(const char* kind) const {
    return {{"id", "chatcmpl-" + context_.id},
            {"object", kind},
            {"created", context_.created},
            {"model", context_.model}};
  }
  static Json tool_delta(Json call) { return {{"tool_calls", Json::array({std::move(call)})}}; }
  Json take_logprobs() {
    if (!logprobs_) return nullptr;
    return {{"content", std::exchange(pending_, Json::array())}, {"refusal", nullptr}};
  }
  /// With the log-probabilities of all tokens since the last one.
  Json chunk(const Json& delta, const Json& finish_reason) {
    Json choice = {{"index", 0}, {"delta", delta}};
    if (logprobs_) choice["logprobs"] = take_logprobs();
    choice["finish_reason"] = finish_reason;
    Json json = object("chat.completion.chunk");
    json["choices"] = Json::array({choice});
    if (usage_) json["usage"] = nullptr;
    return json;
  }

  ReplyContext context_;
  bool usage_, progress_, logprobs_;
  std::uint32_t top_;
  Json pending_ = Json::array();
};

}  // namespace

std::unique_ptr<Reply> chat_reply(const Plan& plan, const ReplyContext& context) {
  return std::make_unique<ChatReply>(plan, context);
}

}  // namespace stoker::gateway
