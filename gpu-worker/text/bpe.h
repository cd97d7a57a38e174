// Byte-pair merges: the innermost loop of the tokenizer.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

namespace stoker {

/// Token ids merge pairwise, lowest rank first and leftmost among equals, until no neighbouring pair is in
/// the table (model.md 6). Immutable after construction, hence safe from several threads.
class Bpe {
 public:
  struct Merge {
    std::uint32_t left = 0, right = 0, result = 0;
  };
  /// What an encode needs to remember; reuse one per thread or call to save allocations.
  struct Scratch {
    struct Symbol {
      std::uint32_t id, previous, next;
    };
    struct Candidate {
      std::uint32_t rank, position, left, right;
    };
    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
  };

  /// `byte_ids[b]` is the token of the single byte b; rank of a merge = its place in `merges`.
  Bpe(const std::array<std::uint32_t, 256>& byte_ids, const std::vector<Merge>& merges);

  /// Appends the tokens of one pre-tokenised piece. O(n log n) for long pieces.
  void encode(std::string_view piece, std::vector<std::uint32_t>& out, Scratch& scratch) const;

 private:
  static constexpr std::uint32_t kNoRank = 0xFFFFFFFF;
  struct Entry {
    std::uint32_t left = 0, right = 0, rank = kNoRank, result = 0;
  };

  [[nodiscard]] const Entry& find(std::uint32_t left, std::uint32_t right) const;
  [[nodiscard]] std::size_t first_place(std::uint32_t left, std::uint32_t right) const;
  void encode_short(std::string_view piece, std::vector<std::uint32_t>& out) const;
  void encode_long(std::string_view piece, std::vector<std::uint32_t>& out, Scratch& scratch) const;

  std::array<std::uint32_t, 256> byte_ids_;
  std::vector<Entry> table_;  // open addressing, linear probing, at most half full
  unsigned shift_ = 64;
};

}  // namespace stoker
