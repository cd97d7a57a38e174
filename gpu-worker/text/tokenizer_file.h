// What a tokenizer.json says, validated; no behaviour.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "gpu-worker/text/bpe.h"
#include "shm/base/result.h"

namespace stoker {

struct TokenizerFile {
  struct Token {
    std::uint32_t id = 0;
    std::string bytes{};   ///< what it decodes to
    bool added = false;    ///< listed in added_tokens: matched in the text before anything else
    bool special = false;  ///< left out by decode(skip_special)
  };
  std::vector<Token> tokens;  ///< rising ids, each once
  std::array<std::uint32_t, 256> byte_ids{};
  std::vector<Bpe::Merge> merges;
  bool nfc = false;
  std::string split_pattern;
};

/// Limits of what is read: far above any published tokenizer, low enough for a hostile file.
inline constexpr std::uint32_t kTokenIdMax = (1u << 22) - 1;
inline constexpr std::size_t kAddedTokensMax = 65536;

/// Byte-level BPE with the Qwen2 family's pipeline. Every option that would change ids and is not implemented
/// is refused by name (Errc::unsupported); contradictions are Errc::corrupt, absent parts Errc::missing.
[[nodiscard]] Result<TokenizerFile> parse_tokenizer_file(std::string_view json);

}  // namespace stoker
