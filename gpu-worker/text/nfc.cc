#include "gpu-worker/text/nfc.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <vector>

#include "gpu-worker/text/unicode_delta.h"
#include "gpu-worker/text/utf8.h"

namespace stoker {
namespace {

std::int32_t combining_class(utf8proc_int32_t code_point) {
  return static_cast<std::int32_t>(utf8proc_get_property(code_point)->combining_class);
}

// utf8proc_decompose sorts marks by exchanging neighbours, which is quadratic on a long run of marks in
// falling order; a prompt may be such a run. std::stable_sort gives the same order.
void sort_marks(std::vector<utf8proc_int32_t>& code_points) {
  auto begin = code_points.begin();
  while (begin != code_points.end()) {
    const auto is_mark = [](utf8proc_int32_t c) { return combining_class(c) != 0; };
    const auto first = std::find_if(begin, code_points.end(), is_mark);
    const auto last = std::find_if_not(first, code_points.end(), is_mark);
    std::stable_sort(first, last, [](utf8proc_int32_t a, utf8proc_int32_t b) {
      return combining_class(a) < combining_class(b);
    });
    begin = last;
  }
}

/// Canonical decomposition, order and composition of characters none of which is inert.
Result<void> normalize_run(std::vector<utf8proc_int32_t>& code_points, std::string& out) {
  sort_marks(code_points);
  const auto options = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
  const auto count = utf8proc_normalize_utf32(code_points.data(),
                                              static_cast<utf8proc_ssize_t>(code_points.size()), options);
  if (count < 0) return fail(Errc::invalid, std::string("NFC failed: ") + utf8proc_errmsg(count));
  for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
    append_utf8(out, static_cast<char32_t>(code_points[i]));
  }
  code_points.clear();
  return {};
}

}  // namespace

bool is_trivially_nfc(std::string_view valid_utf8) {
  // U+0300 is CC 80: every lead byte below CC starts a character below U+0300.
  return std::all_of(valid_utf8.begin(), valid_utf8.end(),
                     [](char c) { return static_cast<unsigned char>(c) < 0xCC; });
}

Result<std::string> to_nfc(std::string_view valid_utf8) {
  std::vector<utf8proc_int32_t> run;
  std::string out;
  out.reserve(valid_utf8.size());
  std::array<utf8proc_int32_t, 32> part{};  // the longest canonical decomposition has 4 characters
  std::size_t position = 0;
  while (position < valid_utf8.size()) {
    const std::size_t begin = position;
    const char32_t c = next_code_point(valid_utf8, position);
    if (is_inert_in_nfc(c)) {
      STOKER_TRY_VOID(normalize_run(run, out));
      out += valid_utf8.substr(begin, position - begin);
      continue;
    }
    int boundary_class = 0;
    const auto length = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c), part.data(),
                                                static_cast<utf8proc_ssize_t>(part.size()),
                                                UTF8PROC_DECOMPOSE, &boundary_class);
    if (length < 0 || length > static_cast<utf8proc_ssize_t>(part.size())) {
      return fail(Errc::invalid, "NFC failed at byte " + std::to_string(begin) + ": " +
                                     utf8proc_errmsg(std::min<utf8proc_ssize_t>(length, 0)));
    }
    run.insert(run.end(), part.begin(), part.begin() + length);
  }
  STOKER_TRY_VOID(normalize_run(run, out));
  return out;
}

}  // namespace stoker
