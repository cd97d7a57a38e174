#include "io-worker/loader.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "checkpoint/checksums.h"
#include "shm/usage.h"

namespace stoker {

namespace {
constexpr std::size_t kHintFillsMax = 64;
constexpr std::uint8_t kResumesMax = 64;
constexpr Duration kStarvedPoll = std::chrono::microseconds(200);

bool transient(int os_errno) {
  return os_errno == EINTR || os_errno == EAGAIN || os_errno == EBUSY || os_errno == ENOMEM;
}

template <class Counter>
void add(Counter& counter, std::uint64_t by = 1) {
  counter.fetch_add(by, std::memory_order_relaxed);
}

/// tag = generation << 32 | piece << 16 | fill
std::uint64_t make_tag(std::uint32_t generation, std::size_t piece, std::uint16_t fill) {
  return (static_cast<std::uint64_t>(generation) << 32) | (piece << 16) | fill;
}
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
              .step_reads = (options.hint_budget + plan.slot_bytes() - 1) / plan.slot_bytes()}) {
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
    if (process.state.load(std::memory_order_acquire) == static_cast<std::uint32_t>(ProcessState::free))
      continue;
    const std::uint64_t ticks = process_start_ticks(process.pid.load(std::memory_order_relaxed));
    if (ticks != 0 && ticks == process.start_ticks.load(std::memory_order_relaxed)) {
      intake_.resume(p);
      served_ = static_cast<std::uint16_t>(served_ | (1U << p));
    } else {
      (void)reclaim_process(pool_, p);
      add(pool_.counters().loader.reclaimed_processes);
    }
  }
}

/// Makes private state agree with what a predecessor left, and directory entries agree with slot words.
void Loader::adopt_slots() {
  for (ExpertEntry& e : pool_.experts()) e.slot.store(kNone, std::memory_order_relaxed);
  for (std::uint32_t i = 0; i < pool_.slot_count(); ++i) adopt_slot(i);
  pool_.counters().loader.quarantined.store(quarantined_, std::memory_order_relaxed);
}

void Loader::adopt_slot(std::uint32_t index) {
  SlotControl& slot = pool_.slots()[index];
  // A predecessor's read may still be landing: never reuse before recovery says so.
  (void)update(slot, [](SlotWord w) -> std::optional<SlotWord> {
    if (w.state != SlotState::filling) return std::nullopt;
    return SlotWord{SlotState::quarantined, w.epoch, 0, w.generation};
  });
  const SlotWord word = unpack(slot.word.load(std::memory_order_acquire));
  if (word.state == SlotState::quarantined) ++quarantined_;
  if (word.state == SlotState::free) free_slots_.push_back(index);
  if (word.state == SlotState::ready) {
    const ExpertKey key{slot.expert.load(std::memory_order_relaxed)};
    ExpertEntry* entry = key.value < plan_.expert_count() ? &pool_.experts()[key.value] : nullptr;
    if (entry != nullptr && entry->slot.load(std::memory_order_relaxed) == kNone) {
      entry->slot.store(index, std::memory_order_release);
      ++resident_per_layer_[key.value / plan_.experts_per_layer()];
      return;
    }
    // An impossible key, or a second copy: give it back once nobody reads it.
    (void)update(slot, [](SlotWord w) -> std::optional<SlotWord> {
      w.state = SlotState::retiring;
      return w;
    });
  }
  retire_if_unread(index);
}

void Loader::retire_if_unread(std::uint32_t index) {
  const auto freed = update(pool_.slots()[index], [](SlotWord w) -> std::optional<SlotWord> {
    if (w.state != SlotState::retiring || w.readers != 0) return std::nullopt;
    w.state = SlotState::free;
    return w;
  });
  if (freed) free_slots_.push_back(index);
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
  Duration wait = wait_for(wait_max);
  if (wait > Duration{} && !intake_.prepare_sleep()) wait = Duration{};
  const std::size_t reaped = engine_.reap(completions_, wait);
  intake_.awake();
  for (std::size_t i = 0; i < reaped; ++i) complete(completions_[i]);
  if (!draining_) start_demands();  // freed depth goes to demands before the next wait
  submit_pieces();
  notify();
  return reaped > 0;
}

