#include "daemons/common/size.h"

#include <unistd.h>

#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <fstream>

namespace stoker {
namespace {

tl::unexpected<Error> bad_size(std::string_view text, const char* why) {
  return fail(Errc::invalid, "size \"" + std::string(text.substr(0, 64)) + "\": " + why +
                                 "; write 8GiB, 512M, a number of bytes, or 25%");
}

std::string lower(std::string_view text) {
  std::string out;
  for (char c : text) out += c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return out;
}

/// Shift for a unit, -1 for an unknown one.
int unit_shift(std::string_view unit) {
  static constexpr std::array<std::string_view, 4> kLetters = {"k", "m", "g", "t"};
  if (unit.empty() || unit == "b") return 0;
  for (std::size_t i = 0; i < kLetters.size(); ++i) {
    const std::string letter(kLetters[i]);
    if (unit == letter || unit == letter + "b" || unit == letter + "ib")
      return static_cast<int>(10 * (i + 1));
  }
  return -1;
}

}  // namespace

Result<Size> parse_size(std::string_view text) {
  double number = 0;
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), number, std::chars_format::fixed);
  if (error != std::errc() || !std::isfinite(number)) return bad_size(text, "not a number");
  if (number < 0) return bad_size(text, "negative");
  std::string_view rest(end, static_cast<std::size_t>(text.data() + text.size() - end));
  while (!rest.empty() && rest.front() == ' ') rest.remove_prefix(1);
  if (rest == "%") {
    if (number <= 0 || number > 100) return bad_size(text, "a share must be above 0 and at most 100 %");
    return Size{.bytes = 0, .percent = number};
  }
  const int shift = unit_shift(lower(rest));
  if (shift < 0) return bad_size(text, "unknown unit");
  const double bytes = std::ldexp(number, shift);
  if (bytes >= 9.2e18) return bad_size(text, "too large");
  return Size{.bytes = static_cast<std::uint64_t>(bytes), .percent = 0};
}

std::string format_bytes(std::uint64_t bytes) {
  static constexpr std::array<const char*, 5> kUnits = {"bytes", "KiB", "MiB", "GiB", "TiB"};
  std::size_t unit = 0;
  auto value = static_cast<double>(bytes);
  while (value >= 1024 && unit + 1 < kUnits.size()) {
    value /= 1024;
    ++unit;
  }
  std::array<char, 48> text{};
  std::snprintf(text.data(), text.size(), unit == 0 ? "%.0f %s" : "%.1f %s", value, kUnits[unit]);
  return text.data();
}

std::string format_size(const Size& size) {
  if (size.percent <= 0) return std::to_string(size.bytes);
  std::array<char, 48> text{};
  std::snprintf(text.data(), text.size(), "%g%%", size.percent);
  return text.data();
}

std::uint64_t machine_memory() {
  return static_cast<std::uint64_t>(::sysconf(_SC_PHYS_PAGES)) *
         static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
}

std::uint64_t resident_memory() {
  std::ifstream statm("/proc/self/statm");
  std::uint64_t total = 0, resident = 0;
  if (!(statm >> total >> resident)) return 0;
  return resident * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
}

}  // namespace stoker
