#include <algorithm>

#include "gpu-worker/text/tokenizer.h"

namespace stoker {
namespace {

/// Length of the longest stop string that ends exactly at `end` of the text; 0 if none does.
std::size_t stop_ending_at(const std::vector<std::string>& stops, std::string_view text, std::size_t end) {
  std::size_t longest = 0;
  for (const std::string& stop : stops) {
    if (text.substr(0, end).ends_with(stop)) longest = std::max(longest, stop.size());
  }
  return longest;
}

/// Length of the longest end of the text that begins a stop string.
std::size_t possible_stop_bytes(const std::vector<std::string>& stops, std::string_view text) {
  std::size_t longest = 0;
  for (const std::string& stop : stops) {
    for (std::size_t n = std::min(stop.size() - 1, text.size()); n > longest; --n) {
      if (text.ends_with(std::string_view(stop).substr(0, n))) longest = n;
    }
  }
  return longest;
}

}  // namespace

StopScanner::StopScanner(std::vector<std::string> stops) : stops_(std::move(stops)) {
  // An empty stop string would stop before the first token; callers reject it, this only stays sane.
  std::erase(stops_, std::string());
}

// The stop that is complete first wins (the longest of those), so that the result does not depend on how the
// text was cut into tokens.
StopScanner::Step StopScanner::push(std::string_view text) {
  if (stopped_) return {.text = {}, .stopped = true};
  const std::size_t seen = held_.size();
  held_ += text;
  for (std::size_t end = seen + 1; end <= held_.size(); ++end) {
    const std::size_t stop_bytes = stop_ending_at(stops_, held_, end);
    if (stop_bytes == 0) continue;
    stopped_ = true;
    std::string before = held_.substr(0, end - stop_bytes);
    found_ = held_.substr(end - stop_bytes, stop_bytes);
    held_.clear();
    return {.text = std::move(before), .stopped = true};
  }
  const std::size_t keep = possible_stop_bytes(stops_, held_);
  std::string safe = held_.substr(0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return {.text = std::move(safe), .stopped = false};
}

std::string StopScanner::flush() { return std::exchange(held_, std::string()); }

}  // namespace stoker