/// How long reap may sleep: short when something must be looked at again without a wake-up.
Duration Loader::wait_for(Duration wait_max) const {
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
  const std::size_t reads = engine_.in_flight() + ops_.size() + kExtentsMax;
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
  const Duration now = clock_.now();
  if (demands_reading_ > 0)
    add(pool_.counters().loader.demand_busy_ns, static_cast<std::uint64_t>((now - demands_counted_).count()));
  demands_counted_ = now;
  demands_reading_ += change;
}

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
  fill.retry_at = Duration{};
  submit_pieces();
  return true;
}

std::uint32_t Loader::find_slot(std::uint32_t layer) {
  for (int scan = 0; scan < 2; ++scan) {
    if (!free_slots_.empty()) {
      const std::uint32_t slot = free_slots_.back();
      free_slots_.pop_back();
      return slot;
    }
    while (next_victim_ < victims_.size())
      if (const SlotId victim = victims_[next_victim_++]; evict(victim)) {
        const std::uint32_t slot = free_slots_.back();
        free_slots_.pop_back();
        return slot;
      }
    if (scan == 0) refill_victims(layer);
  }
  return kNone;
}

void Loader::refill_victims(std::uint32_t layer) {
  scratch_slots_.clear();
  auto slots = pool_.slots();
  auto experts = pool_.experts();
  for (std::uint32_t i = 0; i < slots.size(); ++i) {
    const SlotWord word = unpack(slots[i].word.load(std::memory_order_relaxed));
    if (word.state == SlotState::retiring) retire_if_unread(i);
    if (word.state != SlotState::ready || word.readers != 0) continue;
    const ExpertKey key{slots[i].expert.load(std::memory_order_relaxed)};
    if (key.value >= experts.size()) continue;
    const std::uint64_t usage = experts[key.value].usage.load(std::memory_order_relaxed);
    usage_at_scan_[i] = usage;
    scratch_slots_.push_back(
        {.slot = SlotId{i},
         .expert = key,
         .origin = static_cast<SlotOrigin>(slots[i].origin.load(std::memory_order_relaxed)),
         .usage = usage,
         .filled_step = filled_step_[i]});
  }
  victims_.clear();
  next_victim_ = 0;
  const auto step = static_cast<std::uint32_t>(pool_.header().step.load(std::memory_order_relaxed));
  const std::size_t batch = Residency::scan_batch(slots.size());
  residency_.choose(scratch_slots_, resident_per_layer_, step, layer, batch, victims_);
}

/// ready -> retiring -> free, unless somebody leases it or has used it since it was chosen.
bool Loader::evict(SlotId id) {
  SlotControl& slot = pool_.slots()[id.value];
  const ExpertKey key{slot.expert.load(std::memory_order_relaxed)};
  if (key.value >= plan_.expert_count()) return false;
  ExpertEntry& entry = pool_.experts()[key.value];
  if (entry.usage.load(std::memory_order_relaxed) != usage_at_scan_[id.value]) return false;
  const auto retired = update(slot, [](SlotWord w) -> std::optional<SlotWord> {
    if (w.state != SlotState::ready || w.readers != 0) return std::nullopt;
    w.state = SlotState::retiring;
    return w;
  });
  if (!retired) return false;
  entry.slot.store(kNone, std::memory_order_relaxed);
  --resident_per_layer_[key.value / plan_.experts_per_layer()];
  auto& counters = pool_.counters().loader;
  if (slot.origin.load(std::memory_order_relaxed) == static_cast<std::uint32_t>(SlotOrigin::hint_unused)) {
    add(counters.hints_wasted);
    add(counters.wasted_bytes, plan_.expert_bytes());
  }
  add(counters.evictions);
  (void)update(slot, [](SlotWord w) -> std::optional<SlotWord> {
    w.state = SlotState::free;  // no lease can appear on a retiring slot
    return w;
  });
  free_slots_.push_back(id.value);
  return true;
}

