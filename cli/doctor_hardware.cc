// Doctor's look at kernel, memory and io_uring.
#include <linux/io_uring.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "cli/doctor.h"
#include "daemons/common/size.h"
#include "shm/base/cpus.h"
#include "shm/base/unique_fd.h"

namespace stoker::cli {
namespace {

using Level = Check::Level;

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

/// A "Key:   123 kB" line of /proc/meminfo in bytes; 0 when it is not there.
std::uint64_t meminfo(const std::string& key) {
  std::ifstream file("/proc/meminfo");
  std::string line;
  while (std::getline(file, line)) {
    if (line.rfind(key + ":", 0) != 0) continue;
    std::istringstream rest(line.substr(key.size() + 1));
    std::uint64_t value = 0;
    std::string unit;
    rest >> value >> unit;
    return unit == "kB" ? value * 1024 : value;
  }
  return 0;
}

/// The huge= option of the tmpfs on /dev/shm, "never" when there is none: it decides for shared memory made
/// with shm_open, unless shmem_enabled says deny or force.
std::string shm_huge_option() {
  const std::string enabled = first_line("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
  if (enabled.find("[deny]") != std::string::npos) return "never";
  if (enabled.find("[force]") != std::string::npos) return "force";
  std::ifstream mounts("/proc/mounts");
  std::string device, where, type, options, rest, huge = "never";
  while (mounts >> device >> where >> type >> options && std::getline(mounts, rest)) {
    const auto at = options.find("huge=");
    if (where == "/dev/shm" && at != std::string::npos)
      huge = options.substr(at + 5, options.find(',', at) - at - 5);
  }
  return huge;
}

}  // namespace

void check_system(Checks& checks) {
  utsname name{};
  ::uname(&name);
  int major = 0, minor = 0;
  std::sscanf(name.release, "%d.%d", &major, &minor);
  const bool recent = major > 5 || (major == 5 && minor >= 13);  // what io_uring needs (uring_engine.cc)
  checks.push_back(
      {recent ? Level::ok : Level::warn, "System", "kernel", std::string(name.sysname) + " " + name.release,
       recent
           ? ""
           : "before Linux 5.13 the loader reads with pread threads, which is slower (Debian 12 has 6.1)"});
  checks.push_back(
      {Level::ok, "System", "CPUs", std::to_string(usable_cpus()) + " usable, " + name.machine, ""});
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
  checks.push_back({avx2 ? Level::ok : Level::warn, "System", "SIMD",
                    avx512 ? "AVX-512"
                    : avx2 ? "AVX2"
                           : "scalar only",
                    avx2 ? "" : "none for this CPU; in a virtual machine pass the host's CPU flags through"});
#endif
}

void check_memory(Checks& checks) {
  const std::uint64_t total = meminfo("MemTotal"), available = meminfo("MemAvailable");
  checks.push_back({available > total / 4 ? Level::ok : Level::warn, "Memory", "RAM",
                    format_bytes(available) + " available of " + format_bytes(total),
                    available > total / 4 ? "" : "end other programs, or give a smaller --ram"});
  struct statvfs shm {};
  if (::statvfs("/dev/shm", &shm) != 0) {
    checks.push_back(
        {Level::fail, "Memory", "/dev/shm", std::strerror(errno), "mount -t tmpfs tmpfs /dev/shm"});
  } else {
    const std::uint64_t size = shm.f_blocks * shm.f_frsize, free = shm.f_bavail * shm.f_frsize;
    const bool roomy = size >= total / 3;
    checks.push_back({roomy ? Level::ok : Level::warn, "Memory", "/dev/shm",
                      format_bytes(free) + " free of " + format_bytes(size),
                      roomy ? "" : "mount -o remount,size=75% /dev/shm (containers: --shm-size)"});
  }
  rlimit lock{};
  ::getrlimit(RLIMIT_MEMLOCK, &lock);
  const bool unlimited = lock.rlim_cur == RLIM_INFINITY;
  const bool enough = unlimited || lock.rlim_cur >= total / 2;
  checks.push_back({enough ? Level::ok : Level::warn, "Memory", "memlock limit",
                    unlimited ? "unlimited" : format_bytes(lock.rlim_cur),
                    enough ? ""
                           : "ulimit -l unlimited, or LimitMEMLOCK=infinity in the unit: without it io_uring "
                             "cannot register the pool and reads a little slower"});
  const std::uint64_t huge = meminfo("HugePages_Total") * meminfo("Hugepagesize");
  const std::string transparent = shm_huge_option();
  const bool pages = huge > 0 || transparent != "never";
  checks.push_back(
      {pages ? Level::ok : Level::warn, "Memory", "huge pages",
       format_bytes(huge) + " reserved, transparent on /dev/shm: " + transparent,
       pages ? "" : "mount -o remount,huge=advise /dev/shm (reads and memory bandwidth gain up to half)"});
}

void check_io_uring(Checks& checks) {
  const std::string disabled = first_line("/proc/sys/kernel/io_uring_disabled");
  if (!disabled.empty()) {
    checks.push_back({disabled == "0" ? Level::ok : Level::warn, "io_uring", "io_uring_disabled", disabled,
                      disabled == "0" ? "" : "sysctl kernel.io_uring_disabled=0"});
  }
  io_uring_params params{};
  const UniqueFd ring(static_cast<int>(::syscall(SYS_io_uring_setup, 4, &params)));
  if (ring.valid()) {
    checks.push_back({Level::ok, "io_uring", "ring", "can be made", ""});
    return;
  }
  const int error = errno;
  const char* cause = error == ENOSYS   ? "the kernel has none, or a seccomp filter hides it"
                      : error == EPERM  ? "forbidden by sysctl or seccomp (containers do that)"
                      : error == ENOMEM ? "the memlock limit is too low"
                                        : std::strerror(error);
  checks.push_back(
      {Level::warn, "io_uring", "ring", cause,
       "allow io_uring_setup, io_uring_enter and io_uring_register; meanwhile the loader uses pread"});
}

}  // namespace stoker::cli
