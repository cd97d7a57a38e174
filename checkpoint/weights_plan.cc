#include <algorithm>
#include <cstring>

#include "checkpoint/checkpoint.h"
#include "checkpoint/tensor_list.h"

namespace stoker {

namespace {

constexpr std::uint64_t kImageAlign = 64;

/// Hands out offsets in the image's data section (before the header's length is known).
class ImageLayout {
 public:
  std::uint64_t add(std::string name, DType dtype, std::vector<std::uint64_t> shape, std::uint64_t bytes) {
    const std::uint64_t begin = end_;
    tensors_.push_back({std::move(name), dtype, std::move(shape), begin, bytes});
    end_ = align_up(begin + bytes, kImageAlign);
    return begin;
  }
  [[nodiscard]] const std::vector<TensorInfo>& tensors() const { return tensors_; }
  [[nodiscard]] std::uint64_t bytes() const { return end_; }

 private:
  std::vector<TensorInfo> tensors_;
  std::uint64_t end_ = 0;
};

/// Non-expert tensors and their scales, in the order they lie on disk so that they are read in one sweep.
std::vector<const TensorRef*> resident_refs(const Checkpoint& checkpoint) {
  std::vector<const TensorRef*> refs;
  for (const TensorSpec& spec : resident_tensors(checkpoint.config())) {
    const TensorRef* ref = checkpoint.find(spec.name);
    refs.push_back(ref);
    if (ref->info.dtype == DType::f8_e4m3) refs.push_back(checkpoint.find(spec.name + kScaleSuffix));
  }
  std::sort(refs.begin(), refs.end(), [](const TensorRef* a, const TensorRef* b) {
    return a->file != b->file ? a->file < b->file : a->info.begin < b->info.begin;
  });
  return refs;
}

void add_resident(const Checkpoint& checkpoint, ImageLayout& image, WeightsPlan& plan) {
  for (const TensorRef* ref : resident_refs(checkpoint)) {
    const std::uint64_t at = image.add(ref->info.name, ref->info.dtype, ref->info.shape, ref->info.bytes);
    if (ref->info.bytes > 0) plan.copies.push_back({ref->file, ref->info.begin, ref->info.bytes, at, false});
  }
}

/// F32 [experts, gate tiles | up tiles | down tiles] of one layer.
void add_expert_scales(const Checkpoint& checkpoint, std::uint32_t layer, ImageLayout& image,
                       WeightsPlan& plan) {
  const ModelConfig& config = checkpoint.config();
  std::uint64_t tiles[3], per_expert = 0;
  for (unsigned m = 0; m < 3; ++m) {
    const auto shape = scale_shape(config, expert_shape(config, m));
    tiles[m] = shape[0] * shape[1];
    per_expert += tiles[m];
  }
  std::uint64_t at = image.add("stoker.layers." + std::to_string(layer) + ".expert_scales", DType::f32,
                               {config.experts, per_expert}, config.experts * per_expert * sizeof(float));
  for (std::uint32_t expert = 0; expert < config.experts; ++expert) {
    const std::string prefix = expert_prefix(layer, expert);
    for (unsigned m = 0; m < 3; ++m) {
      const TensorRef* scales = checkpoint.find(prefix + kExpertMatrices[m] + kScaleSuffix);
      plan.copies.push_back(
          {scales->file, scales->info.begin, scales->info.bytes, at, scales->info.dtype == DType::bf16});
      at += tiles[m] * sizeof(float);
    }
  }
}

void add_expert_parts(const ExpertPlan& experts, std::uint32_t layer, ImageLayout& image, WeightsPlan& plan) {
  const std::uint32_t count = experts.experts_per_layer();
  std::string bytes;
  bytes.reserve(std::size_t{count} * 12);
  for (std::uint32_t expert = 0; expert < count; ++expert) {
    const ExpertParts parts = experts.parts(ExpertKey(layer * count + expert));
    for (std::uint32_t offset : {parts.gate, parts.up, parts.down})
      for (unsigned i = 0; i < 4; ++i) bytes += static_cast<char>((offset >> (8 * i)) & 0xFF);
  }
  const std::uint64_t at = image.add("stoker.layers." + std::to_string(layer) + ".expert_parts", DType::i32,
                                     {count, 3}, bytes.size());
  plan.literals.emplace_back(at, std::move(bytes));
}

/// One I32 with the numeric value of DType: the worker sees no expert tensors, so it must be told.
void add_expert_dtype(DType dtype, ImageLayout& image, WeightsPlan& plan) {
  const std::uint64_t at = image.add("stoker.expert_dtype", DType::i32, {1}, 4);
  plan.literals.emplace_back(at, std::string{static_cast<char>(dtype), 0, 0, 0});
}

std::string hex64(std::uint64_t value) {
  std::string out;
  for (int shift = 60; shift >= 0; shift -= 4) out += "0123456789abcdef"[(value >> shift) & 15];
  return out;
}

}  // namespace

Result<WeightsPlan> WeightsPlan::make(const Checkpoint& checkpoint, const ExpertPlan& experts) {
  WeightsPlan plan;
  ImageLayout image;
  add_resident(checkpoint, image, plan);
  add_expert_dtype(checkpoint.expert_dtype(), image, plan);
  for (std::uint32_t layer = 0; layer < experts.layers(); ++layer) {
    if (checkpoint.expert_dtype() == DType::f8_e4m3) add_expert_scales(checkpoint, layer, image, plan);
    add_expert_parts(experts, layer, image, plan);
  }
  plan.header = write_safetensors_header(
      image.tensors(), kImageAlign,
      {{"model_dir", checkpoint.directory()}, {"fingerprint", hex64(checkpoint.fingerprint())}});
  for (Copy& copy : plan.copies) copy.image_offset += plan.header.size();
  for (auto& literal : plan.literals) literal.first += plan.header.size();
  plan.image_bytes = plan.header.size() + image.bytes();
  std::sort(plan.copies.begin(), plan.copies.end(), [](const Copy& a, const Copy& b) {
    return a.file != b.file ? a.file < b.file : a.file_offset < b.file_offset;
  });
  return plan;
}

}  // namespace stoker
