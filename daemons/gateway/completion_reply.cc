// OpenAI's completions (object "text_completion"), and the short answers about tokens.
#include <utility>

#include "daemons/gateway/openai_parts.h"

namespace stoker::gateway {
namespace {

class CompletionReply final : public Reply {
 public:
  CompletionReply(const Plan& plan, const ReplyContext& context)
      : context_(context),
        usage_(plan.usage_chunk),
        progress_(plan.progress_chunks),
        logprobs_(plan.logprobs),
        top_(plan.top_logprobs) {}

  void on_token(const wire::TokenEvent& event) override {
    if (!logprobs_) return;
    if (pending_.empty()) clear();
    Json top = Json::object();
    for (int i = 0; i < event.top_size() && i < static_cast<int>(top_); ++i)
      top[event.top(i).text()] = event.top(i).logprob();
    pending_["tokens"].push_back(event.logprob().text());
    pending_["token_logprobs"].push_back(event.logprob().logprob());
    pending_["top_logprobs"].push_back(top);
    pending_["text_offset"].push_back(offset_);
    offset_ += event.logprob().text().size();
  }

  std::string begin(std::uint32_t) override { return {}; }
  std::string more(const AnswerEvent& event, const Answer&) override {
    return sse("", chunk(event.text, nullptr));
  }
  std::string progress(const wire::ProgressEvent& progress) override {
    if (!progress_) return progress_comment(progress);
    Json json = chunk("", nullptr);
    json["prompt_progress"] = prompt_progress(progress);
    return sse("", json);
  }
  std::string ping() override { return kSsePing; }

  std::string end(const Answer& answer, const wire::DoneEvent& done) override {
    const Json last = chunk("", openai_finish_reason(answer, done));
    return openai_end(last, usage_ ? chunk("", nullptr) : Json(), done.stats());
  }

  std::string error(const ApiError& error) override { return "data: " + openai_error(error) + "\n\n"; }

  std::string whole(const Answer& answer, const wire::DoneEvent& done) override {
    Json json = chunk(answer.text(), openai_finish_reason(answer, done));
    json["usage"] = openai_usage(done.stats());
    json["timings"] = timings(done.stats());
    return to_text(json);
  }

  std::string tokens(const wire::TokensEvent&) override { return {}; }

 private:
  void clear() {
    for (const char* key : {"tokens", "token_logprobs", "top_logprobs", "text_offset"})
      pending_[key] = Json::array();
  }
  Json chunk(const std::string& text, const Json& finish_reason) {
    const Json logprobs = pending_.empty() ? Json(nullptr) : std::exchange(pending_, Json::object());
    Json json = {{"id", "cmpl-" + context_.id},
                 {"object", "text_completion"},
                 {"created", context_.created},
                 {"model", context_.model}};
    json["choices"] = Json::array(
        {{{"index", 0}, {"text", text}, {"logprobs", logprobs}, {"finish_reason", finish_reason}}});
    if (usage_) json["usage"] = nullptr;
    return json;
  }

  ReplyContext context_;
  bool usage_, progress_, logprobs_;
  std::uint32_t top_;
  Json pending_ = Json::object();  ///< of tokens since the last chunk
  std::size_t offset_ = 0;         ///< bytes of all tokens so far
};

/// Answers that no token is computed for.
class CountReply : public Reply {
 public:
  std::string begin(std::uint32_t) override { return {}; }
  std::string more(const AnswerEvent&, const Answer&) override { return {}; }
  std::string progress(const wire::ProgressEvent&) override { return {}; }
  std::string ping() override { return {}; }
  std::string end(const Answer&, const wire::DoneEvent&) override { return {}; }
  std::string error(const ApiError&) override { return {}; }
  std::string whole(const Answer&, const wire::DoneEvent&) override { return {}; }
  std::string tokens(const wire::TokensEvent& tokens) override {
    return to_text({{"input_tokens", tokens.tokens().ids_size()}});
  }
};

class TokensReply final : public CountReply {
 public:
  std::string tokens(const wire::TokensEvent& tokens) override {
    Json ids = Json::array();
    for (const std::uint32_t id : tokens.tokens().ids()) ids.push_back(id);
    return to_text({{"count", ids.size()}, {"tokens", ids}});
  }
};

}  // namespace

std::unique_ptr<Reply> completion_reply(const Plan& plan, const ReplyContext& context) {
  return std::make_unique<CompletionReply>(plan, context);
}

std::unique_ptr<Reply> tokens_reply() { return std::make_unique<TokensReply>(); }
std::unique_ptr<Reply> count_reply() { return std::make_unique<CountReply>(); }

}  // namespace stoker::gateway
