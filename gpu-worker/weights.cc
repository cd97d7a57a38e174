#include "gpu-worker/weights.h"

#include <cstring>

namespace stoker {
namespace {

std::string shape_text(const std::vector<std::uint64_t>& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

/// 1-D becomes [1, n]; [n, 1, k] becomes [n, k].
std::vector<std::uint64_t> as_matrix(const std::vector<std::uint64_t>& shape) {
  if (shape.size() == 1) return {1, shape[0]};
  if (shape.size() == 3 && shape[1] == 1) return {shape[0], shape[2]};
  return shape;
}

}  // namespace

Result<WeightsImage> WeightsImage::parse(std::span<const std::byte> image) {
  std::uint64_t header_bytes = 0;
  if (image.size() < sizeof header_bytes) {
    return fail(Errc::corrupt, "weights image: " + std::to_string(image.size()) + " bytes hold no header");
  }
  std::memcpy(&header_bytes, image.data(), sizeof header_bytes);
  if (header_bytes > image.size() - sizeof header_bytes) {
    return fail(Errc::corrupt, "weights image: the header is longer than the image");
  }
  const std::string_view json(reinterpret_cast<const char*>(image.data()) + sizeof header_bytes,
                              header_bytes);
  auto tensors = parse_safetensors_header(json, header_bytes, image.size());
  if (!tensors) return fail(std::move(tensors).error(), "weights image");
  WeightsImage result;
  result.image_ = image;
  for (TensorInfo& tensor : *tensors) {
    std::string name = tensor.name;
    result.tensors_.emplace(std::move(name), std::move(tensor));
  }
  return result;
}

const TensorInfo* WeightsImage::find(std::string_view name) const {
  const auto it = tensors_.find(std::string(name));
  return it == tensors_.end() ? nullptr : &it->second;
}

Result<MatrixView> WeightsImage::matrix(std::string_view name, std::uint64_t rows, std::uint64_t cols) const {
  const TensorInfo* tensor = find(name);
  if (tensor == nullptr) {
    return fail(Errc::missing, "tensor " + std::string(name) + " is not in the resident weights");
  }
  const std::vector<std::uint64_t> want = {rows, cols};
  if (as_matrix(tensor->shape) != want || rows > UINT32_MAX || cols > UINT32_MAX) {
    return fail(Errc::corrupt, "tensor " + tensor->name + " has shape " + shape_text(tensor->shape) +
                                   ", the configuration wants " + shape_text(want));
  }
  MatrixView view{
      data(*tensor), tensor->dtype, static_cast<std::uint32_t>(rows), static_cast<std::uint32_t>(cols),
      nullptr,       DType::other};
  if (tensor->dtype != DType::f8_e4m3) return view;
  const TensorInfo* scales = find(tensor->name + "_scale_inv");
  if (scales == nullptr)
    return fail(Errc::missing, "tensor " + tensor->name + " is FP8 but has no _scale_inv");
  view.scales = data(*scales);
  view.scale_dtype = scales->dtype;
  return view;
}

}  // namespace stoker
