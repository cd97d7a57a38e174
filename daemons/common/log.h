// Log lines to stderr: "12:00:00.123 loader info: text"; under systemd (journal = true) with the <N>
// priority prefix of sd-daemon(3) instead of a time, which the journal adds itself.
#pragma once

#include <string>

namespace stoker {

/// Call once, before other threads start. `level`: trace, debug, info, warn, error, off.
void log_start(const std::string& program, const std::string& level, bool journal);

void log_debug(const std::string& text);
void log_info(const std::string& text);
void log_warn(const std::string& text);
void log_error(const std::string& text);

}  // namespace stoker
