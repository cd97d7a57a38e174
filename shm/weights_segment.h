// The resident weights (everything but routed experts, 2.8 GiB in Qwen3-Coder-Next) in a shared-memory
// object, so that a worker restart maps them instead of reading 3 GB again.
//
// Content after one header page: a safetensors image (u64 header length, JSON, data), tensors 64-byte
// aligned. Besides the checkpoint's own tensors it holds, per layer L:
//   "stoker.layers.L.expert_scales"  F32 [experts, scales_per_expert]  gate | up | down tiles, row-major
//                                    (absent when the experts are not FP8)
//   "stoker.layers.L.expert_parts"   I32 [experts, 3]  byte offset in the slot of gate, up, down
// and once "stoker.expert_dtype" I32 [1] (the value of DType, checkpoint/safetensors.h), and metadata
// {"model_dir", "fingerprint"}.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "shm/base/result.h"

namespace stoker {

class WeightsSegment {
 public:
  /// Loader: a writable segment of `bytes` image bytes, or the complete one of the same fingerprint and
  /// size left by a predecessor (complete() is then true and nothing has to be read).
  static Result<WeightsSegment> create_or_adopt(const std::string& name, std::uint64_t bytes,
                                                std::uint64_t fingerprint, bool group_access);
  /// Worker: read-only mapping of a complete segment; Errc::missing until the loader has finished it.
  static Result<WeightsSegment> attach(const std::string& name, std::uint64_t fingerprint);
  static void unlink(const std::string& name);

  WeightsSegment(WeightsSegment&&) noexcept;
  WeightsSegment& operator=(WeightsSegment&&) noexcept;
  ~WeightsSegment();

  [[nodiscard]] bool complete() const;
  void mark_complete();                           ///< release-stores the magic; loader only
  [[nodiscard]] std::span<std::byte> writable();  ///< loader only; page-aligned (4096)
  [[nodiscard]] std::span<const std::byte> image() const;

 private:
  struct State;
  explicit WeightsSegment(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace stoker