void Loader::submit_pieces() {
  if (reading_.empty()) return;
  ops_.clear();
  const Duration now = clock_.now();
  for (const FillIndex f : reading_) {
    Fill& fill = fills_[f];
    if (fill.failed || fill.retry_at > now) continue;
    const auto [extents, count] = plan_.extents(fill.expert);
    for (std::size_t i = 0; i < count; ++i) {
      Piece& piece = fill.piece[i];
      if (!piece.ready_to_submit || engine_.in_flight() + ops_.size() >= engine_.capacity()) continue;
      ops_.push_back({.file = extents[i].file,
                      .offset = extents[i].offset + piece.done,
                      .target = pool_.payload(fill.slot) + extents[i].slot_offset + piece.done,
                      .length = extents[i].length - piece.done,
                      .tag = make_tag(fill.generation, i, f)});
    }
  }
  const std::size_t taken = ops_.empty() ? 0 : engine_.submit(ops_);
  for (std::size_t i = 0; i < taken; ++i) {
    Fill& fill = fills_[ops_[i].tag & 0xFFFF];
    Piece& piece = fill.piece[(ops_[i].tag >> 16) & 0xFFFF];
    piece.ready_to_submit = false;
    piece.in_flight = true;
    piece.submitted = now;
    ++fill.in_flight;
    add(pool_.counters().loader.reads);
  }
  ops_.clear();
}

void Loader::complete(const Completion& completion) {
  const auto index = static_cast<FillIndex>(completion.tag & 0xFFFF);
  const std::size_t piece_index = (completion.tag >> 16) & 0xFFFF;
  if (index >= fills_.size() || piece_index >= kExtentsMax) return;
  Fill& fill = fills_[index];
  if (fill.generation != static_cast<std::uint32_t>(completion.tag >> 32) ||
      fill.state != FillState::reading || !fill.piece[piece_index].in_flight)
    return;
  Piece& piece = fill.piece[piece_index];
  piece.in_flight = false;
  --fill.in_flight;
  auto& counters = pool_.counters().loader;
  add(counters.read_ns_total, static_cast<std::uint64_t>((clock_.now() - piece.submitted).count()));
  if (completion.result < 0) {
    piece_error(fill, piece, piece_index, static_cast<int>(-completion.result));
  } else {
    add(counters.read_bytes, static_cast<std::uint64_t>(completion.result));
    piece.done += static_cast<std::uint32_t>(completion.result);
    if (piece.done >= piece.need) {
      --fill.pieces_left;
    } else if (completion.result == 0 || piece.resumes == kResumesMax) {
      piece_error(fill, piece, piece_index, completion.result == 0 ? ENODATA : EIO);
    } else {
      // Resume on an aligned offset: what was read beyond the last boundary is read again.
      add(counters.short_reads);
      ++piece.resumes;
      piece.done = static_cast<std::uint32_t>(align_down(piece.done, kDirectAlign));
      piece.ready_to_submit = true;
    }
  }
  if (fill.in_flight == 0 && (fill.failed || fill.pieces_left == 0)) finish(index);
}

void Loader::piece_error(Fill& fill, Piece& piece, std::size_t piece_index, int os_errno) {
  auto& counters = pool_.counters().loader;
  add(counters.read_errors);
  if (fill.failed) return;  // the first error is the one to report
  const bool again = transient(os_errno) ? fill.transient++ < options_.transient_retries
                                         : os_errno != ENODATA && fill.errors++ < options_.error_retries;
  // A hint is not worth holding bytes in flight for while it waits to be tried again.
  if (again && fill.demand) {
    add(counters.retries);
    piece.done = static_cast<std::uint32_t>(align_down(piece.done, kDirectAlign));
    piece.resumes = 0;
    piece.ready_to_submit = true;
    const int doublings = std::min(10, fill.transient + fill.errors - 1);
    fill.retry_at = clock_.now() + options_.retry_delay * (1LL << doublings);
    return;
  }
  fill.failed = true;
  fill.os_errno = os_errno;
  const Extent& extent = plan_.extents(fill.expert).first[piece_index];
  fill.error = describe_fill(fill, files_[extent.file.value].path, extent.offset + piece.done) +
               (os_errno == ENODATA ? ": the file ends there (truncated since it was opened)" : "");
}

/// With checksums: false if the expert has to be read again (all its pieces are readied for that).
bool Loader::content_is_right(Fill& fill) {
  if (options_.checksums.empty()) return true;
  const std::uint64_t found =
      expert_checksum(pool_.payload(fill.slot), plan_.parts(fill.expert), plan_.expert_bytes() / 3);
  if (found == options_.checksums[fill.expert.value]) return true;
  add(pool_.counters().loader.read_errors);
  if (fill.mismatches++ > 0) {
    fill.failed = true;
    const auto [extents, count] = plan_.extents(fill.expert);
    fill.error = describe_fill(fill, files_[extents[0].file.value].path, extents[0].offset) +
                 ": checksum mismatch, twice: the file was altered or the drive returns wrong data; "
                 "run `stoker verify`";
    fill.os_errno = 0;
    return true;
  }
  add(pool_.counters().loader.retries);
  fill.pieces_left = fill.pieces;
  for (std::size_t i = 0; i < fill.pieces; ++i) {
    fill.piece[i].done = 0;
    fill.piece[i].resumes = 0;
    fill.piece[i].ready_to_submit = true;
  }
  return false;
}

