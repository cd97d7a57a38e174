#include "gpu-worker/text/tokenizer.h"

#include <algorithm>
#include <array>
#include <unordered_map>

#include "gpu-worker/text/bpe.h"
#include "gpu-worker/text/nfc.h"
#include "gpu-worker/text/split_regex.h"
#include "gpu-worker/text/text_file.h"
#include "gpu-worker/text/tokenizer_file.h"
#include "gpu-worker/text/utf8.h"
#include "shm/base/check.h"

namespace stoker {
namespace {

constexpr std::size_t kFileBytesMax = std::size_t{256} << 20;  // published ones have 7 to 20 MB
constexpr std::size_t kTextBytesMax = std::size_t{256}
                                      << 20;  // positions are 32 bits; no context is that long

struct AddedToken {
  std::string text;
  std::uint32_t id = 0;
};

/// Finds added tokens: leftmost first, and the longest of those that begin at the same place.
class AddedTokenFinder {
 public:
  void add(AddedToken token) {
    by_first_byte_[static_cast<unsigned char>(token.text[0])].push_back(std::move(token));
  }
  void finish() {
    for (auto& list : by_first_byte_) {
      std::sort(list.begin(), list.end(), [](const AddedToken& a, const AddedToken& b) {
        return a.text.size() != b.text.size() ? a.text.size() > b.text.size() : a.text < b.text;
      });
    }
  }
  /// The next match at or after `from`; `from` becomes its beginning, or the end of the text.
  const AddedToken* next(std::string_view text, std::size_t& from) const {
    for (; from < text.size(); ++from) {
      for (const AddedToken& token : by_first_byte_[static_cast<unsigned char>(text[from])]) {
        if (text.substr(from).starts_with(token.text)) return &token;
      }
    }
    return nullptr;
  }

 private:
  std::array<std::vector<AddedToken>, 256> by_first_byte_;
};

}  // namespace

struct Tokenizer::State {
  State(TokenizerFile&& file, SplitRegex&& split_regex)
      : bpe(file.byte_ids, file.merges), regex(std::move(split_regex)), nfc(file.nfc) {
    const std::size_t count = file.tokens.empty() ? 0 : std::size_t{file.tokens.back().id} + 1;
    begin.assign(count + 1, 0);
    special.assign(count, false);
    for (auto& token : file.tokens) {
      begin[token.id + 1] = static_cast<std::uint32_t>(token.bytes.size());
      special[token.id] = token.special;
      blob += token.bytes;  // tokens come in rising ids
      if (token.added) {
        added_ids.emplace(token.bytes, token.id);
        added.add({std::move(token.bytes), token.id});
      }
    }
    for (std::size_t id = 0; id < count; ++id) begin[id + 1] += begin[id];
    added.finish();
  }

  /// Appends the ids of text without added tokens: NFC, split, merge.
  [[nodiscard]] Result<void> encode_plain(std::string_view text, std::vector<std::uint32_t>& ids,
                                          Bpe::Scratch& scratch) const {
    std::string normalized;
    if (nfc && !is_trivially_nfc(text)) {
      STOKER_TRY(normalized, to_nfc(text));
      text = normalized;
    }
    std::vector<SplitRegex::Piece> pieces;
    STOKER_TRY_VOID(regex.split(text, pieces));
    for (const auto& piece : pieces)
      bpe.encode(text.substr(piece.begin, piece.end - piece.begin), ids, scratch);
    return {};
  }

  Bpe bpe;
  SplitRegex regex;
  bool nfc;
  AddedTokenFinder added;
  std::unordered_map<std::string, std::uint32_t> added_ids;
  std::string blob;                  ///< bytes of all tokens, by id
  std::vector<std::uint32_t> begin;  ///< token id occupies blob[begin[id] .. begin[id + 1])
  std::vector<bool> special;
};

Tokenizer::Tokenizer(std::unique_ptr<State> state) : state_(std::move(state)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Result<Tokenizer> Tokenizer::load(const std::string& path) {
  STOKER_TRY(const std::string text, read_text_file(path, kFileBytesMax));
  auto tokenizer = parse(text);
  if (!tokenizer) return fail(std::move(tokenizer).error(), path);
  return tokenizer;
}

Result<Tokenizer> Tokenizer::parse(std::string_view json) {
  STOKER_TRY(TokenizerFile file, parse_tokenizer_file(json));
  auto regex = SplitRegex::compile(file.split_pattern);
  if (!regex) return fail(std::move(regex).error(), "tokenizer.json: pre_tokenizer");
  return Tokenizer(std::make_unique<State>(std::move(file), *std::move(regex)));
}

Result<std::vector<std::uint32_t>> Tokenizer::encode(std::string_view text, AddedTokens added) const {
  if (text.size() > kTextBytesMax) {
    return fail(Errc::too_large, "the text has " + std::to_string(text.size()) + " bytes, more than " +
                                     std::to_string(kTextBytesMax));
  }
  if (const Utf8Scan scan = scan_utf8(text); scan.valid != text.size()) {
    return fail(Errc::invalid, "the text is not valid UTF-8 at byte " + std::to_string(scan.valid) +
                                   (scan.truncated ? " (it ends inside a character)" : "") +
                                   "; convert it to UTF-8 first");
  }
  std::vector<std::uint32_t> ids;
  Bpe::Scratch scratch;
  if (added == AddedTokens::ignore) {
    STOKER_TRY_VOID(state_->encode_plain(text, ids, scratch));
    return ids;
  }
  std::size_t done = 0;
  while (done < text.size()) {
    std::size_t at = done;
    const AddedToken* token = state_->added.next(text, at);
    STOKER_TRY_VOID(state_->encode_plain(text.substr(done, at - done), ids, scratch));
    if (token == nullptr) break;
    ids.push_back(token->id);
    done = at + token->text.size();
  }
  return ids;
}

Result<std::string> Tokenizer::decode(std::span<const std::uint32_t> ids, bool skip_special) const {
  std::string out;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const std::string_view bytes = token_bytes(ids[i]);
    if (bytes.empty()) {
      return fail(Errc::invalid, "id " + std::to_string(ids[i]) + " at position " + std::to_string(i) +
                                     " has no token (the tokenizer has ids below " + std::to_string(size()) +
                                     ")");
    }
    if (!skip_special || !is_special(ids[i])) out += bytes;
  }
  return out;
}

std::string_view Tokenizer::token_bytes(std::uint32_t id) const {
  if (id >= size()) return {};
  return std::string_view(state_->blob).substr(state_->begin[id], state_->begin[id + 1] - state_->begin[id]);
}

bool Tokenizer::is_special(std::uint32_t id) const { return id < size() && state_->special[id]; }

std::optional<std::uint32_t> Tokenizer::find(std::string_view added_token) const {
  const auto found = state_->added_ids.find(std::string(added_token));
  if (found == state_->added_ids.end()) return std::nullopt;
  return found->second;
}

std::uint32_t Tokenizer::size() const { return static_cast<std::uint32_t>(state_->special.size()); }

}  // namespace stoker
