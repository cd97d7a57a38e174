// State of one request on the CPU backend. All fp32: the recurrent state must be, and an fp32 KV cache
// keeps results exact.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "checkpoint/config.h"
#include "gpu-worker/cpu/buffer.h"
#include "gpu-worker/decode.h"

namespace stoker {

/// The KV cache grows by blocks of this many positions; blocks never move. A fork has them in common with its
/// origin: whoever is to write into such a block gets a copy of it first, in reserve().
inline constexpr std::uint32_t kKvBlock = 256;

class CpuSequence final : public Sequence {
 public:
  CpuSequence(const ModelConfig& config, const void* model);

  [[nodiscard]] std::uint32_t length() const override { return length_; }
  [[nodiscard]] std::uint64_t memory_bytes() const override;
  static std::uint64_t bytes_for(const ModelConfig& config, std::uint64_t length);
  Result<void> mark() override;
  [[nodiscard]] std::uint32_t marked() const override { return marked_; }
  Result<void> rewind() override;
  void unmark() override;
  [[nodiscard]] Result<std::unique_ptr<Sequence>> fork() const override;

  /// Makes room for positions [0, length); false when memory is short.
  [[nodiscard]] bool reserve(std::uint64_t length);
  void set_length(std::uint32_t length) { length_ = length; }
  [[nodiscard]] const void* model() const { return model_; }  ///< which model it was made by

  /// DeltaNet layers: state [value head][dk][dv]; conv [taps - 1][conv_dim], oldest first.
  [[nodiscard]] float* recurrent(std::size_t layer) { return layers_[layer].recurrent.data(); }
  [[nodiscard]] float* conv(std::size_t layer) { return layers_[layer].conv.data(); }
  /// Attention layers: first key or value of a block for one kv head; kKvBlock rows of head_dim.
  [[nodiscard]] float* keys(std::size_t layer, std::uint32_t block, std::uint32_t kv_head) {
    return layers_[layer].blocks[block]->data() + std::size_t{kv_head} * block_floats_;
  }
  [[nodiscard]] float* values(std::size_t layer, std::uint32_t block, std::uint32_t kv_head) {
    return keys(layer, block, kv_heads_ + kv_head);
  }
  [[nodiscard]] const float* keys(std::size_t layer, std::uint32_t block, std::uint32_t kv_head) const {
    return layers_[layer].blocks[block]->data() + std::size_t{kv_head} * block_floats_;
  }
  [[nodiscard]] const float* values(std::size_t layer, std::uint32_t block, std::uint32_t kv_head) const {
    return keys(layer, block, kv_heads_ + kv_head);
  }

 private:
  struct Layer {
    bool attention = false;
    FloatBuffer recurrent, conv;
    FloatBuffer marked_recurrent, marked_conv;
    std::vector<std::shared_ptr<FloatBuffer>> blocks;  ///< [k heads, then v heads][kKvBlock][head_dim]
  };
  std::vector<Layer> layers_;
  std::uint32_t kv_heads_ = 0;
  std::size_t block_floats_ = 0;  ///< per head
  std::uint32_t length_ = 0, marked_ = 0;
  const void* model_ = nullptr;

  /// All but what is to be copied with care.
  CpuSequence(std::size_t layers, const CpuSequence& shape)
      : layers_(layers),
        kv_heads_(shape.kv_heads_),
        block_floats_(shape.block_floats_),
        length_(shape.length_),
        model_(shape.model_) {}
};

}  // namespace stoker
