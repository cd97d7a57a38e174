#include "io-worker/recovery.h"

#include <sys/file.h>

#include <cerrno>

namespace stoker {

Result<void> lock_files_shared(const std::vector<EngineFile>& files) {
  for (const EngineFile& file : files)
    // Blocks only while a successor of a dead loader probes (microseconds), see Recovery::poll.
    while (::flock(file.fd.get(), LOCK_SH) != 0)
      if (errno != EINTR)
        return fail(Errc::io, "cannot lock " + file.path + " (the file system must support flock)", errno);
  return {};
}

Recovery::Recovery(const std::vector<EngineFile>& files, const Clock& clock)
    : files_(files), clock_(clock), started_(clock.now()), next_poll_(started_) {}

Recovery::Verdict Recovery::poll() {
  const Duration now = clock_.now();
  if (now < next_poll_) return Verdict::wait;
  next_poll_ = now + kPollEvery;
  bool all = true;
  for (const EngineFile& file : files_) {
    // A conversion that fails has already dropped the shared lock, so it is taken again in any case.
    if (::flock(file.fd.get(), LOCK_EX | LOCK_NB) != 0) all = false;
    while (::flock(file.fd.get(), LOCK_SH) != 0 && errno == EINTR) {
    }
    if (!all) break;
  }
  if (all) return Verdict::over_by_lock;
  return now - started_ > kDeviceTimeout ? Verdict::over_by_time : Verdict::wait;
}

}  // namespace stoker
