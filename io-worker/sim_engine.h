// SimEngine: an IoEngine without a device, in virtual time, seeded, with faults.
//
// The part that outlives a killed loader is SimKernel: it owns the files, the clock's events and every
// read in flight. Life of a read:
//   1. SimEngine::submit hands it to the kernel, which draws its latency and its fault.
//   2. Half-way, part of the data may land in the target (DMA is not atomic).
//   3. At its due time the rest lands, and the completion is there to be reaped.
//   4. After SimEngine::crash() there is no completion, but the data still lands, up to
//      late_after_crash_max later: what a killed process's reads do (measured: up to 139 ms).
// Targets must therefore outlive the kernel, not the engine (the pool does).
//
// Nothing moves by itself: time advances in reap() (as far as its wait) and in SimKernel::advance().
// The same seed and the same calls give the same history.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "io-worker/engine.h"
#include "shm/base/clock.h"

namespace stoker {

struct SimFile {
  std::string path;
  std::uint64_t bytes = 0;
  /// Writes the file's bytes from `offset` on into `out`; the range is always inside the file.
  std::function<void(std::uint64_t offset, std::span<std::byte> out)> content;
};

/// A file with these bytes.
SimFile sim_file(std::string path, std::vector<std::byte> bytes);

/// Reads that touch the range fail with EIO: `failures` times, or always when 0.
struct SimBadRange {
  FileId file{};
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
  unsigned failures = 0;
};

/// Chance per read in 0..1. At most one of the faults that change the result or the data applies to a read.
struct SimFaults {
  double short_aligned = 0;    ///< fewer bytes, a multiple of kDirectAlign
  double short_unaligned = 0;  ///< fewer bytes, any number
  double again = 0;            ///< starts a burst of EAGAIN
  unsigned again_burst = 4;
  double io_error = 0;     ///< one EIO; part of the data may have landed
  double misdirected = 0;  ///< right length, wrong offset
  double bit_flip = 0;     ///< one bit of the data
  double reorder = 0;      ///< up to reorder_max late
  Duration reorder_max = std::chrono::milliseconds(20);
  double stuck = 0;  ///< completes only after stuck_for
  Duration stuck_for = std::chrono::seconds(30);
  double early_landing = 0.5;  ///< part of the data lands before completion
  double lost_at_crash = 0.2;  ///< a read of a crashed engine that never reached the device
  Duration late_after_crash_max = std::chrono::milliseconds(139);
};

struct SimOptions {
  std::uint64_t seed = 1;
  Duration latency = std::chrono::microseconds(80);         ///< of a read of no bytes; overlaps between reads
  Duration latency_jitter = std::chrono::microseconds(40);  ///< added, uniform in 0..this
  double bytes_per_second = 3e9;                            ///< of the device; not shared by overlapping
  SimFaults faults{};
  std::vector<SimBadRange> bad_ranges{};
};

/// How often each fault was injected, so that a test can tell that it tested something.
struct SimCounts {
  std::uint64_t reads = 0, short_aligned = 0, short_unaligned = 0, again = 0, io_error = 0, misdirected = 0,
                bit_flip = 0, reordered = 0, stuck = 0, early_landings = 0, lost_at_crash = 0,
                late_landings = 0;
};

class SimKernel {
 public:
  /// `clock` must outlive the kernel; others may advance it too.
  SimKernel(ManualClock& clock, std::vector<SimFile> files, SimOptions options);

  /// Moves time forward and lets everything due by then happen.
  void advance(Duration by) { advance_to(clock_->now() + by); }
  void advance_to(Duration time);
  /// When the next landing or completion happens; Duration::max() when nothing will.
  [[nodiscard]] Duration next_event() const;

  /// Reads on a file that still may write memory, those of crashed engines included: what the exclusive
  /// flock of a successor waits for.
  [[nodiscard]] std::size_t in_flight(FileId file) const;
  [[nodiscard]] std::size_t in_flight() const { return reads_.size(); }
  /// Reads of crashed engines that may still write memory.
  [[nodiscard]] std::size_t abandoned() const {
    return static_cast<std::size_t>(
        std::count_if(reads_.begin(), reads_.end(), [](const Read& read) { return read.abandoned; }));
  }

  /// From now on the file ends at `bytes`; engine_files() go on saying what they said at open.
  void truncate(FileId file, std::uint64_t bytes);
  /// While held, newly submitted reads do not complete; release() lets them.
  void hold() { held_ = true; }
  void release();

  /// What open_files would have returned: no descriptor, direct = true.
  [[nodiscard]] std::vector<EngineFile> engine_files() const;
  [[nodiscard]] const SimCounts& counts() const { return counts_; }
  [[nodiscard]] Duration now() const { return clock_->now(); }

 private:
  friend class SimEngine;
  struct Read {
    std::uint32_t engine = 0;
    bool abandoned = false;
    bool held = false;
    ReadOp op;
    Duration half_due{};  ///< when the early part lands; zero: none, or landed
    Duration due{};
    std::uint64_t early_bytes = 0;
    std::uint64_t source_offset = 0;
    std::int64_t result = 0;
    bool flips_bit = false;
  };
  struct Done {
    std::uint32_t engine = 0;
    Completion completion;
  };

  std::uint32_t new_engine() { return engines_++; }
  void start(std::uint32_t engine, const ReadOp& op);
  std::size_t take(std::uint32_t engine, std::span<Completion> out);
  void abandon(std::uint32_t engine);
  void release_engine(std::uint32_t engine);
  [[nodiscard]] bool busy(std::uint32_t engine) const;

  void schedule(Read& read);
  void choose_fault(Read& read);
  bool hits_bad_range(const ReadOp& op);
  void happen(std::size_t index);
  void land(const Read& read, std::uint64_t bytes);
  void flip_one_bit(const Read& read);
  [[nodiscard]] bool chance(double probability);
  [[nodiscard]] std::uint64_t below(std::uint64_t bound);

  ManualClock* clock_;
  std::vector<SimFile> files_;
  std::vector<std::uint64_t> opened_bytes_;
  SimOptions options_;
  std::mt19937_64 random_;
  std::vector<Read> reads_;
  std::vector<Done> done_;
  Duration device_free_{};
  unsigned again_left_ = 0;
  std::uint32_t engines_ = 0;
  bool held_ = false;
  SimCounts counts_;
};

class SimEngine final : public IoEngine {
 public:
  /// Uses depth and doorbell_fd of the options. Reads at the unaligned are refused as with O_DIRECT.
  SimEngine(std::shared_ptr<SimKernel> kernel, const EngineOptions& options);
  SimEngine(const SimEngine&) = delete;
  SimEngine& operator=(const SimEngine&) = delete;
  ~SimEngine() override;  ///< drains: time advances to the last completion; not after crash()

  std::size_t submit(std::span<const ReadOp> ops) override;
  std::size_t reap(std::span<Completion> out, Duration wait_max) override;
  [[nodiscard]] std::size_t in_flight() const noexcept override { return in_flight_; }
  [[nodiscard]] std::size_t capacity() const noexcept override { return depth_; }
  [[nodiscard]] std::string describe() const override;

  /// The process dies: reads in flight belong to nobody, but go on. Only the destructor may follow.
  void crash();

 private:
  std::shared_ptr<SimKernel> kernel_;
  std::uint32_t id_;
  std::size_t depth_;
  int doorbell_fd_;
  std::size_t in_flight_ = 0;
  bool crashed_ = false;
};

}  // namespace stoker
