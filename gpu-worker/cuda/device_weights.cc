#include "gpu-worker/cuda/device_weights.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "shm/base/check.h"

namespace stoker {
namespace {

constexpr std::uint64_t kBlockBytes = 64ULL << 20;
constexpr std::uint64_t kAlign = 256;

/// Puts things one after another into blocks of device memory.
class Uploader {
 public:
  Uploader(const device::Api& api, device::Stream* stream, DeviceWeights& out)
      : api_(api), stream_(stream), out_(out) {}
  Uploader(const Uploader&) = delete;
  Uploader& operator=(const Uploader&) = delete;
  /// After an error too: no copy reads what is gone.
  ~Uploader() { (void)api_.synchronize(stream_); }

  template <class T>
  const T* array(const T* from, std::size_t count) {
    return reinterpret_cast<const T*>(bytes(from, count * sizeof(T)));
  }
  /// Of FP8 matrices: device::Matrix says how large they may be.
  const float* scales(const float* from, std::size_t count) {
    const auto large = std::find_if(from, from + count,
                                    [](float scale) { return !(std::fabs(scale) < device::kScaleLimit); });
    if (large != from + count && error_.message.empty())
      error_ = {Errc::unsupported, 0,
                "an FP8 scale is " + std::to_string(*large) + ", on a GPU they must be below " +
                    std::to_string(static_cast<int>(device::kScaleLimit)) + ": give --device cpu"};
    return array(from, count);
  }
  const std::uint32_t* table(std::vector<std::uint32_t> columns) {
    // A GPU that can read all of the host's memory copies out of it when the copy's turn comes.
    tables_.push_back(std::move(columns));
    return array(tables_.back().data(), tables_.back().size());
  }
  const float* floats(const FloatBuffer& from) { return array(from.data(), from.size()); }
  device::Matrix matrix(const Matrix& m) {
    if (m.rows == 0) return {};
    const void* data = bytes(m.data, m.bytes());
    const float* scales = nullptr;
    if (m.scales != nullptr)
      scales =
          this->scales(m.scales, std::size_t{(m.rows + m.block_rows - 1) / m.block_rows} * m.scale_cols());
    return {data, scales, m.rows, m.cols, m.block_rows, m.block_cols, code_of(m.dtype)};
  }
  /// The first failure of all the calls.
  Result<void> finish() {
    if (!error_.message.empty()) return tl::unexpected<Error>(error_);
    STOKER_DEVICE("uploading the weights", api_.synchronize(stream_));
    return {};
  }

 private:
  const std::byte* bytes(const void* from, std::uint64_t count) {
    if (!error_.message.empty() || count == 0) return nullptr;
    std::byte* to = place(count);
    if (to == nullptr) return nullptr;
    if (auto sent = device_result(api_.to_device(to, from, count, stream_), "uploading the weights"); !sent)
      error_ = std::move(sent).error();
    return to;
  }
  std::byte* place(std::uint64_t count) {
    const std::uint64_t room = (count + kAlign - 1) / kAlign * kAlign;
    if (room > left_) {
      auto block = DeviceArray<std::byte>::make(api_, std::max(room, kBlockBytes));
      if (!block) {
        error_ = std::move(block).error();
        return nullptr;
      }
      next_ = block->data();
      left_ = block->size();
      out_.bytes += block->size();
      out_.blocks.push_back(std::move(*block));
    }
    std::byte* at = next_;
    next_ += room;
    left_ -= room;
    return at;
  }

  const device::Api& api_;
  device::Stream* stream_;
  DeviceWeights& out_;
  std::byte* next_ = nullptr;
  std::uint64_t left_ = 0;
  std::vector<std::vector<std::uint32_t>> tables_;
  Error error_;
};

DeviceDeltaNet delta_net(Uploader& up, const DeltaNetWeights& w) {
  return {up.matrix(w.qkvz),      up.matrix(w.ba),      up.matrix(w.out), up.floats(w.conv),
          up.floats(w.neg_exp_a), up.floats(w.dt_bias), up.floats(w.norm)};
}

DeviceAttention attention(Uploader& up, const AttentionWeights& w) {
  return {up.matrix(w.q), up.matrix(w.k),      up.matrix(w.v),
          up.matrix(w.o), up.floats(w.q_norm), up.floats(w.k_norm)};
}

DeviceMoe moe(Uploader& up, const MoeWeights& w) {
  return {up.matrix(w.router),    up.matrix(w.shared_scale), up.matrix(w.shared_gate),
          up.matrix(w.shared_up), up.matrix(w.shared_down),  nullptr};
}

}  // namespace

device::Code code_of(DType dtype) {
  switch (dtype) {
    case DType::f8_e4m3:
      return device::Code::f8_e4m3;
    case DType::bf16:
      return device::Code::bf16;
    case DType::f16:
      return device::Code::f16;
    default:
      STOKER_CHECK(dtype == DType::f32);
      return device::Code::f32;
  }
}

Result<DeviceWeights> DeviceWeights::upload(const device::Api& api, device::Stream* stream,
                                            const ModelConfig& config, const ModelWeights& weights,
                                            const WeightsImage& image) {
  DeviceWeights out;
  Uploader up(api, stream, out);
  const Dims dims(config);
  out.final_norm = up.floats(weights.final_norm);
  out.lm_head = up.matrix(weights.lm_head);
  out.qkvz_scatter = up.table(qkvz_columns(config, dims));
  out.ba_scatter = up.table(ba_columns(config, dims));
  out.q_scatter = up.table(q_columns(config, dims));
  for (std::size_t i = 0; i < weights.layers.size(); ++i) {
    const LayerWeights& w = weights.layers[i];
    const bool full = w.mixer == MixerType::full_attention;
    DeviceLayer layer{.mixer = w.mixer,
                      .index = full ? out.attention_layers++ : out.delta_layers++,
                      .input_norm = up.floats(w.input_norm),
                      .post_norm = up.floats(w.post_norm),
                      .delta = full ? DeviceDeltaNet{} : delta_net(up, w.delta),
                      .attention = full ? attention(up, w.attention) : DeviceAttention{},
                      .moe = moe(up, w.moe)};
    if (weights.expert_dtype == DType::f8_e4m3) {
      const std::string name = "stoker.layers." + std::to_string(i) + ".expert_scales";
      const TensorInfo* scales = image.find(name);
      if (scales == nullptr)
        return fail(Errc::layout, "the weights segment has no " + name + ": restart the loader");
      out.scales_per_expert = static_cast<std::uint32_t>(scales->elements() / config.experts);
      layer.moe.expert_scales =
          up.scales(reinterpret_cast<const float*>(image.data(*scales)), scales->elements());
    }
    out.layers.push_back(layer);
  }
  STOKER_TRY_VOID(up.finish());
  return out;
}

}  // namespace stoker
