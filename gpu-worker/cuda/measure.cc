// How fast the lanes of this machine are: once, when everything lies where it will be used. Each measurement
// goes on for a while and its best round counts: an idle GPU, and its link, begin at a fraction of their
// clocks.
#include <algorithm>
#include <numeric>

#include "gpu-worker/cuda/model.h"

namespace stoker {
namespace {

/// More than any card's cache.
constexpr std::uint64_t kDeviceBytes = 256ULL << 20;
/// Of experts without a pool to take them from: more than a CPU's last level of cache, but for a few servers.
constexpr std::uint64_t kHostBytes = 256ULL << 20;
/// A clock that stands still ends no measurement.
constexpr int kRoundsMax = 10'000;

/// Where experts come from: the pool itself, whether or not it is pinned, slot after slot in an order that
/// spreads any few of them over all of it. What lies in them does not matter.
class ExpertWalk {
 public:
  ExpertWalk(std::span<const std::byte> pool, std::uint64_t slot_bytes, std::uint64_t expert_bytes) {
    if (slot_bytes < expert_bytes || pool.size() < slot_bytes) {
      own_.assign(std::max(kHostBytes, expert_bytes), std::byte{0x38});
      pool = own_;
      slot_bytes = expert_bytes;
    }
    base_ = pool.data();
    slot_bytes_ = slot_bytes;
    slots_ = pool.size() / slot_bytes;
    step_ = std::max<std::uint64_t>(slots_ * 5 / 8, 1);
    while (std::gcd(step_, slots_) != 1) ++step_;
  }
  const std::byte* next() {
    at_ = (at_ + step_) % slots_;
    return base_ + at_ * slot_bytes_;
  }

 private:
  std::vector<std::byte> own_;
  const std::byte* base_ = nullptr;
  std::uint64_t slot_bytes_ = 0, slots_ = 0, step_ = 1, at_ = 0;
};

}  // namespace

/// The best of round(), which returns bytes per second.
template <class Round>
Result<double> CudaModel::best_rate(const Round& round) {
  const Duration end = clock_.now() + options_.measure_time;
  double best = 0;
  for (int i = 0; i < kRoundsMax && (i == 0 || clock_.now() < end); ++i) {
    STOKER_TRY(const double rate, round());
    best = std::max(best, rate);
  }
  return best;
}

/// How long the device takes for what `enqueue` puts on the stream, by its own clock.
template <class Enqueue>
Result<double> CudaModel::device_seconds(device::Stream* stream, const Enqueue& enqueue) {
  STOKER_DEVICE("measuring", api_.record(measured_from_.get(), stream));
  STOKER_TRY_VOID(enqueue());
  STOKER_DEVICE("measuring", api_.record(measured_to_.get(), stream));
  STOKER_DEVICE("measuring", api_.synchronize(stream));
  float milliseconds = 0;
  STOKER_DEVICE("measuring", api_.elapsed(measured_from_.get(), measured_to_.get(), &milliseconds));
  return std::max(static_cast<double>(milliseconds) / 1e3, 1e-9);
}

Result<void> CudaModel::measure_lanes() {
  STOKER_TRY(measured_from_, make_event(api_, true));
  STOKER_TRY(measured_to_, make_event(api_, true));
  STOKER_TRY(rates_.memory, measure_memory());
  // Tests choose the split, whatever the machine does.
  rates_.copies = options_.copy_rate;
  rates_.cpu = options_.cpu_rate;
  if (rates_.copies == 0) STOKER_TRY_VOID(measure_copies());
  if (rates_.cpu == 0 && options_.lane != Lane::gpu) STOKER_TRY_VOID(measure_cpu());
  lanes_ = LaneSplit(std::max(rates_.cpu, 1.0), std::max(rates_.copies, 1.0));
  return {};
}

/// Half of the slots into the other half, before they hold anything.
Result<double> CudaModel::measure_memory() {
  const std::uint64_t bytes = std::min<std::uint64_t>(slots_.bytes() / 2, kDeviceBytes) / 256 * 256;
  return best_rate([&]() -> Result<double> {
    STOKER_TRY(const double time, device_seconds(compute_.get(), [&] {
                 return device_result(
                     api_.on_device(slots_.data() + bytes, slots_.data(), bytes, compute_.get()),
                     "measuring device memory");
               }));
    return 2 * static_cast<double>(bytes) / time;
  });
}

/// One expert after another into the staging slots.
Result<void> CudaModel::measure_copies() {
  ExpertWalk walk(options_.pool, options_.pool_slot_bytes, 3 * matrix_bytes_);
  const auto copy_batch = [&]() -> Result<void> {
    for (std::uint32_t i = 0; i < kExpertBatch; ++i) {
      const std::byte* from = walk.next();
      for (std::size_t part = 0; part < 3; ++part)
        STOKER_DEVICE("measuring copies",
                      api_.to_device(staging(0, i) + part * part_bytes_, from + part * matrix_bytes_,
                                     matrix_bytes_, copy_.get()));
    }
    return {};
  };
  STOKER_TRY(rates_.copies, best_rate([&]() -> Result<double> {
               STOKER_TRY(const double time, device_seconds(copy_.get(), copy_batch));
               return static_cast<double>(3 * matrix_bytes_ * kExpertBatch) / time;
             }));
  return {};
}

/// A decode step's worth of experts at a time, other ones each time: the same ones would soon be in the CPU's
/// cache.
Result<void> CudaModel::measure_cpu() {
  const std::size_t count = std::max(1U, config_.experts_per_token);
  ExpertWalk walk(options_.pool, options_.pool_slot_bytes, 3 * matrix_bytes_);
  const std::vector<float> scales(weights_.scales_per_expert, 1.0F);
  std::vector<LeasedExpert> experts(count);
  std::vector<std::uint32_t> ids(count);
  std::iota(ids.begin(), ids.end(), 0U);
  const Row row{};
  const Segment segment{};
  SegmentResult result;
  Step step{};
  step.segments = std::span(&segment, 1);
  step.results = std::span(&result, 1);
  step.rows = std::span(&row, 1);
  const std::vector<float> ones(count, 1.0F);
  uses_.collect(step, ids.data(), ones.data());
  const std::vector<float> h(config_.hidden_size, 0.0F);
  STOKER_TRY(rates_.cpu, best_rate([&]() -> Result<double> {
               for (std::size_t i = 0; i < count; ++i) {
                 const std::byte* at = walk.next();
                 experts[i] = {.expert = ExpertId(static_cast<std::uint16_t>(i)),
                               .gate = at,
                               .up = at + matrix_bytes_,
                               .down = at + 2 * matrix_bytes_,
                               .scales = scales.data()};
               }
               const Duration start = clock_.now();
               for (std::size_t at = 0; at < count; at += kExpertBatch)
                 cpu_batch_->run(std::span(experts).subspan(at, std::min(kExpertBatch, count - at)), uses_,
                                 h.data(), cpu_out_.data());
               return static_cast<double>(count * 3 * matrix_bytes_) /
                      std::max(seconds(clock_.now() - start), 1e-9);
             }));
  return {};
}

}  // namespace stoker
