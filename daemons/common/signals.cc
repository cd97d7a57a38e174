#include "daemons/common/signals.h"

#include <sys/signalfd.h>

#include <cerrno>
#include <csignal>

namespace stoker {

Result<StopSignals> StopSignals::make() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  if (::pthread_sigmask(SIG_BLOCK, &set, nullptr) != 0)
    return fail(Errc::io, "cannot block SIGTERM and SIGINT", errno);
  std::signal(SIGPIPE, SIG_IGN);
  UniqueFd fd(::signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC));
  if (!fd.valid()) return fail(Errc::io, "cannot make a signalfd", errno);
  return StopSignals(std::move(fd));
}

bool StopSignals::stop_requested() {
  signalfd_siginfo info{};
  if (!requested_ && ::read(fd_.get(), &info, sizeof info) == static_cast<ssize_t>(sizeof info))
    requested_ = true;
  return requested_;
}

}  // namespace stoker
