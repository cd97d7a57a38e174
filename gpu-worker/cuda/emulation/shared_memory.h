// Shared memory of the block that runs: filled with NaN, with red zones, counted.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "gpu-worker/cuda/emulation/emulation.h"

namespace stoker::emulation {

/// What a launch gets on every GPU without asking for more (cudaFuncSetAttribute).
inline constexpr std::size_t kSharedBytesMax = 48 << 10;

class SharedMemory {
 public:
  /// Forgets the last block's variables.
  void begin_block(std::size_t dynamic_bytes);

  [[nodiscard]] void* dynamic() { return memory_.data() + dynamic_; }

  /// Where the variable lies in this block; null when there is no room for it any more.
  [[nodiscard]] void* place(SharedVariable& variable, std::size_t bytes, std::size_t alignment);

  /// False when the block wrote beyond an end.
  [[nodiscard]] bool intact() const;

 private:
  static constexpr std::size_t kZoneBytes = 64, kVariablesMax = 32;

  std::size_t reserve(std::size_t bytes, std::size_t alignment);
  void add_zone();

  // Per variable a red zone and what alignment loses.
  alignas(256) std::array<std::byte, kSharedBytesMax + (kVariablesMax + 2) * 2 * kZoneBytes> memory_{};
  std::array<std::size_t, kVariablesMax + 2> zones_{};  ///< where red zones begin
  std::size_t zone_count_ = 0;
  std::size_t end_ = 0;
  std::size_t used_bytes_ = 0;
  std::size_t dynamic_ = 0;
  std::uint64_t block_ = 0;
};

}  // namespace stoker::emulation
