#include "trace/events.h"

#include <algorithm>
#include <utility>

namespace stoker {

std::vector<TraceEvent> events_of(const Trace& trace) {
  const TraceShape& shape = trace.shape;
  std::vector<TraceEvent> events;
  std::uint32_t step = 0;
  for (std::size_t first = 0, last = 0; first < trace.tokens.size(); first = last, ++step) {
    while (last < trace.tokens.size() && trace.tokens[last].step == trace.tokens[first].step) ++last;
    for (std::uint32_t layer = 0; layer < shape.layers; ++layer) {
      TraceEvent event{.layer = layer, .step = step, .first_token = first, .keys = {}};
      for (std::size_t i = first; i < last; ++i)
        for (std::uint32_t k = 0; k < shape.top_k; ++k) {
          const std::uint16_t expert = trace.tokens[i].chosen[std::size_t{layer} * shape.top_k + k];
          if (expert != kNoExpert) event.keys.push_back(layer * shape.experts + expert);
        }
      std::sort(event.keys.begin(), event.keys.end());
      event.keys.erase(std::unique(event.keys.begin(), event.keys.end()), event.keys.end());
      if (!event.keys.empty()) events.push_back(std::move(event));
    }
  }
  return events;
}

}  // namespace stoker
