// Small whole files (config.json, an index) as strings, with errors that name the path and the remedy.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <string>

#include "shm/base/result.h"
#include "shm/base/unique_fd.h"

namespace stoker {

struct OpenedFile {
  UniqueFd fd;
  std::uint64_t bytes = 0;
  std::int64_t mtime_ns = 0;
};

/// What to say when `error` (EACCES, EPERM) keeps this user from reading `path`: which directory or file is
/// closed, and what to do. Services run under a user of their own, and homes are usually closed to it.
tl::unexpected<Error> access_denied(const std::string& path, int error);

/// Opens a regular file (symlinks are followed) read-only. Errc::missing when it does not exist.
Result<OpenedFile> open_regular(const std::string& path);

/// Reads exactly `bytes` bytes at `offset`; a shorter file is Errc::corrupt.
Result<void> read_exactly(const OpenedFile& file, const std::string& path, std::uint64_t offset, void* target,
                          std::size_t bytes);

/// The whole file; Errc::corrupt beyond `bytes_max`.
Result<std::string> read_file(const std::string& path, std::uint64_t bytes_max);

}  // namespace stoker
