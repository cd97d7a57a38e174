// The loader's loop: demands and hints in, reads through an IoEngine into pool slots, grants out.
//
// Life of a fill (one expert on its way into a slot):
//   1. queued    wanted by a demand or a hint; has no slot yet.
//   2. reading   owns a slot in state `filling`; its extents are in flight or waiting to be resubmitted.
//   3. published the slot turns `ready` with the requesters' reader bits already set, so nobody can take
//                it away between publication and use; the demand entries are granted.
//   3'. failed   the slot is freed; the demand entries carry the error.
// A hint that is demanded while queued or reading is promoted: same fill, now a demand. So is a preload
// (io-worker/preload.h).
//
// Single-threaded: everything is called from the thread that owns the engine. No allocation after
// construction on the paths of turn().
#pragma once

#include <array>
#include <boost/circular_buffer.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "io-worker/busy_time.h"
#include "io-worker/engine.h"
#include "io-worker/hint_queue.h"
#include "io-worker/preload.h"
#include "io-worker/residency.h"
#include "shm/base/clock.h"
#include "shm/demand.h"
#include "shm/pool.h"

namespace stoker {

struct LoaderOptions {
  std::uint64_t bytes_in_flight = 16ULL << 20;          ///< depth as bytes, from calibration
  double hint_share = 0.25;                             ///< of bytes_in_flight, for hints (design.md 5)
  std::uint32_t hint_queue = 512;                       ///< hints waiting at most; the oldest are dropped
  std::uint64_t hint_budget = 0;                        ///< bytes read for hints per step; 0: no limit
  std::uint32_t transient_retries = 8;                  ///< EINTR, EAGAIN, EBUSY, ENOMEM
  std::uint32_t error_retries = 1;                      ///< EIO and other device errors
  Duration retry_delay = std::chrono::milliseconds(2);  ///< doubles with every retry
  /// After a demand, go on looking for the next for this long instead of sleeping: it costs a CPU, and saves
  /// the wake-up (one of the longest parts of a demand's way to the disk). 0: sleep whenever there is nothing
  /// to do.
  Duration spin{};
  /// XXH3-64 per expert over its gate, up and down bytes, in this order (checkpoint/checksums.h); empty: not
  /// checked. A mismatch is read again once, then the expert fails.
  std::vector<std::uint64_t> checksums;
};

class Loader {
 public:
  /// `files`: byte sizes and paths by FileId. All references must outlive the loader. Takes over the
  /// pool's slots: filling slots of older epochs become quarantined (see recovery.h), dead processes'
  /// leases are dropped, demands that are still pending are served again.
  Loader(Pool& pool, const ExpertPlan& plan, const std::vector<ShardFile>& files, IoEngine& engine,
         const Clock& clock, const LoaderOptions& options);

  /// One turn: take demands, start reads, wait up to `wait_max` for completions or the doorbell, publish.
  /// Returns true if it did anything.
  bool turn(Duration wait_max);

  void push_hints(std::span<const LoaderHint> hints);
  /// From now on its experts are read when nothing better is to be done. It must outlive the loader.
  void set_preload(Preload& preload);
  /// A process attached (its table entry is filled). Harmless for one that is served already, as after a
  /// loader restart.
  void add_process(unsigned process);
  /// After the process died or detached: its leases and demands are gone.
  void drop_process(unsigned process);
  /// Old reads are known to be over: quarantined slots become free.
  void release_quarantine();
  [[nodiscard]] std::uint32_t quarantined() const { return quarantined_; }
  /// Stops starting reads and finishes those in flight; for an orderly stop.
  void drain();
  /// Demands waiting or being read.
  [[nodiscard]] std::size_t demand_backlog() const { return demand_fills_; }
  /// Of these, the ones that no read was started for yet.
  [[nodiscard]] std::size_t demands_queued() const { return demand_queue_.size(); }
  [[nodiscard]] std::uint64_t hint_bytes_in_flight() const { return hint_bytes_in_flight_; }

