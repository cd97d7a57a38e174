#include "cli/stack.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <system_error>

#include "cli/exit_code.h"
#include "cli/supervisor.h"
#include "shm/pool.h"
#include "shm/weights_segment.h"

namespace stoker::cli {
namespace {

constexpr char kReadyByte = 'r';
constexpr int kGaveUpExit = 3;

/// mkdtemp under $XDG_RUNTIME_DIR, else /tmp. mkdtemp makes mode 0700 and refuses existing names.
Result<std::string> make_private_dir() {
  const char* runtime = std::getenv("XDG_RUNTIME_DIR");
  const std::string parent = runtime != nullptr && *runtime == '/' ? runtime : "/tmp";
  std::string path = parent + "/stoker-run-XXXXXX";
  if (::mkdtemp(path.data()) == nullptr) {
    return fail(Errc::io,
                "cannot make a private run directory in " + parent +
                    " (set XDG_RUNTIME_DIR to a directory you can write)",
                errno);
  }
  std::error_code ignored;
  const auto canonical = std::filesystem::canonical(path, ignored);
  return ignored ? path : canonical.string();
}

void remove_traces(const std::string& run_dir) {
  remove_shared_memory(run_dir);
  std::error_code ignored;
  std::filesystem::remove_all(run_dir, ignored);
}

/// Waits until `control` says something, a child dies or a restart is due.
void wait_for_news(const Supervisor& supervisor, int control) {
  std::vector<pollfd> polled{{control, POLLIN, 0}};
  for (const int fd : supervisor.fds()) polled.push_back({fd, POLLIN, 0});
  const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(supervisor.step_within()).count();
  ::poll(polled.data(), polled.size(), static_cast<int>(ms) + 1);
}

/// False when the other end has closed. Sets `ready` when it said so.
bool hear(int control, bool& ready) {
  char byte = 0;
  const ssize_t n = ::recv(control, &byte, 1, MSG_DONTWAIT);
  if (n == 1) ready = ready || byte == kReadyByte;
  return n != 0 && !(n < 0 && errno != EAGAIN && errno != EINTR);
}

/// The keeper's whole life. Returns its exit code.
int keep(StackOptions options, const std::string& run_dir, int control, const Clock& clock) {
  // Starts from nothing and leaves nothing behind, unless somebody said otherwise.
  if (options.warm_manifest.empty()) options.warm_manifest = "off";
  SupervisorOptions supervised;
  supervised.children = stack_children(options, run_dir, StackLogs::files, true);
  std::string failure;
  const auto sink = [&](const SupervisorEvent& event) {
    if (event.kind == SupervisorEvent::Kind::gave_up) {
      failure = event.child + "\t" + std::to_string(event.status) + "\t" + event.text + "\n";
    }
  };
  bool alive = true;
  {
    Supervisor supervisor(std::move(supervised), clock, sink);
    const auto started = supervisor.start();
    if (!started) failure = "stack\t1\t" + started.error().text() + "\n";
    bool ready = false;
    while (alive && failure.empty()) {
      wait_for_news(supervisor, control);
      alive = hear(control, ready);
      if (ready) supervisor.mark_ready();
      static_cast<void>(supervisor.step());
    }
    supervisor.stop();
  }
  if (!failure.empty()) static_cast<void>(::send(control, failure.data(), failure.size(), MSG_NOSIGNAL));
  // The other side reads the logs before it lets go.
  bool ready = false;
  while (alive) {
    pollfd p{control, POLLIN, 0};
    ::poll(&p, 1, -1);
    alive = hear(control, ready);
  }
  remove_traces(run_dir);
  return failure.empty() ? 0 : kGaveUpExit;
}

}  // namespace

void remove_shared_memory(const std::string& run_dir) {
  const std::string name = pool_name(run_dir);
  Pool::unlink(name);
  WeightsSegment::unlink(name + ".weights");  // as the loader names it
}

std::string last_words(const std::string& log_path) {
  std::ifstream log(log_path);
  std::string line, last, error;
  while (std::getline(log, line)) {
    if (line.empty()) continue;
    last = line;
    // "error: text", or a log line "12:00:00.123 loader error: text": never one that only quotes an error.
    std::size_t at = line.rfind("error: ", 0) == 0 ? 0 : std::string::npos;
    const auto level = line.find(' ', line.find(' ') + 1);
    if (at != 0 && level != std::string::npos && line.compare(level, 8, " error: ") == 0) at = level + 1;
    if (at != std::string::npos) error = line.substr(at + 7);
  }
  return error.empty() ? last : error;
}

int exit_code_of_daemon(int status) {
  switch (status) {
    case kUsage:
    case kUnreachable:
    case kModel:
    case kTooLong:
      return status;
    default:
      return kFailure;
  }
}

Result<PrivateStack> PrivateStack::start(const StackOptions& options, const Clock& clock) {
  STOKER_TRY(const std::string run_dir, make_private_dir());
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
    const int error = errno;
    remove_traces(run_dir);
    return fail(Errc::io, "cannot make a socket pair", error);
  }
  UniqueFd ours(ends[0]);
  UniqueFd theirs(ends[1]);
  const pid_t keeper = ::fork();
  if (keeper < 0) {
    const int error = errno;
    remove_traces(run_dir);
    return fail(Errc::no_memory, "cannot start the stack", error);
  }
  if (keeper == 0) {
    ours.reset();
    ::setpgid(0, 0);  // Ctrl-C is the command's business, not ours
    // Our standard streams belong to the command: a pipe's reader must see its end when that ends.
    const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
    for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) ::dup2(null, fd);
    ::signal(SIGPIPE, SIG_IGN);
    // The service manager that may have started us waits for nobody of these.
    ::unsetenv("NOTIFY_SOCKET");
    ::unsetenv("JOURNAL_STREAM");
    ::_exit(keep(options, run_dir, theirs.get(), clock));
  }
  return PrivateStack(run_dir, keeper, std::move(ours));
}

