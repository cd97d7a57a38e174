#include "cli/interrupts.h"

#include <sys/signalfd.h>

#include <cerrno>
#include <csignal>

#include "cli/exit_code.h"

namespace stoker::cli {

Result<Interrupts> Interrupts::open() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) sigaddset(&set, signal);
  if (::sigprocmask(SIG_BLOCK, &set, nullptr) != 0) return fail(Errc::io, "cannot block signals", errno);
  UniqueFd fd(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!fd.valid()) return fail(Errc::io, "cannot open a signalfd", errno);
  return Interrupts(std::move(fd));
}

int Interrupts::take() {
  signalfd_siginfo info{};
  const ssize_t n = ::read(fd_.get(), &info, sizeof info);
  return n == static_cast<ssize_t>(sizeof info) ? static_cast<int>(info.ssi_signo) : 0;
}

int exit_code_of_signal(int signal) { return signal == SIGINT ? kInterrupted : kTerminated; }

}  // namespace stoker::cli
