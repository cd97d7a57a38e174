#include "gpu-worker/text/text_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "shm/base/unique_fd.h"

namespace stoker {

Result<std::string> read_text_file(const std::string& path, std::size_t bytes_max) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return fail(errno == ENOENT ? Errc::missing : Errc::io, "cannot open " + path, errno);
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) return fail(Errc::io, "cannot stat " + path, errno);
  if (!S_ISREG(status.st_mode)) return fail(Errc::invalid, path + " is not a regular file");
  const auto size = static_cast<std::size_t>(status.st_size);
  if (size > bytes_max) {
    return fail(Errc::corrupt,
                path + " has " + std::to_string(size) + " bytes, more than " + std::to_string(bytes_max));
  }
  std::string text(size, '\0');
  std::size_t done = 0;
  while (done < size) {
    const ssize_t got = ::read(fd.get(), text.data() + done, size - done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail(Errc::io, "cannot read " + path, errno);
    if (got == 0) break;
    done += static_cast<std::size_t>(got);
  }
  text.resize(done);
  return text;
}

}  // namespace stoker
