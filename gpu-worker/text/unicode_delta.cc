#include "gpu-worker/text/unicode_delta.h"

#include <algorithm>
#include <iterator>

namespace stoker {
namespace {

struct Range {
  char32_t first, last;
};
struct ClassRange {
  char32_t first, last;
  char name;
};
#include "gpu-worker/text/unicode_delta_tables.inc"

/// The range that holds the code point, or nullptr. Ranges rise and do not overlap.
template <class T, std::size_t count>
const T* find_range(const T (&ranges)[count], char32_t code_point) {
  const T* found = std::lower_bound(std::begin(ranges), std::end(ranges), code_point,
                                    [](const T& range, char32_t c) { return range.last < c; });
  return found != std::end(ranges) && found->first <= code_point ? found : nullptr;
}

}  // namespace

bool is_inert_in_nfc(char32_t code_point) {
  return code_point >= kInertInNfc[0].first && find_range(kInertInNfc, code_point) != nullptr;
}

char32_t class_stand_in(char32_t code_point) {
  if (code_point < kNewerClasses[0].first) return 0;
  const ClassRange* range = find_range(kNewerClasses, code_point);
  if (range == nullptr) return 0;
  const bool three_bytes = code_point < 0x10000;
  switch (range->name) {
    case 'L':
      return three_bytes ? 0x3400 : 0x20000;  // ideographs
    case 'N':
      return three_bytes ? 0xFF10 : 0x1D7CE;  // digits zero
    default:
      return three_bytes ? 0x20D0 : 0x1D167;  // combining marks
  }
}

}  // namespace stoker
