// What memory of this machine can do: a yardstick of `stoker bench`.
#pragma once

#include "shm/base/clock.h"
#include "shm/base/result.h"

namespace stoker::cli {

/// Plain reads of a buffer much larger than caches by `threads` threads, best of several passes, in bytes per
/// second. All threads have ended on return.
Result<double> measure_memory(unsigned threads, const Clock& clock);

}  // namespace stoker::cli
