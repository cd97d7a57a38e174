// Typed views into the resident weights image (shm/weights_segment.h). No copies of matrices.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>

#include "checkpoint/safetensors.h"
#include "shm/base/result.h"

namespace stoker {

/// A row-major [rows, cols] matrix as stored. FP8 matrices carry their F32/BF16 tile scales.
struct MatrixView {
  const std::byte* data = nullptr;
  DType dtype = DType::other;
  std::uint32_t rows = 0, cols = 0;
  /// FP8 only: row-major [ceil(rows/block_rows), ceil(cols/block_cols)], in scale_dtype.
  const std::byte* scales = nullptr;
  DType scale_dtype = DType::other;
};

class WeightsImage {
 public:
  /// Parses the image's header; the bytes must outlive the object.
  static Result<WeightsImage> parse(std::span<const std::byte> image);
  [[nodiscard]] const TensorInfo* find(std::string_view name) const;
  /// A tensor as a matrix: 1-D becomes [1, n], [n, 1, k] becomes [n, k]. Errc::missing / corrupt by name.
  [[nodiscard]] Result<MatrixView> matrix(std::string_view name, std::uint64_t rows,
                                          std::uint64_t cols) const;
  [[nodiscard]] const std::byte* data(const TensorInfo& tensor) const { return image_.data() + tensor.begin; }

 private:
  std::span<const std::byte> image_;
  std::unordered_map<std::string, TensorInfo> tensors_;
};

}  // namespace stoker
