// Byte-level BPE from a tokenizer.json (Qwen2 family): added tokens, NFC, the file's own regex, merges.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "shm/base/result.h"

namespace stoker {

/// Whether added tokens (<|im_end|>, <tool_call>, ...) written out in the text become their ids.
enum class AddedTokens : std::uint8_t { match, ignore };

class Tokenizer {
 public:
  /// `path` of tokenizer.json. Errors name the missing or unsupported part.
  static Result<Tokenizer> load(const std::string& path);
  static Result<Tokenizer> parse(std::string_view json);
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  /// Invalid UTF-8 is an error that names the byte offset (Errc::invalid).
  [[nodiscard]] Result<std::vector<std::uint32_t>> encode(std::string_view text, AddedTokens added) const;
  /// Raw bytes of the ids (may cut a UTF-8 sequence); ids without a token are Errc::invalid.
  [[nodiscard]] Result<std::string> decode(std::span<const std::uint32_t> ids, bool skip_special) const;
  /// Bytes of one token; empty for ids that have none.
  [[nodiscard]] std::string_view token_bytes(std::uint32_t id) const;
  [[nodiscard]] bool is_special(std::uint32_t id) const;
  [[nodiscard]] std::optional<std::uint32_t> find(std::string_view added_token) const;
  /// One more than the highest id that has a token.
  [[nodiscard]] std::uint32_t size() const;

 private:
  struct State;
  explicit Tokenizer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// Turns a stream of ids into complete UTF-8 only; bytes of an unfinished character are held back.
class StreamDecoder {
 public:
  StreamDecoder(const Tokenizer& tokenizer, bool skip_special);
  /// Text completed by this id ("" while a character is incomplete). Bytes that can never become valid
  /// UTF-8 come out as U+FFFD, one per maximal invalid subsequence.
  std::string push(std::uint32_t id);
  /// What is still held back at the end, as U+FFFD if it is an unfinished character.
  std::string flush();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  std::string held_;
};

/// Finds stop strings in streamed text: holds back any suffix that may be the start of one. The stop that is
/// complete first wins (the longest of those that end there), however the text is cut into pushes.
class StopScanner {
 public:
  explicit StopScanner(std::vector<std::string> stops);
  struct Step {
    std::string text;  ///< safe to show
    bool stopped = false;
  };
  /// After a stop every further push is {"", true}.
  Step push(std::string_view text);
  std::string flush();  ///< held-back text at the end without a stop
  [[nodiscard]] const std::string& found() const { return found_; }  ///< the stop, once there was one

 private:
  std::vector<std::string> stops_;
  std::string held_, found_;
  bool stopped_ = false;
};

}  // namespace stoker
