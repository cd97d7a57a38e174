// The loader's reads: submission, completion, errors and retries, and what becomes of the slot.
#include <algorithm>
#include <cerrno>

#include "checkpoint/checksums.h"
#include "io-worker/loader.h"
#include "shm/base/counter.h"

namespace stoker {

namespace {
constexpr std::uint8_t kResumesMax = 64;

bool transient(int os_errno) {
  return os_errno == EINTR || os_errno == EAGAIN || os_errno == EBUSY || os_errno == ENOMEM;
}

/// tag = generation << 32 | piece << 16 | fill
std::uint64_t make_tag(std::uint32_t generation, std::size_t piece, std::uint16_t fill) {
  return (static_cast<std::uint64_t>(generation) << 32) | (piece << 16) | fill;
}
}  // namespace

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
  if (taken > 0) disk_reading();
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

}  // namespace stoker
