// Where the Unicode of Hugging Face tokenizers 0.23 differs from that of Debian 12's libraries. A token id
// depends on it, so we follow the library the model was trained with.
#pragma once

namespace stoker {

/// Characters newer than Unicode 9 that have a combining class or take part in compositions: the library's
/// NFC knows neither, so they stay as they are and nothing moves or composes across them.
[[nodiscard]] bool is_inert_in_nfc(char32_t code_point);

/// Letters, numbers and marks of Unicode 15 and 16, which PCRE2 10.42 (Unicode 14) takes for unassigned: a
/// character of the same class (L, N or M) and the same length in UTF-8 that PCRE2 knows; 0 for all others.
[[nodiscard]] char32_t class_stand_in(char32_t code_point);

}  // namespace stoker
