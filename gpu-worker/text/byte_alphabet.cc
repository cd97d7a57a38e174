#include "gpu-worker/text/byte_alphabet.h"

#include "gpu-worker/text/utf8.h"

namespace stoker {

ByteAlphabet::ByteAlphabet() {
  byte_.fill(-1);
  char32_t next = 0x100;
  for (unsigned byte = 0; byte < 256; ++byte) {
    const bool itself = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    letter_[byte] = itself ? byte : next++;
    byte_[letter_[byte]] = static_cast<std::int16_t>(byte);
  }
}

std::string ByteAlphabet::letter(unsigned char byte) const {
  std::string out;
  append_utf8(out, letter_[byte]);
  return out;
}

std::optional<std::string> ByteAlphabet::bytes(std::string_view word) const {
  std::string out;
  std::size_t position = 0;
  while (position < word.size()) {
    const char32_t c = next_code_point(word, position);
    if (c >= byte_.size() || byte_[c] < 0) return std::nullopt;
    out.push_back(static_cast<char>(static_cast<unsigned char>(byte_[c])));
  }
  return out;
}

}  // namespace stoker
