// Anthropic's messages: a message of content blocks, text and tool_use.
#include "daemons/gateway/reply.h"

namespace stoker::gateway {
namespace {

class MessagesReply final : public Reply {
 public:
  explicit MessagesReply(const ReplyContext& context) : context_(context) {}

  std::string begin(std::uint32_t prompt_tokens) override {
    Json message = object();
    message["usage"] = {{"input_tokens", prompt_tokens}, {"output_tokens", 0}};
    return sse("message_start", {{"type", "message_start"}, {"message", message}});
  }

  std::string more(const AnswerEvent& event, const Answer& answer) override {
    const ToolCall* call = event.kind == AnswerEvent::Kind::text ? nullptr : &answer.calls()[event.call];
    switch (event.kind) {
      case AnswerEvent::Kind::text: {
        std::string out;
        if (!in_text_) out = start_block({{"type", "text"}, {"text", ""}});
        in_text_ = true;
        return out + delta({{"type", "text_delta"}, {"text", event.text}});
      }
      case AnswerEvent::Kind::call: {
        const std::string out = end_text();
        return out +
               start_block(
                   {{"type", "tool_use"}, {"id", call->id}, {"name", call->name}, {"input", Json::object()}});
      }
      case AnswerEvent::Kind::arguments:
        return delta({{"type", "input_json_delta"}, {"partial_json", event.text}});
      case AnswerEvent::Kind::end:
        return stop_block();
    }
    return {};
  }

  std::string progress(const wire::ProgressEvent&) override { return ping(); }
  std::string ping() override { return sse("ping", {{"type", "ping"}}); }

  std::string end(const Answer& answer, const wire::DoneEvent& done) override {
    return end_text() +
           sse("message_delta",
               {{"type", "message_delta"}, {"delta", ending(answer, done)}, {"usage", usage(done.stats())}}) +
           sse("message_stop", {{"type", "message_stop"}});
  }

  std::string error(const ApiError& error) override {
    return "event: error\ndata: " + anthropic_error(error) + "\n\n";
  }

  std::string whole(const Answer& answer, const wire::DoneEvent& done) override {
    std::string blocks;
    if (!answer.text().empty() || answer.calls().empty())
      blocks = to_text({{"type", "text"}, {"text", answer.text()}});
    for (const ToolCall& call : answer.calls()) {
      const Json block = {{"type", "tool_use"}, {"id", call.id}, {"name", call.name}};
      // The arguments as they are, not as we would read them: numbers keep all their digits.
      blocks += (blocks.empty() ? "" : ",") + with_member(block, "input", call.arguments);
    }
    Json json = object();
    json.erase("content");
    json.update(ending(answer, done));
    json["usage"] = usage(done.stats());
    return with_member(json, "content", "[" + blocks + "]");
  }

  std::string tokens(const wire::TokensEvent&) override { return {}; }

 private:
  [[nodiscard]] Json object() const {
    return {{"id", "msg_" + context_.id}, {"type", "message"},        {"role", "assistant"},
            {"model", context_.model},    {"content", Json::array()}, {"stop_reason", nullptr},
            {"stop_sequence", nullptr}};
  }

  /// The text of a non-empty object with one member more, whose value is JSON text.
  static std::string with_member(const Json& object, const char* key, const std::string& value) {
    std::string text = to_text(object);
    text.pop_back();
    return text + ",\"" + key + "\":" + value + "}";
  }

  static Json ending(const Answer& answer, const wire::DoneEvent& done) {
    // The worker may reach the limit before it hears that the answer is complete.
    if (done.finish_reason() == "length" && !answer.complete())
      return {{"stop_reason", "max_tokens"}, {"stop_sequence", nullptr}};
    if (!answer.calls().empty()) return {{"stop_reason", "tool_use"}, {"stop_sequence", nullptr}};
    if (!done.stop_string().empty())
      return {{"stop_reason", "stop_sequence"}, {"stop_sequence", done.stop_string()}};
    return {{"stop_reason", "end_turn"}, {"stop_sequence", nullptr}};
  }

  /// What was cached is not part of input_tokens.
  static Json usage(const wire::Stats& stats) {
    return {{"input_tokens", stats.prompt_tokens() - std::min(stats.cached_tokens(), stats.prompt_tokens())},
            {"cache_creation_input_tokens", 0},
            {"cache_read_input_tokens", stats.cached_tokens()},
            {"output_tokens", stats.generated_tokens()}};
  }

  std::string start_block(const Json& block) {
    return sse("content_block_start",
               {{"type", "content_block_start"}, {"index", index_}, {"content_block", block}});
  }
  std::string delta(const Json& delta) {
    return sse("content_block_delta", {{"type", "content_block_delta"}, {"index", index_}, {"delta", delta}});
  }
  std::string stop_block() {
    in_text_ = false;
    return sse("content_block_stop", {{"type", "content_block_stop"}, {"index", index_++}});
  }
  std::string end_text() { return in_text_ ? stop_block() : std::string(); }

  ReplyContext context_;
  std::size_t index_ = 0;  ///< of the block in progress, or of the next
  bool in_text_ = false;
};

}  // namespace

std::unique_ptr<Reply> messages_reply(const Plan&, const ReplyContext& context) {
  return std::make_unique<MessagesReply>(context);
}

}  // namespace stoker::gateway
