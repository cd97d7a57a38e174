// The warm manifest: which experts a pool held, and how all experts have been used, in a small file, so that
// a pool that begins empty (after a reboot, or with another size) need not begin cold.
//
// File, little endian: char[8] "STKWARM1"; u64 fingerprint of the checkpoint; u32 layers, experts per layer;
// u64 count; then per expert u32 key, f32 frequency, u32 age; u64 XXH3-64 of all before. Residents come
// first, each group by descending score (io-worker/residency.h). Experts that were used and are not resident
// are in it too: a larger pool has room for them, the policy goes on where it was, and a stop in the middle
// of bringing experts back forgets none.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "shm/base/result.h"
#include "shm/base/types.h"
#include "shm/pool.h"

namespace stoker {

/// What a manifest must agree with to be of any use.
struct WarmShape {
  std::uint64_t fingerprint = 0;  ///< Checkpoint::fingerprint()
  std::uint32_t layers = 0, experts_per_layer = 0;
  [[nodiscard]] std::uint32_t expert_count() const { return layers * experts_per_layer; }
};

struct WarmExpert {
  ExpertKey expert;
  float frequency = 0;    ///< decayed uses (shm/usage.h); 0: resident, never used by a decode step
  std::uint32_t age = 0;  ///< steps since the last use
  bool operator==(const WarmExpert&) const = default;
};

/// Most valuable first; no expert twice.
using WarmManifest = std::vector<WarmExpert>;

std::string encode_warm_manifest(const WarmManifest& manifest, const WarmShape& shape);
/// Errc::corrupt says what is wrong; Errc::invalid: of another checkpoint. Every key is below
/// shape.expert_count(), every frequency plausible, afterwards.
Result<WarmManifest> parse_warm_manifest(std::string_view bytes, const WarmShape& shape);

/// Errc::missing when there is no such file. Never reads more than a manifest of this shape can hold.
Result<WarmManifest> read_warm_manifest(const std::string& path, const WarmShape& shape);
/// Replaces the file as a whole (temporary file, fsync, rename, fsync of the directory), mode 0600; makes
/// missing directories with mode 0700. Errors name the path.
Result<void> write_warm_manifest(const std::string& path, std::string_view bytes);

/// What the pool holds and has seen used now. Reads shared memory only: may run beside a working loader.
WarmManifest collect_warm(const Pool& pool, const WarmShape& shape);
/// Gives experts that this pool has never seen used the history that the manifest knows.
void restore_usage(Pool& pool, const WarmManifest& manifest);

}  // namespace stoker
