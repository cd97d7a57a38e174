// Sizes as people write them: "8GiB", "512M", "4096", "25%". Units are powers of 1024 (K, KB and KiB are
// the same), because memory is.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "shm/base/result.h"

namespace stoker {

/// A number of bytes, or a share of a whole that is known later (the machine's memory).
struct Size {
  std::uint64_t bytes = 0;
  double percent = 0;  ///< > 0: a share; bytes is then unused
  /// Bytes of this size when the whole is `whole` bytes.
  [[nodiscard]] std::uint64_t of(std::uint64_t whole) const {
    return percent > 0 ? static_cast<std::uint64_t>(static_cast<double>(whole) * percent / 100.0) : bytes;
  }
  bool operator==(const Size&) const = default;
};

/// Errc::invalid names the text and the accepted forms. Negative numbers, more than 100 %, unknown units
/// and overflow are refused.
Result<Size> parse_size(std::string_view text);

/// "8.0 GiB", "512.0 MiB", "12 bytes"; for people.
std::string format_bytes(std::uint64_t bytes);
/// A form that parse_size takes back: "8589934592" or "25%".
std::string format_size(const Size& size);

/// Physical memory of the machine in bytes.
std::uint64_t machine_memory();
/// Resident set of this process in bytes.
std::uint64_t resident_memory();

}  // namespace stoker
