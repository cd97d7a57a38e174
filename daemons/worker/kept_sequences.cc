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

/// How many tokens at the beginning of `prompt` it can serve: all of its own, those up to its mark, or none.
std::size_t KeptSequences::usable(const Kept& kept, std::span<const std::uint32_t> prompt) {
  for (const std::size_t length : {kept.tokens.size(), std::size_t{kept.sequence->marked()}})
    if (length < prompt.size() &&
        std::equal(prompt.begin(), prompt.begin() + static_cast<std::ptrdiff_t>(length), kept.tokens.begin()))
      return length;
  return 0;
}

std::optional<KeptSequences::Kept> KeptSequences::take(std::span<const std::uint32_t> prompt) {
  std::size_t most = 0;
  auto best = kept_.end();
  for (auto it = kept_.begin(); it != kept_.end(); ++it) {
    const std::size_t length = usable(*it, prompt);
    if (length <= most) continue;
    most = length;
    best = it;
  }
  if (best == kept_.end()) return std::nullopt;
  Kept found = std::move(*best);
  kept_.erase(best);
  bytes_ -= found.bytes;
  if (most < found.tokens.size()) {
    if (!found.sequence->rewind())
      return std::nullopt;  // the device is in trouble; the next step will say so
    found.tokens.resize(most);
  }
  return found;
}

void KeptSequences::shrink_to(std::uint64_t bytes) {
  while (bytes_ > bytes) {
    bytes_ -= kept_.front().bytes;
    kept_.pop_front();
  }
}

}  // namespace stoker
