// Pool: create, adopt, replace, refuse; population; census; names.
#include "shm/pool.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <functional>

#include "shm/segment.h"
#include "tests/unit/shm/pool_fixture.h"

using namespace stoker;
using namespace stoker::test;

namespace {

bool exists(const std::string& object) { return ::access(("/dev/shm/" + object).c_str(), F_OK) == 0; }

/// Writes bytes of a POSIX object the way a vandal would: past all owners.
void scribble(const std::string& object, std::size_t offset, std::uint64_t value, std::size_t bytes) {
  const int fd = ::open(("/dev/shm/" + object).c_str(), O_RDWR | O_CLOEXEC);
  REQUIRE(fd >= 0);
  REQUIRE(::pwrite(fd, &value, bytes, static_cast<off_t>(offset)) == static_cast<ssize_t>(bytes));
  ::close(fd);
}

/// Runs `body` in a child as an unprivileged user; its return value is the exit status.
int run_as_nobody(const std::function<int()>& body) {
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    if (::setgid(65534) != 0 || ::setuid(65534) != 0) ::_exit(99);
    ::_exit(body());
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  REQUIRE(WIFEXITED(status));
  return WEXITSTATUS(status);
}

}  // namespace

TEST_CASE("a new pool is zeroed, populated, and attachable by name") {
  const PoolSpec spec = small_spec("new");
  const NameGuard guard(spec.name);
  Pool pool = take(Pool::create_or_adopt(spec));
  CHECK_FALSE(pool.adopted());
  CHECK(pool.header().epoch.load() == 1);
  CHECK(pool.header().loader_ready.load() == 0);
  CHECK(pool.header().loader_pid.load() == static_cast<std::uint32_t>(::getpid()));
  CHECK(pool.slot_count() == 8);
  CHECK(pool.slot_bytes() == 8192);
  CHECK(pool.expert_count() == 32);
  CHECK(pool.payload().size() == 8 * 8192);
  CHECK_FALSE(pool.page_note().empty());
  CHECK(census(pool).by_state[static_cast<unsigned>(SlotState::free)] == 8);
  for (const ExpertEntry& expert : pool.experts()) CHECK(expert.slot.load() == kNone);

  Pool other = take(Pool::attach(spec.name));
  std::memset(pool.payload(SlotId{3}), 0x5A, pool.slot_bytes());
  CHECK(*other.payload(SlotId{3}) == std::byte{0x5A});
  CHECK(*other.payload(SlotId{4}) == std::byte{0});
  // Populated: the object has as many blocks as bytes.
  struct stat status {};
  REQUIRE(::stat(("/dev/shm/" + spec.name + ".payload").c_str(), &status) == 0);
  CHECK(status.st_blocks * 512 >= status.st_size);
  CHECK((status.st_mode & 07777U) == 0600U);
}

TEST_CASE("the umask does not decide the mode") {
  PoolSpec spec = small_spec("umask");
  spec.group_access = true;
  const NameGuard guard(spec.name);
  const mode_t old = ::umask(0077);
  const auto pool = Pool::create_or_adopt(spec);
  ::umask(old);
  REQUIRE(pool);
  for (const char* part : {".control", ".payload"}) {
    struct stat status {};
    REQUIRE(::stat(("/dev/shm/" + spec.name + part).c_str(), &status) == 0);
    CHECK((status.st_mode & 07777U) == 0660U);
  }
}

TEST_CASE("a pool of the same spec is adopted with its content") {
  const PoolSpec spec = small_spec("adopt");
  const NameGuard guard(spec.name);
  {
    Pool pool = take(Pool::create_or_adopt(spec));
    fill_slot(pool, SlotId{2}, ExpertKey{17});
    std::memset(pool.payload(SlotId{2}), 0x77, pool.slot_bytes());
    pool.header().loader_ready.store(1);
  }
  Pool pool = take(Pool::create_or_adopt(spec));
  CHECK(pool.adopted());
  CHECK(pool.header().epoch.load() == 2);
  CHECK(pool.header().loader_ready.load() == 0);
  CHECK(pool.experts()[17].slot.load() == 2);
  CHECK(pool.payload(SlotId{2})[8191] == std::byte{0x77});
  CHECK(census(pool).by_state[static_cast<unsigned>(SlotState::ready)] == 1);
}

