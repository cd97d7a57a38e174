// OpenAI's responses: a list of output items, messages and function calls; as a stream, events about them.
#include <utility>

#include "daemons/gateway/openai_parts.h"

namespace stoker::gateway {
namespace {

class ResponsesReply final : public Reply {
 public:
  explicit ResponsesReply(const ReplyContext& context) : context_(context) {}

  std::string begin(std::uint32_t) override {
    const Json response = object("in_progress");
    std::string out =
        event("response.created", {{"response", response}});  // numbered, so one after the other
    return out + event("response.in_progress", {{"response", response}});
  }

  std::string more(const AnswerEvent& news, const Answer& answer) override {
    switch (news.kind) {
      case AnswerEvent::Kind::text: {
        std::string out = in_text_ ? "" : start_text();
        text_ += news.text;
        return out + event("response.output_text.delta",
                           in_part({{"delta", news.text}, {"logprobs", Json::array()}}));
      }
      case AnswerEvent::Kind::call: {
        std::string out = end_text();
        return out + event("response.output_item.added",
                           in_item({{"item", call_item(answer.calls()[news.call], "in_progress")}}));
      }
      case AnswerEvent::Kind::arguments:
        return event("response.function_call_arguments.delta",
                     of_item(call_id(answer.calls()[news.call]), {{"delta", news.text}}));
      case AnswerEvent::Kind::end: {
        const ToolCall& call = answer.calls()[news.call];
        std::string out = event("response.function_call_arguments.done",
                                of_item(call_id(call), {{"name", call.name}, {"arguments", call.arguments}}));
        return out + finish_item(call_item(call, "completed"));
      }
    }
    return {};
  }

  std::string progress(const wire::ProgressEvent& progress) override { return progress_comment(progress); }
  std::string ping() override { return kSsePing; }

  std::string end(const Answer&, const wire::DoneEvent& done) override {
    std::string out = end_text();
    const bool cut = done.finish_reason() == "length";
    return out + event(cut ? "response.incomplete" : "response.completed", {{"response", ended(done)}});
  }

  std::string error(const ApiError& error) override {
    Json response = object("failed");
    response["error"] = {{"code", error.code}, {"message", error.message}};
    return event("response.failed", {{"response", response}});
  }

  std::string whole(const Answer& answer, const wire::DoneEvent& done) override {
    text_ = answer.text();
    if (!text_.empty() || answer.calls().empty()) output_.push_back(message_item("completed"));
    for (const ToolCall& call : answer.calls()) output_.push_back(call_item(call, "completed"));
    return to_text(ended(done));
  }

  std::string tokens(const wire::TokensEvent&) override { return {}; }

 private:
  std::string event(const char* type, const Json& more) {
    Json data = {{"type", type}, {"sequence_number", sequence_++}};
    data.update(more);
    return sse(type, data);
  }

  [[nodiscard]] Json object(const char* status) const {
    return {{"id", "resp_" + context_.id},
            {"object", "response"},
            {"created_at", context_.created},
            {"status", status},
            {"error", nullptr},
            {"incomplete_details", nullptr},
            {"model", context_.model},
            {"output", output_},
            {"parallel_tool_calls", true},
            {"previous_response_id", nullptr},
            {"store", false},
            {"tool_choice", "auto"},
            {"tools", Json::array()},
            {"usage", nullptr}};
  }

  [[nodiscard]] Json ended(const wire::DoneEvent& done) const {
    const bool cut = done.finish_reason() == "length";
    const wire::Stats& stats = done.stats();
    Json response = object(cut ? "incomplete" : "completed");
    if (cut) response["incomplete_details"] = {{"reason", "max_output_tokens"}};
    response["usage"] = {{"input_tokens", stats.prompt_tokens()},
                         {"input_tokens_details", {{"cached_tokens", stats.cached_tokens()}}},
                         {"output_tokens", stats.generated_tokens()},
                         {"output_tokens_details", {{"reasoning_tokens", 0}}},
                         {"total_tokens", stats.prompt_tokens() + stats.generated_tokens()}};
    response["timings"] = timings(stats);
    return response;
  }

  // Ids are those of the response and of its calls, with another prefix: they need no memory.
  [[nodiscard]] std::string message_id() const {
    return "msg_" + context_.id + "_" + std::to_string(output_.size());
  }
  static std::string call_id(const ToolCall& call) { return "fc_" + call.id; }

  [[nodiscard]] Json text_part() const {
    return {{"type", "output_text"},
            {"text", text_},
            {"annotations", Json::array()},
            {"logprobs", Json::array()}};
  }
  [[nodiscard]] Json message_item(const char* status) const {
    Json content = Json::array();
    if (std::string_view(status) == "completed") content.push_back(text_part());
    return {{"id", message_id()},
            {"type", "message"},
            {"status", status},
            {"role", "assistant"},
            {"content", content}};
  }
  /// While it is in progress its arguments are still to come, although the call may be complete by now.
  static Json call_item(const ToolCall& call, const char* status) {
    const bool complete = std::string_view(status) == "completed";
    return {{"id", call_id(call)}, {"type", "function_call"}, {"status", status},
            {"call_id", call.id},  {"name", call.name},       {"arguments", complete ? call.arguments : ""}};
  }

  /// `more` with the place of the item in progress; of_item: its id too; in_part: and its only part.
  [[nodiscard]] Json in_item(Json more) const {
    more["output_index"] = output_.size();
    return more;
  }
  [[nodiscard]] Json of_item(const std::string& id, Json more) const {
    more["item_id"] = id;
    return in_item(std::move(more));
  }
  [[nodiscard]] Json in_part(Json more) const {
    more["content_index"] = 0;
    return of_item(message_id(), std::move(more));
  }

  std::string start_text() {
    in_text_ = true;
    text_.clear();
    std::string out = event("response.output_item.added", in_item({{"item", message_item("in_progress")}}));
    return out + event("response.content_part.added", in_part({{"part", text_part()}}));
  }
  std::string end_text() {
    if (!std::exchange(in_text_, false)) return {};
    std::string out =
        event("response.output_text.done", in_part({{"text", text_}, {"logprobs", Json::array()}}));
    out += event("response.content_part.done", in_part({{"part", text_part()}}));
    return out + finish_item(message_item("completed"));
  }
  std::string finish_item(const Json& item) {
    std::string out = event("response.output_item.done", in_item({{"item", item}}));
    output_.push_back(item);
    return out;
  }

  ReplyContext context_;
  Json output_ = Json::array();  ///< items that are complete
  std::string text_;             ///< of the message in progress
  bool in_text_ = false;
  std::uint64_t sequence_ = 0;
};

}  // namespace

std::unique_ptr<Reply> responses_reply(const Plan&, const ReplyContext& context) {
  return std::make_unique<ResponsesReply>(context);
}

}  // namespace stoker::gateway
