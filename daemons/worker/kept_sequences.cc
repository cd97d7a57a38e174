#include "daemons/worker/kept_sequences.h"

#include <algorithm>
#include <utility>

namespace stoker {

void KeptSequences::keep(Kept kept) {
  if (most_ == 0 || kept.tokens.empty()) return;
  bytes_ += kept.bytes;
  kept_.push_back(std::move(kept));
  while (kept_.size() > most_) {
    bytes_ -= kept_.front().bytes;
    kept_.pop_front();
  }
}

std::optional<KeptSequences::Kept> KeptSequences::take(std::span<const std::uint32_t> prompt) {
  auto best = kept_.end();
  for (auto it = kept_.begin(); it != kept_.end(); ++it) {
    const std::size_t length = it->tokens.size();
    if (length >= prompt.size() || (best != kept_.end() && length <= best->tokens.size())) continue;
    if (std::equal(it->tokens.begin(), it->tokens.end(), prompt.begin())) best = it;
  }
  if (best == kept_.end()) return std::nullopt;
  Kept found = std::move(*best);
  kept_.erase(best);
  bytes_ -= found.bytes;
  return found;
}

void KeptSequences::shrink_to(std::uint64_t bytes) {
  while (bytes_ > bytes) {
    bytes_ -= kept_.front().bytes;
    kept_.pop_front();
  }
}

}  // namespace stoker