std::string Loader::describe_fill(const Fill& fill, const std::string& path, std::uint64_t offset) const {
  const std::uint32_t per_layer = plan_.experts_per_layer();
  return "cannot read expert " + std::to_string(fill.expert.value % per_layer) + " of layer " +
         std::to_string(fill.expert.value / per_layer) + " from " + path + " at offset " +
         std::to_string(offset);
}

void Loader::finish(FillIndex index) {
  Fill& fill = fills_[index];
  if (!fill.failed && !content_is_right(fill)) return;
  bytes_in_flight_ -= fill.bytes;
  if (!fill.demand && fill.began_as_hint) hint_bytes_in_flight_ -= fill.bytes;
  if (fill.demand) demand_reading(-1);
  if (fill.preload) preload_->ended(!fill.failed);
  std::erase(reading_, index);
  if (fill.failed) {
    abandon(fill);
  } else {
    publish(fill);
  }
  release_fill(index);
}

void Loader::publish(Fill& fill) {
  SlotControl& slot = pool_.slots()[fill.slot.value];
  const SlotOrigin origin_of_slot = fill.demand    ? SlotOrigin::demand
                                    : fill.preload ? SlotOrigin::warm
                                                   : SlotOrigin::hint_unused;
  slot.origin.store(static_cast<std::uint32_t>(origin_of_slot), std::memory_order_relaxed);
  filled_step_[fill.slot.value] =
      static_cast<std::uint32_t>(pool_.header().step.load(std::memory_order_relaxed));
  ++resident_per_layer_[fill.expert.value / plan_.experts_per_layer()];
  (void)update(slot, [&](SlotWord w) -> std::optional<SlotWord> {
    STOKER_CHECK(w.state == SlotState::filling && w.epoch == epoch_);
    return SlotWord{SlotState::ready, w.epoch, fill.requesters, w.generation};
  });
  auto& counters = pool_.counters().loader;
  if (fill.preload) add(counters.warm_fills);
  if (fill.demand) {
    add(counters.demand_fills);
  } else if (!fill.preload) {
    add(counters.hint_fills);
  }
  const DemandOrigin origin = fill.began_as_hint ? DemandOrigin::hint_in_flight : DemandOrigin::disk;
  for (unsigned p = 0; p < kProcessMax; ++p)
    if ((fill.requesters >> p) & 1U) grant(p, fill.ticket[p], fill.slot, origin);
}

void Loader::abandon(Fill& fill) {
  pool_.experts()[fill.expert.value].slot.store(kNone, std::memory_order_relaxed);
  (void)update(pool_.slots()[fill.slot.value], [](SlotWord w) -> std::optional<SlotWord> {
    STOKER_CHECK(w.state == SlotState::filling);
    return SlotWord{SlotState::free, w.epoch, 0, w.generation};
  });
  free_slots_.push_back(fill.slot.value);
  for (unsigned p = 0; p < kProcessMax; ++p)
    if ((fill.requesters >> p) & 1U) fail_demand(p, fill.ticket[p], fill.os_errno, fill.error);
}

void Loader::release_fill(FillIndex index) {
  Fill& fill = fills_[index];
  if (fill.demand) --demand_fills_;
  fill_of_expert_[fill.expert.value] = kNoFill;
  fill.state = FillState::idle;
  fill.demand = false;
  free_fills_.push_back(index);
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

void Loader::release_quarantine() {
  auto slots = pool_.slots();
  for (std::uint32_t i = 0; i < slots.size(); ++i) {
    const auto freed = update(slots[i], [](SlotWord w) -> std::optional<SlotWord> {
      if (w.state != SlotState::quarantined) return std::nullopt;
      return SlotWord{SlotState::free, w.epoch, 0, w.generation};
    });
    if (freed) free_slots_.push_back(i);
  }
  quarantined_ = 0;
  pool_.counters().loader.quarantined.store(0, std::memory_order_relaxed);
}

void Loader::drain() {
  draining_ = true;
  while (!reading_.empty()) turn(std::chrono::milliseconds(100));
}

}  // namespace stoker
