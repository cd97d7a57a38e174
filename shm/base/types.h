// Strong ids and byte units shared by every folder.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>

namespace stoker {

/// An integer that does not convert into another id by accident.
template <class Tag, class Int>
struct Strong {
  Int value{};
  constexpr Strong() = default;
  constexpr explicit Strong(Int v) : value(v) {}
  auto operator<=>(const Strong&) const = default;
};

using LayerId = Strong<struct LayerTag, std::uint16_t>;
using ExpertId = Strong<struct ExpertTag, std::uint16_t>;  ///< 0..experts-1 inside one layer
using SlotId = Strong<struct SlotTag, std::uint32_t>;
using FileId = Strong<struct FileTag, std::uint32_t>;
/// layer * experts_per_layer + expert: one number for one unit of streaming in the whole model.
using ExpertKey = Strong<struct ExpertKeyTag, std::uint32_t>;

inline constexpr std::uint32_t kNone = 0xFFFF'FFFFU;

constexpr std::uint64_t operator""_KiB(unsigned long long n) { return n << 10; }
constexpr std::uint64_t operator""_MiB(unsigned long long n) { return n << 20; }
constexpr std::uint64_t operator""_GiB(unsigned long long n) { return n << 30; }

constexpr std::uint64_t align_up(std::uint64_t n, std::uint64_t to) { return (n + to - 1) / to * to; }
constexpr std::uint64_t align_down(std::uint64_t n, std::uint64_t to) { return n / to * to; }

inline constexpr std::size_t kCacheLine = 64;  ///< fixed: shared-memory ABI must not follow the compiler
inline constexpr std::uint64_t kPageBytes = 4096;
inline constexpr std::uint64_t kHugePageBytes = 2_MiB;
/// Slots and their read targets are aligned to this; statx may allow less, nothing asks for more.
inline constexpr std::uint64_t kDirectAlign = 4096;

}  // namespace stoker
