// What the tests of the gateway share: JSON, streams taken apart, an answer that grows.
#pragma once

#include <catch2/catch.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "daemons/gateway/answer.h"
#include "daemons/gateway/json.h"
#include "daemons/gateway/reply.h"

namespace stoker::gateway::test {

/// Compares without regard to the order of keys.
using Loose = nlohmann::json;

inline Json json_of(std::string_view text) {
  CAPTURE(text);
  auto json = parse_json(text);
  REQUIRE(json.has_value());
  return *std::move(json);
}

/// One server-sent event, or a comment.
struct Frame {
  std::string event, data, comment;
};

/// Takes a stream apart as the standard says, and fails for anything that our replies never need.
inline std::vector<Frame> frames_of(std::string_view stream) {
  std::vector<Frame> frames;
  while (!stream.empty()) {
    const std::size_t end = stream.find("\n\n");
    REQUIRE(end != std::string_view::npos);
    std::string_view lines = stream.substr(0, end + 1);
    stream.remove_prefix(end + 2);
    Frame frame;
    while (!lines.empty()) {
      const std::string line(lines.substr(0, lines.find('\n')));
      lines.remove_prefix(line.size() + 1);
      if (line.starts_with("event: ")) {
        REQUIRE(frame.event.empty());
        frame.event = line.substr(7);
      } else if (line.starts_with("data: ")) {
        REQUIRE(frame.data.empty());
        frame.data = line.substr(6);
      } else {
        REQUIRE(line.starts_with(": "));
        frame.comment = line.substr(2);
      }
    }
    REQUIRE(frame.data.empty() != frame.comment.empty());
    frames.push_back(frame);
  }
  return frames;
}

/// The data of a stream's events, in order; "[DONE]" as a string. Comments are left out.
inline std::vector<Loose> data_of(std::string_view stream) {
  std::vector<Loose> all;
  for (const Frame& frame : frames_of(stream)) {
    if (frame.data.empty()) continue;
    all.push_back(frame.data == "[DONE]" ? Loose("[DONE]") : Loose::parse(frame.data));
  }
  return all;
}

inline Tool weather_tool() {
  return {.name = "get_weather",
          .parameters = json_of(R"({"type": "object", "properties": {"city": {"type": "string"},
              "days": {"type": "integer"}, "options": {"type": "object"}}})")};
}

inline const std::string kWeatherCall =
    "<tool_call>\n<function=get_weather>\n<parameter=city>\nBerlin\n</parameter>\n<parameter=days>\n3\n"
    "</parameter>\n</function>\n</tool_call>";

/// Counts: call_1, call_2, ...
inline std::function<std::string()> counted_ids() {
  return [n = 0]() mutable { return "call_" + std::to_string(++n); };
}

/// Feeds an answer token by token to a reply, as a connection does: as a stream from begin() on, else whole.
class Conversation {
 public:
  Conversation(const Plan& plan, std::unique_ptr<Reply> reply)
      : answer(plan.tools, plan.one_call, counted_ids(), plan.answer_begins), reply_(std::move(reply)) {}

  void begin(std::uint32_t prompt_tokens) {
    streams_ = true;
    stream += reply_->begin(prompt_tokens);
  }
  void token(const wire::TokenEvent& event) {
    reply_->on_token(event);
    show(answer.push(event.text()));
  }
  void text(const std::string& text) {
    wire::TokenEvent event;
    event.set_text(text);
    token(event);
  }
  void end(const wire::DoneEvent& done) {
    show(answer.push(done.text()));
    show(answer.finish());
    stream += reply_->end(answer, done);
  }
  std::string whole(const wire::DoneEvent& done) {
    static_cast<void>(answer.push(done.text()));
    static_cast<void>(answer.finish());
    return reply_->whole(answer, done);
  }

  Answer answer;
  std::string stream;

 private:
  void show(const std::vector<AnswerEvent>& events) {
    if (!streams_) return;
    for (const AnswerEvent& event : events) stream += reply_->more(event, answer);
  }
  std::unique_ptr<Reply> reply_;
  bool streams_ = false;
};

inline wire::DoneEvent done_with(const std::string& reason, std::uint32_t prompt = 10,
                                 std::uint32_t cached = 4, std::uint32_t generated = 3) {
  wire::DoneEvent done;
  done.set_finish_reason(reason);
  done.mutable_stats()->set_prompt_tokens(prompt);
  done.mutable_stats()->set_cached_tokens(cached);
  done.mutable_stats()->set_generated_tokens(generated);
  return done;
}

inline ReplyContext context() { return {.id = "7", .created = 1700000000, .model = "m"}; }

}  // namespace stoker::gateway::test
