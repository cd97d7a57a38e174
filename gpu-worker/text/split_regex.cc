#define PCRE2_CODE_UNIT_WIDTH 8
#include "gpu-worker/text/split_regex.h"

#include <pcre2.h>

#include <array>

#include "gpu-worker/text/unicode_delta.h"
#include "gpu-worker/text/utf8.h"
#include "shm/base/check.h"

namespace stoker {
namespace {

template <auto free_function>
struct Free {
  template <class T>
  void operator()(T* pointer) const {
    free_function(pointer);
  }
};
using CodePointer = std::unique_ptr<pcre2_code, Free<pcre2_code_free>>;
using MatchData = std::unique_ptr<pcre2_match_data, Free<pcre2_match_data_free>>;

std::string pcre2_text(int code) {
  std::array<unsigned char, 160> buffer{};
  pcre2_get_error_message(code, buffer.data(), buffer.size());
  return reinterpret_cast<const char*>(buffer.data());
}

PCRE2_SPTR bytes(std::string_view text) {
  // PCRE2 refuses a null pointer even for no bytes at all.
  return reinterpret_cast<PCRE2_SPTR>(text.empty() ? "" : text.data());
}

/// The text with every character that is too new for PCRE2 replaced by one of the same class and length;
/// empty if there is none. Pieces have the same byte positions in both.
std::string with_stand_ins(std::string_view text) {
  std::string shadow;
  std::size_t position = 0;
  while (position < text.size()) {
    if (static_cast<unsigned char>(text[position]) < 0xE0) {  // stand-ins have three or four bytes
      ++position;
      continue;
    }
    const std::size_t begin = position;
    const char32_t stand_in = class_stand_in(next_code_point(text, position));
    if (stand_in == 0) continue;
    if (shadow.empty()) shadow = text;
    std::string replacement;
    append_utf8(replacement, stand_in);
    STOKER_CHECK(replacement.size() == position - begin);
    shadow.replace(begin, replacement.size(), replacement);
  }
  return shadow;
}

}  // namespace

struct SplitRegex::Code {
  CodePointer pointer;
};

SplitRegex::SplitRegex(std::unique_ptr<Code> code) : code_(std::move(code)) {}
SplitRegex::SplitRegex(SplitRegex&&) noexcept = default;
SplitRegex& SplitRegex::operator=(SplitRegex&&) noexcept = default;
SplitRegex::~SplitRegex() = default;

Result<SplitRegex> SplitRegex::compile(std::string_view pattern) {
  STOKER_TRY(const std::string translated, translate_split_pattern(pattern));
  int error = 0;
  std::size_t offset = 0;
  CodePointer code(
      pcre2_compile(bytes(translated), translated.size(), PCRE2_UTF | PCRE2_UCP, &error, &offset, nullptr));
  if (code == nullptr) {
    return fail(Errc::corrupt, "the split pattern does not compile: " + pcre2_text(error) + " near byte " +
                                   std::to_string(offset) + " of \"" + translated + "\"");
  }
  std::uint32_t may_match_empty = 0;
  pcre2_pattern_info(code.get(), PCRE2_INFO_MATCHEMPTY, &may_match_empty);
  if (may_match_empty != 0) {
    return fail(Errc::unsupported, "the split pattern can match the empty string; no known tokenizer does");
  }
  // Without JIT (a kernel that forbids executable pages) the interpreter gives the same matches.
  (void)pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);
  auto holder = std::make_unique<Code>();
  holder->pointer = std::move(code);
  return SplitRegex(std::move(holder));
}

Result<void> SplitRegex::split(std::string_view text, std::vector<Piece>& pieces) const {
  const pcre2_code* code = code_->pointer.get();
  const std::string shadow = with_stand_ins(text);
  if (!shadow.empty()) text = shadow;
  const MatchData match(pcre2_match_data_create(1, nullptr));
  if (match == nullptr) return fail(Errc::no_memory, "no memory for a regex match");
  const std::size_t* range = pcre2_get_ovector_pointer(match.get());
  std::size_t done = 0;
  while (done < text.size()) {
    // The caller has validated the text; checking again per match would be quadratic.
    std::uint32_t options = PCRE2_NO_UTF_CHECK;
    int rc = pcre2_match(code, bytes(text), text.size(), done, options, match.get(), nullptr);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) {  // the interpreter keeps its stack on the heap
      options |= PCRE2_NO_JIT;
      rc = pcre2_match(code, bytes(text), text.size(), done, options, match.get(), nullptr);
    }
    if (rc == PCRE2_ERROR_NOMATCH) break;
    // rc is 0 when the pattern has groups of its own, for which the match data has no room.
    if (rc < 0) {
      return fail(Errc::unsupported, "the split pattern gave up at byte " + std::to_string(done) + " of " +
                                         std::to_string(text.size()) + ": " + pcre2_text(rc));
    }
    if (range[1] <= range[0] || range[0] < done) {
      return fail(Errc::unsupported, "the split pattern matched no text at byte " + std::to_string(done));
    }
    if (range[0] > done) pieces.push_back({done, range[0]});
    pieces.push_back({range[0], range[1]});
    done = range[1];
  }
  if (done < text.size()) pieces.push_back({done, text.size()});
  return {};
}

}  // namespace stoker
