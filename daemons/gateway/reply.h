// How one API shows an answer: as a stream of server-sent events, or whole. One Reply per request, from its
// beginning to its end.
#pragma once

#include <memory>
#include <string>

#include "daemons/gateway/answer.h"
#include "daemons/gateway/api_error.h"
#include "daemons/gateway/plan.h"
#include "stoker.pb.h"

namespace stoker::gateway {

/// One server-sent event; `event` may be "" (OpenAI names none).
[[nodiscard]] std::string sse(const std::string& event, const Json& data);

class Reply {
 public:
  Reply() = default;
  Reply(const Reply&) = delete;
  Reply& operator=(const Reply&) = delete;
  virtual ~Reply() = default;

  /// Hears of every token before what it added to the answer.
  virtual void on_token(const wire::TokenEvent&) {}

  // Streams: text to send, "" for nothing.
  /// The request was accepted; its prompt has so many tokens (0: not known yet).
  virtual std::string begin(std::uint32_t prompt_tokens) = 0;
  virtual std::string more(const AnswerEvent& event, const Answer& answer) = 0;
  /// While the prompt waits or is computed.
  virtual std::string progress(const wire::ProgressEvent& progress) = 0;
  /// Nothing has been sent for a while.
  virtual std::string ping() = 0;
  virtual std::string end(const Answer& answer, const wire::DoneEvent& done) = 0;
  virtual std::string error(const ApiError& error) = 0;

  /// The body of an answer that is not streamed.
  virtual std::string whole(const Answer& answer, const wire::DoneEvent& done) = 0;
  /// The body of an answer to a tokenize request.
  virtual std::string tokens(const wire::TokensEvent& tokens) = 0;
};

/// Of an HTTP API's errors; also for requests that never became a Reply.
using WriteError = std::string (*)(const ApiError&);

/// What replies need of the world.
struct ReplyContext {
  std::string id;            ///< without prefix
  std::int64_t created = 0;  ///< seconds since 1970
  std::string model;         ///< to be named in the answer
};

[[nodiscard]] std::unique_ptr<Reply> chat_reply(const Plan& plan, const ReplyContext& context);
[[nodiscard]] std::unique_ptr<Reply> completion_reply(const Plan& plan, const ReplyContext& context);
[[nodiscard]] std::unique_ptr<Reply> responses_reply(const Plan& plan, const ReplyContext& context);
[[nodiscard]] std::unique_ptr<Reply> messages_reply(const Plan& plan, const ReplyContext& context);
/// For tokenize requests: {"tokens": [...], "count": N}.
[[nodiscard]] std::unique_ptr<Reply> tokens_reply();
/// For Anthropic's count_tokens: {"input_tokens": N}.
[[nodiscard]] std::unique_ptr<Reply> count_reply();

}  // namespace stoker::gateway
