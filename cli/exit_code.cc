#include "cli/exit_code.h"

#include <cstdio>
#include <string>

namespace stoker::cli {
namespace {

std::string one_line(std::string_view text) {
  std::string line;
  for (const char c : text) {
    const bool blank = c == '\n' || c == '\r' || c == '\t';
    const bool control = static_cast<unsigned char>(c) < 0x20 || c == 0x7F;
    if (blank && (line.empty() || line.back() == ' ')) continue;
    line += blank ? ' ' : control ? '?' : c;
  }
  while (!line.empty() && line.back() == ' ') line.pop_back();
  return line;
}

}  // namespace

int report(int code, std::string_view what, std::string_view why) {
  const std::string line = "stoker: " + one_line(what) + ": " + one_line(why) + "\n";
  std::fflush(stdout);
  std::fputs(line.c_str(), stderr);
  return code;
}

int report(const Error& error, std::string_view what) {
  return report(exit_code_of(error), what, error.text());
}

}  // namespace stoker::cli
