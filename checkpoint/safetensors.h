// The safetensors container: u64 little-endian header length, JSON header, data. Used for published
// shards and for the resident weights image. Everything is validated: the input is hostile.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "shm/base/result.h"

namespace stoker {

enum class DType : std::uint8_t { f8_e4m3, bf16, f16, f32, i32, i64, u8, other };

constexpr std::uint32_t dtype_bytes(DType t) {
  switch (t) {
    case DType::f8_e4m3:
    case DType::u8:
      return 1;
    case DType::bf16:
    case DType::f16:
      return 2;
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::i64:
      return 8;
    case DType::other:
      return 0;
  }
  return 0;
}
std::string_view dtype_name(DType t);

struct TensorInfo {
  std::string name;
  DType dtype = DType::other;
  std::vector<std::uint64_t> shape;
  std::uint64_t begin = 0;  ///< byte offset from the start of the file
  std::uint64_t bytes = 0;
  [[nodiscard]] std::uint64_t elements() const {
    std::uint64_t n = 1;
    for (std::uint64_t d : shape) n *= d;
    return n;
  }
};

inline constexpr std::uint64_t kSafetensorsHeaderMax = 256ULL << 20;

/// Parses the JSON header. `file_bytes` is the size of the whole file; `header_bytes` the length field's
/// value. Refuses: bad JSON, unknown dtype strings, size != shape * dtype, ranges outside the file,
/// overlapping ranges, duplicate names, overflow. Holes between tensors are allowed.
/// Tensors come sorted by `begin`.
Result<std::vector<TensorInfo>> parse_safetensors_header(std::string_view json, std::uint64_t header_bytes,
                                                         std::uint64_t file_bytes);

/// One safetensors file on disk: its size, mtime, the JSON text of its header, and what that says.
struct SafetensorsFile {
  std::uint64_t file_bytes = 0;
  std::int64_t mtime_ns = 0;
  std::string header;
  std::vector<TensorInfo> tensors;
};

/// Reads the header only; errors name the path.
Result<SafetensorsFile> open_safetensors(const std::string& path);

/// Reads and parses the header of a file on disk; errors name the path.
Result<std::vector<TensorInfo>> read_safetensors_header(const std::string& path);

/// Writes a header for `tensors` (begin relative to the data section on entry); returns the bytes of
/// length field + JSON, padded with spaces to `align`.
std::string write_safetensors_header(const std::vector<TensorInfo>& tensors, std::uint64_t align,
                                     const std::vector<std::pair<std::string, std::string>>& metadata = {});

}  // namespace stoker
