// Numbers as text, and short names for long paths.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>

namespace stoker {

/// 16 hex digits.
inline std::string hex(std::uint64_t value) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(value));
  return text;
}

/// FNV-1a, 64 bits.
inline std::string name_hash(std::string_view text) {
  std::uint64_t hash = 0xCBF29CE484222325ULL;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3ULL;
  return hex(hash);
}

}  // namespace stoker
