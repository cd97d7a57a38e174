// When to hint, and how sure to be: prefetch that competes with demand costs more than it brings.
//
// A hint is worth its read if its probability exceeds (rho + h) / (lead + rho), where rho is the chance that
// a demand has to wait behind it, h the chance that what it displaces would have been used, and lead the
// share of the read that it hides (caching.md 3.2). rho is measured: the share of time in which demand reads
// keep the disk busy. On top of that a margin follows the loader's own account of which reads were useful.
//
// What no formula knows (cores that the predictor shares with the computation, reads that are slower side by
// side) is found by trying: steps with and without hints, in turns, and their times compared.
//
//   probing    the beginning. Blocks of 16 steps with and without hints, as on, off, off, on, ...; after 16
//              blocks: on, if steps were faster with hints and at least half of the reads useful.
//   on         hints flow. Every window: useful / issued below .35, or the disk busy with demands for more
//              than .85 of it: retreated. Below .60 the margin grows, above .75 it shrinks. Every 4096 steps
//              it proves itself anew: probing.
//   retreated  no hints for a pause of 256 steps, then probing. Every failed attempt doubles the pause, up to
//              4096.
#pragma once

#include <array>
#include <cstdint>

namespace stoker {

/// Copies of the pool's monotonic counters (shm/layout.h, PoolCounters).
struct HintCounters {
  std::uint64_t issued = 0;          ///< reads started for a hint
  std::uint64_t used = 0;            ///< first lease of a hinted expert that was ready
  std::uint64_t late = 0;            ///< a demand joined a hint's read in flight
  std::uint64_t dropped = 0;         ///< resident already, expired, or beyond the queue
  std::uint64_t wasted = 0;          ///< evicted without having been used
  std::uint64_t wasted_bytes = 0;    ///< of those
  std::uint64_t demand_busy_ns = 0;  ///< time in which at least one demand's read was in flight
  std::uint64_t now_ns = 0;          ///< when the counters were read
};

enum class HintMode : std::uint8_t { automatic, on, off };

struct RestraintOptions {
  HintMode mode = HintMode::automatic;   ///< on, off: no trials, no retreat
  std::uint32_t width = 16;              ///< reads per guess at most while on
  std::uint32_t window_steps = 64;       ///< between two decisions
  std::uint64_t window_issued_min = 16;  ///< fewer reads than this say nothing about their use
  std::uint32_t pause_steps = 256, pause_steps_max = 4096;
  std::uint32_t prove_every = 4096;                  ///< steps between two trials
  double retreat_below = 0.35, return_above = 0.50;  ///< useful / issued
  double cautious_below = 0.60, bold_above = 0.75;
  double busy_max = 0.85;
  float displaced = 0.02F;  ///< h
};

class Restraint {
 public:
  enum class State : std::uint8_t { on, probing, retreated };

  explicit Restraint(const RestraintOptions& options) : options_(options) {}

  /// Once per step of every worker. Counters of the pool; they run backwards when a pool is new.
  void on_step(std::uint32_t process, std::uint64_t step, const HintCounters& counters);

  [[nodiscard]] State state() const { return state_; }
  /// "on", "probing", "retreated"; "off" if it was told so.
  [[nodiscard]] const char* state_name() const;
  /// Least probability worth a read.
  [[nodiscard]] float threshold() const;
  /// Reads per guess at most; 0: none.
  [[nodiscard]] std::uint32_t width() const;
  [[nodiscard]] double busy() const { return busy_; }
  [[nodiscard]] const HintCounters& counters() const { return now_; }
  /// Useful / issued of the last window that had enough reads; negative before.
  [[nodiscard]] double useful_share() const { return useful_share_; }
  [[nodiscard]] std::uint64_t retreats() const { return retreats_; }
  /// How much less time a step took with hints in the last trial, as a share; 0 before.
  [[nodiscard]] double gain() const { return gain_; }

 private:
  static constexpr std::uint32_t kBlock = 16, kBlocks = 16;  ///< of a trial
  static constexpr std::uint32_t kTrialSteps = kBlock * kBlocks;
  struct Mark {
    std::uint64_t step = 0, busy_ns = 0, now_ns = 0;
  };
  void measure(std::uint32_t process, std::uint64_t step, const HintCounters& counters);
  void decide();
  void judge_window();
  void judge_trial();
  void retreat();
  void enter(State state);
  [[nodiscard]] bool with_hints() const;
  [[nodiscard]] bool too_busy() const { return window_ns_ > 0 && busy_ > options_.busy_max; }
  void open_window();

  RestraintOptions options_;
  State state_ = State::probing;
  HintCounters now_, window_;
  std::array<Mark, 16> last_{};  ///< by process
  std::uint64_t window_busy_ns_ = 0, window_ns_ = 0;
  std::uint32_t steps_ = 0, steps_in_state_ = 0, pause_ = 0;
  /// Times of a trial's steps, with and without hints.
  std::array<std::array<std::uint64_t, kTrialSteps>, 2> trial_{};
  std::array<std::size_t, 2> trial_count_{};
  double gain_ = 0;
  float margin_ = 0, lead_ = 1;
  double busy_ = 0, useful_share_ = -1;
  std::uint64_t retreats_ = 0;
  bool started_ = false;
};

}  // namespace stoker
