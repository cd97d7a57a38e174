// tokenizer.json (first part of the input) and a text to encode with it (after the first zero byte).
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "gpu-worker/text/nfc.h"
#include "gpu-worker/text/tokenizer.h"
#include "gpu-worker/text/utf8.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const auto cut = input.find('\0');
  const std::string_view text = cut == std::string_view::npos ? input : input.substr(cut + 1);
  if (stoker::scan_utf8(text).valid == text.size() && !stoker::to_nfc(text)) std::abort();
  const auto tokenizer = stoker::Tokenizer::parse(input.substr(0, cut));
  if (!tokenizer) return 0;
  for (const auto added : {stoker::AddedTokens::match, stoker::AddedTokens::ignore}) {
    const auto ids = tokenizer->encode(text, added);
    if (!ids) continue;
    if (!tokenizer->decode(*ids, false)) std::abort();  // every id it gives has a token
    stoker::StreamDecoder decoder(*tokenizer, false);
    std::string streamed;
    for (const auto id : *ids) streamed += decoder.push(id);
    streamed += decoder.flush();
    if (stoker::scan_utf8(streamed).valid != streamed.size()) std::abort();
  }
  return 0;
}