TEST_CASE("a pool of another spec is replaced") {
  const PoolSpec spec = small_spec("replace");
  const NameGuard guard(spec.name);
  { Pool pool = take(Pool::create_or_adopt(spec)); }
  PoolSpec changed = spec;
  SECTION("checkpoint") { changed.checkpoint_fingerprint = 0x9999; }
  SECTION("slot count") { changed.slot_count = 9; }
  SECTION("slot size") { changed.slot_bytes = 4096; }
  SECTION("layers and experts swapped") { std::swap(changed.layers, changed.experts_per_layer); }
  SECTION("mode") { changed.group_access = true; }
  Pool pool = take(Pool::create_or_adopt(changed));
  CHECK_FALSE(pool.adopted());
  CHECK(pool.header().epoch.load() == 1);
  CHECK(pool.slot_count() == changed.slot_count);
}

TEST_CASE("a pool of another spec with a live process is not replaced") {
  const PoolSpec spec = small_spec("busy");
  const NameGuard guard(spec.name);
  PoolSpec changed = spec;
  changed.checkpoint_fingerprint = 0x9999;
  {
    Pool pool = take(Pool::create_or_adopt(spec));
    ProcessEntry& entry = pool.process(5);
    entry.pid.store(static_cast<std::uint32_t>(::getpid()));
    entry.start_ticks.store(process_start_ticks(static_cast<std::uint32_t>(::getpid())));
    entry.state.store(static_cast<std::uint32_t>(ProcessState::attached));
    const auto refused = Pool::create_or_adopt(changed);
    REQUIRE_FALSE(refused);
    CHECK(refused.error().code == Errc::busy);
    CHECK(refused.error().message.find(std::to_string(::getpid())) != std::string::npos);
    entry.start_ticks.store(entry.start_ticks.load() + 1);  // same pid, other process
  }
  CHECK(Pool::create_or_adopt(changed));
}

TEST_CASE("attach refuses a header it cannot trust") {
  const PoolSpec spec = small_spec("refuse");
  const NameGuard guard(spec.name);
  const auto missing = Pool::attach(spec.name);
  REQUIRE_FALSE(missing);
  CHECK(missing.error().code == Errc::missing);
  { Pool pool = take(Pool::create_or_adopt(spec)); }
  const std::string control = spec.name + ".control";
  const auto attach_code = [&] {
    const auto pool = Pool::attach(spec.name);
    REQUIRE_FALSE(pool);
    return pool.error().code;
  };
  SECTION("version") {
    scribble(control, offsetof(PoolHeader, layout_version), 7, 4);
    const auto pool = Pool::attach(spec.name);
    REQUIRE_FALSE(pool);
    CHECK(pool.error().code == Errc::layout);
    CHECK(pool.error().message.find("version 7") != std::string::npos);
    CHECK(pool.error().message.find("version " + std::to_string(kLayoutVersion)) != std::string::npos);
  }
  SECTION("hash") {
    scribble(control, offsetof(PoolHeader, layout_hash), kLayoutHash ^ 1U, 8);
    CHECK(attach_code() == Errc::layout);
  }
  SECTION("magic") {
    scribble(control, 0, 0x4141414141414141, 8);
    CHECK(attach_code() == Errc::layout);
  }
  SECTION("still being built") {
    scribble(control, 0, 0, 8);
    CHECK(attach_code() == Errc::missing);
  }
  SECTION("slot count beyond the object") {
    scribble(control, offsetof(PoolHeader, slot_count), 1000000, 4);
    CHECK(attach_code() == Errc::corrupt);
  }
  SECTION("absurd slot size") {
    scribble(control, offsetof(PoolHeader, slot_bytes), ~std::uint64_t{0}, 8);
    CHECK(attach_code() == Errc::corrupt);
  }
  SECTION("unaligned slot size") {
    scribble(control, offsetof(PoolHeader, slot_bytes), 8193, 8);
    CHECK(attach_code() == Errc::corrupt);
  }
  SECTION("expert count contradicts layers") {
    scribble(control, offsetof(PoolHeader, expert_count), 33, 4);
    CHECK(attach_code() == Errc::corrupt);
  }
  SECTION("layers overflow") {
    scribble(control, offsetof(PoolHeader, layers), 0xFFFFFFFF, 4);
    CHECK(attach_code() == Errc::corrupt);
  }
  SECTION("payload path leads elsewhere") {
    scribble(control, offsetof(PoolHeader, payload_path), 0x0000732F636E652FULL, 8);
    CHECK(attach_code() == Errc::corrupt);
  }
}

