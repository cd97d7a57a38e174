#include "daemons/worker/kept_sequences.h"

#include <algorithm>
#include <functional>
#include <string_view>
#include <utility>

namespace stoker {
namespace {

/// More than a machine has agents.
constexpr std::size_t kSeenMost = 64;

}  // namespace

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
  if (best->beginning) {
    kept_.splice(kept_.end(), kept_, best);  // the last to go
    return fork(*best);
  }
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

std::optional<KeptSequences::Kept> KeptSequences::fork(const Kept& kept) {
  auto sequence = kept.sequence->fork();
  if (!sequence) return std::nullopt;  // no memory; then it is computed anew
  return Kept{
      .sequence = *std::move(sequence), .tokens = kept.tokens, .bytes = kept.bytes, .beginning = false};
}

bool KeptSequences::seen(std::span<const std::uint32_t> beginning) {
  const auto is_it = [&](const Kept& kept) {
    return kept.beginning &&
           std::equal(kept.tokens.begin(), kept.tokens.end(), beginning.begin(), beginning.end());
  };
  if (std::any_of(kept_.begin(), kept_.end(), is_it)) return false;
  const std::string_view bytes(reinterpret_cast<const char*>(beginning.data()), beginning.size_bytes());
  const std::size_t hash = std::hash<std::string_view>()(bytes);
  if (std::find(seen_.begin(), seen_.end(), hash) != seen_.end()) return true;
  seen_.push_back(hash);
  if (seen_.size() > kSeenMost) seen_.pop_front();
  return false;
}

void KeptSequences::shrink_to(std::uint64_t bytes) {
  while (bytes_ > bytes) {
    bytes_ -= kept_.front().bytes;
    kept_.pop_front();
  }
}

}  // namespace stoker
