// Parts that OpenAI's two kinds of completions share.
#pragma once

#include <string>

#include "daemons/gateway/json.h"
#include "daemons/gateway/reply.h"

namespace stoker::gateway {

/// usage: prompt_tokens, completion_tokens, total_tokens, prompt_tokens_details.cached_tokens
[[nodiscard]] Json openai_usage(const wire::Stats& stats);
/// llama.cpp's timings (milliseconds and rates), and where the experts were: `experts` by tier, `stall_ms`.
[[nodiscard]] Json timings(const wire::Stats& stats);
/// llama.cpp's prompt_progress
[[nodiscard]] Json prompt_progress(const wire::ProgressEvent& progress);
/// "stop", "length", or "tool_calls"
[[nodiscard]] const char* openai_finish_reason(const Answer& answer, const wire::DoneEvent& done);

/// The end of a stream: `last` with timings, `usage` (a chunk, or null) with the usage instead of choices,
/// [DONE].
[[nodiscard]] std::string openai_end(Json last, Json usage, const wire::Stats& stats);

/// A comment that every client ignores and no proxy swallows.
inline constexpr const char* kSsePing = ": ping\n\n";
/// The same, for people who look: how far the prompt is.
[[nodiscard]] std::string progress_comment(const wire::ProgressEvent& progress);

}  // namespace stoker::gateway
