#include "daemons/gateway/tool_scanner.h"

#include <algorithm>
#include <array>
#include <utility>

namespace stoker::gateway {
namespace {

constexpr std::string_view kOpen = "<tool_call>", kClose = "</tool_call>";
constexpr std::string_view kFunction = "<function=", kFunctionEnd = "</function>";
constexpr std::string_view kParameter = "<parameter=", kParameterEnd = "</parameter>";
/// What may follow </parameter>.
constexpr std::array kAfterValue = {kParameter, kFunctionEnd, kClose};
/// Longer than any name that an API allows; without a bound a "<function=" in prose would hold the text back.
constexpr std::size_t kNameBytes = 256;

bool is_blank(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; }

/// The name that begins at `at` and ends before '>'. `complete`: '>' was seen; `bad`: it never will be.
struct Name {
  std::string_view text;
  bool complete = false, bad = false;
};
Name read_name(std::string_view text, std::size_t at) {
  const std::string_view rest = text.substr(at, kNameBytes + 1);
  const std::size_t end = rest.find_first_of("<>\n");
  if (end == std::string_view::npos)
    return {.text = rest, .complete = false, .bad = rest.size() > kNameBytes};
  const bool good = rest[end] == '>' && end > 0;
  return {.text = rest.substr(0, end), .complete = good, .bad = !good};
}

/// A value that the answer's end cut off: without the closing tags that came all the same.
std::string_view without_closing_tags(std::string_view value) {
  for (const std::string_view tag : {kClose, kFunctionEnd}) {
    std::string_view bare = value;
    while (!bare.empty() && is_blank(bare.back())) bare.remove_suffix(1);
    if (bare.ends_with(tag)) value = bare.substr(0, bare.size() - tag.size());
  }
  return value;
}

}  // namespace

ToolScanner::ToolScanner(const std::set<std::string>& tools) {
  for (const std::string& name : tools) bare_.push_back(std::string(kFunction) + name + ">");
}

std::vector<ToolEvent> ToolScanner::push(std::string_view text) {
  buffer_ += text;
  while (step()) {
  }
  return std::exchange(events_, {});
}

std::vector<ToolEvent> ToolScanner::finish() {
  at_end_ = true;
  while (step()) {
  }
  return std::exchange(events_, {});
}

/// One event or one change of state; false: more text is needed.
bool ToolScanner::step() {
  switch (state_) {
    case State::text:
      return in_text();
    case State::opened:
      return in_opened();
    case State::body:
      return in_body();
    case State::value:
      return in_value();
    case State::closed:
      return in_closed();
  }
  return false;
}

/// Whether the buffer holds `tag` at `at`, or only its beginning so far.
bool ToolScanner::may_become(std::size_t at, std::string_view tag) const {
  const std::string_view rest = std::string_view(buffer_).substr(at);
  return rest.size() < tag.size() && !at_end_ && tag.starts_with(rest);
}

/// Goes on where it stopped: a model may write nothing but blanks for a long time.
std::size_t ToolScanner::skip_blanks(std::size_t at) {
  if (at != blanks_from_) blanks_from_ = blanks_to_ = at;
  while (blanks_to_ < buffer_.size() && is_blank(buffer_[blanks_to_])) ++blanks_to_;
  return blanks_to_;
}

void ToolScanner::consume(std::size_t bytes) {
  buffer_.erase(0, bytes);
  looked_at_ = blanks_from_ = blanks_to_ = 0;
}

/// Text up to `end`; blanks before it wait, for a call may follow them.
void ToolScanner::emit_text(std::size_t end) {
  std::size_t shown = end;
  while (shown > looked_at_ && is_blank(buffer_[shown - 1])) --shown;
  if (shown == looked_at_) shown = 0;
  if (at_end_ && end == buffer_.size() && !(behind_call_ && shown == 0)) shown = end;
  if (shown > 0) {
    behind_call_ = false;
    events_.push_back({.kind = ToolEvent::Kind::text, .text = buffer_.substr(0, shown)});
    consume(shown);
  }
  looked_at_ = end - shown;
}

bool ToolScanner::in_text() {
  std::size_t end = buffer_.size();
  for (std::size_t at = buffer_.find('<', looked_at_); at < buffer_.size(); at = buffer_.find('<', at + 1)) {
    const std::string_view rest = std::string_view(buffer_).substr(at);
    const auto begins = [&](const std::string& tag) { return rest.starts_with(tag); };
    const auto waits = [&](const std::string& tag) { return may_become(at, tag); };
    const auto bare = std::find_if(bare_.begin(), bare_.end(), begins);
    if (rest.starts_with(kOpen) || bare != bare_.end()) {
      emit_text(at);
      const std::size_t blanks = skip_blanks(0);
      blanks_ = buffer_.substr(0, blanks);
      consume(blanks);
      if (bare == bare_.end()) {
        state_ = State::opened;
      } else {
        begin_call(bare->substr(kFunction.size(), bare->size() - kFunction.size() - 1), bare->size());
      }
      return true;
    }
    if (may_become(at, kOpen) || std::any_of(bare_.begin(), bare_.end(), waits)) {
      end = at;
      break;
    }
  }
  emit_text(end);
  return false;
}

void ToolScanner::begin_call(std::string name, std::size_t consumed) {
  events_.push_back({.kind = ToolEvent::Kind::call, .name = std::move(name)});
  consume(consumed);
  state_ = State::body;
}

void ToolScanner::end_call(std::size_t consumed, State next) {
  events_.push_back({.kind = ToolEvent::Kind::end});
  consume(consumed);
  state_ = next;
  behind_call_ = true;
}

/// The buffer begins with <tool_call>.
bool ToolScanner::in_opened() {
  const std::size_t at = skip_blanks(kOpen.size());
  if (std::string_view(buffer_).substr(at).starts_with(kFunction)) {
    const Name name = read_name(buffer_, at + kFunction.size());
    if (name.complete) {
      begin_call(std::string(name.text), at + kFunction.size() + name.text.size() + 1);
      return true;
    }
    if (!name.bad && !at_end_) return false;
  } else if (may_become(at, kFunction)) {
    return false;
  }
  behind_call_ = false;
  events_.push_back({.kind = ToolEvent::Kind::text, .text = blanks_ + std::string(kOpen)});
  consume(kOpen.size());
  state_ = State::text;
  return true;
}

/// Between the parts of a call. What is no tag there is no part of it.
bool ToolScanner::in_body() {
  consume(skip_blanks(0));
  const std::string_view text = buffer_;
  if (text.empty()) {
    if (at_end_) end_call(0, State::text);
    return false;
  }
  if (text.starts_with(kParameter)) {
    const Name name = read_name(text, kParameter.size());
    if (!name.complete && !name.bad && !at_end_) return false;
    if (name.complete) {
      parameter_ = name.text;
      state_ = State::value;
    }
    consume(kParameter.size() + (name.complete ? name.text.size() + 1 : 0));
    return true;
  }
  if (text.starts_with(kFunctionEnd)) {
    end_call(kFunctionEnd.size(), State::closed);
    return true;
  }
  if (text.starts_with(kClose) || text.starts_with(kOpen)) {
    end_call(text.starts_with(kClose) ? kClose.size() : 0, State::text);
    return true;
  }
  for (const std::string_view tag : {kParameter, kFunctionEnd, kClose, kOpen})
    if (may_become(0, tag)) return false;
  const std::size_t next = text.find('<', 1);
  consume(std::min(next, text.size()));
  return true;
}

void ToolScanner::end_value(std::size_t end, std::size_t consumed) {
  std::string_view value = std::string_view(buffer_).substr(0, end);
  if (value.starts_with('\n')) value.remove_prefix(1);
  if (value.ends_with('\n')) value.remove_suffix(1);
  events_.push_back(
      {.kind = ToolEvent::Kind::parameter, .name = std::move(parameter_), .text = std::string(value)});
  consume(consumed);
  state_ = State::body;
}

bool ToolScanner::in_value() {
  for (;;) {
    const std::size_t at = buffer_.find(kParameterEnd, looked_at_);
    if (at == std::string::npos) break;
    const std::size_t after = skip_blanks(at + kParameterEnd.size());
    const std::string_view rest = std::string_view(buffer_).substr(after);
    const auto follows = [&](std::string_view tag) {
      return rest.starts_with(tag) || (at_end_ && tag.starts_with(rest));
    };
    const auto waits = [&](std::string_view tag) { return may_become(after, tag); };
    if (std::any_of(kAfterValue.begin(), kAfterValue.end(), follows)) {
      end_value(at, after);
      return true;
    }
    looked_at_ = at;
    if (std::any_of(kAfterValue.begin(), kAfterValue.end(), waits)) return false;
    looked_at_ = at + kParameterEnd.size();
  }
  if (at_end_) {
    end_value(without_closing_tags(buffer_).size(), buffer_.size());
    return true;
  }
  const std::size_t overlap = kParameterEnd.size() - 1;
  looked_at_ = std::max(looked_at_, buffer_.size() > overlap ? buffer_.size() - overlap : 0);
  return false;
}

/// Behind </function>: </tool_call>, unless the model forgot it.
bool ToolScanner::in_closed() {
  const std::size_t at = skip_blanks(0);
  if (std::string_view(buffer_).substr(at).starts_with(kClose)) {
    consume(at + kClose.size());
  } else if (may_become(at, kClose)) {
    return false;
  }
  state_ = State::text;
  return true;
}

}  // namespace stoker::gateway
