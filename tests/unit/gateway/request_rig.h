// What the tests of requests share: plans that have to be acceptable, to the worker as well.
#pragma once

#include <fstream>
#include <sstream>

#include "daemons/common/messages.h"
#include "daemons/gateway/fields.h"
#include "daemons/gateway/plan.h"
#include "gpu-worker/text/chat_template.h"
#include "tests/unit/gateway/rig.h"

namespace stoker::gateway::test {

/// The plan, which the worker's own check has accepted once it had an id.
inline Plan good(Expected<Plan> plan) {
  if (!plan) FAIL(plan.error().message);
  wire::ClientMessage message;
  *message.mutable_generate() = plan->request;
  message.mutable_generate()->set_id("r");
  const auto valid = validate(message);
  if (!valid) FAIL(valid.error().text());
  return *std::move(plan);
}

/// Why the request was refused: a 400 with a sentence.
inline ApiError bad(const Expected<Plan>& plan) {
  REQUIRE_FALSE(plan.has_value());
  CHECK(plan.error().status == 400);
  CHECK(plan.error().message.size() > 10);
  return plan.error();
}

inline Loose conversation_of(const Plan& plan) {
  REQUIRE(plan.request.has_conversation_json());
  return Loose::parse(plan.request.conversation_json());
}

inline Result<std::string> render(const Plan& plan) {
  std::ifstream in(std::string(STOKER_TEXT_DATA) + "/chat_template.jinja");
  std::ostringstream jinja;
  jinja << in.rdbuf();
  const auto chat_template = ChatTemplate::parse(jinja.str());
  REQUIRE(chat_template.has_value());
  REQUIRE(plan.request.has_conversation_json());
  return chat_template->render(plan.request.conversation_json(), true);
}

/// What the worker makes of the plan's conversation, before answer_prefix.
inline std::string rendered(const Plan& plan) {
  const auto text = render(plan);
  if (!text) FAIL(text.error().text());
  return *text;
}

/// Why the worker refuses the plan's conversation.
inline std::string not_rendered(const Plan& plan) {
  const auto text = render(plan);
  REQUIRE_FALSE(text.has_value());
  return text.error().text();
}

}  // namespace stoker::gateway::test
