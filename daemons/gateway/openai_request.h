// OpenAI's requests, with the extensions that local servers share (top_k, min_p, repetition_penalty,
// return_progress). What would change the answer and is not supported is refused by name; fields that do not
// (user, store, metadata, ...) and unknown ones are not looked at. docs/http.md lists both.
#pragma once

#include "daemons/gateway/fields.h"
#include "daemons/gateway/plan.h"

namespace stoker::gateway {

/// POST /v1/chat/completions
[[nodiscard]] Expected<Plan> chat_plan(const Json& body);
/// POST /v1/completions. With `suffix` the model fills in the middle.
[[nodiscard]] Expected<Plan> completion_plan(const Json& body);
/// POST /tokenize: {"content" or "prompt": text}, or {"messages": [...], "tools": [...]}.
[[nodiscard]] Expected<Plan> tokenize_plan(const Json& body);

/// What all of them have: model, stream, sampling, stop, length.
void read_common(Fields& fields, Plan& plan);
/// Makes the answer begin with the call of a function: this one, or ("") any. The model goes on behind it.
void begin_with_call(Plan& plan, const std::string& function);

}  // namespace stoker::gateway
