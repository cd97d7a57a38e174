// The pre-tokenizer's regex: translated from the dialect tokenizer.json is written in, matched by PCRE2.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "shm/base/result.h"

namespace stoker {

/// tokenizer.json means its patterns for Oniguruma (Ruby syntax, UTF-8). This accepts the constructs that
/// both engines read alike, rewrites \s and \S (PCRE2 counts U+180E among \s, Oniguruma does not) and refuses
/// the rest (Errc::unsupported, naming the construct): a wrong split costs quality silently.
[[nodiscard]] Result<std::string> translate_split_pattern(std::string_view pattern);

/// A compiled pattern. Immutable; split() may run in several threads.
class SplitRegex {
 public:
  struct Piece {
    std::size_t begin = 0, end = 0;
  };

  static Result<SplitRegex> compile(std::string_view pattern);
  SplitRegex(SplitRegex&&) noexcept;
  SplitRegex& operator=(SplitRegex&&) noexcept;
  ~SplitRegex();

  /// Appends the pieces of valid UTF-8 that cover all of it in order: every match, and every stretch between
  /// matches ("Isolated"). Errc::unsupported if the pattern needs more backtracking than PCRE2 allows.
  [[nodiscard]] Result<void> split(std::string_view text, std::vector<Piece>& pieces) const;

 private:
  struct Code;
  explicit SplitRegex(std::unique_ptr<Code> code);
  std::unique_ptr<Code> code_;
};

}  // namespace stoker
