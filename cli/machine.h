// What a measurement has to say about the machine it was made on, and the memory of other processes.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "shm/base/clock.h"

namespace stoker::cli {

/// "model name" of /proc/cpuinfo, "unknown CPU" where there is none.
std::string cpu_model();

/// The process and its siblings: all daemons of a private stack, given one of them.
std::vector<pid_t> siblings_of(pid_t pid);
/// Memory of a process as the kernel sees it now; zeros when it is gone.
struct ProcessMemory {
  std::uint64_t proportional = 0;  ///< PSS: what processes share is counted once over all of them
  std::uint64_t hugetlb = 0;       ///< pages of hugetlbfs, which no set size counts
};
ProcessMemory memory_of(pid_t pid);

/// The largest memory of some processes together, sampled from a thread of its own while the object lives.
class PeakMemory {
 public:
  PeakMemory(std::vector<pid_t> pids, const Clock& clock);
  ~PeakMemory();
  PeakMemory(const PeakMemory&) = delete;
  PeakMemory& operator=(const PeakMemory&) = delete;
  /// Takes a last sample, ends the thread and returns the peak.
  std::uint64_t stop();

 private:
  void watch();
  void sample();
  std::vector<pid_t> pids_;
  const Clock& clock_;
  std::uint64_t peak_ = 0;
  bool stopping_ = false;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::thread thread_;
};

}  // namespace stoker::cli
