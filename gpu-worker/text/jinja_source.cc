#include "gpu-worker/text/jinja_source.h"

#include <cctype>

namespace stoker {
namespace {

bool is_name_char(char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; }
bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

class Reader {
 public:
  explicit Reader(std::string_view source) : in_(source) {}

  Result<std::vector<JinjaToken>> run() {
    while (at_ < in_.size()) {
      if (starts("{#")) {
        const auto end = in_.find("#}", at_);
        if (end == std::string_view::npos) return refuse("a comment that does not end");
        at_ = end + 2;
      } else if (starts("{{") || starts("{%")) {
        STOKER_TRY_VOID(block(in_[at_ + 1] == '{' ? "}}" : "%}"));
      } else if (is_space(in_[at_])) {
        ++at_;
      } else {
        return refuse("text outside {{ }} and {% %}");
      }
    }
    return std::move(tokens_);
  }

 private:
  [[nodiscard]] bool starts(std::string_view prefix) const { return in_.substr(at_).starts_with(prefix); }
  tl::unexpected<Error> refuse(const std::string& what) const {
    return fail(Errc::unsupported, what + " at byte " + std::to_string(at_));
  }

  Result<void> block(std::string_view end) {
    at_ += 2;
    while (at_ < in_.size() && !starts(end)) {
      const char c = in_[at_];
      if (starts("{%") || starts("{{")) return refuse("a block within a block");
      if (c == '\'' || c == '"') {
        STOKER_TRY_VOID(literal());
      } else if (is_name_char(c)) {
        const std::size_t begin = at_;
        while (at_ < in_.size() && is_name_char(in_[at_])) ++at_;
        const bool number = std::isdigit(static_cast<unsigned char>(c)) != 0;
        add(number ? JinjaToken::Kind::other : JinjaToken::Kind::name,
            std::string(in_.substr(begin, at_ - begin)));
      } else {
        // The dash of {%- and -%} controls blanks, of which the family has none outside its literals.
        const bool trim =
            c == '-' && (in_[at_ - 1] == '%' || in_[at_ - 1] == '{' || in_.substr(at_ + 1).starts_with(end));
        if (!is_space(c) && !trim) add(JinjaToken::Kind::other, std::string(1, c));
        ++at_;
      }
    }
    if (at_ >= in_.size()) return refuse("a block without " + std::string(end));
    at_ += end.size();
    ++block_;
    return {};
  }

  Result<void> literal() {
    const char quote = in_[at_++];
    std::string value;
    while (at_ < in_.size() && in_[at_] != quote) {
      if (in_[at_] != '\\') {
        value += in_[at_++];
        continue;
      }
      const char c = at_ + 1 < in_.size() ? in_[at_ + 1] : '\0';
      switch (c) {
        case 'n':
          value += '\n';
          break;
        case 't':
          value += '\t';
          break;
        case 'r':
          value += '\r';
          break;
        case '\\':
        case '\'':
        case '"':
          value += c;
          break;
        default:
          return refuse("an escape in a literal that is not \\n \\t \\r \\\\ \\' \\\"");
      }
      at_ += 2;
    }
    if (at_ >= in_.size()) return refuse("a literal that does not end");
    ++at_;
    add(JinjaToken::Kind::literal, std::move(value));
    return {};
  }

  void add(JinjaToken::Kind kind, std::string text) { tokens_.push_back({kind, std::move(text), block_}); }

  std::string_view in_;
  std::size_t at_ = 0;
  std::size_t block_ = 0;
  std::vector<JinjaToken> tokens_;
};

}  // namespace

Result<std::vector<JinjaToken>> read_jinja(std::string_view source) { return Reader(source).run(); }

}  // namespace stoker
