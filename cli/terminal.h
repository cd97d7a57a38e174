// stdout is the answer and nothing else; stderr is for people. Colours and the moving progress line only
// where stderr is a terminal that can show them (NO_COLOR, TERM=dumb are honoured).
#pragma once

#include <string>
#include <string_view>

namespace stoker::cli {

class Terminal {
 public:
  Terminal();
  [[nodiscard]] bool stderr_is_tty() const { return stderr_tty_; }
  [[nodiscard]] bool stdout_is_tty() const { return stdout_tty_; }
  [[nodiscard]] bool stdin_is_tty() const { return stdin_tty_; }

  /// Writes all bytes to stdout at once (no buffering: tokens must show as they come). False when the
  /// reader has gone or the disk is full.
  [[nodiscard]] bool write_answer(std::string_view bytes);
  /// Ends a line that the answer left open, when both streams share one terminal.
  void end_answer();

  /// Replaces the progress line. Nothing happens when stderr is not a terminal.
  void progress(std::string_view text);
  void clear_progress();

  /// One line on stderr.
  void note(std::string_view text);
  /// One dim line on stderr (statistics).
  void dim(std::string_view text);

 private:
  bool stdin_tty_, stdout_tty_, stderr_tty_, colour_;
  bool progress_shown_ = false;
  bool line_open_ = false;
};

/// All of stdin, or of a file ("-" is stdin). Errors name the path and the errno.
bool read_all(int fd, std::string& text);

}  // namespace stoker::cli
