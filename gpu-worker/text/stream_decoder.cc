#include "gpu-worker/text/tokenizer.h"
#include "gpu-worker/text/utf8.h"

namespace stoker {

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool skip_special)
    : tokenizer_(&tokenizer), skip_special_(skip_special) {}

std::string StreamDecoder::push(std::uint32_t id) {
  if (skip_special_ && tokenizer_->is_special(id)) return {};
  held_ += tokenizer_->token_bytes(id);
  std::string out;
  std::string_view rest = held_;
  while (!rest.empty()) {
    const Utf8Scan scan = scan_utf8(rest);
    out += rest.substr(0, scan.valid);
    rest.remove_prefix(scan.valid);
    if (scan.bad_bytes == 0) break;  // at the end, or inside a character that the next id may complete
    out += kReplacementCharacter;
    rest.remove_prefix(scan.bad_bytes);
  }
  held_ = std::string(rest);
  return out;
}

std::string StreamDecoder::flush() {
  // What is held is the valid beginning of one character, hence one maximal invalid subsequence.
  const bool unfinished = !held_.empty();
  held_.clear();
  return unfinished ? std::string(kReplacementCharacter) : std::string();
}

}  // namespace stoker
