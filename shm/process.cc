// Who is alive: start ticks of a pid, and what holds when they cannot be read.
#include <signal.h>

#include <cerrno>
#include <climits>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <optional>
#include <string>

#include "shm/pool.h"

namespace stoker {
namespace {

/// Field 22 of a pid's stat file: 0 of a zombie, nothing when the file is not there or cannot be read.
std::optional<std::uint64_t> read_start_ticks(std::uint32_t pid, const std::string& proc) {
  std::ifstream file(proc + "/" + std::to_string(pid) + "/stat");
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  // Field 2 is the command in parentheses and may itself contain spaces and parentheses.
  std::size_t at = text.rfind(')');
  if (at == std::string::npos || at + 2 >= text.size()) return std::nullopt;
  const char state = text[at + 2];
  if (state == 'Z' || state == 'X') return 0;  // a zombie has given its memory back
  for (int field = 2; field < 22; ++field) {
    at = text.find(' ', at + 1);
    if (at == std::string::npos) return std::nullopt;
  }
  return std::strtoull(text.c_str() + at + 1, nullptr, 10);
}

}  // namespace

std::uint64_t process_start_ticks(std::uint32_t pid) { return read_start_ticks(pid, "/proc").value_or(0); }

bool process_may_live(std::uint32_t pid, std::uint64_t start_ticks, const std::string& proc) {
  if (pid == 0 || pid > INT_MAX) return false;  // kill() would take them for groups of processes
  if (const auto now = read_start_ticks(pid, proc))
    return *now != 0 && (start_ticks == 0 || *now == start_ticks);
  return ::kill(static_cast<pid_t>(pid), 0) == 0 || errno == EPERM;
}

}  // namespace stoker
