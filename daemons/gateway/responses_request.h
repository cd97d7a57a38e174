// OpenAI's Responses API, without its memory: every request brings the whole conversation, as Codex sends it.
#pragma once

#include "daemons/gateway/fields.h"
#include "daemons/gateway/plan.h"

namespace stoker::gateway {

/// POST /v1/responses. `instructions` and `input` become a conversation; reasoning items are dropped, tools
/// that OpenAI's servers would run are not offered. previous_response_id and item references are refused:
/// nothing is stored.
[[nodiscard]] Expected<Plan> responses_plan(const Json& body);

}  // namespace stoker::gateway
