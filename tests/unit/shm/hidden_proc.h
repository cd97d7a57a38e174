// An empty /proc, as with hidepid or in a container that does not mount it.
#pragma once

#include <sched.h>
#include <sys/mount.h>

#include <memory>

namespace stoker::test {

/// While it lives, the calling thread (and what it forks) sees an empty /proc.
class HiddenProc {
 public:
  /// Null where the machine does not allow it.
  static std::unique_ptr<HiddenProc> make() {
    if (::unshare(CLONE_NEWNS) != 0) return nullptr;
    if (::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return nullptr;
    if (::mount("none", "/proc", "tmpfs", 0, nullptr) != 0) return nullptr;
    return std::make_unique<HiddenProc>();
  }
  HiddenProc() = default;
  HiddenProc(const HiddenProc&) = delete;
  HiddenProc& operator=(const HiddenProc&) = delete;
  ~HiddenProc() { ::umount2("/proc", MNT_DETACH); }
};

}  // namespace stoker::test
