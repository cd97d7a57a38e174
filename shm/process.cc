// Who is alive: start ticks of a pid.
#include <cctype>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>

#include "shm/pool.h"

namespace stoker {

std::uint64_t process_start_ticks(std::uint32_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  // Field 2 is the command in parentheses and may itself contain spaces and parentheses.
  std::size_t at = text.rfind(')');
  if (at == std::string::npos || at + 2 >= text.size()) return 0;
  const char state = text[at + 2];
  if (state == 'Z' || state == 'X') return 0;  // a zombie has given its memory back
  for (int field = 2; field < 22; ++field) {
    at = text.find(' ', at + 1);
    if (at == std::string::npos) return 0;
  }
  return std::strtoull(text.c_str() + at + 1, nullptr, 10);
}

}  // namespace stoker