PrivateStack::PrivateStack(PrivateStack&& other) noexcept
    : run_dir_(std::move(other.run_dir_)),
      keeper_(std::exchange(other.keeper_, -1)),
      control_(std::move(other.control_)),
      received_(std::move(other.received_)) {}

PrivateStack::~PrivateStack() { stop(); }

std::optional<PrivateStack::Failure> PrivateStack::take_failure() {
  char buffer[4096];
  const ssize_t n = ::recv(control_.get(), buffer, sizeof buffer, MSG_DONTWAIT);
  if (n > 0) received_.append(buffer, static_cast<std::size_t>(n));
  const auto end = received_.find('\n');
  if (end == std::string::npos) {
    if (n == 0) return Failure{kFailure, "stack", "its keeper process was killed"};
    return std::nullopt;
  }
  const std::string line = received_.substr(0, end);
  received_.erase(0, end + 1);
  const auto first = line.find('\t');
  const auto second = line.find('\t', first + 1);
  const std::string name = line.substr(0, first);
  const int status = std::atoi(line.substr(first + 1, second - first - 1).c_str());
  const std::string log = last_words(run_dir_ + "/" + name + ".log");
  const std::string event = line.substr(second + 1);
  // A daemon that was killed had no time for last words: say what happened to it.
  return Failure{exit_code_of_daemon(status), name, log.empty() || status >= 128 ? event : log};
}

void PrivateStack::mark_ready() { static_cast<void>(::send(control_.get(), &kReadyByte, 1, MSG_NOSIGNAL)); }

void PrivateStack::stop() {
  if (keeper_ < 0) return;
  control_.reset();
  int status = 0;
  while (::waitpid(keeper_, &status, 0) < 0 && errno == EINTR) {
  }
  keeper_ = -1;
  // The keeper removed everything unless it was killed; the daemons then end by the kernel's SIGTERM.
  if (WIFSIGNALED(status)) remove_traces(run_dir_);
}

}  // namespace stoker::cli