 private:
  static constexpr std::size_t kExtentsMax = 3;
  enum class FillState : std::uint8_t { idle, queued, reading };
  struct Piece {             ///< one extent's progress
    std::uint32_t done = 0;  ///< bytes landed
    std::uint32_t need = 0;  ///< bytes to land: length clipped at the end of the file
    bool in_flight = false;
    bool ready_to_submit = false;
    std::uint8_t resumes = 0;
    Duration submitted{};
  };
  struct Fill {
    ExpertKey expert;
    SlotId slot;
    FillState state = FillState::idle;
    bool demand = false;
    bool began_as_hint = false;
    bool preload = false;  ///< began as one
    bool failed = false;
    std::uint8_t pieces = 0, pieces_left = 0, in_flight = 0;
    std::uint8_t transient = 0, errors = 0, mismatches = 0;
    std::uint32_t generation = 0;  ///< of this Fill object: late completions of an older use are ignored
    std::uint16_t requesters = 0;  ///< process bits
    std::uint32_t bytes = 0;       ///< counted in bytes_in_flight_ while reading
    Duration retry_at{};
    std::array<DemandTicket, kProcessMax> ticket{};  ///< per requester
    std::array<Piece, kExtentsMax> piece{};
    std::string error;
    int os_errno = 0;
  };
  using FillIndex = std::uint16_t;
  static constexpr FillIndex kNoFill = 0xFFFF;

  void adopt_processes();
  void adopt_slots();
  void adopt_slot(std::uint32_t index);
  void retire_if_unread(std::uint32_t index);
  void intake_demands();
  void take_demand(const Demand& demand);
  bool grant_resident(const Demand& demand);
  void grant(unsigned process, DemandTicket ticket, SlotId slot, DemandOrigin origin);
  FillIndex new_fill(ExpertKey key, bool demand);
  void start_demands();
  void start_hints();
  void start_preload();
  [[nodiscard]] bool may_preload() const;
  [[nodiscard]] bool room_for_hint() const;
  /// Keeps the account of how long demands keep the disk busy.
  void demand_reading(int change);
  /// The same for all reads; called after every submission and completion.
  void disk_reading();
  bool start(FillIndex index);
  /// `layer` is the layer that the slot is wanted for.
  std::uint32_t find_slot(std::uint32_t layer);
  void refill_victims(std::uint32_t layer);
  void choose_ahead();
  bool evict(SlotId slot);
  void submit_pieces();
  void complete(const Completion& completion);
  void piece_error(Fill& fill, Piece& piece, std::size_t piece_index, int os_errno);
  bool content_is_right(Fill& fill);
  void finish(FillIndex index);
  void publish(Fill& fill);
  void abandon(Fill& fill);
  void release_fill(FillIndex index);
  [[nodiscard]] std::string describe_fill(const Fill& fill, const std::string& path,
                                          std::uint64_t offset) const;
  void fail_demand(unsigned process, DemandTicket ticket, int os_errno, const std::string& text);
  void notify();
  [[nodiscard]] bool room_for(std::uint32_t bytes) const;
  [[nodiscard]] Duration wait_for(Duration wait_max) const;

  Pool& pool_;
  const ExpertPlan& plan_;
  const std::vector<ShardFile>& files_;
  IoEngine& engine_;
  const Clock& clock_;
  LoaderOptions options_;
  DemandIntake intake_;
  Residency residency_;

  std::vector<Fill> fills_;
  std::vector<FillIndex> free_fills_;
  std::vector<FillIndex> fill_of_expert_;           ///< by ExpertKey; kNoFill if none
  std::vector<FillIndex> reading_;                  ///< fills in state reading, in order of start
  boost::circular_buffer<FillIndex> demand_queue_;  ///< queued demand fills, first come first served
  HintQueue hints_;
  std::vector<std::uint32_t> free_slots_;
  std::vector<SlotId> victims_;  ///< chosen by the last scan, best first
  std::size_t next_victim_ = 0;
  bool started_since_scan_ = false;
  std::uint32_t layer_at_scan_ = 0;
  std::vector<std::uint64_t> usage_at_scan_;  ///< by slot: a victim used since then is spared
  std::vector<ResidentSlot> scratch_slots_;
  std::vector<std::uint32_t> filled_step_;  ///< by slot, private to this loader
  std::vector<std::uint32_t> resident_per_layer_;
  std::vector<Demand> demands_;
  std::vector<ReadOp> ops_;
  std::vector<Completion> completions_;
  std::uint64_t bytes_in_flight_ = 0, hint_bytes_in_flight_ = 0;
  Preload* preload_ = nullptr;
  Duration last_demand_ = -kPreloadQuiet;
  std::size_t demand_fills_ = 0;
  int demands_reading_ = 0;
  BusyTime demand_busy_, disk_busy_;
  std::uint32_t quarantined_ = 0;
  std::uint16_t served_ = 0;  ///< process bits
  std::uint16_t notify_bits_ = 0;
  std::uint8_t epoch_ = 0;
  bool starved_ = false;  ///< a demand waits for a slot that only a released lease can give
  bool draining_ = false;
};

}  // namespace stoker
