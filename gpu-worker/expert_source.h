// Where Decode gets experts from. Implementations: PoolSource (the shared pool and its loader) and, in
// tests, a source that holds every expert in plain memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "shm/base/result.h"
#include "shm/base/types.h"

namespace stoker {

/// Where an expert was when it was needed.
enum class Tier : std::uint8_t { vram, pool, pool_hinted, disk, disk_late_hint };

/// A leased expert: readable until release(). Pointers are row-major codes in the pool slot; `scales` is
/// null when the expert is not FP8, else gate tiles, then up, then down.
struct LeasedExpert {
  ExpertId expert;
  Tier tier = Tier::pool;
  std::uint32_t handle = 0;  ///< the source's own; hand back unchanged
  const std::byte* gate = nullptr;
  const std::byte* up = nullptr;
  const std::byte* down = nullptr;
  const float* scales = nullptr;
};

/// next() result: one of a leased expert, a failed expert (its read failed for good), or nothing.
struct SourceEvent {
  enum class Kind : std::uint8_t { leased, failed, pending, done } kind = Kind::done;
  LeasedExpert leased;  ///< kind == leased
  ExpertId expert;      ///< kind == failed
  Error error;          ///< kind == failed: file, offset, errno
};

enum class Access : std::uint8_t { decode, prefill };

class ExpertSource {
 public:
  virtual ~ExpertSource() = default;
  /// Starts one layer's event: `wanted` are distinct expert ids. Hits are leased first, misses demanded
  /// at once (as far as the pool's size allows; the rest follow as leases come back).
  /// The previous event must be over (next() returned done).
  virtual void begin(LayerId layer, std::span<const ExpertId> wanted, Access access) = 0;
  /// The next expert that can be computed, resident ones first, then in order of arrival. With wait ==
  /// false returns pending instead of blocking. Every wanted expert is reported exactly once (leased or
  /// failed) before done. An Error means that the source itself broke (loader gone for too long).
  virtual Result<SourceEvent> next(bool wait) = 0;
  /// Ends a lease. Must be called once per leased expert, at the latest before the next begin().
  virtual void release(const LeasedExpert& expert) = 0;
  /// Between begin() and done of a layer's event: an expert of another layer, if it can be had at once.
  /// Nothing is demanded and no tier counted. To be released before the next call of anything but release().
  virtual std::optional<LeasedExpert> try_lease(LayerId /*layer*/, ExpertId /*expert*/) {
    return std::nullopt;
  }
  /// Called now and then while nothing is computed: gives back what an event that ended with an Error may
  /// still be granted.
  virtual void idle() {}
};

}  // namespace stoker
