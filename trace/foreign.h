// Routing traces of other projects, read into our own form. Weights, tiers and candidates that they do not
// have are 0, `disk` and absent.
//
//   MTRC1         u32 layers, experts, top_k, tokens, segments; u32 segment_start[]; u16 ids[token][layer][k]
//   route_trace   CSV with a header line that names phase, step, layer and expert; one row per expert. Only
//                 decode rows (phase 1) are taken.
//   event CSV     event_index, scheduler_step, layer, requested_experts ("3 7"); one row per layer and step.
#pragma once

#include <string>
#include <string_view>

#include "trace/trace_file.h"

namespace stoker {

/// Our own format or one of the above, told apart by how it begins. Errc::corrupt names line or token.
Result<Trace> parse_any_trace(std::string_view bytes);
Result<Trace> read_any_trace(const std::string& path);

}  // namespace stoker
