// Fills the weights segment (shm/weights_segment.h) from the published files, through the same engine as
// experts: direct reads of coalesced ranges into bounce buffers, then scattered into the image.
#pragma once

#include <functional>

#include "checkpoint/checkpoint.h"
#include "io-worker/engine.h"
#include "shm/base/clock.h"
#include "shm/weights_segment.h"

namespace stoker {

/// `progress(done, total)` in file bytes, after each landed read. The segment is marked complete at the
/// end. An error leaves it incomplete. Transient errors are retried like expert reads.
Result<void> fill_weights(WeightsSegment& segment, const WeightsPlan& plan,
                          const std::vector<ShardFile>& files, IoEngine& engine,
                          const std::function<void(std::uint64_t, std::uint64_t)>& progress);

}  // namespace stoker
