#include "checkpoint/file_bytes.h"

#include <fcntl.h>
#include <pwd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

namespace stoker {
namespace {

std::string user_name() {
  std::array<char, 4096> buffer{};
  passwd entry{};
  passwd* found = nullptr;
  if (::getpwuid_r(::geteuid(), &entry, buffer.data(), buffer.size(), &found) == 0 && found != nullptr)
    return entry.pw_name;
  return std::to_string(::geteuid());
}

}  // namespace

tl::unexpected<Error> access_denied(const std::string& path, int error) {
  const std::string user = user_name();
  const std::string what =
      "cannot open " + path + ": " + std::strerror(error) + ": user " + user + " may not ";
  for (std::size_t slash = path.find('/', 1); slash != std::string::npos; slash = path.find('/', slash + 1)) {
    const std::string directory = path.substr(0, slash);
    if (::access(directory.c_str(), X_OK) == 0) continue;
    return fail(Errc::missing, what + "enter " + directory +
                                   ". Move the model to where it may, for example /srv or "
                                   "/var/lib/stoker/models, or let it in: sudo chmod o+x " +
                                   directory + " (or, if only this user: sudo setfacl -m u:" + user + ":x " +
                                   directory + ")");
  }
  return fail(Errc::missing, what + "read it, or what it links to: sudo chmod o+r " + path);
}

Result<OpenedFile> open_regular(const std::string& path) {
  OpenedFile file;
  // O_NONBLOCK keeps a FIFO in the directory from hanging the open; it means nothing to regular files.
  file.fd = UniqueFd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!file.fd.valid()) {
    const int error = errno;
    if (error == ENOENT) return fail(Errc::missing, path + " does not exist");
    if (error == EACCES || error == EPERM) return access_denied(path, error);
    return fail(Errc::io, "cannot open " + path, error);
  }
  struct stat info {};
  if (::fstat(file.fd.get(), &info) != 0) return fail(Errc::io, "cannot stat " + path, errno);
  if (!S_ISREG(info.st_mode)) return fail(Errc::invalid, path + " is not a regular file");
  file.bytes = static_cast<std::uint64_t>(info.st_size);
  file.mtime_ns = std::int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec;
  return file;
}

Result<void> read_exactly(const OpenedFile& file, const std::string& path, std::uint64_t offset, void* target,
                          std::size_t bytes) {
  auto* at = static_cast<char*>(target);
  while (bytes > 0) {
    const ssize_t n =
        ::pread(file.fd.get(), at, std::min<std::size_t>(bytes, 1U << 30), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail(Errc::io, "cannot read " + path + " at offset " + std::to_string(offset), errno);
    if (n == 0)
      return fail(Errc::corrupt, path + " ends at offset " + std::to_string(offset) + ", " +
                                     std::to_string(bytes) +
                                     " bytes too early (truncated; download it again)");
    at += n;
    offset += static_cast<std::uint64_t>(n);
    bytes -= static_cast<std::size_t>(n);
  }
  return {};
}

Result<std::string> read_file(const std::string& path, std::uint64_t bytes_max) {
  STOKER_TRY(const OpenedFile file, open_regular(path));
  if (file.bytes > bytes_max)
    return fail(Errc::corrupt, path + " has " + std::to_string(file.bytes) + " bytes, more than the " +
                                   std::to_string(bytes_max) + " such a file may have");
  std::string text(file.bytes, '\0');
  STOKER_TRY_VOID(read_exactly(file, path, 0, text.data(), text.size()));
  return text;
}

}  // namespace stoker
