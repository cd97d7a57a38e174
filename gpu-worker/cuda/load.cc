// From configuration and image to a model on the device: what lies where, within the budget, and how fast the
// lanes are. Order matters: what must be there comes first, and the experts get what is left.
#include <algorithm>
#include <bit>
#include <cstring>

#include "gpu-worker/cpu/rope.h"
#include "gpu-worker/cuda/model.h"

namespace stoker {
namespace {

/// Of what is free, left alone whatever the budget: the display's, the driver's own, and what nobody can
/// count, such as graphs and the local memory of kernels.
constexpr std::uint64_t kMargin = 600ULL << 20;
/// Attention splits steps into groups of rows that fit.
constexpr std::uint64_t kAttentionFloats = 8ULL << 20;
constexpr std::uint64_t kPinChunk = 1ULL << 30;

std::string mib(std::uint64_t bytes) { return std::to_string(bytes >> 20) + " MiB"; }

/// Errc::unsupported for a model whose shapes the kernels do not take: now, not at its first step.
Result<void> check_shapes(const ModelConfig& c, std::uint32_t step_tokens) {
  const struct {
    const char* name;
    std::uint32_t value, most;
  } limits[] = {{"head_dim", c.head_dim, device::kHeadDimMax},
                {"linear_value_head_dim", c.linear_value_dim, device::kHeadDimMax},
                {"linear_key_head_dim", c.linear_key_dim, device::kKeyDimMax},
                {"linear_conv_kernel_dim", c.conv_kernel, device::kConvTapsMax},
                {"hidden_size", c.hidden_size, device::kHiddenMax},
                {"num_experts", c.experts, device::kExpertsMax}};
  for (const auto& limit : limits) {
    if (limit.value <= limit.most) continue;
    return fail(Errc::unsupported, std::string(limit.name) + " is " + std::to_string(limit.value) +
                                       ", the GPU worker takes at most " + std::to_string(limit.most) +
                                       ": give --device cpu");
  }
  // Kernels count floats of a step's rows in 32 bits.
  const std::uint64_t row =
      std::max<std::uint64_t>(c.hidden_size, std::uint64_t{c.experts_per_token} * c.moe_intermediate);
  if (row * step_tokens > 0xFFFF'FFFFU)
    return fail(Errc::invalid, "steps of " + std::to_string(step_tokens) +
                                   " tokens are too large for this model on a GPU: give a smaller --chunk");
  return {};
}

}  // namespace

Result<std::unique_ptr<CudaModel>> CudaModel::load(const ModelConfig& config, const WeightsImage& image,
                                                   const CudaOptions& options, const Clock& clock) {
  if (options.step_tokens == 0 || options.sequences == 0 || options.context == 0)
    return fail(Errc::invalid, "step_tokens, sequences and context must be at least 1");
  STOKER_TRY_VOID(check_shapes(config, options.step_tokens));
  STOKER_TRY(DeviceModule module, DeviceModule::open(options.kind, options.module_path));
  std::unique_ptr<CudaModel> model(new CudaModel(std::move(module), config, options, clock));
  STOKER_TRY_VOID(model->load_all(image));
  return model;
}

CudaModel::CudaModel(DeviceModule module, const ModelConfig& config, const CudaOptions& options,
                     const Clock& clock)
    : module_(std::move(module)),
      api_(module_.api()),
      config_(config),
      dims_(config),
      options_(options),
      clock_(clock),
      inv_freq_(inverse_frequencies(config.rope_theta, config.rotary_dim)),
      rows_(options.step_tokens),
      uses_(config, options.step_tokens) {}

CudaModel::~CudaModel() {
  if (session_.api == nullptr) return;
  // Nothing may be under way when memory goes; errors have been reported by whoever saw them first.
  (void)api_.bind_thread();
  if (copy_.get() != nullptr) (void)api_.synchronize(copy_.get());
  if (compute_.get() != nullptr) (void)api_.synchronize(compute_.get());
  for (const std::span<std::byte> chunk : pinned_) api_.unregister_host(chunk.data());
}

Result<void> CudaModel::load_all(const WeightsImage& image) {
  STOKER_TRY_VOID(open_device());
  STOKER_TRY_VOID(bind(image));
  STOKER_TRY_VOID(make_workspace());
  // Page tables of pinned memory lie on the device.
  pin_pool();
  STOKER_TRY_VOID(make_slots());
  return measure_lanes();
}

Result<void> CudaModel::open_device() {
  std::uint32_t devices = 0;
  // Errc::missing is a machine without a GPU, on which nobody needs a warning. A driver that does not work,
  // or is too old, is something else.
  if (const device::Status bad = api_.count(&devices); bad != nullptr)
    return fail(errc_of(api_.fault()), bad);
  if (devices == 0) return fail(Errc::missing, "the driver knows of no GPU: give --device cpu");
  if (options_.device >= devices)
    return fail(Errc::invalid, "--gpu " + std::to_string(options_.device) + ": the driver knows of " +
                                   std::to_string(devices) + " GPUs, the first is 0");
  const std::string gpu = "GPU " + std::to_string(options_.device);
  if (const device::Status bad = api_.open(options_.device, &info_); bad != nullptr)
    return fail(errc_of(api_.fault()), gpu + ": " + bad);
  session_.api = &api_;
  STOKER_TRY_VOID(set_budget());
  STOKER_TRY(compute_, make_stream(api_, true));
  STOKER_TRY(copy_, make_stream(api_, false));
  STOKER_TRY(chosen_, make_event(api_));
  for (Batch& batch : batches_) {
    STOKER_TRY(batch.copied, make_event(api_));
    STOKER_TRY(batch.computed, make_event(api_));
    batch.leases.reserve(kExpertBatch);
  }
  return {};
}

/// What was asked for, as far as it is there: a card sold as 8 GiB reports less, and others have some of it.
Result<void> CudaModel::set_budget() {
  const std::string card =
      mib(info_.memory_free) + " of the " + mib(info_.memory_total) + " of " + info_.name + " are free";
  if (info_.memory_free <= kMargin)
    return fail(Errc::no_memory, "device memory: " + card + ", and " + mib(kMargin) +
                                     " of that are left alone: end what else uses the card, or give "
                                     "--device cpu");
  const std::uint64_t most = info_.memory_free - kMargin;
  const auto part = [](std::uint64_t whole, double percent) {
    return static_cast<std::uint64_t>(static_cast<double>(whole) * percent / 100);
  };
  if (options_.vram_percent > 0) options_.vram = part(info_.memory_total, options_.vram_percent);
  if (options_.vram > most)
    options_.warn("--vram " + mib(options_.vram) + " is more than there is: " + card + ", " + mib(kMargin) +
                  " of that are left alone; using " + mib(most));
  if (options_.vram == 0 || options_.vram > most) options_.vram = most;
  if (options_.sequence_percent > 0)
    options_.sequence_memory = part(options_.vram, options_.sequence_percent);
  return {};
}

Result<void> CudaModel::bind(const WeightsImage& image) {
  STOKER_TRY(kernels_, select_kernels(options_.cpu.simd));
  threads_ = std::make_unique<ThreadPool>(options_.cpu.threads);
  STOKER_TRY(host_, bind_weights(config_, image, *kernels_, *threads_));
  STOKER_TRY(weights_, DeviceWeights::upload(api_, compute_.get(), config_, host_, image));
  sequences_ = std::make_unique<SequenceMemory>(api_, compute_.get(), config_, options_.sequence_memory);
  matrix_bytes_ =
      std::uint64_t{config_.hidden_size} * config_.moe_intermediate * dtype_bytes(host_.expert_dtype);
  part_bytes_ = (matrix_bytes_ + 255) / 256 * 256;
  slot_bytes_ = 3 * part_bytes_;
  return {};
}

Result<void> CudaModel::make_workspace() {
  const std::size_t n = options_.step_tokens;
  const std::size_t k = config_.experts_per_token;
  const std::size_t hidden = config_.hidden_size;
  pages_max_ = (options_.context + device::kPagePositions - 1) / device::kPagePositions;
  const auto floats = [&](DeviceArray<float>& a, std::size_t size) -> Result<void> {
    STOKER_TRY(a, DeviceArray<float>::make(api_, size));
    return {};
  };
  const std::uint64_t attention = api_.attention_workspace(
      config_.attention_heads, config_.head_dim, std::bit_ceil(pages_max_) * device::kPagePositions);
  const std::pair<DeviceArray<float>*, std::size_t> sizes[] = {
      {&proj_, n * std::max(dims_.conv_dim + dims_.value_dim, 2 * dims_.q_dim)},
      {&side_, n * std::max(2 * config_.linear_value_heads, 2 * dims_.kv_dim)},
      {&conv_, n * dims_.conv_dim},
      {&core_, n * std::max(dims_.value_dim, dims_.q_dim)},
      {&router_, n * config_.experts},
      {&ahead_, n * config_.experts},
      {&gate_, n * k * config_.moe_intermediate},
      {&expert_out_, n * k * hidden},
      {&shared_gate_, n * config_.shared_intermediate},
      {&shared_up_, n * config_.shared_intermediate},
      {&shared_out_, n * hidden},
      {&shared_sigma_, n},
      {&attention_, std::max(attention, std::min<std::uint64_t>(attention * n, kAttentionFloats))},
      {&normed_, kLogitRows * hidden},
      {&logits_device_, std::size_t{kLogitRows} * config_.vocab_size},
      {&spare_page_, sequences_->page_bytes() / sizeof(float)}};
  for (const auto& [array, size] : sizes) STOKER_TRY_VOID(floats(*array, size));
  std::byte origin{};
  const auto choice = static_cast<std::size_t>(choice_at(&origin, n, true, true).end - &origin);
  STOKER_TRY(choice_device_, DeviceArray<std::byte>::make(api_, choice));
  STOKER_TRY(logit_flags_device_, DeviceArray<std::uint32_t>::make(api_, kLogitRows));
  STOKER_TRY(pairs_device_, DeviceArray<std::uint32_t>::make(api_, n * k));
  STOKER_TRY(from_device_, DeviceArray<std::uint32_t>::make(api_, n));
  STOKER_TRY(experts_device_, DeviceArray<device::Expert>::make(api_, config_.experts));
  const auto down = static_cast<std::size_t>(tables_at(&origin).end - &origin);
  STOKER_TRY(down_device_, DeviceArray<std::byte>::make(api_, down));
  return make_pinned(down);
}

Result<void> CudaModel::make_pinned(std::size_t down) {
  const std::size_t n = options_.step_tokens;
  const std::size_t k = config_.experts_per_token;
  const std::size_t hidden = config_.hidden_size;
  STOKER_TRY(down_, PinnedArray<std::byte>::make(api_, down));
  std::byte origin{};
  // Prefill sends no h.
  const std::size_t most =
      static_cast<std::size_t>(std::max(choice_at(&origin, n, false, true).end - &origin,
                                        choice_at(&origin, options_.sequences, true, true).end - &origin));
  for (PinnedArray<std::byte>& choice : choice_) {
    STOKER_TRY(choice, PinnedArray<std::byte>::make(api_, most));
  }
  STOKER_TRY(last_flags_,
             PinnedArray<std::uint32_t>::make(api_, n * device::combine_slots(config_.hidden_size)));
  STOKER_TRY(logit_flags_, PinnedArray<std::uint32_t>::make(api_, n));
  STOKER_TRY(pairs_down_, PinnedArray<std::uint32_t>::make(api_, n * k));
  STOKER_TRY(from_down_, PinnedArray<std::uint32_t>::make(api_, n));
  STOKER_TRY(experts_down_, PinnedArray<device::Expert>::make(api_, config_.experts));
  STOKER_TRY(logits_up_, PinnedArray<float>::make(api_, std::size_t{kLogitRows} * config_.vocab_size));
  // The CPU lane serves decode steps.
  const std::size_t decoding = options_.sequences;
  STOKER_TRY(cpu_out_, PinnedArray<float>::make(api_, decoding * k * hidden));
  cpu_batch_ = std::make_unique<ExpertBatch>(config_, host_.expert_dtype, *kernels_, *threads_, decoding);
  cpu_ready_.reserve(kExpertBatch);
  missing_.reserve(config_.experts);
  return {};
}

/// Experts get what the budget leaves after everything else, sequences that are to come included. What was
/// taken so far is what the device says, not what was asked of it: it hands out whole pages.
Result<void> CudaModel::make_slots() {
  std::uint64_t free = 0;
  std::uint64_t total = 0;
  STOKER_DEVICE("asking for free memory", api_.memory(&free, &total));
  const std::uint64_t used = info_.memory_free - std::min(info_.memory_free, free);
  const std::uint64_t left =
      std::min(options_.vram - std::min(options_.vram, used), free - std::min(free, kMargin));
  const std::uint64_t staging = 2 * kExpertBatch;
  const std::uint64_t others = options_.sequence_memory + staging * slot_bytes_;
  const std::uint64_t most = std::uint64_t{config_.layers} * config_.experts;
  std::uint64_t slots = left > others ? std::min((left - others) / slot_bytes_, most) : 0;
  if (options_.vram_slots != 0) slots = std::min<std::uint64_t>(options_.vram_slots, most);
  if (left < others)
    return fail(Errc::no_memory,
                "device memory: weights and workspace take " + mib(used) + ", sequences " +
                    mib(options_.sequence_memory) + ", staging " + mib(staging * slot_bytes_) + "; " +
                    mib(left) + " are left of " + mib(options_.vram) +
                    ": give a larger --vram, or smaller --sequence-memory, --context or --chunk");
  if (slots < config_.layers)
    options_.warn("device memory holds " + std::to_string(slots) +
                  " experts, less than one per layer: nothing stays there");
  vram_ = std::make_unique<VramCache>(config_.layers, config_.experts, static_cast<std::uint32_t>(slots));
  STOKER_TRY(slots_, DeviceArray<std::byte>::make(api_, (slots + staging) * slot_bytes_));
  return {};
}

/// Copies out of memory that is not pinned go through the driver's own buffer, at a third of the rate, and
/// hold up the host.
void CudaModel::pin_pool() {
  const std::size_t whole =
      std::max(kPinChunk / options_.pool_slot_bytes, std::uint64_t{1}) * options_.pool_slot_bytes;
  for (std::size_t at = 0; at < options_.pool.size(); at += whole) {
    const auto chunk = options_.pool.subspan(at, std::min(whole, options_.pool.size() - at));
    if (const device::Status bad = api_.register_host(chunk.data(), chunk.size()); bad != nullptr) {
      options_.warn(mib(at) + " of the pool's " + mib(options_.pool.size()) + " are pinned (" + bad +
                    "): copies to the GPU from the rest are slower");
      return;
    }
    pinned_.push_back(chunk);
  }
}

std::string CudaModel::describe() const {
  std::string text = std::string(api_.kind) + ", " + info_.name + ", " + std::to_string(vram_->slots()) +
                     " experts in device memory";
  if (options_.lane == Lane::gpu) return text + ", all experts on the GPU";
  text += "; CPU lane " + std::string(kernels_->name) + ", " + std::to_string(threads_->threads()) +
          (threads_->threads() == 1 ? " thread" : " threads");
  if (options_.lane == Lane::cpu) return text;
  const auto rate = [](double bytes) {
    return std::to_string(static_cast<int>(bytes / 1e8 + 0.5) / 10) + " GB/s";
  };
  return text + " " + rate(lanes_.cpu()) + ", copies " + rate(lanes_.copy());
}

}  // namespace stoker
