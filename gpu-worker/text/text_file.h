// Reads a small text file whole.
#pragma once

#include <cstddef>
#include <string>

#include "shm/base/result.h"

namespace stoker {

/// Errc::missing if there is no such file, Errc::io with errno, Errc::corrupt with both numbers.
[[nodiscard]] Result<std::string> read_text_file(const std::string& path, std::size_t bytes_max);

}  // namespace stoker
