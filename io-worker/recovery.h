// When may slots of a dead loader be reused?
//
// A killed loader's direct reads go on: pages were measured still changing up to 139 ms after waitpid
// returned, and io_uring teardown does not stop them. The kernel keeps a file's flock until the last
// in-flight request lets go of the file, so a successor that obtains an exclusive flock on every shard
// knows that no old read is left. Every loader therefore holds a shared flock on the descriptors it reads
// from. Another live stack on the same checkpoint holds such locks too; then only time helps: a wait
// longer than the device's own time-out (30 s for NVMe) decides.
#pragma once

#include <vector>

#include "io-worker/engine.h"
#include "shm/base/clock.h"

namespace stoker {

/// Takes the shared lock on every file; call once after open_files. Errors name the path.
Result<void> lock_files_shared(const std::vector<EngineFile>& files);

class Recovery {
 public:
  static constexpr Duration kDeviceTimeout = std::chrono::seconds(35);
  static constexpr Duration kPollEvery = std::chrono::milliseconds(20);

  enum class Verdict { wait, over_by_lock, over_by_time };

  Recovery(const std::vector<EngineFile>& files, const Clock& clock);
  /// Call now and then while slots are quarantined; cheap, rate-limited inside.
  Verdict poll();

 private:
  const std::vector<EngineFile>& files_;
  const Clock& clock_;
  Duration started_;
  Duration next_poll_;
};

}  // namespace stoker
