#include "cli/machine.h"

#include <algorithm>
#include <fstream>
#include <sstream>

namespace stoker::cli {

using namespace std::chrono_literals;

namespace {

constexpr Duration kSampleEvery = 500ms;
/// The kernel walks all pages of a process for its PSS, milliseconds per GiB: at most this share of the time
/// of one CPU may go into looking.
constexpr int kCostFactor = 100;

/// Parent of a process, 0 if it is gone. The name in /proc/PID/stat may hold blanks and brackets.
pid_t parent_of(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string line;
  std::getline(file, line);
  const auto end = line.rfind(')');
  if (end == std::string::npos) return 0;
  std::istringstream rest(line.substr(end + 1));
  std::string state;
  pid_t parent = 0;
  rest >> state >> parent;
  return parent;
}

}  // namespace

std::string cpu_model() {
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  while (std::getline(file, line)) {
    const auto colon = line.find(": ");
    if (line.rfind("model name", 0) == 0 && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown CPU";
}

std::vector<pid_t> siblings_of(pid_t pid) {
  const std::string parent = std::to_string(parent_of(pid));
  std::ifstream file("/proc/" + parent + "/task/" + parent + "/children");
  std::vector<pid_t> pids;
  for (pid_t child = 0; file >> child;) pids.push_back(child);
  if (pids.empty()) pids.push_back(pid);  // a kernel without CONFIG_PROC_CHILDREN
  return pids;
}

ProcessMemory memory_of(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/smaps_rollup");
  ProcessMemory memory;
  std::string line;
  while (std::getline(file, line)) {
    std::istringstream words(line);
    std::string key;
    std::uint64_t kib = 0;
    if (!(words >> key >> kib)) continue;
    if (key == "Pss:") memory.proportional = kib * 1024;
    if (key == "Shared_Hugetlb:" || key == "Private_Hugetlb:") memory.hugetlb += kib * 1024;
  }
  return memory;
}

PeakMemory::PeakMemory(std::vector<pid_t> pids, const Clock& clock)
    : pids_(std::move(pids)), clock_(clock), thread_([this] { watch(); }) {}

PeakMemory::~PeakMemory() { static_cast<void>(stop()); }

std::uint64_t PeakMemory::stop() {
  if (thread_.joinable()) {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_one();
    thread_.join();
    sample();
  }
  return peak_;
}

void PeakMemory::watch() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    const Duration before = clock_.now();
    sample();
    const Duration pause = std::max<Duration>(kSampleEvery, kCostFactor * (clock_.now() - before));
    wake_.wait_for(lock, pause, [this] { return stopping_; });
  }
}

/// A pool on hugetlbfs is mapped by all that have any of it, so the largest mapping is the pool.
void PeakMemory::sample() {
  std::uint64_t sum = 0, hugetlb = 0;
  for (const pid_t pid : pids_) {
    const ProcessMemory memory = memory_of(pid);
    sum += memory.proportional;
    hugetlb = std::max(hugetlb, memory.hugetlb);
  }
  peak_ = std::max(peak_, sum + hugetlb);
}

}  // namespace stoker::cli
