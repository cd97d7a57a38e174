// Anthropic's Messages API, as far as a text model goes.
#pragma once

#include "daemons/gateway/fields.h"
#include "daemons/gateway/plan.h"

namespace stoker::gateway {

/// POST /v1/messages. System text, turns and tool results become the conversation that OpenAI's clients send;
/// Claude Code's billing line, which differs in every request, is taken out: no prompt would be found again
/// behind it. Thinking blocks are dropped, cache_control has no effect, tools that the server would have to
/// run are not offered. An assistant's message at the end is the beginning of the answer.
[[nodiscard]] Expected<Plan> messages_plan(const Json& body);
/// POST /v1/messages/count_tokens
[[nodiscard]] Expected<Plan> count_tokens_plan(const Json& body);

}  // namespace stoker::gateway
