// What a routing trace shows, as one self-contained HTML page: hit rates of cache policies over pool sizes,
// which experts are used, where decoding waited, and the slowest step layer by layer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "trace/trace_file.h"

namespace stoker {

struct HtmlReportOptions {
  std::string title;
  std::vector<std::uint32_t> slots_per_layer;  ///< pool sizes to replay, ascending; at least one
  bool per_layer = false;                      ///< as in ReplayOptions
  std::size_t skip = 0;                        ///< tokens at the start that no figure counts
  /// Told before each replay; may be empty.
  std::function<void(const std::string& what)> progress;
};

/// `trace` holds more than `skip` tokens.
std::string html_report(const Trace& trace, const HtmlReportOptions& options);

/// The token whose step took longest, among those with timings from `skip` on; nullptr if there is none.
const TraceToken* slowest_token(const Trace& trace, std::size_t skip);

}  // namespace stoker
