// The run directory: sockets and the loader's lock of one stack.
#pragma once

#include <string>

#include "shm/base/result.h"
#include "shm/base/unique_fd.h"

namespace stoker {

struct RunDirectoryRequest {
  std::string explicit_path;  ///< from the command line or configuration; "" = none
  /// $XDG_RUNTIME_DIR as the daemon's configuration read it; "" = unset
  std::string xdg_runtime_dir;
  bool group_access = false;  ///< make it 0750 instead of 0700
};

/// Where the run directory is: the explicit path, else $XDG_RUNTIME_DIR/stoker, else /run/stoker. Does not
/// touch the file system: for clients.
std::string run_directory_path(const RunDirectoryRequest& request);

/// Makes the directory if it is not there (its parent must be) and checks that it is ours to use: a
/// directory, owned by us (or by root or a peer of our group with group_access), not writable by others.
/// Returns the canonical path.
Result<std::string> make_run_directory(const RunDirectoryRequest& request);

// Names inside. The ZeroMQ endpoints' names are in proto/.
std::string loader_socket_path(const std::string& run_directory);
std::string loader_lock_path(const std::string& run_directory);

/// Held by the one loader of a run directory, released by the kernel at its death. The file stays.
class LoaderLock {
 public:
  /// Errc::busy, naming the holder's pid, when another loader runs here.
  static Result<LoaderLock> acquire(const std::string& run_directory, bool group_access);

 private:
  explicit LoaderLock(UniqueFd fd) : fd_(std::move(fd)) {}
  UniqueFd fd_;
};

}  // namespace stoker
