// The body of a request to each of the gateway's APIs. Whatever it is, it is refused with a reason, or
// becomes something that the worker's own checks can judge.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "daemons/common/messages.h"
#include "daemons/gateway/anthropic_request.h"
#include "daemons/gateway/openai_request.h"

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

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto body = gateway::parse_json({reinterpret_cast<const char*>(data), size});
  if (!body) return 0;
  require(gateway::parse_json(to_text(*body)).has_value());
  for (const auto& make : {chat_plan, completion_plan, tokenize_plan, messages_plan, count_tokens_plan})
    check(make(*body));
  return 0;
}
