// Unicode normalisation form C, in linear time up to the sorting of combining marks.
#pragma once

#include <string>
#include <string_view>

#include "shm/base/result.h"

namespace stoker {

/// True if every character is below U+0300: such text is in NFC already.
[[nodiscard]] bool is_trivially_nfc(std::string_view valid_utf8);
/// NFC of valid UTF-8 (UAX #15) as Hugging Face tokenizers computes it: with the characters of Unicode 9.
[[nodiscard]] Result<std::string> to_nfc(std::string_view valid_utf8);

}  // namespace stoker
