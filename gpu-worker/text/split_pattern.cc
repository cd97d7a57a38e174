#include <array>
#include <cctype>

#include "gpu-worker/text/split_regex.h"

namespace stoker {
namespace {

constexpr std::size_t kPatternBytesMax = 4096;

bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_ascii(char c) { return static_cast<unsigned char>(c) < 0x80; }

// One pass over the pattern that copies what both engines read alike.
class Translator {
 public:
  explicit Translator(std::string_view pattern) : in_(pattern) {}

  Result<std::string> run() {
    while (at_ < in_.size()) STOKER_TRY_VOID(element());
    if (!groups_.empty()) return refuse("an unclosed group");
    return std::move(out_);
  }

 private:
  tl::unexpected<Error> refuse(const std::string& what) const {
    return fail(Errc::unsupported,
                "the split pattern contains " + what + " at byte " + std::to_string(at_) +
                    ", which this build does not read exactly like Hugging Face tokenizers");
  }
  [[nodiscard]] bool starts(std::string_view prefix) const { return in_.substr(at_).starts_with(prefix); }
  [[nodiscard]] bool caseless() const { return !groups_.empty() && groups_.back(); }
  void copy(std::size_t count) {
    out_ += in_.substr(at_, count);
    at_ += count;
  }

  Result<void> element() {
    const char c = in_[at_];
    if (c != '?' && c != '*' && c != '+' && c != '{')
      previous_letter_ = is_letter(c) ? previous_letter_ : '\0';
    switch (c) {
      case '(':
        return open_group();
      case ')':
        if (groups_.empty()) return refuse("an unmatched \")\"");
        groups_.pop_back();
        copy(1);
        return {};
      case '|':
        copy(1);
        return {};
      case '[':
        return bracket();
      case '\\':
        return escape(false);
      case '*':
      case '+':
      case '?':
        copy(1);
        if (at_ < in_.size() && (in_[at_] == '?' || in_[at_] == '+')) copy(1);  // lazy, possessive
        return {};
      case '{':
        return interval();
      case '.':
      case '^':
      case '$':
      case ']':
      case '}':
        return refuse(std::string("\"") + c + "\"");
      default:
        return literal();
    }
  }

  Result<void> open_group() {
    static constexpr std::array<std::string_view, 5> kKinds = {"(?:", "(?=", "(?!", "(?>", "(?i:"};
    for (const std::string_view kind : kKinds) {
      if (!starts(kind)) continue;
      groups_.push_back(kind == "(?i:" || caseless());
      copy(kind.size());
      return {};
    }
    if (starts("(?") || starts("(*")) return refuse("a \"" + std::string(in_.substr(at_, 3)) + "\" group");
    groups_.push_back(caseless());
    copy(1);
    return {};
  }

  // Oniguruma folds these letter pairs to one character (ss = U+00DF, ff fi fl st = U+FB00...), PCRE2 does
  // not.
  Result<void> literal() {
    const char c = in_[at_];
    if (!is_ascii(c)) return refuse("a non-ASCII letter");
    if (caseless()) {
      const char lower = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
      const std::string pair{previous_letter_, lower};
      for (const std::string_view folded : {"ss", "ff", "fi", "fl", "st"}) {
        if (pair == folded) return refuse("\"" + pair + "\" inside (?i:");
      }
      previous_letter_ = is_letter(c) ? lower : '\0';
    }
    copy(1);
    return {};
  }

  Result<void> interval() {
    std::size_t end = at_ + 1;
    while (end < in_.size() && (is_digit(in_[end]) || in_[end] == ',')) ++end;
    const bool well_formed = end < in_.size() && in_[end] == '}' && is_digit(in_[at_ + 1]);
    if (!well_formed) return refuse("a \"{\" that is no {n}, {n,} or {n,m}");
    const char next = end + 1 < in_.size() ? in_[end + 1] : '\0';
    if (next == '?' || next == '+' || next == '*') return refuse("a quantifier after \"}\"");
    copy(end + 1 - at_);
    return {};
  }

  Result<void> escape(bool in_class) {
    if (at_ + 1 >= in_.size()) return refuse("a \"\\\" at the end");
    const char c = in_[at_ + 1];
    if (c == 's' || c == 'S') {
      out_ += c == 's' ? "\\p{White_Space}" : "\\P{White_Space}";
      at_ += 2;
      return {};
    }
    if (c == 'p' || c == 'P') return property();
    const bool same_in_both = c == 'r' || c == 'n' || c == 't' || c == 'f' ||
                              (is_ascii(c) && std::ispunct(static_cast<unsigned char>(c)) != 0);
    if (!same_in_both) return refuse(std::string("\"\\") + c + "\"" + (in_class ? " in a class" : ""));
    copy(2);
    return {};
  }

  // For letters, numbers and marks unicode_delta.h bridges the Unicode versions of the two engines.
  Result<void> property() {
    if (caseless()) return refuse("\"\\p\" inside (?i:");
    const std::string_view rest = in_.substr(at_ + 2);
    if (!rest.starts_with("{L}") && !rest.starts_with("{N}") && !rest.starts_with("{M}")) {
      return refuse("a property other than \\p{L}, \\p{N} and \\p{M}");
    }
    copy(5);
    return {};
  }

  Result<void> bracket() {
    copy(1);
    if (at_ < in_.size() && in_[at_] == '^') copy(1);
    if (at_ < in_.size() && in_[at_] == ']') return refuse("a class that starts with \"]\"");
    while (at_ < in_.size() && in_[at_] != ']') {
      if (in_[at_] == '[') return refuse("a class within a class");
      if (starts("&&")) return refuse("\"&&\" in a class");
      if (!is_ascii(in_[at_])) return refuse("a non-ASCII letter in a class");
      if (in_[at_] == '\\') {
        STOKER_TRY_VOID(escape(true));
      } else {
        copy(1);
      }
    }
    if (at_ == in_.size()) return refuse("an unclosed class");
    copy(1);
    return {};
  }

  std::string_view in_;
  std::size_t at_ = 0;
  std::string out_;
  std::vector<bool> groups_;  // one entry per open group: is it caseless?
  char previous_letter_ = '\0';
};

}  // namespace

Result<std::string> translate_split_pattern(std::string_view pattern) {
  if (pattern.empty()) return fail(Errc::corrupt, "the split pattern is empty");
  if (pattern.size() > kPatternBytesMax) {
    return fail(Errc::corrupt, "the split pattern has " + std::to_string(pattern.size()) +
                                   " bytes, more than " + std::to_string(kPatternBytesMax));
  }
  return Translator(pattern).run();
}

}  // namespace stoker
