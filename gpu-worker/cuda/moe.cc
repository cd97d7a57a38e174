// The experts of one layer: those in VRAM at once, the others through one of two lanes as they become
// available.
//
// Order of use. The host waits for the router of every layer, so everything that was launched for earlier
// layers is over when a layer begins: its lists may be written again, and a cache slot that is given away has
// no reader left (slots belong to one layer, and members of the event are never victims). Within a layer only
// staging slots are used twice; `computed` of their half orders that.
#include <algorithm>

#include "gpu-worker/cuda/model.h"
#include "shm/base/check.h"

namespace stoker {
namespace {

/// More are not copied in the time of a read.
constexpr std::size_t kGuessMax = 32;

}  // namespace

Result<void> CudaModel::moe(Step& step, std::size_t layer) {
  const Choice choice = choice_of(step, layer);
  uses_.collect(step, choice.ids, choice.weights);
  step.timing = {};
  lanes_.begin_layer();
  listed_ = 0;
  missing_.clear();
  guess_next(step, layer);
  const auto pairs = uses_.pairs();
  std::copy(pairs.begin(), pairs.end(), pairs_down_.data());
  STOKER_DEVICE("sending the pairs",
                api_.to_device(pairs_device_.data(), pairs_down_.data(), pairs.size_bytes(), compute_.get()));
  // Hits first. What is not in VRAM is demanded before anything is launched: the disk is the slowest.
  for (const ExpertId expert : uses_.wanted()) {
    const LayerId at(static_cast<std::uint16_t>(layer));
    const auto found = step.access == Access::decode ? vram_->find(at, expert) : vram_->peek(at, expert);
    if (!found) {
      missing_.push_back(expert);
      continue;
    }
    uses_.took(step, expert, Tier::vram);
    ++lane_counts_.vram;
    list(layer, expert, slot(*found));
  }
  step.source->begin(LayerId(static_cast<std::uint16_t>(layer)), missing_, step.access);
  if (step.timed) step.timing.demanded = step.timing.landed = clock_.now() - step.began;
  STOKER_TRY_VOID(send_list(0, listed_, compute_.get()));
  STOKER_TRY_VOID(launch_experts(0, listed_));
  look_ahead(step, layer);
  STOKER_TRY_VOID(serve(step, layer));
  if (step.observer == nullptr) return {};
  if (step.timed) step.timing.done = clock_.now() - step.began;
  uses_.report(step, layer);
  return {};
}

void CudaModel::look_ahead(const Step& step, std::size_t layer) {
  if (!step.looks_ahead(options_.lookahead) || layer + 1 >= weights_.layers.size()) return;
  const std::uint32_t count = std::min(options_.lookahead, config_.experts);
  const Choice choice = choice_of(step, layer);
  for (std::size_t r = 0; r < step.rows.size(); ++r)
    uses_.report_lookahead(step, layer, r, choice.ahead_ids + r * count, choice.ahead_scores + r * count,
                           count);
}

Result<void> CudaModel::shared_expert(const Step& step, std::size_t layer) {
  if (config_.shared_intermediate == 0) return {};
  const auto rows = static_cast<std::uint32_t>(step.rows.size());
  return run_piece(captures(step),
                   {.piece = Piece::shared, .layer = static_cast<std::uint32_t>(layer), .rows = rows},
                   [&] { return enqueue_shared(layer, rows); });
}

Result<void> CudaModel::enqueue_shared(std::size_t layer, std::uint32_t rows) {
  const DeviceMoe& w = weights_.layers[layer].moe;
  const std::uint32_t hidden = config_.hidden_size;
  const std::uint32_t inner = config_.shared_intermediate;
  STOKER_TRY_VOID(matmuls({product(w.shared_gate, h(), hidden, shared_gate_.data(), inner, rows),
                           product(w.shared_up, h(), hidden, shared_up_.data(), inner, rows)}));
  STOKER_DEVICE(
      "shared expert",
      api_.silu_mul({shared_gate_.data(), shared_up_.data(), std::uint64_t{rows} * inner}, compute_.get()));
  return matmul(w.shared_down, shared_gate_.data(), inner, shared_out_.data(), hidden, rows);
}

/// Serves what VRAM does not hold. Nothing waits for a read while leases are held: a pool of any size goes
/// on.
Result<void> CudaModel::serve(Step& step, std::size_t layer) {
  bool wait = false;
  for (;;) {
    STOKER_TRY(const SourceEvent::Kind after, take(step, layer, wait));
    wait = false;
    // The copies run while the CPU computes.
    STOKER_TRY_VOID(launch_batch(step));
    STOKER_TRY_VOID(run_cpu(step, layer));
    if (after == SourceEvent::Kind::leased) continue;
    for (Batch& batch : batches_) STOKER_TRY_VOID(settle(step, batch));
    if (after == SourceEvent::Kind::done) return {};
    // A read is under way, and PCIe has nothing to do.
    STOKER_TRY(const bool copied, copy_ahead(step, layer));
    wait = !copied;
  }
}

/// What the next layer's router makes of this layer's hidden state: for every row as many as it will choose,
/// all rows' best first.
void CudaModel::guess_next(const Step& step, std::size_t layer) {
  guess_.clear();
  next_guess_ = 0;
  if (!options_.copy_ahead || !computes_ahead(step, layer)) return;
  const std::uint32_t count = std::min(options_.lookahead, config_.experts);
  const std::uint32_t* ids = choice_of(step, layer).ahead_ids;
  for (std::uint32_t rank = 0; rank < std::min(count, config_.experts_per_token); ++rank) {
    for (std::size_t r = 0; r < step.rows.size() && guess_.size() < kGuessMax; ++r) {
      const std::uint32_t id = ids[r * count + rank];
      if (!step.row_alive(r) || id >= config_.experts) continue;
      const ExpertId expert(static_cast<std::uint16_t>(id));
      if (std::find(guess_.begin(), guess_.end(), expert) == guess_.end()) guess_.push_back(expert);
    }
  }
}

/// One guessed expert that is in the pool but not in VRAM; false: there is none. Waits for the copy: the read
/// that is awaited is looked at between two of them, no lease outlives the call, and whoever finds the expert
/// in its slot has nothing to wait for.
Result<bool> CudaModel::copy_ahead(Step& step, std::size_t layer) {
  const LayerId next(static_cast<std::uint16_t>(layer + 1));
  while (next_guess_ < guess_.size()) {
    const ExpertId expert = guess_[next_guess_++];
    if (!vram_->wants(next, expert)) continue;
    const auto leased = step.source->try_lease(next, expert);
    if (!leased) continue;
    const auto admitted = vram_->admit(next, expert, guess_);
    const Duration before = clock_.now();
    Result<void> copied;
    if (admitted) {
      copied = copy_expert(*leased, layer + 1, slot(*admitted));
      const device::Status bad = api_.synchronize(copy_.get());
      if (copied && bad != nullptr) copied = device_result(bad, "copying ahead");
      vram_->filled(*admitted);  // on an error abandon() forgets it again
    }
    step.source->release(*leased);
    STOKER_TRY_VOID(std::move(copied));
    if (!admitted) return false;
    step.stats.stall += clock_.now() - before;
    ++lane_counts_.ahead;
    return true;
  }
  return false;
}

Result<void> CudaModel::copy_expert(const LeasedExpert& expert, std::size_t layer, std::byte* to) {
  const std::byte* parts[3] = {expert.gate, expert.up, expert.down};
  for (std::size_t i = 0; i < 3; ++i)
    STOKER_DEVICE(
        "copying expert " + std::to_string(expert.expert.value) + " of layer " + std::to_string(layer),
        api_.to_device(to + i * part_bytes_, parts[i], matrix_bytes_, copy_.get()));
  return {};
}

/// Takes experts until a batch is full or none is there; each goes to its lane. Returns why it stopped:
/// leased = a batch is full.
Result<SourceEvent::Kind> CudaModel::take(Step& step, std::size_t layer, bool wait) {
  for (;;) {
    const Duration before = wait ? clock_.now() : Duration{};
    STOKER_TRY(const SourceEvent event, step.source->next(wait));
    if (wait) step.count_stall(event, before, clock_.now());
    wait = false;
    if (event.kind == SourceEvent::Kind::failed) {
      uses_.fail(step, event.expert, event.error);
      continue;
    }
    if (event.kind != SourceEvent::Kind::leased) return event.kind;
    const LeasedExpert& leased = event.leased;
    uses_.took(step, leased.expert, leased.tier);
    if (lane_of(step, leased) == Lane::cpu) {
      ++lane_counts_.cpu;
      cpu_ready_.push_back(leased);
      cpu_pairs_ += uses_.of(leased.expert).count;
      if (!cpu_batch_->has_room(cpu_ready_.size(), cpu_pairs_)) return SourceEvent::Kind::leased;
    } else {
      ++lane_counts_.copied;
      STOKER_TRY_VOID(copy_in(step, layer, leased));
      if (batches_[filling_].leases.size() == kExpertBatch) return SourceEvent::Kind::leased;
    }
  }
}

Lane CudaModel::lane_of(const Step& step, const LeasedExpert& expert) {
  // The CPU has the experts' input of decode steps only.
  if (step.access != Access::decode || step.rows.size() > options_.sequences) return Lane::gpu;
  if (options_.lane != Lane::automatic) return options_.lane;
  return lanes_.choose(static_cast<double>(3 * matrix_bytes_), uses_.of(expert.expert).count);
}

/// Starts the copy of one expert, to a cache slot if it is to stay.
Result<void> CudaModel::copy_in(const Step& step, std::size_t layer, const LeasedExpert& expert) {
  Batch& batch = batches_[filling_];
  if (batch.leases.empty()) {
    batch.first = listed_;
    batch.staged = 0;
    if (batch.in_use) STOKER_DEVICE("ordering copies", api_.wait(copy_.get(), batch.computed.get()));
  }
  const LayerId at(static_cast<std::uint16_t>(layer));
  std::byte* to = nullptr;
  if (step.access == Access::decode && vram_->wants(at, expert.expert)) {
    if (const auto admitted = vram_->admit(at, expert.expert, uses_.wanted())) {
      to = slot(*admitted);
      // Whoever finds it launches after this batch, which waits for the copy.
      vram_->filled(*admitted);
    }
  }
  if (to == nullptr) to = staging(filling_, batch.staged++);
  batch.leases.push_back(expert);
  STOKER_TRY_VOID(copy_expert(expert, layer, to));
  list(layer, expert.expert, to);
  return {};
}

void CudaModel::list(std::size_t layer, ExpertId expert, const std::byte* at) {
  const ExpertUse& use = uses_.of(expert);
  const float* scales = weights_.layers[layer].moe.expert_scales;
  if (scales != nullptr) scales += std::size_t{expert.value} * weights_.scales_per_expert;
  experts_down_[listed_++] = {at, at + part_bytes_, at + 2 * part_bytes_, scales, use.first, use.count};
}

Result<void> CudaModel::send_list(std::uint32_t first, std::uint32_t count, device::Stream* stream) {
  return device_result(api_.to_device(experts_device_.data() + first, experts_down_.data() + first,
                                      count * sizeof(device::Expert), stream),
                       "sending the list of experts");
}

/// Experts listed[first .. first + count), whose weights and list are there in stream order.
Result<void> CudaModel::launch_experts(std::uint32_t first, std::uint32_t count) {
  if (count == 0) return {};
  std::uint32_t most = 0;
  for (std::uint32_t i = first; i < first + count; ++i) most = std::max(most, experts_down_[i].count);
  return device_result(api_.experts({.experts = experts_device_.data() + first,
                                     .pairs = pairs_device_.data(),
                                     .count = count,
                                     .most_pairs = most,
                                     .k = config_.experts_per_token,
                                     .hidden = config_.hidden_size,
                                     .inner = config_.moe_intermediate,
                                     .block_rows = config_.scale_block_rows,
                                     .block_cols = config_.scale_block_cols,
                                     .code = code_of(host_.expert_dtype),
                                     .h = h(),
                                     .gate = gate_.data(),
                                     .out = expert_out_.data()},
                                    compute_.get()),
                       "experts");
}

/// The batch that took copies is computed as soon as they are there; the other half takes the next ones.
Result<void> CudaModel::launch_batch(Step& step) {
  Batch& batch = batches_[filling_];
  if (batch.leases.empty()) return {};
  const std::uint32_t count = listed_ - batch.first;
  // Copies to the device share an engine, in the order in which they can run. On the compute stream, which
  // waits for the experts, the list would come behind those of the next batch, and nothing would overlap.
  STOKER_TRY_VOID(send_list(batch.first, count, copy_.get()));
  STOKER_DEVICE("recording an event", api_.record(batch.copied.get(), copy_.get()));
  STOKER_DEVICE("ordering experts", api_.wait(compute_.get(), batch.copied.get()));
  STOKER_TRY_VOID(launch_experts(batch.first, count));
  STOKER_DEVICE("recording an event", api_.record(batch.computed.get(), compute_.get()));
  batch.in_use = true;
  filling_ = 1 - filling_;
  return settle(step, batches_[filling_]);
}

/// Gives back the leases of a batch: its copies must be over.
Result<void> CudaModel::settle(Step& step, Batch& batch) {
  if (batch.leases.empty()) return {};
  STOKER_DEVICE("waiting for copies", api_.wait_host(batch.copied.get()));
  for (const LeasedExpert& leased : batch.leases) step.source->release(leased);
  batch.leases.clear();
  return {};
}

/// The CPU lane: out of the slots into pinned memory, and up from there.
Result<void> CudaModel::run_cpu(Step& step, std::size_t layer) {
  if (cpu_ready_.empty()) return {};
  cpu_batch_->run(cpu_ready_, uses_, choice_of(step, layer).h, cpu_out_.data());
  const std::size_t hidden = config_.hidden_size;
  for (const LeasedExpert& leased : cpu_ready_) {
    const ExpertUse& use = uses_.of(leased.expert);
    for (std::uint32_t i = use.first; i < use.first + use.count; ++i) {
      const std::size_t at = uses_.pairs()[i] * hidden;
      STOKER_DEVICE("sending an expert's output",
                    api_.to_device(expert_out_.data() + at, cpu_out_.data() + at, hidden * sizeof(float),
                                   compute_.get()));
    }
  }
  // Only now: an error above leaves all of them to abandon().
  for (const LeasedExpert& leased : cpu_ready_) step.source->release(leased);
  cpu_ready_.clear();
  cpu_pairs_ = 0;
  return {};
}

/// x += the layer's experts and shared expert, and flags of what was not finite.
Result<void> CudaModel::combine(std::uint32_t rows) {
  const bool shared = config_.shared_intermediate != 0;
  const Choice at = choice_on_device(rows);
  return device_result(api_.combine({.x = tables_at(down_device_.data()).x,
                                     .out = expert_out_.data(),
                                     .weights = at.weights,
                                     .shared = shared ? shared_out_.data() : nullptr,
                                     .shared_gate = shared ? shared_sigma_.data() : nullptr,
                                     .not_finite = at.flags,
                                     .rows = rows,
                                     .k = config_.experts_per_token,
                                     .hidden = config_.hidden_size},
                                    compute_.get()),
                       "sum of the experts");
}

}  // namespace stoker
