// The body of a request to each of the gateway's APIs. Whatever it is, it is refused with a reason, or
// becomes something that the worker's own checks can judge.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "daemons/common/messages.h"
#include "daemons/gateway/anthropic_request.h"
#include "daemons/gateway/openai_request.h"
#include "daemons/gateway/responses_request.h"

namespace {

using namespace stoker;
using namespace stoker::gateway;

void require(bool promise) {
  if (!promise) std::abort();
}

void check(const Expected<Plan>& plan) {
  if (!plan) {
    require(plan.error().status == 400 && !plan.error().message.empty() && !plan.error().code.empty());
    require(gateway::parse_json(openai_error(plan.error())).has_value());
    require(gateway::parse_json(anthropic_error(plan.error())).has_value());
    return;
  }
  require(plan->request.input_case() != wire::GenerateRequest::INPUT_NOT_SET);
  // The worker reports what the reply will show.
  if (plan->logprobs) require(plan->request.logprobs() >= std::max(plan->top_logprobs, 1U));
  require(plan->request.answer_prefix().ends_with(plan->answer_begins));
  for (const Tool& tool : plan->tools) static_cast<void>(to_text(tool.parameters));
  wire::ClientMessage message;
  *message.mutable_generate() = plan->request;
  message.mutable_generate()->set_id("r");
  const auto valid = validate(message);
  require(valid.has_value() || !valid.error().text().empty());
  // Nothing on the way to the worker would be refused as no message.
  require(parse_client(encode(message)).has_value());
}

class Maker {
 public:
  explicit Maker(std::string_view bytes) : bytes_(bytes) {}

  Json value(int depth) {
    switch (next() % (depth < 7 ? 10 : 6)) {
      case 0:
        return nullptr;
      case 1:
        return next() % 2 == 0;
      case 2:
        return static_cast<int>(next()) - 100;
      case 3:
        return next() / 16.0;
      case 4:
        return "text";
      case 5:
        return word();
      case 6:
      case 7: {
        Json list = Json::array();
        for (std::size_t n = next() % 4; n > 0; --n) list.push_back(value(depth + 1));
        return list;
      }
      default: {
        Json object = Json::object();
        for (std::size_t n = next() % 8; n > 0; --n) {
          const std::string key = word();
          object[key] = value(depth + 1);
        }
        return object;
      }
    }
  }

 private:
  std::uint8_t next() {
    if (bytes_.empty()) return 0;
    const auto byte = static_cast<std::uint8_t>(bytes_.front());
    bytes_.remove_prefix(1);
    return byte;
  }
  std::string word() {
    static constexpr std::array kWords = {"messages",
                                          "role",
                                          "content",
                                          "user",
                                          "assistant",
                                          "system",
                                          "developer",
                                          "tool",
                                          "tools",
                                          "function",
                                          "name",
                                          "f",
                                          "parameters",
                                          "input_schema",
                                          "type",
                                          "text",
                                          "tool_use",
                                          "tool_result",
                                          "input",
                                          "is_error",
                                          "tool_choice",
                                          "any",
                                          "auto",
                                          "none",
                                          "required",
                                          "max_tokens",
                                          "prompt",
                                          "suffix",
                                          "stop",
                                          "logprobs",
                                          "thinking",
                                          "custom",
                                          "description",
                                          "id",
                                          "stream_options",
                                          "seed",
                                          "top_k",
                                          "arguments",
                                          "tool_calls",
                                          "temperature",
                                          "stream",
                                          "stop_sequences",
                                          "instructions",
                                          "function_call",
                                          "function_call_output",
                                          "output",
                                          "input_text",
                                          "call_id",
                                          "reasoning",
                                          "x-anthropic-billing-header:"};
    return kWords[next() % kWords.size()];
  }
  std::string_view bytes_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const auto body =
      input.starts_with('\0') ? Result<Json>(Maker(input.substr(1)).value(0)) : gateway::parse_json(input);
  if (!body) return 0;
  require(gateway::parse_json(to_text(*body)).has_value());
  for (const auto& make :
       {chat_plan, completion_plan, tokenize_plan, messages_plan, count_tokens_plan, responses_plan})
    check(make(*body));
  return 0;
}
