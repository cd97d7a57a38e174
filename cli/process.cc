#include "cli/process.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>

namespace stoker::cli {
namespace {

constexpr int kExecFailed = 127;

/// Runs between fork and exec, possibly in a copy of a multi-threaded process: system calls only.
[[noreturn]] void become(char* const* argv, int output, pid_t parent, int report) {
  ::setpgid(0, 0);
  ::prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (::getppid() != parent) ::_exit(kExecFailed);  // the parent died before prctl took effect
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  ::signal(SIGPIPE, SIG_DFL);
  const int null = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  if (null < 0 || ::dup2(null, STDIN_FILENO) < 0 || ::dup2(output, STDOUT_FILENO) < 0 ||
      ::dup2(output, STDERR_FILENO) < 0) {
    ::_exit(kExecFailed);
  }
  ::execv(argv[0], argv);
  const int error = errno;
  static_cast<void>(!::write(report, &error, sizeof error));
  ::_exit(kExecFailed);
}

}  // namespace

Result<ChildProcess> ChildProcess::spawn(const ChildSpec& spec) {
  UniqueFd log;
  if (!spec.log_path.empty()) {
    log = UniqueFd(::open(spec.log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
    if (!log.valid()) return fail(Errc::io, "cannot open the log " + spec.log_path, errno);
  }
  const int output = log.valid() ? log.get() : STDERR_FILENO;
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return fail(Errc::io, "cannot make a pipe", errno);
  UniqueFd read_end(ends[0]);
  UniqueFd write_end(ends[1]);
  std::vector<char*> argv;
  for (const std::string& a : spec.argv) argv.push_back(const_cast<char*>(a.c_str()));
  argv.push_back(nullptr);

  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) return fail(Errc::no_memory, "cannot start " + spec.name, errno);
  if (pid == 0) become(argv.data(), output, parent, write_end.get());
  write_end.reset();
  int exec_errno = 0;
  // The pipe closes by itself on a successful exec; otherwise it carries the errno.
  if (::read(read_end.get(), &exec_errno, sizeof exec_errno) == static_cast<ssize_t>(sizeof exec_errno)) {
    ::waitpid(pid, nullptr, 0);
    return fail(Errc::missing, "cannot run " + spec.argv[0] + " (is the installation complete?)", exec_errno);
  }
  UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!pidfd.valid()) {
    const int error = errno;
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
    return fail(Errc::unsupported, "pidfd_open failed (Linux 5.3 or newer is needed)", error);
  }
  return ChildProcess(pid, std::move(pidfd));
}

bool ChildProcess::wait(Duration wait_max) {
  if (ended_) return true;
  const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(wait_max).count();
  pollfd p{pidfd_.get(), POLLIN, 0};
  if (::poll(&p, 1, static_cast<int>(ms)) <= 0) return false;
  ended_ = ::waitpid(pid_, &status_, 0) == pid_;
  return ended_;
}

void ChildProcess::signal(int number) const {
  if (!ended_) ::syscall(SYS_pidfd_send_signal, pidfd_.get(), number, nullptr, 0);
}

bool ChildProcess::stop(Duration grace) {
  signal(SIGTERM);
  signal(SIGCONT);  // a stopped process would never see the SIGTERM
  if (wait(grace)) return true;
  signal(SIGKILL);
  while (!wait(std::chrono::seconds(60))) {
  }
  return false;
}

int shell_status(int wait_status) {
  return WIFSIGNALED(wait_status) ? 128 + WTERMSIG(wait_status) : WEXITSTATUS(wait_status);
}

std::string describe_status(int wait_status) {
  if (!WIFSIGNALED(wait_status)) return "exited with code " + std::to_string(WEXITSTATUS(wait_status));
  const int number = WTERMSIG(wait_status);
  const char* name = sigdescr_np(number);
  return "was killed by signal " + std::to_string(number) + (name ? " (" + std::string(name) + ")" : "");
}

}  // namespace stoker::cli
