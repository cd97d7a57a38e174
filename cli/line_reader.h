// Lines from a person (libedit: editing and history) or from a pipe. Ctrl-C arrives through Interrupts, so
// a read can end without a line and without a signal handler.
#pragma once

#include <memory>
#include <string>

#include "cli/interrupts.h"

namespace stoker::cli {

class LineReader {
 public:
  enum class Kind { line, end, interrupted };
  struct Input {
    Kind kind = Kind::end;
    std::string line;  ///< without its line break
    int signal = 0;    ///< kind == interrupted
  };
  /// `interactive`: edit lines on the terminal, with history kept in `history_path` ("" = not kept).
  LineReader(Interrupts& interrupts, bool interactive, std::string history_path);
  LineReader(const LineReader&) = delete;
  LineReader& operator=(const LineReader&) = delete;
  ~LineReader();
  Input read(const std::string& prompt);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// $XDG_STATE_HOME/stoker/history (~/.local/state by default); makes the directory. "" when there is no home.
std::string history_path();

}  // namespace stoker::cli