TEST_CASE("attach refuses objects of the wrong size, mode or number") {
  const PoolSpec spec = small_spec("objects");
  const NameGuard guard(spec.name);
  { Pool pool = take(Pool::create_or_adopt(spec)); }
  const std::string control = spec.name + ".control";
  const auto attach_code = [&] {
    const auto pool = Pool::attach(spec.name);
    REQUIRE_FALSE(pool);
    return pool.error().code;
  };
  SECTION("truncated control") {
    REQUIRE(::truncate(("/dev/shm/" + control).c_str(), 4096) == 0);
    CHECK(attach_code() == Errc::corrupt);
  }
  SECTION("control smaller than its header") {
    REQUIRE(::truncate(("/dev/shm/" + control).c_str(), 100) == 0);
    CHECK(attach_code() == Errc::corrupt);
  }
  SECTION("empty control") {
    REQUIRE(::truncate(("/dev/shm/" + control).c_str(), 0) == 0);
    CHECK(attach_code() == Errc::corrupt);
  }
  SECTION("truncated payload") {
    REQUIRE(::truncate(("/dev/shm/" + spec.name + ".payload").c_str(), 4096) == 0);
    CHECK(attach_code() == Errc::corrupt);
  }
  SECTION("readable by others") {
    REQUIRE(::chmod(("/dev/shm/" + control).c_str(), 0644) == 0);
    CHECK(attach_code() == Errc::invalid);
  }
  SECTION("payload writable by others") {
    REQUIRE(::chmod(("/dev/shm/" + spec.name + ".payload").c_str(), 0666) == 0);
    CHECK(attach_code() == Errc::invalid);
  }
  SECTION("payload missing") {
    REQUIRE(Segment::remove(spec.name + ".payload"));
    CHECK(attach_code() == Errc::missing);
  }
}

TEST_CASE("a damaged pool is replaced by the loader") {
  const PoolSpec spec = small_spec("damaged");
  const NameGuard guard(spec.name);
  { Pool pool = take(Pool::create_or_adopt(spec)); }
  SECTION("other layout") { scribble(spec.name + ".control", offsetof(PoolHeader, layout_hash), 1, 8); }
  SECTION("half built") { scribble(spec.name + ".control", 0, 0, 8); }
  SECTION("truncated control") {
    REQUIRE(::truncate(("/dev/shm/" + spec.name + ".control").c_str(), 10) == 0);
  }
  SECTION("empty control") { REQUIRE(::truncate(("/dev/shm/" + spec.name + ".control").c_str(), 0) == 0); }
  SECTION("truncated payload") {
    REQUIRE(::truncate(("/dev/shm/" + spec.name + ".payload").c_str(), 10) == 0);
  }
  SECTION("payload gone") { REQUIRE(Segment::remove(spec.name + ".payload")); }
  SECTION("control gone") { REQUIRE(Segment::remove(spec.name + ".control")); }
  Pool pool = take(Pool::create_or_adopt(spec));
  CHECK_FALSE(pool.adopted());
  CHECK(Pool::attach(spec.name));
}

TEST_CASE("a pool of another layout in use by somebody is not replaced") {
  const PoolSpec spec = small_spec("layout-busy");
  const NameGuard guard(spec.name);
  { Pool pool = take(Pool::create_or_adopt(spec)); }
  {
    const Pool user = take(Pool::attach(spec.name));
    scribble(spec.name + ".control", offsetof(PoolHeader, layout_version), 9, 4);
    const auto refused = Pool::create_or_adopt(spec);
    REQUIRE_FALSE(refused);
    CHECK(refused.error().code == Errc::busy);
  }
  CHECK(Pool::create_or_adopt(spec));
}

TEST_CASE("another user's pool is neither used nor replaced") {
  if (::geteuid() != 0) {
    WARN("skipped: needs root to become another user");
    return;
  }
  const PoolSpec spec = small_spec("owner");
  const NameGuard guard(spec.name);
  { Pool pool = take(Pool::create_or_adopt(spec)); }
  const auto attempt = [&]() -> int {
    const auto attached = Pool::attach(spec.name);
    if (attached || attached.error().code != Errc::invalid) return 1;
    const auto created = Pool::create_or_adopt(spec);
    if (created || created.error().code != Errc::invalid) return 2;
    return 0;
  };
  CHECK(run_as_nobody(attempt) == 0);
  // Owned by somebody else but openable (we are root): the owner check must say no.
  REQUIRE(::chown(("/dev/shm/" + spec.name + ".control").c_str(), 65534, 65534) == 0);
  const auto attached = Pool::attach(spec.name);
  REQUIRE_FALSE(attached);
  CHECK(attached.error().code == Errc::invalid);
  const auto created = Pool::create_or_adopt(spec);
  REQUIRE_FALSE(created);
  CHECK(created.error().code == Errc::invalid);
}

