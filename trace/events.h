// A trace as a cache sees it: event by event, one event per layer and step.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "trace/trace_file.h"

namespace stoker {

/// The distinct experts that one layer needs in one step.
struct TraceEvent {
  std::uint32_t layer = 0;
  std::uint32_t step = 0;           ///< counted from 0, whatever the trace calls it
  std::size_t first_token = 0;      ///< of the step, in the trace
  std::vector<std::uint32_t> keys;  ///< layer * experts + expert, ascending; at least one
};

/// In the order of the work. Tokens of one step are computed together.
std::vector<TraceEvent> events_of(const Trace& trace);

}  // namespace stoker
