// A checkpoint directory as published: config.json, *.safetensors (+ index), validated as a whole.
// Opening reads headers only; no tensor data.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "checkpoint/config.h"
#include "checkpoint/safetensors.h"
#include "shm/base/result.h"
#include "shm/base/types.h"

namespace stoker {

struct ShardFile {
  std::string path;
  std::uint64_t bytes = 0;
};

struct TensorRef {
  FileId file;
  TensorInfo info;
};

class Checkpoint {
 public:
  /// Opens `directory`. Checks that every tensor the config implies is there with the right shape and a
  /// supported dtype, that FP8 tensors have scales, that files are as long as their headers say, that the
  /// index names existing files. Extra tensors (mtp.*) are ignored. Errors name file/tensor and remedy.
  static Result<Checkpoint> open(const std::string& directory);

  [[nodiscard]] const std::string& directory() const { return directory_; }
  [[nodiscard]] const ModelConfig& config() const { return config_; }
  [[nodiscard]] const GenerationConfig& generation() const { return generation_; }
  [[nodiscard]] const std::vector<ShardFile>& files() const { return files_; }
  [[nodiscard]] const TensorRef* find(std::string_view name) const;
  [[nodiscard]] const std::unordered_map<std::string, TensorRef>& tensors() const { return tensors_; }
  /// XXH3 over config.json, file names, sizes, mtimes and header bytes: changes when the model does.
  [[nodiscard]] std::uint64_t fingerprint() const { return fingerprint_; }
  /// Dtype of the routed experts: f8_e4m3, bf16 or f32 (the same for all).
  [[nodiscard]] DType expert_dtype() const { return expert_dtype_; }

 private:
  std::string directory_;
  ModelConfig config_;
  GenerationConfig generation_;
  std::vector<ShardFile> files_;
  std::unordered_map<std::string, TensorRef> tensors_;
  std::uint64_t fingerprint_ = 0;
  DType expert_dtype_ = DType::other;
};

/// One contiguous read of an expert: `length` bytes at `offset` of `file` land at `slot_offset` of the
/// slot. All four are kDirectAlign-aligned supersets except that offset + length may reach past the end
/// of the file (the tail read is then short by exactly that much; see IoEngine).
struct Extent {
  FileId file;
  std::uint64_t offset = 0;
  std::uint32_t length = 0;
  std::uint32_t slot_offset = 0;
};

/// Where gate, up and down (row-major codes) start inside the slot, in bytes from the slot's start.
struct ExpertParts {
  std::uint32_t gate = 0, up = 0, down = 0;
};

/// How every expert of a checkpoint is read in place. Adjacent matrices of one expert are merged.
class ExpertPlan {
 public:
  static Result<ExpertPlan> make(const Checkpoint& checkpoint);
  /// From ready-made extents, one list per expert (simulation, packed models). Trusts its arguments.
  static ExpertPlan from_extents(std::uint32_t layers, std::uint64_t slot_bytes, std::uint64_t expert_bytes,
                                 const std::vector<std::vector<Extent>>& extents,
                                 const std::vector<ExpertParts>& parts);
  [[nodiscard]] std::uint32_t layers() const { return layers_; }
  [[nodiscard]] std::uint32_t experts_per_layer() const { return experts_per_layer_; }
  [[nodiscard]] std::uint32_t expert_count() const { return layers_ * experts_per_layer_; }
  /// At most 3 extents; valid as long as the plan.
  [[nodiscard]] std::pair<const Extent*, std::size_t> extents(ExpertKey key) const;
  [[nodiscard]] ExpertParts parts(ExpertKey key) const { return parts_[key.value]; }
  /// Multiple of kDirectAlign, large enough for every expert's supersets.
  [[nodiscard]] std::uint64_t slot_bytes() const { return slot_bytes_; }
  /// Payload bytes of one expert (without alignment waste): what a token costs.
  [[nodiscard]] std::uint64_t expert_bytes() const { return expert_bytes_; }

 private:
  std::uint32_t layers_ = 0, experts_per_layer_ = 0;
  std::uint64_t slot_bytes_ = 0, expert_bytes_ = 0;
  std::vector<Extent> extents_;
  std::vector<std::uint32_t> first_;  ///< expert_count + 1 indices into extents_
  std::vector<ExpertParts> parts_;
};

/// What goes into the weights segment (shm/weights_segment.h): the image's header bytes, and the copies
/// from files. `convert` copies widen BF16/F32 expert scales into the packed F32 table.
struct WeightsPlan {
  struct Copy {
    FileId file;
    std::uint64_t file_offset = 0;
    std::uint64_t bytes = 0;         ///< bytes in the file
    std::uint64_t image_offset = 0;  ///< bytes from the start of the image
    bool widen_bf16 = false;         ///< BF16 -> F32 while copying (then 2x bytes land)
  };
  std::string header;        ///< length field + JSON
  std::vector<Copy> copies;  ///< sorted by file, offset
  /// Literal tables made by the plan itself (expert_parts), as (image offset, bytes).
  std::vector<std::pair<std::uint64_t, std::string>> literals;
  std::uint64_t image_bytes = 0;

  static Result<WeightsPlan> make(const Checkpoint& checkpoint, const ExpertPlan& experts);
};

}  // namespace stoker
