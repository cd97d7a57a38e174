// Plays a routing trace to the predictor, event by event, beside a pool with the loader's own residency
// policy: what would have been guessed, what of it was not resident, what a hint's read would have been good
// for. The predictor and the policy are the daemons' own code.
//
// Simplified: a hint's read is there when its layer begins (in the daemon it may be late, or not start
// because demands keep the disk busy). So recall and precision are the daemon's; what hints save is a bound.
#pragma once

#include <cstdint>

#include "predictor/predictor_core.h"
#include "trace/trace_file.h"

namespace stoker {

struct ScoreOptions {
  std::uint32_t slots = 0;  ///< of the pool, for all layers together
  std::size_t skip = 0;     ///< tokens that are played but not counted: the cold start
  bool hints = true;        ///< false: guesses are judged, nothing is read for them
  PredictorOptions predictor;
};

struct ScoreResult {
  std::uint64_t uses = 0;                          ///< distinct experts per layer and step
  std::uint64_t demand_reads = 0;                  ///< of these: read on demand
  std::uint64_t issued = 0, used = 0, wasted = 0;  ///< hints' reads; wasted: evicted unused
  std::uint64_t steps = 0;
  std::uint64_t steps_retreated = 0;
  GuessScore near, far, first;  ///< guesses one layer ahead; some layers ahead; for layer 0
  [[nodiscard]] std::uint64_t reads() const { return demand_reads + issued; }
};

ScoreResult score(const Trace& trace, const ScoreOptions& options);

}  // namespace stoker
