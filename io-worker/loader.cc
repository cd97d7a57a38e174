#include "io-worker/loader.h"

#include <algorithm>
#include <cerrno>

#include "shm/base/counter.h"

namespace stoker {

namespace {
constexpr std::size_t kHintFillsMax = 64;
constexpr Duration kStarvedPoll = std::chrono::microseconds(200);
}  // namespace

Loader::Loader(Pool& pool, const ExpertPlan& plan, const std::vector<ShardFile>& files, IoEngine& engine,
               const Clock& clock, const LoaderOptions& options)
    : pool_(pool),
      plan_(plan),
      files_(files),
      engine_(engine),
      clock_(clock),
      options_(options),
      intake_(pool),
      residency_(plan.layers(), plan.experts_per_layer(), pool.slot_count()),
      hints_({.capacity = options.hint_queue,
              .layers = plan.layers(),
              .experts_per_layer = plan.experts_per_layer(),
              .step_reads = (options.hint_budget + plan.slot_bytes() - 1) / plan.slot_bytes()}),
      demand_busy_(pool.counters().loader.demand_busy_ns),
      disk_busy_(pool.counters().loader.disk_busy_ns) {
  // Every demand of every process may be for another expert; hints come on top (start_hints).
  const std::size_t fill_count =
      std::min<std::size_t>(kProcessMax * kDemandMax, plan.expert_count()) + kHintFillsMax;
  static_assert(kProcessMax * kDemandMax + kHintFillsMax < kNoFill);
  fills_.resize(fill_count);
  free_fills_.reserve(fill_count);
  for (std::size_t i = fill_count; i-- > 0;) free_fills_.push_back(static_cast<FillIndex>(i));
  fill_of_expert_.assign(plan.expert_count(), kNoFill);
  reading_.reserve(fill_count);
  demand_queue_.set_capacity(fill_count);
  free_slots_.reserve(pool.slot_count());
  victims_.reserve(Residency::scan_batch(pool.slot_count()));
  usage_at_scan_.assign(pool.slot_count(), 0);
  scratch_slots_.reserve(pool.slot_count());
  filled_step_.assign(pool.slot_count(), 0);
  resident_per_layer_.assign(plan.layers(), 0);
  demands_.reserve(kProcessMax * kDemandMax);
  ops_.reserve(engine.capacity());
  completions_.resize(std::max<std::size_t>(engine.capacity(), 1));
  epoch_ = static_cast<std::uint8_t>(pool.header().epoch.load(std::memory_order_relaxed));
  adopt_processes();
  adopt_slots();
}

/// Processes of a predecessor's time: the dead lose their leases, the living are served on.
void Loader::adopt_processes() {
  for (unsigned p = 0; p < kProcessMax; ++p) {
    ProcessEntry& process = pool_.process(p);
    const std::uint32_t state = process.state.load(std::memory_order_acquire);
    if (state == static_cast<std::uint32_t>(ProcessState::free)) continue;
    // Once found dead, or gone in order, it holds nothing: its pid may be another process's by now.
    if (state == static_cast<std::uint32_t>(ProcessState::attached) &&
        process_may_live(process.pid.load(std::memory_order_relaxed),
                         process.start_ticks.load(std::memory_order_relaxed))) {
      intake_.resume(p);
      served_ = static_cast<std::uint16_t>(served_ | (1U << p));
    } else {
      (void)reclaim_process(pool_, p);
      add(pool_.counters().loader.reclaimed_processes);
    }
  }
}

bool Loader::turn(Duration wait_max) {
  intake_demands();
  if (!draining_) {
    start_demands();
    start_hints();
    start_preload();
  }
  submit_pieces();
  notify();
  choose_ahead();
  Duration wait = wait_for(wait_max);
  if (wait > Duration{} && !intake_.prepare_sleep()) wait = Duration{};
  const std::size_t reaped = engine_.reap(completions_, wait);
  intake_.awake();
  intake_demands();  // what rang the doorbell, before anything else
  for (std::size_t i = 0; i < reaped; ++i) complete(completions_[i]);
  if (reaped > 0) disk_reading();
  if (!draining_) start_demands();  // freed depth goes to demands before the next wait
  submit_pieces();
  notify();
  return reaped > 0;
}

/// How long reap may sleep: not at all while it is told to spin, short when something must be looked at again
/// without a wake-up.
Duration Loader::wait_for(Duration wait_max) const {
  const bool may_spin = options_.spin > Duration{} && !draining_;
  if (may_spin && clock_.now() - last_demand_ < options_.spin) return Duration{};
  if (starved_) return std::min(wait_max, kStarvedPoll);
  for (const FillIndex index : reading_)
    if (fills_[index].in_flight < fills_[index].pieces_left) return std::min(wait_max, options_.retry_delay);
  return wait_max;
}

void Loader::intake_demands() {
  demands_.clear();
  intake_.drain(demands_);
  if (!demands_.empty()) last_demand_ = clock_.now();
  for (const Demand& demand : demands_) take_demand(demand);
}

void Loader::take_demand(const Demand& demand) {
  if (grant_resident(demand)) return;
  FillIndex index = fill_of_expert_[demand.expert.value];
  if (index == kNoFill) {
    STOKER_CHECK(!free_fills_.empty());
    index = new_fill(demand.expert, true);
    demand_queue_.push_back(index);
    ++demand_fills_;
  } else if (!fills_[index].demand) {
    fills_[index].demand = true;
    ++demand_fills_;
    demand_reading(1);
    if (fills_[index].began_as_hint) {
      hint_bytes_in_flight_ -= fills_[index].bytes;
      add(pool_.counters().loader.hints_promoted);
    }
  }
  Fill& fill = fills_[index];
  // A worker that gave up on an earlier step may ask again: the newer demand counts.
  if ((fill.requesters >> demand.process) & 1U)
    fail_demand(demand.process, fill.ticket[demand.process], ECANCELED, "superseded by a newer demand");
  fill.requesters = static_cast<std::uint16_t>(fill.requesters | (1U << demand.process));
  fill.ticket[demand.process] = demand.ticket;
}

/// The expert may have become resident between the worker's look and its demand. If a hint brought it, this
/// is the hint's first use, and it came a little late.
bool Loader::grant_resident(const Demand& demand) {
  const std::uint32_t index = pool_.experts()[demand.expert.value].slot.load(std::memory_order_relaxed);
  if (index >= pool_.slot_count()) return false;
  SlotControl& slot = pool_.slots()[index];
  const auto word = update(slot, [&](SlotWord w) -> std::optional<SlotWord> {
    if (w.state != SlotState::ready || slot.expert.load(std::memory_order_relaxed) != demand.expert.value)
      return std::nullopt;
    w.readers = static_cast<std::uint16_t>(w.readers | (1U << demand.process));
    return w;
  });
  if (!word) return false;
  const auto origin = static_cast<SlotOrigin>(
      slot.origin.exchange(static_cast<std::uint32_t>(SlotOrigin::demand), std::memory_order_relaxed));
  grant(demand.process, demand.ticket, SlotId{index},
        origin == SlotOrigin::hint_unused ? DemandOrigin::hint_in_flight : DemandOrigin::resident);
  return true;
}

/// Hands over a slot that carries the process's reader bit already, or takes the bit back if the demand is
/// gone meanwhile.
void Loader::grant(unsigned process, DemandTicket ticket, SlotId slot, DemandOrigin origin) {
  if (intake_.grant(process, ticket, slot, static_cast<std::uint32_t>(origin))) {
    notify_bits_ = static_cast<std::uint16_t>(notify_bits_ | (1U << process));
    return;
  }
  (void)update(pool_.slots()[slot.value], [&](SlotWord w) -> std::optional<SlotWord> {
    w.readers = static_cast<std::uint16_t>(w.readers & ~(1U << process));
    return w;
  });
}

Loader::FillIndex Loader::new_fill(ExpertKey key, bool demand) {
  const FillIndex index = free_fills_.back();
  free_fills_.pop_back();
  Fill& fill = fills_[index];
  const std::uint32_t generation = fill.generation + 1;
  fill = Fill{};
  fill.generation = generation;
  fill.expert = key;
  fill.state = FillState::queued;
  fill.demand = demand;
  fill.began_as_hint = !demand;
  fill_of_expert_[key.value] = index;
  return index;
}

bool Loader::room_for(std::uint32_t bytes) const {
  const std::size_t reads = (reading_.size() + 1) * kExtentsMax;  // also those not handed over yet
  return reads <= std::max(engine_.capacity(), kExtentsMax) &&
         (bytes_in_flight_ == 0 || bytes_in_flight_ + bytes <= options_.bytes_in_flight);
}

void Loader::start_demands() {
  starved_ = false;
  while (!demand_queue_.empty()) {
    if (!room_for(static_cast<std::uint32_t>(plan_.slot_bytes()))) return;
    if (!start(demand_queue_.front())) {
      starved_ = true;  // every slot is leased or being filled; a release does not wake us
      return;
    }
    demand_queue_.pop_front();
  }
}

/// Hints never queue before the disk: what is not started can still be overtaken by a demand.
bool Loader::room_for_hint() const {
  const auto budget =
      static_cast<std::uint64_t>(static_cast<double>(options_.bytes_in_flight) * options_.hint_share);
  const auto bytes = static_cast<std::uint32_t>(plan_.slot_bytes());
  const bool first = hint_bytes_in_flight_ == 0;  // one expert may exceed a small budget, two may not
  const std::size_t hint_fills = fills_.size() - free_fills_.size() - demand_fills_;
  return budget > 0 && demand_queue_.empty() && hint_fills < kHintFillsMax && room_for(bytes) &&
         (first || hint_bytes_in_flight_ + bytes <= budget);
}

void Loader::start_hints() {
  if (hints_.empty()) return;
  auto& counters = pool_.counters().loader;
  HintQueue::Progress progress{};
  for (unsigned p = 0; p < kProcessMax; ++p)
    progress[p] = pool_.process(p).progress.load(std::memory_order_relaxed);
  while (room_for_hint()) {
    const auto hint = hints_.take(progress);
    if (!hint) break;
    const bool resident = pool_.experts()[hint->expert.value].slot.load(std::memory_order_relaxed) != kNone;
    if (resident || fill_of_expert_[hint->expert.value] != kNoFill) {
      add(counters.hints_dropped);
      continue;
    }
    const FillIndex index = new_fill(hint->expert, false);
    if (!start(index)) {
      release_fill(index);
      add(counters.hints_dropped);
      break;
    }
    hints_.issued(*hint);
    add(counters.hints_issued);
  }
  add(counters.hints_dropped, hints_.take_dropped());
}

void Loader::demand_reading(int change) {
  demands_reading_ += change;
  demand_busy_.is(demands_reading_ > 0, clock_.now());
}

void Loader::disk_reading() { disk_busy_.is(engine_.in_flight() > 0, clock_.now()); }

/// Gives the fill a slot and readies its reads. False: no slot can be had now.
bool Loader::start(FillIndex index) {
  Fill& fill = fills_[index];
  const std::uint32_t slot_index = find_slot(fill.expert.value / plan_.experts_per_layer());
  if (slot_index == kNone) return false;
  SlotControl& slot = pool_.slots()[slot_index];
  (void)update(slot, [&](SlotWord w) -> std::optional<SlotWord> {
    STOKER_CHECK(w.state == SlotState::free);
    return SlotWord{SlotState::filling, epoch_, 0, w.generation + 1};
  });
  slot.expert.store(fill.expert.value, std::memory_order_relaxed);
  pool_.experts()[fill.expert.value].slot.store(slot_index, std::memory_order_relaxed);
  fill.slot = SlotId{slot_index};
  fill.state = FillState::reading;
  const auto [extents, count] = plan_.extents(fill.expert);
  fill.pieces = fill.pieces_left = static_cast<std::uint8_t>(count);
  for (std::size_t i = 0; i < count; ++i) {
    Piece& piece = fill.piece[i];
    piece = Piece{};
    const std::uint64_t file_left = files_[extents[i].file.value].bytes - extents[i].offset;
    piece.need = static_cast<std::uint32_t>(std::min<std::uint64_t>(extents[i].length, file_left));
    piece.ready_to_submit = true;
    fill.bytes += extents[i].length;
  }
  bytes_in_flight_ += fill.bytes;
  if (!fill.demand && fill.began_as_hint) hint_bytes_in_flight_ += fill.bytes;
  if (fill.demand) demand_reading(1);
  reading_.push_back(index);
  started_since_scan_ = true;
  fill.retry_at = Duration{};
  return true;
}

void Loader::fail_demand(unsigned process, DemandTicket ticket, int os_errno, const std::string& text) {
  (void)intake_.fail(process, ticket, os_errno, text);
  notify_bits_ = static_cast<std::uint16_t>(notify_bits_ | (1U << process));
}

void Loader::notify() {
  for (unsigned p = 0; notify_bits_ != 0; ++p, notify_bits_ = static_cast<std::uint16_t>(notify_bits_ >> 1))
    if (notify_bits_ & 1U) intake_.notify(p);
}

void Loader::push_hints(std::span<const LoaderHint> hints) {
  add(pool_.counters().loader.hints_received, hints.size());
  for (const LoaderHint& hint : hints) hints_.push(hint);
}

void Loader::add_process(unsigned process) {
  STOKER_CHECK(process < kProcessMax);
  if ((served_ >> process) & 1U) return;
  intake_.attach(process);
  served_ = static_cast<std::uint16_t>(served_ | (1U << process));
}

void Loader::drop_process(unsigned process) {
  STOKER_CHECK(process < kProcessMax);
  intake_.detach(process);
  served_ = static_cast<std::uint16_t>(served_ & ~(1U << process));
  const auto keep = static_cast<std::uint16_t>(~(1U << process));
  for (std::size_t f = 0; f < fills_.size(); ++f) {
    Fill& fill = fills_[f];
    if (fill.state == FillState::idle) continue;
    fill.requesters &= keep;
    if (fill.requesters != 0 || !fill.demand || fill.state != FillState::queued) continue;
    // Nobody waits any more and nothing was read yet. A fill that is reading finishes as it is.
    const auto index = static_cast<FillIndex>(f);
    demand_queue_.erase(std::remove(demand_queue_.begin(), demand_queue_.end(), index), demand_queue_.end());
    release_fill(index);
  }
  notify_bits_ &= keep;
  (void)reclaim_process(pool_, process);
  for (std::uint32_t i = 0; i < pool_.slot_count(); ++i) retire_if_unread(i);
  add(pool_.counters().loader.reclaimed_processes);
}

void Loader::drain() {
  draining_ = true;
  while (!reading_.empty()) turn(std::chrono::milliseconds(100));
}

}  // namespace stoker
