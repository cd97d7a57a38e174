// What followed something, and how often: the experts most often seen after one event, in bounded space.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>

namespace stoker {

/// Up to Width experts with counts. A newcomer that finds no room weakens the weakest entry instead
/// (Misra-Gries), and takes its place once nothing is left of that. Counts are halved now and then, so what
/// was true long ago fades. All zero is an empty row.
template <std::size_t Width>
class TopRow {
 public:
  struct Entry {
    std::uint16_t expert, count;
  };

  /// One observation: these experts (distinct) followed.
  void add(std::span<const std::uint16_t> experts) {
    if (++uses_ == kUsesMax) halve();
    for (const std::uint16_t expert : experts) add(expert);
  }
  [[nodiscard]] std::uint32_t uses() const { return uses_; }
  /// Unused entries have count 0.
  [[nodiscard]] std::span<const Entry> entries() const { return entries_; }

 private:
  static constexpr std::uint32_t kUsesMax = 256;

  void add(std::uint16_t expert) {
    Entry* weakest = entries_.data();
    for (Entry& entry : entries_) {
      if (entry.count > 0 && entry.expert == expert) {
        ++entry.count;
        return;
      }
      if (entry.count < weakest->count) weakest = &entry;
    }
    if (weakest->count > 1) {
      --weakest->count;
    } else {
      *weakest = {expert, 1};
    }
  }
  void halve() {
    uses_ /= 2;
    for (Entry& entry : entries_) entry.count /= 2;
  }

  std::uint32_t uses_ = 0;
  std::array<Entry, Width> entries_{};
};

}  // namespace stoker
