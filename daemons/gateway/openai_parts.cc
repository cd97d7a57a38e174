#include "daemons/gateway/openai_parts.h"

namespace stoker::gateway {
namespace {

double per_second(std::uint32_t count, double seconds) { return seconds > 0 ? count / seconds : 0; }
double each_ms(std::uint32_t count, double seconds) { return count > 0 ? 1e3 * seconds / count : 0; }

}  // namespace

std::string sse(const std::string& event, const Json& data) {
  return (event.empty() ? "" : "event: " + event + "\n") + "data: " + to_text(data) + "\n\n";
}

Json openai_usage(const wire::Stats& stats) {
  return {{"prompt_tokens", stats.prompt_tokens()},
          {"completion_tokens", stats.generated_tokens()},
          {"total_tokens", stats.prompt_tokens() + stats.generated_tokens()},
          {"prompt_tokens_details", {{"cached_tokens", stats.cached_tokens()}}}};
}

Json timings(const wire::Stats& stats) {
  const std::uint32_t computed =
      stats.prompt_tokens() - std::min(stats.cached_tokens(), stats.prompt_tokens());
  // The first token is the prefill's.
  const std::uint32_t decoded = stats.generated_tokens() > 0 ? stats.generated_tokens() - 1 : 0;
  return {{"cache_n", stats.cached_tokens()},
          {"prompt_n", computed},
          {"prompt_ms", 1e3 * stats.prefill_seconds()},
          {"prompt_per_token_ms", each_ms(computed, stats.prefill_seconds())},
          {"prompt_per_second", per_second(computed, stats.prefill_seconds())},
          {"predicted_n", stats.generated_tokens()},
          {"predicted_ms", 1e3 * stats.decode_seconds()},
          {"predicted_per_token_ms", each_ms(decoded, stats.decode_seconds())},
          {"predicted_per_second", per_second(decoded, stats.decode_seconds())},
          {"queue_ms", 1e3 * stats.queue_seconds()},
          {"ttft_ms", 1e3 * stats.ttft_seconds()},
          {"stall_ms", 1e3 * stats.stall_seconds()},
          {"experts",
           {{"vram", stats.experts_vram()},
            {"pool", stats.experts_pool()},
            {"prefetched", stats.experts_hinted()},
            {"disk", stats.experts_disk()}}}};
}

Json prompt_progress(const wire::ProgressEvent& progress) {
  return {{"total", progress.prompt_total()},
          {"processed", progress.prompt_done()},
          {"queue_position", progress.queue_position()}};
}

const char* openai_finish_reason(const Answer& answer, const wire::DoneEvent& done) {
  // The worker may reach the limit before it hears that the answer is complete.
  if (done.finish_reason() == "length" && !answer.complete()) return "length";
  return answer.calls().empty() ? "stop" : "tool_calls";
}

std::string openai_end(Json last, Json usage, const wire::Stats& stats) {
  last["timings"] = timings(stats);
  std::string text = sse("", last);
  if (!usage.is_null()) {
    usage["choices"] = Json::array();
    usage["usage"] = openai_usage(stats);
    text += sse("", usage);
  }
  return text + "data: [DONE]\n\n";
}

std::string progress_comment(const wire::ProgressEvent& progress) {
  if (progress.queue_position() > 0)
    return ": place " + std::to_string(progress.queue_position()) + " in the queue\n\n";
  return ": prompt " + std::to_string(progress.prompt_done()) + " of " +
         std::to_string(progress.prompt_total()) + " tokens\n\n";
}

}  // namespace stoker::gateway
