// Machines where io_uring is forbidden or memory may not be locked, imitated in forked children: a
// seccomp filter as container runtimes install it, and a tiny RLIMIT_MEMLOCK without privileges.
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <cstddef>
#include <functional>

#include "tests/conformance/engine_rig.h"

namespace stoker {
namespace {

enum ChildResult : int { child_passed = 0, child_failed = 1, child_cannot = 2 };

/// Runs `body` in a forked child; its exit code.
int in_child(const std::function<ChildResult()>& body) {
  const pid_t pid = ::fork();
  REQUIRE(pid >= 0);
  if (pid == 0) ::_exit(body());
  int status = 0;
  REQUIRE(::waitpid(pid, &status, 0) == pid);
  REQUIRE(WIFEXITED(status));
  return WEXITSTATUS(status);
}

/// After this, io_uring_setup/enter/register fail with `os_errno` in this process.
bool forbid_io_uring(int os_errno) {
  const auto refuse = SECCOMP_RET_ERRNO | static_cast<std::uint32_t>(os_errno);
  sock_filter program[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, SYS_io_uring_setup, 0, 2),
      BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, SYS_io_uring_register, 1, 0),
      BPF_STMT(BPF_RET | BPF_K, refuse),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog filter{.len = sizeof program / sizeof program[0], .filter = program};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0;
}

bool says(const std::string& text, const char* what) {
  if (text.find(what) != std::string::npos) return true;
  std::fprintf(stderr, "expected \"%s\" in: %s\n", what, text.c_str());
  return false;
}

TEST_CASE("io_uring forbidden by seccomp: a clear error, and pread works", "[engine][refused]") {
  const int os_errno = GENERATE(EPERM, ENOSYS);
  const test::Rig<test::Sim> rig;  // for its file and memory
  auto files = open_files({rig.file.path()});
  REQUIRE(files);
  const int result = in_child([&] {
    if (!forbid_io_uring(os_errno)) return child_cannot;
    const auto uring = make_uring_engine(*files, {});
    if (uring.has_value()) return child_failed;
    const std::string text = uring.error().text();
    if (uring.error().code != Errc::unsupported || uring.error().os_errno != os_errno) return child_failed;
    if (!says(text, "seccomp") || !says(text, "io_uring_setup")) return child_failed;
    if (os_errno == EPERM && !says(text, "kernel.io_uring_disabled")) return child_failed;

    auto pread = make_pread_engine(*files, {});
    const ReadOp op = rig.op(4096, 8192, 0, 1);
    Completion done;
    if (!pread || (*pread)->submit({&op, 1}) != 1) return child_failed;
    if ((*pread)->reap({&done, 1}, test::kForever) != 1 || done.result != 8192) return child_failed;
    return rig.equal(0, 4096, 8192) ? child_passed : child_failed;
  });
  if (result == child_cannot)
    WARN("skipped: this machine does not allow a seccomp filter");
  else
    CHECK(result == child_passed);
}

TEST_CASE("io_uring with a tiny memlock limit goes on unregistered", "[engine][refused]") {
  const test::Rig<test::Uring> rig;
  if (!rig.usable()) return;
  const int result = in_child([&] {
    const rlimit tiny{.rlim_cur = 65536, .rlim_max = 65536};
    if (::setrlimit(RLIMIT_MEMLOCK, &tiny) != 0) return child_cannot;
    constexpr uid_t kNobody = 65534;  // root may lock what it likes
    if (::geteuid() == 0 && ::setresuid(kNobody, kNobody, kNobody) != 0) return child_cannot;
    auto engine = make_uring_engine(rig.files, {.depth = 4, .registered = rig.memory.span()});
    if (!engine) {
      std::fprintf(stderr, "%s\n", engine.error().text().c_str());
      return child_failed;
    }
    const std::string text = (*engine)->describe();
    if (!says(text, "plain buffers: registering failed") || !says(text, "memlock")) return child_failed;
    const ReadOp op = rig.op(4096, 1 << 20, 0, 1);
    Completion done;
    if ((*engine)->submit({&op, 1}) != 1 || (*engine)->reap({&done, 1}, test::kForever) != 1)
      return child_failed;
    return done.result == 1 << 20 && rig.equal(0, 4096, 1 << 20) ? child_passed : child_failed;
  });
  if (result == child_cannot)
    WARN("skipped: cannot lower the memlock limit or drop privileges here");
  else
    CHECK(result == child_passed);
}

// ---- open_files

TEST_CASE("open_files: size, O_DIRECT and close-on-exec", "[files]") {
  const auto content = test::pattern(5000, 1);
  const test::TempFile file(content);
  const auto files = open_files({file.path(), file.path()});
  REQUIRE(files);
  REQUIRE(files->size() == 2);
  const EngineFile& first = files->front();
  CHECK(first.bytes == 5000);
  CHECK(first.path == file.path());
  CHECK(((::fcntl(first.fd.get(), F_GETFL) & O_DIRECT) != 0) == first.direct);
  CHECK((::fcntl(first.fd.get(), F_GETFD) & FD_CLOEXEC) != 0);
  CHECK((::fcntl(first.fd.get(), F_GETFL) & O_ACCMODE) == O_RDONLY);
}

TEST_CASE("open_files: tmpfs is read through the page cache and says so", "[files]") {
  const std::string path = "/dev/shm/stoker-conformance-" + std::to_string(::getpid());
  UniqueFd fd(::open(path.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600));
  if (!fd.valid()) {
    WARN("skipped: cannot write to /dev/shm");
    return;
  }
  REQUIRE(::write(fd.get(), "abc", 3) == 3);
  const auto files = open_files({path});
  ::unlink(path.c_str());
  REQUIRE(files);
  CHECK(files->front().direct == false);
  CHECK(files->front().bytes == 3);
}

TEST_CASE("open_files: errors name the path and the remedy", "[files]") {
  const auto missing = open_files({"/nonexistent/model-00001.safetensors"});
  REQUIRE(!missing);
  CHECK(missing.error().code == Errc::missing);
  CHECK(missing.error().os_errno == ENOENT);
  CHECK(missing.error().message.find("/nonexistent/model-00001.safetensors") != std::string::npos);

  const auto folder = open_files({"/tmp"});
  REQUIRE(!folder);
  CHECK(folder.error().code == Errc::invalid);
  CHECK(folder.error().message.find("/tmp is not a regular file") != std::string::npos);

  const test::TempFile file(test::pattern(100, 1));
  REQUIRE(::chmod(file.path().c_str(), 0) == 0);
  const int result = in_child([&] {
    if (::geteuid() == 0 && ::setresuid(65534, 65534, 65534) != 0) return child_cannot;
    const auto denied = open_files({file.path()});
    if (denied || denied.error().os_errno != EACCES) return child_failed;
    return says(denied.error().message, file.path().c_str()) &&
                   says(denied.error().message, "read permission")
               ? child_passed
               : child_failed;
  });
  if (result == child_cannot)
    WARN("skipped: cannot drop privileges here");
  else
    CHECK(result == child_passed);
}

}  // namespace
}  // namespace stoker
