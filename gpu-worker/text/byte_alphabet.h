// The 256 characters by which a byte-level vocabulary writes bytes (GPT-2; model.md 6).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace stoker {

/// Bytes 21-7E, A1-AC and AE-FF stand for themselves; the other 68, in rising order, are U+0100, U+0101, ...
/// Example: the space is U+0120.
class ByteAlphabet {
 public:
  ByteAlphabet();
  /// The character of one byte, as UTF-8.
  [[nodiscard]] std::string letter(unsigned char byte) const;
  /// Bytes written by `word` (valid UTF-8), or nothing if it has a character outside the alphabet.
  [[nodiscard]] std::optional<std::string> bytes(std::string_view word) const;

 private:
  std::array<char32_t, 256> letter_{};
  std::array<std::int16_t, 0x144> byte_{};  // U+0143 is the last character; -1: not in the alphabet
};

}  // namespace stoker
