// Everything that lives in shared memory, byte for byte. Offsets, never pointers; trivially
// destructible; all cross-process fields atomic and lock-free.
//
// control object:  PoolHeader | PoolCounters | ProcessEntry[16] | SlotControl[slots] | ExpertEntry[experts]
// payload object:  slots * slot_bytes, slot i at i * slot_bytes
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "shm/base/types.h"
#include "shm/slot_word.h"

namespace stoker {

inline constexpr std::uint64_t kPoolMagic = 0x314C4F4F504B5453ULL;  // "STKPOOL1", little endian
inline constexpr std::uint32_t kLayoutVersion = 3;
inline constexpr unsigned kProcessMax = 16;   ///< one bit each in SlotWord::readers
inline constexpr unsigned kDemandMax = 1024;  ///< outstanding demands per process; power of two
inline constexpr std::size_t kDemandErrorBytes = 224;
inline constexpr std::size_t kPayloadPathBytes = 512;

struct alignas(kPageBytes) PoolHeader {
  std::atomic<std::uint64_t> magic;  ///< stored last with release; 0 while being built
  std::uint32_t layout_version;
  std::uint32_t page_bytes;  ///< of the payload mapping as found after population
  std::uint64_t layout_hash;
  std::uint64_t slot_bytes;  ///< multiple of kDirectAlign
  std::uint32_t slot_count;
  std::uint32_t expert_count;  ///< layers * experts_per_layer
  std::uint32_t layers;
  std::uint32_t experts_per_layer;
  std::uint64_t checkpoint_fingerprint;
  std::uint64_t control_bytes;
  std::uint64_t payload_bytes;
  std::atomic<std::uint32_t> epoch;            ///< bumped by every loader start
  std::atomic<std::uint32_t> loader_pid;       ///< 0 when stopped in order
  std::atomic<std::uint32_t> loader_sleeping;  ///< 1: write the doorbell after pushing a demand
  std::atomic<std::uint32_t> loader_ready;     ///< 1: weights are in place and demands are served
  std::atomic<std::uint64_t> step;             ///< global step counter (any worker adds 1 per step)
  /// NUL-terminated path of the payload when it is a hugetlbfs file; "" = POSIX object "<name>.payload".
  char payload_path[kPayloadPathBytes];
};
static_assert(sizeof(PoolHeader) == kPageBytes);

/// Monotonic counters; statistics only, relaxed. The loader writes the first line, workers the second.
struct alignas(kPageBytes) PoolCounters {
  struct alignas(kCacheLine) Loader {
    std::atomic<std::uint64_t> read_bytes, reads, read_errors, retries, short_reads;
    std::atomic<std::uint64_t> demand_fills, hint_fills, evictions;
    std::atomic<std::uint64_t> hints_received, hints_dropped, hints_issued, hints_promoted, hints_wasted;
    std::atomic<std::uint64_t> wasted_bytes, quarantined, reclaimed_processes;
    std::atomic<std::uint64_t> read_ns_total;   ///< sum over reads of submit-to-completion time
    std::atomic<std::uint64_t> demand_busy_ns;  ///< time in which at least one demand was being read
    std::atomic<std::uint64_t> disk_busy_ns;    ///< time in which at least one read was in flight
    std::atomic<std::uint64_t> warm_planned;    ///< experts of the warm manifest that this start brings back
    std::atomic<std::uint64_t> warm_fills;  ///< of such experts, read so far; those demanded meanwhile too
  } loader;
  struct alignas(kCacheLine) Worker {
    std::atomic<std::uint64_t> pool_hits, hint_hits, disk_misses, late_hints;
    std::atomic<std::uint64_t> stall_ns, steps, tokens;
  } worker;
};

enum class DemandState : std::uint32_t { free = 0, pending = 1, granted = 2, failed = 3 };

/// Where a granted expert came from (DemandEntry::from_disk).
enum class DemandOrigin : std::uint32_t {
  resident = 0,        ///< became resident between the worker's look and its demand
  disk = 1,            ///< read for this demand
  hint_in_flight = 2,  ///< a hint's read was under way and was joined
};

enum DemandFlags : std::uint32_t {
  kDemandScan = 1,  ///< prefill: used once, must not displace the decode working set
};

/// One outstanding demand. The worker owns it while free/granted/failed, the loader while pending.
struct DemandEntry {
  std::atomic<std::uint32_t> state;      ///< DemandState
  std::atomic<std::uint32_t> expert;     ///< ExpertKey; range-checked by the loader
  std::atomic<std::uint32_t> flags;      ///< DemandFlags
  std::atomic<std::uint32_t> slot;       ///< granted: leased to the process already (its reader bit is set)
  std::atomic<std::uint32_t> from_disk;  ///< granted: DemandOrigin
  std::atomic<std::uint32_t> os_errno;   ///< failed
  std::uint64_t reserved_0;
  char error[kDemandErrorBytes];  ///< failed: NUL-terminated text with file and offset
};
static_assert(sizeof(DemandEntry) == 256);

enum class ProcessState : std::uint32_t { free = 0, attached = 1, dead = 2 };

/// Where a worker is, as a number that grows: `step` is its own count, `layer` below 65536.
constexpr std::uint64_t progress_of(std::uint64_t step, std::uint32_t layer) { return step << 16 | layer; }
constexpr std::uint64_t step_of_progress(std::uint64_t progress) { return progress >> 16; }

/// A process that may hold leases. The loader assigns the index (= reader bit) at attach.
struct alignas(kPageBytes) ProcessEntry {
  std::atomic<std::uint32_t> state;  ///< ProcessState, written by the loader
  std::atomic<std::uint32_t> pid;
  std::atomic<std::uint64_t> start_ticks;  ///< field 22 of /proc/<pid>/stat: defeats pid reuse
  alignas(kCacheLine) std::atomic<std::uint32_t> demand_head;  ///< worker: next index to write
  /// progress_of() the last layer that began: its demands are out, a hint for it is too late.
  std::atomic<std::uint64_t> progress;
  alignas(kCacheLine) std::atomic<std::uint32_t> demand_tail;  ///< loader: next index to read
  /// Futex word: the loader adds 1 after granting or failing demands, and wakes if `waiting`.
  alignas(kCacheLine) std::atomic<std::uint32_t> completions;
  std::atomic<std::uint32_t> waiting;
  alignas(kCacheLine) std::atomic<std::uint16_t> demand_ring[kDemandMax];  ///< indices into demands[]
  DemandEntry demands[kDemandMax];
};

/// Per expert: where it is, and how it has been used.
struct ExpertEntry {
  /// SlotId while filling/ready/retiring, kNone otherwise; a hint, the word decides.
  std::atomic<std::uint32_t> slot;
  std::uint32_t reserved;
  /// Decayed use, written by workers: float frequency (high 32 bits as bits) | last step (low 32).
  std::atomic<std::uint64_t> usage;
};
static_assert(sizeof(ExpertEntry) == 16);

namespace detail {
constexpr std::uint64_t fnv(std::uint64_t hash, std::uint64_t value) {
  for (int i = 0; i < 8; ++i) hash = (hash ^ ((value >> (8 * i)) & 0xFF)) * 0x100000001B3ULL;
  return hash;
}
constexpr std::uint64_t layout_hash() {
  std::uint64_t h = 0xCBF29CE484222325ULL;
  for (std::uint64_t v : {std::uint64_t{kLayoutVersion},
                          std::uint64_t{kPageBytes},
                          std::uint64_t{kCacheLine},
                          std::uint64_t{kProcessMax},
                          std::uint64_t{kDemandMax},
                          std::uint64_t{sizeof(PoolHeader)},
                          std::uint64_t{offsetof(PoolHeader, slot_bytes)},
                          std::uint64_t{offsetof(PoolHeader, epoch)},
                          std::uint64_t{offsetof(PoolHeader, step)},
                          std::uint64_t{offsetof(PoolHeader, payload_path)},
                          std::uint64_t{sizeof(PoolCounters)},
                          std::uint64_t{offsetof(PoolCounters, worker)},
                          std::uint64_t{sizeof(SlotControl)},
                          std::uint64_t{offsetof(SlotControl, expert)},
                          std::uint64_t{offsetof(SlotControl, origin)},
                          std::uint64_t{sizeof(DemandEntry)},
                          std::uint64_t{offsetof(DemandEntry, error)},
                          std::uint64_t{sizeof(ProcessEntry)},
                          std::uint64_t{offsetof(ProcessEntry, progress)},
                          std::uint64_t{offsetof(ProcessEntry, completions)},
                          std::uint64_t{offsetof(ProcessEntry, demand_ring)},
                          std::uint64_t{offsetof(ProcessEntry, demands)},
                          std::uint64_t{sizeof(ExpertEntry)},
                          std::uint64_t{offsetof(ExpertEntry, usage)}})
    h = fnv(h, v);
  return h;
}
}  // namespace detail

inline constexpr std::uint64_t kLayoutHash = detail::layout_hash();

/// Byte offsets of the parts of the control object.
struct ControlLayout {
  std::uint64_t counters, processes, slots, experts, bytes;
  static constexpr ControlLayout of(std::uint64_t slot_count, std::uint64_t expert_count) {
    ControlLayout l{};
    l.counters = sizeof(PoolHeader);
    l.processes = align_up(l.counters + sizeof(PoolCounters), kPageBytes);
    l.slots = align_up(l.processes + sizeof(ProcessEntry) * kProcessMax, kPageBytes);
    l.experts = align_up(l.slots + sizeof(SlotControl) * slot_count, kPageBytes);
    l.bytes = align_up(l.experts + sizeof(ExpertEntry) * expert_count, kPageBytes);
    return l;
  }
};

}  // namespace stoker
