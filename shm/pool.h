// A mapped pool: control object + payload object, made by the loader, attached by workers.
//
// Ownership: Pool owns its mappings (unmapped on destruction). The shared-memory *names* outlive
// every process on purpose (warm restart); Pool::unlink removes them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "shm/base/result.h"
#include "shm/base/types.h"
#include "shm/layout.h"

namespace stoker {

/// How the payload is backed; the ladder of design.md 4.
enum class HugePages { automatic, off };

struct PoolSpec {
  std::string name;              ///< see pool_name(); one pool per run directory
  std::uint64_t slot_bytes = 0;  ///< multiple of kDirectAlign
  std::uint32_t slot_count = 0;
  std::uint32_t layers = 0;
  std::uint32_t experts_per_layer = 0;
  std::uint64_t checkpoint_fingerprint = 0;
  bool group_access = false;  ///< mode 0660 instead of 0600
  HugePages huge_pages = HugePages::automatic;
  std::string hugetlbfs_dir;  ///< mount point of a hugetlbfs, "" = look in /proc/mounts
};

/// Shared-memory name prefix for a run directory (canonical path): "stoker.<16 hex>".
std::string pool_name(const std::string& run_directory);

class Pool {
 public:
  /// Loader side. Adopts a valid pool left by a predecessor of the same spec and layout (warm = true),
  /// otherwise makes a new one, fully populated. The caller holds the run directory's loader lock, so
  /// nobody else creates. A pool of another checkpoint, size or layout is replaced, unless a live
  /// process is still attached to it (Errc::busy).
  static Result<Pool> create_or_adopt(const PoolSpec& spec);

  /// Worker side: maps an existing, complete pool read-write. Errc::layout with both versions in the
  /// text on a mismatch; Errc::missing when there is none (yet).
  static Result<Pool> attach(const std::string& name);

  /// Removes both names. Mappings stay valid until their owners go.
  static void unlink(const std::string& name);

  Pool(Pool&&) noexcept;
  Pool& operator=(Pool&&) noexcept;
  ~Pool();

  [[nodiscard]] bool adopted() const;           ///< create_or_adopt found a warm pool
  [[nodiscard]] std::string page_note() const;  ///< "2 MiB pages (hugetlbfs)", or cause and remedy for 4 KiB

  [[nodiscard]] PoolHeader& header() const;
  [[nodiscard]] PoolCounters& counters() const;
  [[nodiscard]] ProcessEntry& process(unsigned index) const;  ///< index < kProcessMax
  [[nodiscard]] std::span<SlotControl> slots() const;
  [[nodiscard]] std::span<ExpertEntry> experts() const;
  [[nodiscard]] std::byte* payload(SlotId slot) const;  ///< first byte of a slot
  [[nodiscard]] std::span<std::byte> payload() const;
  [[nodiscard]] std::uint64_t slot_bytes() const;  ///< validated copy, not re-read from shm
  [[nodiscard]] std::uint32_t slot_count() const;
  [[nodiscard]] std::uint32_t expert_count() const;

 private:
  struct State;
  explicit Pool(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// Slots by state, plus how many hold at least one lease; for status, tests and invariants.
struct PoolCensus {
  std::uint32_t by_state[kSlotStates] = {};
  std::uint32_t leased = 0;
};
PoolCensus census(const Pool& pool);

/// Clears a dead process's reader bit in every slot and frees its demand entries. Same function for
/// a crash and for an orderly detach. Returns how many leases were dropped.
std::uint32_t reclaim_process(Pool& pool, unsigned process_index);

/// Field 22 of /proc/<pid>/stat, which identifies a process beyond its pid. 0 if there is no such process, or
/// /proc does not show it (hidepid, not mounted): who must not mistake one for the other asks
/// process_may_live().
std::uint64_t process_start_ticks(std::uint32_t pid);

/// Whether the process of a table entry may still read its slots. False only when that is certain: no process
/// has the pid, it is a zombie, or it started at another time. Where /proc does not show it, or the entry has
/// no start time, whoever has the pid counts: slots kept too long cost memory, slots taken from a reader give
/// wrong answers.
bool process_may_live(std::uint32_t pid, std::uint64_t start_ticks, const std::string& proc = "/proc");

}  // namespace stoker
