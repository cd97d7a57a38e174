#include "shm/run_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cctype>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <utility>

namespace stoker {

std::string run_directory_path(const RunDirectoryRequest& request) {
  if (!request.explicit_path.empty()) return request.explicit_path;
  if (!request.xdg_runtime_dir.empty()) return request.xdg_runtime_dir + "/stoker";
  return "/run/stoker";
}

Result<std::string> make_run_directory(const RunDirectoryRequest& request) {
  const std::string path = run_directory_path(request);
  const std::string remedy = "; choose another with --run-dir";
  const mode_t mode = request.group_access ? 0750 : 0700;
  if (::mkdir(path.c_str(), mode) == 0) {
    ::chmod(path.c_str(), mode);  // against the umask
  } else if (errno != EEXIST) {
    return fail(Errc::io, "cannot make run directory '" + path + "'" + remedy, errno);
  }
  char* resolved = ::realpath(path.c_str(), nullptr);
  if (resolved == nullptr)
    return fail(Errc::io, "cannot resolve run directory '" + path + "'" + remedy, errno);
  const std::string canonical = resolved;
  std::free(resolved);
  struct stat status {};
  if (::stat(canonical.c_str(), &status) != 0)
    return fail(Errc::io, "cannot look at run directory '" + canonical + "'" + remedy, errno);
  if (!S_ISDIR(status.st_mode))
    return fail(Errc::io, "run directory '" + canonical + "' is not a directory" + remedy);
  if (status.st_uid != ::geteuid() &&
      !(request.group_access && (status.st_uid == 0 || status.st_gid == ::getegid())))
    return fail(Errc::io, "run directory '" + canonical + "' belongs to user " +
                                   std::to_string(status.st_uid) + ", not to user " +
                                   std::to_string(::geteuid()) + remedy);
  const mode_t forbidden = request.group_access ? 0002 : 0022;
  if ((status.st_mode & forbidden) != 0)
    return fail(Errc::io, "run directory '" + canonical + "' can be written by other users (chmod " +
                                   (request.group_access ? "o-w" : "go-w") + " it)" + remedy);
  if (::access(canonical.c_str(), W_OK | X_OK) != 0)
    return fail(Errc::io, "run directory '" + canonical + "' is not writable" + remedy, errno);
  return canonical;
}

std::string loader_socket_path(const std::string& run_directory) { return run_directory + "/loader.sock"; }
std::string loader_lock_path(const std::string& run_directory) { return run_directory + "/loader.lock"; }

Result<LoaderLock> LoaderLock::acquire(const std::string& run_directory, bool group_access) {
  const std::string path = loader_lock_path(run_directory);
  UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, group_access ? 0660 : 0600));
  if (!fd.valid())
    return fail(Errc::io, "cannot open '" + path + "'; choose another run directory with --run-dir", errno);
  if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    const int error = errno;
    if (error != EWOULDBLOCK) return fail(Errc::io, "cannot lock '" + path + "'", error);
    char text[16] = {};
    const ssize_t got = ::pread(fd.get(), text, sizeof text - 1, 0);
    std::string pid;
    for (ssize_t i = 0; i < got && std::isdigit(static_cast<unsigned char>(text[i])) != 0; ++i)
      pid += text[i];
    return fail(Errc::busy, "another loader" + (pid.empty() ? std::string() : " (process " + pid + ")") +
                                " already serves '" + run_directory +
                                "': stop it, or choose another directory with --run-dir");
  }
  const std::string pid = std::to_string(::getpid()) + "\n";
  if (::ftruncate(fd.get(), 0) != 0 ||
      ::pwrite(fd.get(), pid.data(), pid.size(), 0) != static_cast<ssize_t>(pid.size()))
    return fail(Errc::io, "cannot write '" + path + "' (is the file system full?)", errno);
  return LoaderLock(std::move(fd));
}

}  // namespace stoker
