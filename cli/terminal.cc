#include "cli/terminal.h"

#include <unistd.h>

#include <cerrno>
#include <cstdlib>

namespace stoker::cli {
namespace {

bool write_all(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    bytes.remove_prefix(static_cast<std::size_t>(n));
  }
  return true;
}

/// For stderr: there is nobody left to tell when that fails.
void tell(std::string_view bytes) { static_cast<void>(write_all(STDERR_FILENO, bytes)); }

bool colour_wanted() {
  const char* no_color = std::getenv("NO_COLOR");
  const char* term = std::getenv("TERM");
  const bool refused = no_color != nullptr && *no_color != '\0';
  return !refused && term != nullptr && std::string_view(term) != "dumb";
}

}  // namespace

Terminal::Terminal()
    : stdin_tty_(::isatty(STDIN_FILENO) == 1),
      stdout_tty_(::isatty(STDOUT_FILENO) == 1),
      stderr_tty_(::isatty(STDERR_FILENO) == 1),
      colour_(stderr_tty_ && colour_wanted()) {}

bool Terminal::write_answer(std::string_view bytes) {
  if (bytes.empty()) return true;
  clear_progress();
  line_open_ = bytes.back() != '\n';
  return write_all(STDOUT_FILENO, bytes);
}

void Terminal::end_answer() {
  if (line_open_ && stdout_tty_) static_cast<void>(write_all(STDOUT_FILENO, "\n"));
  line_open_ = false;
}

void Terminal::progress(std::string_view text) {
  if (!stderr_tty_) return;
  tell("\r\x1b[K" + std::string(text));
  progress_shown_ = true;
}

void Terminal::clear_progress() {
  if (!progress_shown_) return;
  tell("\r\x1b[K");
  progress_shown_ = false;
}

void Terminal::note(std::string_view text) {
  clear_progress();
  tell(std::string(text) + "\n");
}

void Terminal::dim(std::string_view text) {
  clear_progress();
  tell(colour_ ? "\x1b[2m" + std::string(text) + "\x1b[0m\n" : std::string(text) + "\n");
}

bool read_all(int fd, std::string& text) {
  char buffer[65536];
  for (;;) {
    const ssize_t n = ::read(fd, buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return false;
    if (n == 0) return true;
    text.append(buffer, static_cast<std::size_t>(n));
  }
}

}  // namespace stoker::cli
