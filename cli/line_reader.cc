#include "cli/line_reader.h"

#include <histedit.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <clocale>
#include <cstdlib>
#include <filesystem>

namespace stoker::cli {
namespace {

constexpr int kHistoryLines = 1000;

}  // namespace

struct LineReader::State {
  Interrupts& interrupts;
  bool interactive;
  std::string history_file;
  std::string prompt;
  int signal = 0;
  std::string pending;  ///< pipe: bytes read beyond the last line
  bool at_end = false;
  EditLine* editor = nullptr;
  History* history = nullptr;

  explicit State(Interrupts& i, bool tty) : interrupts(i), interactive(tty) {}

  /// True when stdin has bytes; false (with `signal` set) when a signal came first.
  bool wait() {
    for (;;) {
      pollfd polled[2] = {{STDIN_FILENO, POLLIN, 0}, {interrupts.fd(), POLLIN, 0}};
      if (::poll(polled, 2, -1) < 0 && errno != EINTR) return true;
      if ((polled[1].revents & POLLIN) != 0) {
        signal = interrupts.take();
        if (signal != 0) return false;
      }
      if (polled[0].revents != 0) return true;
    }
  }

  static State& of(EditLine* editor) {
    void* data = nullptr;
    el_get(editor, EL_CLIENTDATA, &data);
    return *static_cast<State*>(data);
  }
  static char* show_prompt(EditLine* editor) { return of(editor).prompt.data(); }

  /// libedit's source of characters: one code point of UTF-8 per call.
  static int next_character(EditLine* editor, wchar_t* out) {
    State& state = of(editor);
    if (!state.wait()) return -1;
    unsigned char first = 0;
    if (::read(STDIN_FILENO, &first, 1) != 1) return 0;
    const int more = first >= 0xF0 ? 3 : first >= 0xE0 ? 2 : first >= 0xC0 ? 1 : 0;
    auto code = static_cast<wchar_t>(more == 3   ? first & 0x07
                                     : more == 2 ? first & 0x0F
                                     : more == 1 ? first & 0x1F
                                                 : first);
    for (int i = 0; i < more; ++i) {
      unsigned char next = 0;
      if (::read(STDIN_FILENO, &next, 1) != 1) return 0;
      code = static_cast<wchar_t>((code << 6) | (next & 0x3F));
    }
    *out = code;
    return 1;
  }

  void open_editor() {
    std::setlocale(LC_CTYPE, "");
    editor = el_init("stoker", stdin, stderr, stderr);
    if (editor == nullptr) {
      interactive = false;
      return;
    }
    el_set(editor, EL_CLIENTDATA, this);
    el_set(editor, EL_PROMPT, &State::show_prompt);
    el_set(editor, EL_EDITOR, "emacs");
    el_set(editor, EL_GETCFN, &State::next_character);
    history = history_init();
    if (history == nullptr) return;
    HistEvent event;
    ::history(history, &event, H_SETSIZE, kHistoryLines);
    ::history(history, &event, H_SETUNIQUE, 1);
    el_set(editor, EL_HIST, ::history, history);
    if (!history_file.empty()) ::history(history, &event, H_LOAD, history_file.c_str());
  }

  void close_editor() {
    if (history != nullptr) {
      HistEvent event;
      const mode_t before = ::umask(0077);  // what people type is theirs
      if (!history_file.empty()) ::history(history, &event, H_SAVE, history_file.c_str());
      ::umask(before);
      history_end(history);
    }
    if (editor != nullptr) el_end(editor);
  }

  Input edit_line() {
    int count = 0;
    signal = 0;
    const char* text = el_gets(editor, &count);
    if (signal != 0) {
      el_set(editor, EL_UNBUFFERED, 0);
      return {Kind::interrupted, "", signal};
    }
    if (text == nullptr || count <= 0) return {Kind::end, "", 0};
    std::string line(text, static_cast<std::size_t>(count));
    if (line.back() == '\n') line.pop_back();
    HistEvent event;
    if (history != nullptr && !line.empty()) ::history(history, &event, H_ENTER, line.c_str());
    return {Kind::line, std::move(line), 0};
  }

  Input pipe_line() {
    for (;;) {
      const auto end = pending.find('\n');
      if (end != std::string::npos || (at_end && !pending.empty())) {
        std::string line = pending.substr(0, end);
        pending.erase(0, end == std::string::npos ? end : end + 1);
        return {Kind::line, std::move(line), 0};
      }
      if (at_end) return {Kind::end, "", 0};
      signal = 0;
      if (!wait()) return {Kind::interrupted, "", signal};
      char buffer[4096];
      const ssize_t n = ::read(STDIN_FILENO, buffer, sizeof buffer);
      if (n > 0) pending.append(buffer, static_cast<std::size_t>(n));
      at_end = n == 0 || (n < 0 && errno != EINTR);
    }
  }
};

LineReader::LineReader(Interrupts& interrupts, bool interactive, std::string history_file)
    : state_(std::make_unique<State>(interrupts, interactive)) {
  state_->history_file = std::move(history_file);
  if (interactive) state_->open_editor();
}

LineReader::~LineReader() { state_->close_editor(); }

LineReader::Input LineReader::read(const std::string& prompt) {
  state_->prompt = prompt;
  return state_->interactive ? state_->edit_line() : state_->pipe_line();
}

std::string history_path() {
  const char* state = std::getenv("XDG_STATE_HOME");
  const char* home = std::getenv("HOME");
  std::string base;
  if (state != nullptr && *state == '/') {
    base = state;
  } else if (home != nullptr && *home == '/') {
    base = std::string(home) + "/.local/state";
  } else {
    return "";
  }
  std::error_code error;
  std::filesystem::create_directories(base + "/stoker", error);
  return error ? "" : base + "/stoker/history";
}

}  // namespace stoker::cli
