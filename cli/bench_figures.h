// The arithmetic of `stoker bench`: what one repetition measured, how far that is from what the machine could
// do (design.md 11), and how repetitions spread. Pure: no clock, no files, no processes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"

namespace stoker::cli {

/// One row of the report: what is computed, and what the pool held before.
struct BenchTest {
  enum class Kind : std::uint8_t { prefill, decode } kind = Kind::decode;
  std::uint32_t tokens = 0;
  bool warm = false;

  /// "pp512", "tg64": llama-bench's names.
  [[nodiscard]] std::string name() const;
  /// Forward passes that it takes with `chunk` prompt tokens per step.
  [[nodiscard]] std::uint64_t steps(std::uint32_t chunk) const;
  /// Passes of which the logits are wanted.
  [[nodiscard]] std::uint64_t heads() const { return kind == Kind::decode ? tokens : 1; }
};

/// Bytes that the weights of a checkpoint make a step read, whatever the pool holds.
struct ModelCosts {
  std::uint64_t expert_bytes = 0;    ///< one routed expert
  std::uint64_t resident_bytes = 0;  ///< once per step: all but routed experts, embedding and head
  std::uint64_t head_bytes = 0;      ///< once per row of logits
  std::uint64_t state_bytes = 0;     ///< recurrent state of one sequence; a step reads and writes it

  static Result<ModelCosts> of(const Checkpoint& checkpoint);
};

/// One repetition of one test.
struct BenchSample {
  std::uint64_t tokens = 0, steps = 0, heads = 0;
  double seconds = 0;
  double stall_demand_seconds = 0, stall_late_hint_seconds = 0;  ///< compute waited for a read
  std::uint64_t uses_vram = 0;                                   ///< experts found in device memory
  std::uint64_t uses_pool = 0, uses_prefetched = 0;              ///< in the pool
  std::uint64_t uses_disk = 0, uses_late_hint = 0;               ///< experts waited for
  std::uint64_t uses_copied = 0,
                uses_on_cpu = 0;   ///< of a GPU's uses: copied to it, computed by its CPU lane
  std::uint64_t copied_ahead = 0;  ///< on a guess; what is used of it counts in uses_vram
  std::uint64_t read_bytes = 0, wasted_bytes = 0;    ///< wasted: hinted, evicted unused
  double disk_busy_seconds = 0;                      ///< at least one read was in flight
  std::uint64_t hints_issued = 0, hints_wasted = 0;  ///< experts
  std::uint64_t peak_bytes = 0;                      ///< of all processes of the stack
  /// Bytes/s, measured just before; memory: of the device that computes. The last two: of a GPU, else 0.
  double raw_disk_bandwidth = 0, raw_memory_bandwidth = 0, raw_copy_bandwidth = 0, raw_cpu_lane_bandwidth = 0;
  [[nodiscard]] bool on_gpu() const { return raw_copy_bandwidth > 0; }
  [[nodiscard]] std::uint64_t uses() const {
    return uses_vram + uses_pool + uses_prefetched + uses_disk + uses_late_hint;
  }
  [[nodiscard]] double per_token(double value) const { return value / static_cast<double>(tokens); }
  [[nodiscard]] double share_of_uses(std::uint64_t part) const {
    return uses() == 0 ? 0 : static_cast<double>(part) / static_cast<double>(uses());
  }
};

/// Weights and state that the device had to read from its memory: the numerator of the memory limit. On a GPU
/// an expert that was copied is written and read, one of the CPU lane does not count. Activations, the KV
/// cache and embedding rows are left out, so the true limit is a little higher.
std::uint64_t device_bytes(const BenchSample& sample, const ModelCosts& costs);

/// To a GPU, over PCIe.
std::uint64_t copied_bytes(const BenchSample& sample, const ModelCosts& costs);

/// The least time the machine could have taken, by resource.
struct BenchLimit {
  double disk_seconds = 0, memory_seconds = 0, copy_seconds = 0, cpu_lane_seconds = 0;
  [[nodiscard]] double seconds() const;
  /// "disk", "memory", "pcie" or "cpu_lane": the resource that takes seconds().
  [[nodiscard]] const char* by() const;
};
/// What hints read in vain is not needed work, so it does not count for the disk. What was copied ahead in
/// vain is not told apart and counts.
BenchLimit limit_of(const BenchSample& sample, const ModelCosts& costs);

struct Spread {
  double mean = 0, stddev = 0;  ///< stddev of a sample (n - 1); 0 for one value
  double median = 0, min = 0, max = 0;
};
/// `values` is not empty.
Spread spread_of(std::vector<double> values);

}  // namespace stoker::cli