TEST_CASE("lack of memory is a clean error and leaves nothing behind") {
  struct statvfs fs {};
  REQUIRE(::statvfs("/dev/shm", &fs) == 0);
  PoolSpec spec = small_spec("toolarge");
  const NameGuard guard(spec.name);
  spec.slot_bytes = 1_GiB;
  spec.slot_count = static_cast<std::uint32_t>(std::uint64_t{fs.f_bavail} * fs.f_frsize / 1_GiB) + 1;
  const auto pool = Pool::create_or_adopt(spec);
  REQUIRE_FALSE(pool);
  CHECK(pool.error().code == Errc::no_memory);
  CHECK(pool.error().message.find("--ram") != std::string::npos);
  CHECK_FALSE(exists(spec.name + ".control"));
  CHECK_FALSE(exists(spec.name + ".payload"));
}

TEST_CASE("impossible specs are refused") {
  PoolSpec spec = small_spec("spec");
  SECTION("no slots") { spec.slot_count = 0; }
  SECTION("slot size 0") { spec.slot_bytes = 0; }
  SECTION("slot size not aligned") { spec.slot_bytes = 5000; }
  SECTION("no experts") { spec.layers = 0; }
  SECTION("expert count overflows") { spec.layers = spec.experts_per_layer = 0x10000; }
  const auto pool = Pool::create_or_adopt(spec);
  REQUIRE_FALSE(pool);
  CHECK(pool.error().code == Errc::invalid);
}

TEST_CASE("a huge page directory that is none is passed over with a note") {
  PoolSpec spec = small_spec("hugedir");
  const NameGuard guard(spec.name);
  spec.hugetlbfs_dir = "/tmp";
  const Pool pool = take(Pool::create_or_adopt(spec));
  CHECK_FALSE(pool.page_note().empty());
  CHECK(exists(spec.name + ".payload"));
}

TEST_CASE("unlink removes the names and leaves mappings alone") {
  const PoolSpec spec = small_spec("unlink");
  Pool pool = take(Pool::create_or_adopt(spec));
  Pool::unlink(spec.name);
  CHECK_FALSE(exists(spec.name + ".control"));
  CHECK_FALSE(exists(spec.name + ".payload"));
  std::memset(pool.payload(SlotId{0}), 1, pool.slot_bytes());
  CHECK(pool.header().magic.load() == kPoolMagic);
}

TEST_CASE("pool names differ by directory and are stable") {
  const std::string a = pool_name("/tmp");
  CHECK(a == pool_name("/tmp/../tmp/"));
  CHECK(a != pool_name("/"));
  CHECK(a.size() == std::strlen("stoker.") + 16);
}

TEST_CASE("start ticks identify a process") {
  const auto self = static_cast<std::uint32_t>(::getpid());
  CHECK(process_start_ticks(self) != 0);
  CHECK(process_start_ticks(self) == process_start_ticks(self));
  const pid_t child = ::fork();
  if (child == 0) ::_exit(0);
  siginfo_t info{};
  REQUIRE(::waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOWAIT) == 0);
  CHECK(process_start_ticks(static_cast<std::uint32_t>(child)) == 0);  // a zombie holds nothing
  REQUIRE(::waitpid(child, nullptr, 0) == child);
  CHECK(process_start_ticks(static_cast<std::uint32_t>(child)) == 0);
}

TEST_CASE("only a process that is certainly gone is taken for dead") {
  const auto self = static_cast<std::uint32_t>(::getpid());
  const std::uint64_t ticks = process_start_ticks(self);
  CHECK(process_may_live(self, ticks));
  CHECK_FALSE(process_may_live(self, ticks + 1));  // a later process of this pid
  CHECK(process_may_live(self, 0));                // the entry does not say when it started
  CHECK_FALSE(process_may_live(0, ticks));
  CHECK_FALSE(process_may_live(0xFFFFFFFF, ticks));  // as a pid_t: everybody
  const std::string hidden = "/nonexistent";
  CHECK(process_may_live(self, ticks, hidden));
  CHECK(process_may_live(self, 0, hidden));
  const pid_t child = ::fork();
  if (child == 0) ::_exit(0);
  siginfo_t info{};
  REQUIRE(::waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOWAIT) == 0);
  const auto zombie = static_cast<std::uint32_t>(child);
  CHECK_FALSE(process_may_live(zombie, 0));
  REQUIRE(::waitpid(child, nullptr, 0) == child);
  CHECK_FALSE(process_may_live(zombie, 0));
  CHECK_FALSE(process_may_live(zombie, 0, hidden));
}
