// UTF-8: validation, decoding of valid text, and the lossy repair that Unicode recommends.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace stoker {

/// The first `valid` bytes are whole characters. If more follow: `bad_bytes` > 0 is the length of the maximal
/// invalid subsequence there (Unicode 3.9, table 3-8), or `truncated`, the text ends inside a character
/// that could still become valid.
struct Utf8Scan {
  std::size_t valid = 0;
  std::size_t bad_bytes = 0;
  bool truncated = false;
};
[[nodiscard]] Utf8Scan scan_utf8(std::string_view text);

/// Reads one character of valid UTF-8 at `position` and moves past it.
[[nodiscard]] char32_t next_code_point(std::string_view text, std::size_t& position);
/// Appends the UTF-8 of a scalar value (not a surrogate, at most U+10FFFF).
void append_utf8(std::string& out, char32_t code_point);

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

}  // namespace stoker
