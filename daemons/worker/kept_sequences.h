// Sequences of requests that ended, for requests that go on from them: the next turn of a conversation brings
// all of it again, and only what is new must be computed. A state that goes on has the bits of one that was
// computed anew, whatever the chunks, so no answer depends on what was kept.
//
// Two kinds are kept. A *beginning* is what many conversations have in common, their system message and
// tools; it stays, and each request goes on from a fork of it. All else is handed on, not copied: the
// sequence of an answer serves prompts that begin with all of its tokens, or, by going back to its mark
// (decode.h; the scheduler sets it at the last token of the prompt), with its own prompt: that is the same
// question again, and a conversation whose last answer comes back as other tokens than those it was made of.
//
// A beginning is worth its memory only if it comes again, so it is kept when it is computed for the second
// time (seen()).
#pragma once

#include <cstdint>
#include <deque>
#include <list>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "gpu-worker/decode.h"

namespace stoker {

class KeptSequences {
 public:
  struct Kept {
    std::unique_ptr<Sequence> sequence;
    std::vector<std::uint32_t> tokens;  ///< that it has processed
    std::uint64_t bytes = 0;            ///< that it holds, mark included
    bool beginning = false;
  };

  /// `most` are kept, the ones that came last; 0: none.
  explicit KeptSequences(std::size_t most) : most_(most) {}

  void keep(Kept kept);
  /// The longest one that `prompt` begins with, if it leaves at least one token to compute. It is not kept
  /// any more; of a beginning it is a fork.
  std::optional<Kept> take(std::span<const std::uint32_t> prompt);
  /// Whether such a beginning was asked for before, and is not kept.
  [[nodiscard]] bool seen(std::span<const std::uint32_t> beginning);
  /// Drops the oldest ones until the others hold at most `bytes`.
  void shrink_to(std::uint64_t bytes);

  [[nodiscard]] std::uint64_t bytes() const { return bytes_; }
  [[nodiscard]] std::size_t size() const { return kept_.size(); }

 private:
  static std::optional<Kept> fork(const Kept& kept);
  static std::size_t usable(const Kept& kept, std::span<const std::uint32_t> prompt);

  std::size_t most_;
  std::list<Kept> kept_;  ///< oldest first
  std::uint64_t bytes_ = 0;
  std::deque<std::size_t> seen_;  ///< hashes of beginnings, oldest first
};

}  // namespace stoker
