#include "cli/statistics.h"

#include <array>
#include <cmath>
#include <cstdio>

namespace stoker::cli {

std::string number_text(const char* format, double value) {
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), format, value);
  return text.data();
}

namespace {

/// Decode speed: the first token belongs to prefill. 0 when there was no second one.
double tokens_per_second(const wire::Stats& stats) {
  if (stats.generated_tokens() < 2 || stats.decode_seconds() <= 0) return 0;
  return (stats.generated_tokens() - 1) / stats.decode_seconds();
}

std::string percent(std::uint64_t part, std::uint64_t whole) {
  return number_text("%.0f %%", 100.0 * static_cast<double>(part) / static_cast<double>(whole));
}

}  // namespace

std::string statistics_line(const wire::Stats& stats) {
  std::string line = std::to_string(stats.generated_tokens()) + " tok";
  if (const double speed = tokens_per_second(stats); speed > 0) line += number_text(" · %.1f tok/s", speed);
  line += number_text(" · ttft %.2f s", stats.ttft_seconds());
  if (stats.cached_tokens() > 0) line += " · cached " + percent(stats.cached_tokens(), stats.prompt_tokens());
  const std::uint64_t pool = stats.experts_pool() + stats.experts_hinted();
  if (const std::uint64_t all = stats.experts_vram() + pool + stats.experts_disk(); all > 0) {
    line += " · experts:";
    if (stats.experts_vram() > 0) line += " vram " + percent(stats.experts_vram(), all);
    line += " pool " + percent(pool, all);
    if (stats.experts_hinted() > 0) line += " (prefetched " + percent(stats.experts_hinted(), all) + ")";
    line += " disk " + percent(stats.experts_disk(), all);
  }
  return line;
}

nlohmann::ordered_json statistics_json(const wire::Stats& stats) {
  return {{"prompt_tokens", stats.prompt_tokens()},
          {"cached_tokens", stats.cached_tokens()},
          {"generated_tokens", stats.generated_tokens()},
          {"queue_seconds", stats.queue_seconds()},
          {"ttft_seconds", stats.ttft_seconds()},
          {"prefill_seconds", stats.prefill_seconds()},
          {"decode_seconds", stats.decode_seconds()},
          {"tokens_per_second", tokens_per_second(stats)},
          {"experts_vram", stats.experts_vram()},
          {"experts_pool", stats.experts_pool()},
          {"experts_prefetched", stats.experts_hinted()},
          {"experts_disk", stats.experts_disk()},
          {"stall_seconds", stats.stall_seconds()},
          {"stall_late_hint_seconds", stats.stall_late_hint_seconds()}};
}

}  // namespace stoker::cli
