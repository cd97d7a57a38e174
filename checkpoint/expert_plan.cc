#include <algorithm>
#include <array>
#include <limits>

#include "checkpoint/checkpoint.h"
#include "checkpoint/tensor_list.h"

namespace stoker {

namespace {

/// One expert laid out in a slot. In the published FP8 files the three matrices are one run of 3 MiB in the
/// order down, gate, up at an unaligned offset, say 1,000,100: then one extent reads from 999,424 and
/// down starts 676 bytes into the slot.
struct Placement {
  std::array<Extent, 3> extents;
  std::size_t extent_count = 0;
  std::array<std::uint64_t, 3> parts{};  ///< gate, up, down
  std::uint64_t slot_bytes = 0;
};

Placement place(const std::array<const TensorRef*, 3>& matrices) {
  std::array<unsigned, 3> order = {0, 1, 2};
  std::sort(order.begin(), order.end(), [&](unsigned a, unsigned b) {
    const TensorRef &x = *matrices[a], &y = *matrices[b];
    return x.file != y.file ? x.file < y.file : x.info.begin < y.info.begin;
  });
  Placement out;
  Extent* open = nullptr;
  for (unsigned m : order) {
    const TensorInfo& info = matrices[m]->info;
    const std::uint64_t begin = align_down(info.begin, kDirectAlign);
    const std::uint64_t end = align_up(info.begin + info.bytes, kDirectAlign);
    if (open == nullptr || open->file != matrices[m]->file || begin > open->offset + open->length) {
      open = &out.extents[out.extent_count++];
      *open = {matrices[m]->file, begin, 0, static_cast<std::uint32_t>(out.slot_bytes)};
    }
    // Growing `open` is right only while it is the last extent of the slot, which it always is here.
    open->length = static_cast<std::uint32_t>(std::max(end, open->offset + open->length) - open->offset);
    out.slot_bytes = std::uint64_t{open->slot_offset} + open->length;
    out.parts[m] = open->slot_offset + (info.begin - open->offset);
  }
  return out;
}

}  // namespace

Result<ExpertPlan> ExpertPlan::make(const Checkpoint& checkpoint) {
  const ModelConfig& config = checkpoint.config();
  ExpertPlan plan;
  plan.layers_ = config.layers;
  plan.experts_per_layer_ = config.experts;
  plan.expert_bytes_ =
      3ULL * config.hidden_size * config.moe_intermediate * dtype_bytes(checkpoint.expert_dtype());
  // Slots are addressed with 31 bits (expert_parts is I32), with room for three aligned supersets.
  constexpr std::uint64_t kExpertBytesMax = 1_GiB;
  if (plan.expert_bytes_ > kExpertBytesMax)
    return fail(Errc::unsupported, "one expert has " + std::to_string(plan.expert_bytes_) +
                                       " bytes, more than the limit of " + std::to_string(kExpertBytesMax));
  plan.first_.reserve(std::size_t{plan.expert_count()} + 1);
  plan.parts_.reserve(plan.expert_count());
  plan.extents_.reserve(plan.expert_count());
  const std::uint64_t element_bytes = dtype_bytes(checkpoint.expert_dtype());
  for (std::uint32_t layer = 0; layer < config.layers; ++layer)
    for (std::uint32_t expert = 0; expert < config.experts; ++expert) {
      const std::string prefix = expert_prefix(layer, expert);
      std::array<const TensorRef*, 3> matrices{};
      for (unsigned m = 0; m < 3; ++m) {
        matrices[m] = checkpoint.find(prefix + kExpertMatrices[m]);
        if (matrices[m] == nullptr)
          return fail(Errc::missing, "tensor \"" + prefix + kExpertMatrices[m] + "\" is missing");
        if (matrices[m]->info.begin % element_bytes != 0)
          return fail(Errc::unsupported, "tensor \"" + matrices[m]->info.name + "\" starts at byte " +
                                             std::to_string(matrices[m]->info.begin) +
                                             ", not a multiple of its element size");
      }
      const Placement placed = place(matrices);
      plan.first_.push_back(static_cast<std::uint32_t>(plan.extents_.size()));
      plan.extents_.insert(plan.extents_.end(), placed.extents.begin(),
                           placed.extents.begin() + static_cast<std::ptrdiff_t>(placed.extent_count));
      plan.parts_.push_back({static_cast<std::uint32_t>(placed.parts[0]),
                             static_cast<std::uint32_t>(placed.parts[1]),
                             static_cast<std::uint32_t>(placed.parts[2])});
      plan.slot_bytes_ = std::max(plan.slot_bytes_, placed.slot_bytes);
    }
  plan.first_.push_back(static_cast<std::uint32_t>(plan.extents_.size()));
  return plan;
}

std::pair<const Extent*, std::size_t> ExpertPlan::extents(ExpertKey key) const {
  const std::uint32_t begin = first_[key.value], end = first_[key.value + 1];
  return {extents_.data() + begin, end - begin};
}

ExpertPlan ExpertPlan::from_extents(std::uint32_t layers, std::uint64_t slot_bytes,
                                    std::uint64_t expert_bytes,
                                    const std::vector<std::vector<Extent>>& extents,
                                    const std::vector<ExpertParts>& parts) {
  ExpertPlan plan;
  plan.layers_ = layers;
  plan.experts_per_layer_ = static_cast<std::uint32_t>(extents.size()) / layers;
  plan.slot_bytes_ = slot_bytes;
  plan.expert_bytes_ = expert_bytes;
  plan.parts_ = parts;
  for (const std::vector<Extent>& of_expert : extents) {
    plan.first_.push_back(static_cast<std::uint32_t>(plan.extents_.size()));
    plan.extents_.insert(plan.extents_.end(), of_expert.begin(), of_expert.end());
  }
  plan.first_.push_back(static_cast<std::uint32_t>(plan.extents_.size()));
  return plan;
}

}  // namespace stoker
