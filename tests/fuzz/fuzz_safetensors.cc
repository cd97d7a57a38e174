// The safetensors header parser on arbitrary bytes: the first 3 bytes choose the file size, the rest is the
// header. What it accepts must keep its promises.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "checkpoint/safetensors.h"
#include "shm/base/check.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 3) return 0;
  const std::uint64_t data_bytes = (std::uint64_t{data[0]} | std::uint64_t{data[1]} << 8) << (data[2] & 31);
  const std::string_view json(reinterpret_cast<const char*>(data) + 3, size - 3);
  const std::uint64_t file_bytes = 8 + json.size() + data_bytes;
  const auto tensors = stoker::parse_safetensors_header(json, json.size(), file_bytes);
  if (!tensors) {
    STOKER_CHECK(!tensors.error().message.empty());
    return 0;
  }
  std::uint64_t last_end = 8 + json.size();
  for (const stoker::TensorInfo& info : *tensors) {
    STOKER_CHECK(info.begin <= file_bytes && info.bytes <= file_bytes - info.begin);
    if (info.dtype != stoker::DType::other)
      STOKER_CHECK(info.elements() * stoker::dtype_bytes(info.dtype) == info.bytes);
    if (info.bytes == 0) continue;
    STOKER_CHECK(info.begin >= last_end);
    last_end = info.begin + info.bytes;
  }
  return 0;
}
