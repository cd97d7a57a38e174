#include "gpu-worker/cpu/sequence.h"

#include <algorithm>
#include <new>

#include "shm/base/check.h"

namespace stoker {
namespace {

struct Sizes {
  std::uint64_t recurrent = 0, conv = 0, block = 0;  ///< floats per layer, per layer, per layer and block
};

std::uint64_t blocks_for(std::uint64_t length) { return (length + kKvBlock - 1) / kKvBlock; }

Sizes sizes_of(const ModelConfig& c) {
  const std::uint64_t heads = c.linear_value_heads;
  const std::uint64_t channels = 2ULL * c.linear_key_heads * c.linear_key_dim + heads * c.linear_value_dim;
  return {heads * c.linear_key_dim * c.linear_value_dim, channels * (c.conv_kernel - 1),
          2ULL * c.kv_heads * kKvBlock * c.head_dim};
}

/// Makes a block that a fork has too one's own.
void own(std::shared_ptr<FloatBuffer>& block) {
  if (block.use_count() == 1) return;
  auto mine = std::make_shared<FloatBuffer>(block->size());
  std::copy_n(block->data(), block->size(), mine->data());
  block = std::move(mine);
}

void copy(const FloatBuffer& from, FloatBuffer& to) {
  if (to.size() != from.size()) to = FloatBuffer(from.size());
  std::copy_n(from.data(), from.size(), to.data());
}

}  // namespace

CpuSequence::CpuSequence(const ModelConfig& config, const void* model)
    : layers_(config.layers),
      kv_heads_(config.kv_heads),
      block_floats_(std::size_t{kKvBlock} * config.head_dim),
      model_(model) {
  const Sizes sizes = sizes_of(config);
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    layers_[i].attention = config.mixers[i] == MixerType::full_attention;
    if (layers_[i].attention) continue;
    layers_[i].recurrent = FloatBuffer(sizes.recurrent);
    layers_[i].conv = FloatBuffer(sizes.conv);
  }
}

std::uint64_t CpuSequence::memory_bytes() const {
  std::uint64_t floats = 0;
  for (const Layer& layer : layers_) {
    floats += layer.recurrent.size() + layer.conv.size();
    floats += layer.marked_recurrent.size() + layer.marked_conv.size();
    for (const auto& block : layer.blocks) floats += block->size();
  }
  return floats * sizeof(float);
}

std::uint64_t CpuSequence::bytes_for(const ModelConfig& config, std::uint64_t length) {
  const Sizes sizes = sizes_of(config);
  std::uint64_t floats = 0;
  for (const MixerType mixer : config.mixers) {
    floats +=
        mixer == MixerType::full_attention ? blocks_for(length) * sizes.block : sizes.recurrent + sizes.conv;
  }
  return floats * sizeof(float);
}

bool CpuSequence::reserve(std::uint64_t length) {
  const std::uint64_t blocks = blocks_for(length);
  try {
    for (Layer& layer : layers_) {
      if (!layer.attention) continue;
      // Positions from length_ on are written: at most the block that they begin in is there already.
      if (const std::size_t first = length_ / kKvBlock; first < layer.blocks.size()) own(layer.blocks[first]);
      while (layer.blocks.size() < blocks)
        layer.blocks.push_back(std::make_shared<FloatBuffer>(2 * kv_heads_ * block_floats_));
    }
  } catch (const std::bad_alloc&) {
    return false;
  }
  return true;
}

Result<void> CpuSequence::mark() {
  try {
    for (Layer& layer : layers_) {
      if (layer.attention) continue;  // its positions stay where they are
      copy(layer.recurrent, layer.marked_recurrent);
      copy(layer.conv, layer.marked_conv);
    }
  } catch (const std::bad_alloc&) {
    unmark();
    return fail(Errc::no_memory, "no memory for a copy of a sequence's state");
  }
  marked_ = length_;
  return {};
}

Result<void> CpuSequence::rewind() {
  STOKER_CHECK(marked_ > 0);
  for (Layer& layer : layers_) {
    if (layer.attention) {
      layer.blocks.resize(std::min<std::size_t>(layer.blocks.size(), blocks_for(marked_)));
    } else {
      copy(layer.marked_recurrent, layer.recurrent);
      copy(layer.marked_conv, layer.conv);
    }
  }
  length_ = marked_;
  return {};
}

Result<std::unique_ptr<Sequence>> CpuSequence::fork() const {
  try {
    std::unique_ptr<CpuSequence> other(new CpuSequence(layers_.size(), *this));
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      const Layer& from = layers_[i];
      Layer& to = other->layers_[i];
      to.attention = from.attention;
      if (from.attention) {
        const std::size_t blocks = std::min<std::size_t>(from.blocks.size(), blocks_for(length_));
        to.blocks.assign(from.blocks.begin(), from.blocks.begin() + static_cast<std::ptrdiff_t>(blocks));
      } else {
        copy(from.recurrent, to.recurrent);
        copy(from.conv, to.conv);
      }
    }
    return other;
  } catch (const std::bad_alloc&) {
    return fail(Errc::no_memory, "no memory for a copy of a sequence");
  }
}

void CpuSequence::unmark() {
  for (Layer& layer : layers_) {
    layer.marked_recurrent = FloatBuffer();
    layer.marked_conv = FloatBuffer();
  }
  marked_ = 0;
}

}  // namespace stoker
