#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <cerrno>

#include "io-worker/engine.h"

namespace stoker {
namespace {

tl::unexpected<Error> open_failure(const std::string& path, int os_errno) {
  switch (os_errno) {
    case ENOENT:
    case ENOTDIR:
      return fail(Errc::missing, "cannot open " + path + " (is the download complete?)", os_errno);
    case EACCES:
    case EPERM:
      return fail(Errc::io, "cannot open " + path + " (give this user read permission on it and its folders)",
                  os_errno);
    case EMFILE:
    case ENFILE:
      return fail(Errc::io,
                  "cannot open " + path + " (raise the limit on open files: ulimit -n, or LimitNOFILE=)",
                  os_errno);
    default:
      return fail(Errc::io, "cannot open " + path, os_errno);
  }
}

/// Whether O_DIRECT on this descriptor really bypasses the page cache at kDirectAlign. tmpfs takes the
/// flag since Linux 6.6 and ignores it; statx knows the alignment since 6.1 and says 0 for "not possible".
bool direct_is_usable(int fd) {
  struct statfs file_system {};
  if (::fstatfs(fd, &file_system) == 0 && file_system.f_type == TMPFS_MAGIC) return false;
#ifdef STATX_DIOALIGN
  struct statx facts {};
  if (::statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &facts) == 0 && (facts.stx_mask & STATX_DIOALIGN) != 0)
    return facts.stx_dio_offset_align != 0 && facts.stx_dio_offset_align <= kDirectAlign &&
           facts.stx_dio_mem_align <= kDirectAlign;
#endif
  return true;
}

Result<EngineFile> open_one(const std::string& path) {
  // Asked before opening, because opening a FIFO would block.
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) return open_failure(path, errno);
  if (!S_ISREG(status.st_mode)) return fail(Errc::invalid, path + " is not a regular file");

  EngineFile file{.fd = UniqueFd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT)),
                  .path = path,
                  .bytes = 0,
                  .direct = true};
  // EINVAL is how a file system says that it has no O_DIRECT; anything else is about the file.
  if (!file.fd.valid() && errno != EINVAL) return open_failure(path, errno);
  if (!file.fd.valid() || !direct_is_usable(file.fd.get())) {
    file.fd = UniqueFd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    file.direct = false;
    if (!file.fd.valid()) return open_failure(path, errno);
  }
  if (::fstat(file.fd.get(), &status) != 0) return fail(Errc::io, "cannot stat " + path, errno);
  file.bytes = static_cast<std::uint64_t>(status.st_size);
  return file;
}

}  // namespace

Result<std::vector<EngineFile>> open_files(const std::vector<std::string>& paths) {
  std::vector<EngineFile> files;
  files.reserve(paths.size());
  for (const std::string& path : paths) {
    STOKER_TRY(EngineFile file, open_one(path));
    files.push_back(std::move(file));
  }
  return files;
}

}  // namespace stoker
