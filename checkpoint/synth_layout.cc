#include "checkpoint/synth_layout.h"

#include <algorithm>
#include <cstdio>

#include "checkpoint/synth_random.h"

namespace stoker {

namespace {

bool fp8(SynthFormat format) {
  return format == SynthFormat::fp8_bf16_scales || format == SynthFormat::fp8_f32_scales;
}

SynthTensor make_tensor(std::string name, std::vector<std::uint64_t> shape, DType dtype, TensorRole role) {
  SynthTensor tensor;
  tensor.role = role;
  tensor.columns = shape.back();
  tensor.info = {std::move(name), dtype, std::move(shape), 0, 0};
  tensor.info.bytes = tensor.info.elements() * dtype_bytes(dtype);
  return tensor;
}

class TensorLister {
 public:
  explicit TensorLister(const SynthSpec& spec) : spec_(spec) {}

  void add(const std::string& name, const std::vector<std::uint64_t>& shape, TensorRole role, bool hole) {
    const DType plain = spec_.format == SynthFormat::f32 ? DType::f32 : DType::bf16;
    const bool quantised = fp8(spec_.format) && may_be_fp8(role);
    tensors.push_back(make_tensor(name, shape, quantised ? DType::f8_e4m3 : plain, role));
    tensors.back().hole = hole;
    if (!quantised) return;
    const DType scale = spec_.format == SynthFormat::fp8_f32_scales ? DType::f32 : DType::bf16;
    tensors.push_back(make_tensor(name + kScaleSuffix, scale_shape(spec_.config, shape), scale, role));
    tensors.back().scale = true;
    tensors.back().columns = shape[1];
  }

  void add_experts(std::uint32_t layer) {
    for (std::uint32_t e = 0; e < spec_.config.experts; ++e) {
      const bool hole = !synth_expert_is_real(spec_, layer, e);
      const std::string prefix = expert_prefix(layer, e);
      for (unsigned m = 0; m < 3; ++m)
        add(prefix + kExpertMatrices[m], expert_shape(spec_.config, m), TensorRole::expert, hole);
    }
  }

  std::vector<SynthTensor> tensors;

 private:
  const SynthSpec& spec_;
};

std::vector<SynthTensor> list_tensors(const SynthSpec& spec) {
  TensorLister lister(spec);
  std::uint32_t layer = 0;
  const std::vector<TensorSpec> resident = resident_tensors(spec.config);
  for (std::size_t i = 0; i < resident.size(); ++i) {
    lister.add(resident[i].name, resident[i].shape, resident[i].role, false);
    // The experts follow the last resident tensor of their layer.
    const bool in_layer = resident[i].name.starts_with(layer_prefix(layer));
    const bool next_in_layer =
        i + 1 < resident.size() && resident[i + 1].name.starts_with(layer_prefix(layer));
    if (in_layer && !next_in_layer) lister.add_experts(layer++);
  }
  return std::move(lister.tensors);
}

/// The serialiser of the safetensors project sorts by its dtype enumeration, largest first.
int dtype_rank(DType t) {
  switch (t) {
    case DType::f32:
      return 3;
    case DType::bf16:
      return 2;
    default:
      return 1;
  }
}

void finish_shard(SynthShard& shard) {
  std::sort(shard.tensors.begin(), shard.tensors.end(), [](const SynthTensor& a, const SynthTensor& b) {
    const int x = dtype_rank(a.info.dtype), y = dtype_rank(b.info.dtype);
    return x != y ? x > y : a.info.name < b.info.name;
  });
  std::vector<TensorInfo> infos;
  infos.reserve(shard.tensors.size());
  for (SynthTensor& tensor : shard.tensors) {
    tensor.info.begin = shard.data_bytes;
    shard.data_bytes += tensor.info.bytes;
    infos.push_back(tensor.info);
  }
  shard.header = write_safetensors_header(infos, 8, {{"format", "pt"}});
}

}  // namespace

bool synth_expert_is_real(const SynthSpec& spec, std::uint32_t layer, std::uint32_t expert) {
  if (!spec.sparse) return true;
  const RandomStream stream(spec.seed, "real experts");
  return stream.uniform(std::uint64_t{layer} * spec.config.experts + expert) <
         static_cast<float>(spec.real_share);
}

std::vector<SynthShard> synth_shards(const SynthSpec& spec) {
  std::vector<SynthTensor> tensors = list_tensors(spec);
  std::uint64_t total = 0;
  for (const SynthTensor& tensor : tensors) total += tensor.info.bytes;
  std::vector<SynthShard> shards;
  std::uint64_t before = 0, last = 0;
  for (SynthTensor& tensor : tensors) {
    // Shard k takes what begins in its equal share; a share without a beginning would be an empty file.
    const std::uint64_t share = static_cast<std::uint64_t>(
        static_cast<double>(before) / static_cast<double>(total) * static_cast<double>(spec.shards));
    before += tensor.info.bytes;
    if (shards.empty() || share > last) shards.emplace_back();
    last = share;
    shards.back().tensors.push_back(std::move(tensor));
  }
  for (std::size_t i = 0; i < shards.size(); ++i) {
    char name[64];
    std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", i + 1, shards.size());
    shards[i].name = shards.size() == 1 ? "model.safetensors" : name;
    finish_shard(shards[i]);
  }
  return shards;
}

}  // namespace stoker
