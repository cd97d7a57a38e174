#include "shm/segment.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/interprocess/exceptions.hpp>
#include <boost/interprocess/mapped_region.hpp>
#include <boost/interprocess/permissions.hpp>
#include <boost/interprocess/shared_memory_object.hpp>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <fstream>
#include <utility>
#include <vector>

#include "shm/base/check.h"
#include "shm/base/types.h"
#include "shm/base/unique_fd.h"

namespace stoker {

namespace bip = boost::interprocess;

namespace {

constexpr long kHugetlbfsMagic = 0x958458F6;
constexpr mode_t kOwnerMode = 0600;
constexpr mode_t kGroupMode = 0660;

/// What mapped_region needs to map a descriptor that is not a shared_memory_object (a hugetlbfs file).
struct Mappable {
  int fd;
  [[nodiscard]] bip::mapping_handle_t get_mapping_handle() const {
    bip::mapping_handle_t handle{};
    handle.handle = fd;
    return handle;
  }
};

bool in_own_groups(gid_t gid) {
  if (gid == ::getegid()) return true;
  const int count = ::getgroups(0, nullptr);
  if (count <= 0) return false;
  std::vector<gid_t> groups(static_cast<std::size_t>(count));
  const int got = ::getgroups(count, groups.data());
  groups.resize(static_cast<std::size_t>(std::max(got, 0)));
  return std::find(groups.begin(), groups.end(), gid) != groups.end();
}

Result<void> check_owner_and_mode(const struct stat& status, const std::string& what) {
  const mode_t mode = status.st_mode & 07777U;
  char mode_text[16];
  std::snprintf(mode_text, sizeof mode_text, "%04o", static_cast<unsigned>(mode));
  if (mode != kOwnerMode && mode != kGroupMode)
    return fail(Errc::invalid,
                what + " has mode " + mode_text +
                    ", not 0600 or 0660: not used. Remove it (stoker cache drop) and start again");
  const bool by_group = mode == kGroupMode && in_own_groups(status.st_gid);
  if (status.st_uid != ::geteuid() && !by_group)
    return fail(Errc::invalid, what + " belongs to user " + std::to_string(status.st_uid) + ", not to user " +
                                   std::to_string(::geteuid()) +
                                   ": not used. Run as its owner, or remove it as that user");
  return {};
}

/// MemAvailable of /proc/meminfo; 0 when it cannot be read.
std::uint64_t memory_available() {
  std::ifstream file("/proc/meminfo");
  std::string key, unit;
  std::uint64_t kib = 0;
  while (file >> key >> kib) {
    std::getline(file, unit);
    if (key == "MemAvailable:") return kib * 1024;
  }
  return 0;
}

/// A tmpfs may be allowed more than the machine has: populating it would wake the OOM killer, which is no
/// clean error. So the two limits are asked first.
Result<void> check_room(int fd, std::uint64_t bytes, const std::string& what) {
  struct statvfs fs {};
  if (::fstatvfs(fd, &fs) == 0 && fs.f_blocks != 0) {
    const std::uint64_t room = std::uint64_t{fs.f_bavail} * fs.f_frsize;
    if (room < bytes)
      return fail(Errc::no_memory, what + " needs " + bytes_text(bytes) + ", but /dev/shm has room for " +
                                       bytes_text(room) +
                                       ": lower the memory budget (--ram), remove unused objects "
                                       "there, or enlarge it (mount -o remount,size=... /dev/shm)");
  }
  const std::uint64_t available = memory_available();
  if (available != 0 && available < bytes)
    return fail(Errc::no_memory,
                what + " needs " + bytes_text(bytes) + ", but only " + bytes_text(available) +
                    " of memory is available: lower the memory budget (--ram) or stop other programs");
  return {};
}

/// An address aligned to 2 MiB with `bytes` of free address space behind it. Only a hint for mmap: another
/// thread may take the range in between, then the mapping is merely unaligned.
void* aligned_hint(std::uint64_t bytes) {
  const std::uint64_t reserve = bytes + kHugePageBytes;
  void* base = ::mmap(nullptr, reserve, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return nullptr;
  ::munmap(base, reserve);
  return reinterpret_cast<void*>(align_up(reinterpret_cast<std::uintptr_t>(base), kHugePageBytes));
}

Result<void> populate_range(std::byte* data, std::uint64_t bytes, int fd, const std::string& what) {
  constexpr std::uint64_t kChunk = 256_MiB;
  for (std::uint64_t done = 0; done < bytes;) {
    const std::uint64_t length = std::min(kChunk, bytes - done);
    if (::madvise(data + done, length, MADV_POPULATE_WRITE) == 0) {
      done += length;
      continue;
    }
    const int error = errno;
    if (error == EINTR || error == EAGAIN) continue;
    if (error == EINVAL) {  // kernels before 5.14: allocate in the file system instead
      const int status = ::posix_fallocate(fd, 0, static_cast<off_t>(bytes));
      if (status == 0) return {};
      return fail(Errc::no_memory,
                  what + ": cannot allocate " + bytes_text(bytes) + ": lower the memory budget (--ram)",
                  status);
    }
    // EFAULT is what a page fault that would have been SIGBUS turns into: the tmpfs is full.
    return fail(Errc::no_memory,
                what + ": memory ran out after " + bytes_text(done) + " of " + bytes_text(bytes) +
                    ": lower the memory budget (--ram) or free memory",
                error == EFAULT ? ENOSPC : error);
  }
  return {};
}

}  // namespace

struct Segment::State {
  bip::shared_memory_object object;  ///< owns the descriptor of a POSIX object
  UniqueFd file;                     ///< or: of a hugetlbfs file
  bip::mapped_region region;
  std::string what;  ///< for messages: "shared memory 'x'"
  bool group_access = false;
  [[nodiscard]] int fd() const { return file.valid() ? file.get() : object.get_mapping_handle().handle; }
  [[nodiscard]] std::byte* data() const { return static_cast<std::byte*>(region.get_address()); }
};

Segment::Segment(std::unique_ptr<State> state) : state_(std::move(state)) {}
Segment::Segment(Segment&&) noexcept = default;
Segment& Segment::operator=(Segment&&) noexcept = default;
Segment::~Segment() = default;

std::byte* Segment::data() const { return state_->data(); }
std::uint64_t Segment::bytes() const { return state_->region.get_size(); }
bool Segment::group_access() const { return state_->group_access; }
Result<void> Segment::populate() { return populate_range(data(), bytes(), state_->fd(), state_->what); }
bool Segment::lock_shared() { return ::flock(state_->fd(), LOCK_SH | LOCK_NB) == 0; }
bool Segment::lock_exclusive() { return ::flock(state_->fd(), LOCK_EX | LOCK_NB) == 0; }

Result<Segment> Segment::map(std::unique_ptr<State> state, bool writable, bool advise_huge) {
  struct stat status {};
  if (::fstat(state->fd(), &status) != 0) return fail(Errc::io, state->what + ": fstat failed", errno);
  STOKER_TRY_VOID(check_owner_and_mode(status, state->what));
  state->group_access = (status.st_mode & 07777U) == kGroupMode;
  if (status.st_size <= 0)
    return fail(Errc::corrupt, state->what + " is empty (its maker died): start the loader again");
  const auto bytes = static_cast<std::size_t>(status.st_size);
  const bip::mode_t mode = writable ? bip::read_write : bip::read_only;
  const Mappable mappable{state->fd()};
  if (void* hint = advise_huge ? aligned_hint(bytes) : nullptr; hint != nullptr) {
    try {
      state->region = bip::mapped_region(mappable, mode, 0, bytes, hint);
    } catch (const bip::interprocess_exception&) {
      // The hint was taken by another thread's mapping. Map anywhere.
    }
  }
  if (state->region.get_address() == nullptr) {
    try {
      state->region = bip::mapped_region(mappable, mode, 0, bytes);
    } catch (const bip::interprocess_exception& error) {
      const int code = static_cast<int>(error.get_native_error());
      return fail(code == ENOMEM ? Errc::no_memory : Errc::io,
                  state->what + ": mapping " + bytes_text(bytes) + " failed", code);
    }
  }
  // May succeed and do nothing (shmem_enabled = never): huge_bytes() says what came of it.
  if (advise_huge) ::madvise(state->data(), bytes, MADV_HUGEPAGE);
  return Segment(std::move(state));
}

Result<Segment> Segment::create(const Options& options) {
  const bool huge_file = !options.hugetlbfs_path.empty();
  auto state = std::make_unique<State>();
  state->what =
      huge_file ? "huge page file '" + options.hugetlbfs_path + "'" : "shared memory '" + options.name + "'";
  const mode_t mode = options.group_access ? kGroupMode : kOwnerMode;
  if (huge_file) {
    state->file = UniqueFd(
        ::open(options.hugetlbfs_path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode));
    if (!state->file.valid())
      return fail(errno == EEXIST ? Errc::busy : Errc::io, "cannot create " + state->what, errno);
    ::fchmod(state->file.get(), mode);  // against the umask
  } else {
    try {
      state->object = bip::shared_memory_object(bip::create_only, options.name.c_str(), bip::read_write,
                                                bip::permissions(mode));
    } catch (const bip::interprocess_exception& error) {
      const int code = static_cast<int>(error.get_native_error());
      return fail(code == EEXIST ? Errc::busy : Errc::io,
                  "cannot create " + state->what + " (is /dev/shm mounted and writable?)", code);
    }
  }
  auto filled = [&]() -> Result<Segment> {
    if (!huge_file) STOKER_TRY_VOID(check_room(state->fd(), options.bytes, state->what));
    // Not shared_memory_object::truncate: it may allocate 4 KiB pages before the advice for huge ones.
    if (::ftruncate(state->fd(), static_cast<off_t>(options.bytes)) != 0)
      return fail(Errc::no_memory, state->what + ": cannot set its size to " + bytes_text(options.bytes),
                  errno);
    STOKER_TRY(Segment segment, map(std::move(state), true, options.advise_huge));
    STOKER_TRY_VOID(segment.populate());
    return segment;
  }();
  if (!filled) {
    if (huge_file)
      ::unlink(options.hugetlbfs_path.c_str());
    else
      remove(options.name);
  }
  return filled;
}

Result<Segment> Segment::open(const Options& options, bool writable) {
  const bool huge_file = !options.hugetlbfs_path.empty();
  auto state = std::make_unique<State>();
  state->what =
      huge_file ? "huge page file '" + options.hugetlbfs_path + "'" : "shared memory '" + options.name + "'";
  int error = 0;
  if (huge_file) {
    state->file = UniqueFd(
        ::open(options.hugetlbfs_path.c_str(), (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NOFOLLOW));
    if (!state->file.valid()) {
      error = errno;
    } else {
      struct statfs fs {};
      if (::fstatfs(state->file.get(), &fs) != 0 || static_cast<long>(fs.f_type) != kHugetlbfsMagic)
        return fail(Errc::invalid, state->what + " is not on a hugetlbfs: not used");
    }
  } else {
    try {
      state->object = bip::shared_memory_object(bip::open_only, options.name.c_str(),
                                                writable ? bip::read_write : bip::read_only);
    } catch (const bip::interprocess_exception& caught) {
      error = static_cast<int>(caught.get_native_error());
      if (error == 0) error = EIO;
    }
  }
  if (error == ENOENT) return fail(Errc::missing, state->what + " does not exist: is the loader running?");
  if (error == EACCES || error == EPERM)
    return fail(Errc::invalid, state->what + " belongs to another user: run as its owner or in its group",
                error);
  if (error != 0) return fail(Errc::io, "cannot open " + state->what, error);
  return map(std::move(state), writable, options.advise_huge);
}

bool Segment::remove(const std::string& name) { return bip::shared_memory_object::remove(name.c_str()); }

std::uint64_t Segment::huge_bytes() const {
  if (state_->file.valid()) return bytes();
  std::ifstream smaps("/proc/self/smaps");
  const auto begin = reinterpret_cast<std::uintptr_t>(data());
  const std::uintptr_t end = begin + bytes();
  bool inside = false;
  std::uint64_t huge = 0;
  for (std::string line; std::getline(smaps, line);) {
    std::uintptr_t from = 0, to = 0;
    std::uint64_t kib = 0;
    if (std::sscanf(line.c_str(), "%" SCNxPTR "-%" SCNxPTR " ", &from, &to) == 2)
      inside = from < end && to > begin;
    else if (inside && std::sscanf(line.c_str(), "ShmemPmdMapped: %" SCNu64, &kib) == 1)
      huge += kib * 1024;
  }
  return std::min<std::uint64_t>(huge, bytes());
}

std::string bytes_text(std::uint64_t bytes) {
  constexpr std::array<const char*, 5> kUnits = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 1024.0 && unit + 1 < kUnits.size()) {
    value /= 1024.0;
    ++unit;
  }
  char text[32];
  std::snprintf(text, sizeof text, unit == 0 ? "%.0f %s" : "%.1f %s", value, kUnits[unit]);
  return text;
}

}  // namespace stoker
