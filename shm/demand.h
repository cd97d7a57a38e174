// The demand protocol: how a worker asks the loader for an expert and learns that it is there. Layout:
// ProcessEntry and DemandEntry in layout.h. No message queue, no lock; a futex and an eventfd only to sleep.
//
// Life of a demand entry (who owns it, who moves it on):
//   1. free     worker   fills expert and flags
//   2. pending  loader   (post: release store) its index goes through the ring at the next publish()
//   3. granted  worker   (grant: release CAS) slot holds the expert and is leased to the process: adopt it
//      failed   worker   (fail: release CAS) errno and text say why
//   4. free              (the worker's release(), or reclaim_process() at any time after its death)
// The entry's state is the truth, the ring only says where to look: a restarted loader lists the pending
// entries instead of trusting the ring, and an index that comes twice is dropped.
//
// Two sleeps, each with the store-then-load handshake (sequentially consistent on both sides), so that
// a wake-up is not lost; and each sleep is bounded, so that a lost one would cost latency only:
//   loader   loader_sleeping = 1, look at the rings | worker: head = new, look at loader_sleeping -> doorbell
//   worker   waiting = 1, look at completions       | loader: completions + 1, look at waiting -> futex wake
#pragma once

#include <array>
#include <bitset>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "shm/base/clock.h"
#include "shm/base/types.h"
#include "shm/pool.h"

namespace stoker {

/// Index of a demand entry in the process's table.
using DemandTicket = Strong<struct DemandTicketTag, std::uint16_t>;

struct DemandResult {
  DemandState state = DemandState::pending;
  SlotId slot{kNone};           ///< granted: in range and leased to the process; LeaseTable::adopt() it
  std::uint32_t from_disk = 0;  ///< granted: 0 was resident, 1 a read was needed, 2 joined a hint's read
  int os_errno = 0;             ///< failed
  std::string error;            ///< failed: names file and offset
};

/// Worker side. One per process, used from one thread. `pool` must outlive it.
class DemandPort {
 public:
  DemandPort(Pool& pool, unsigned process_index);

  /// Fills an entry and queues its index; nothing when the table or the ring is full (wait for completions
  /// first). The loader sees it after publish(). Nothing is allocated.
  [[nodiscard]] std::optional<DemandTicket> post(ExpertKey expert, std::uint32_t flags);
  /// Hands everything posted to the loader. True: the loader sleeps, write its doorbell. Call once per batch.
  [[nodiscard]] bool publish();

  /// State of an entry of ours; never blocks. A grant of an impossible slot reads as failed.
  [[nodiscard]] DemandResult poll(DemandTicket ticket) const;
  /// Only the state: for loops over many tickets.
  [[nodiscard]] DemandState state(DemandTicket ticket) const;
  /// Waits until the loader has completed something since the last wait() that returned true, at most `max`.
  /// True: poll the tickets. False: time is up (look whether the loader lives, then go on waiting).
  bool wait(Duration max);
  /// Gives back a granted or failed entry. Must not be pending: a pending one belongs to the loader.
  void release(DemandTicket ticket);

  /// Entries in use (pending, granted or failed) of this port.
  [[nodiscard]] std::uint32_t in_use() const { return in_use_; }

 private:
  Pool& pool_;
  ProcessEntry& process_;
  std::uint32_t head_;  ///< next ring index to write; published by publish()
  std::uint32_t seen_;  ///< completions at the last wait() that returned true
  std::uint32_t in_use_ = 0;
  std::vector<std::uint16_t> free_;
};

/// A demand as the loader takes it in; expert is in range.
struct Demand {
  unsigned process = 0;
  DemandTicket ticket;
  ExpertKey expert;
  std::uint32_t flags = 0;
};

/// Loader side. Used from one thread. `pool` must outlive it.
class DemandIntake {
 public:
  explicit DemandIntake(Pool& pool);

  /// Starts to serve a process that attached just now (its entry is fresh).
  void attach(unsigned process_index);
  /// Starts to serve a process found attached after a loader restart: its pending entries will all be
  /// delivered by the next drain(), whatever the ring says.
  void resume(unsigned process_index);
  /// Stops to serve a process. Call before reclaim_process(); drop its waiting demands.
  void detach(unsigned process_index);

  /// Appends new demands of all served processes to `out`. A demand for an expert that does not exist is
  /// failed here and counted in `refused`. At most kDemandMax per process and call.
  void drain(std::vector<Demand>& out);

  /// Completes a pending demand. `slot` must carry the process's reader bit already (set it first: the
  /// worker may use the slot at once). False when the entry is not pending any more (its process was
  /// reclaimed, or meddled): then the caller takes the bit back. Completions are seen after notify().
  bool grant(unsigned process_index, DemandTicket ticket, SlotId slot, std::uint32_t from_disk);
  bool fail(unsigned process_index, DemandTicket ticket, int os_errno, std::string_view text);
  /// Wakes the process if it waits. Once per process and batch of completions.
  void notify(unsigned process_index);

  /// Announces that the loader is about to sleep. True: nothing is new, sleep (bounded) on the doorbell.
  /// False: something came in, the announcement is withdrawn; drain() again.
  [[nodiscard]] bool prepare_sleep();
  /// Withdraws the announcement after the sleep.
  void awake();

  [[nodiscard]] std::uint64_t refused() const { return refused_; }

 private:
  struct Process {
    bool served = false;
    bool list_pending = false;      ///< scan the table instead of the ring at the next drain
    std::uint32_t tail = 0;         ///< our own copy; the shared one is for the worker to read
    std::bitset<kDemandMax> taken;  ///< delivered by drain() and not yet completed
  };
  void take(unsigned process_index, std::uint32_t index, std::vector<Demand>& out);
  void drain_ring(unsigned process_index, std::vector<Demand>& out);
  Pool& pool_;
  std::array<Process, kProcessMax> processes_{};
  std::uint64_t refused_ = 0;
};

}  // namespace stoker
