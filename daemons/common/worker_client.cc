#include "daemons/common/worker_client.h"

#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "daemons/common/endpoints.h"
#include "daemons/common/limits.h"
#include "daemons/common/messages.h"
#include "daemons/common/zmq_socket.h"
#include "shm/base/unique_fd.h"

namespace stoker {

using namespace std::chrono_literals;

namespace {

/// After the worker's death: how long messages that are already in our socket may take to come out.
constexpr Duration kLastMessages = 100ms;
/// A cancel sent just before we end should still leave.
constexpr int kLingerMs = 200;

/// Connects to `path` as a plain socket and returns the pid of the process that listens there (0: it is
/// in another pid namespace), or nothing when nobody does. The kernel answers this without the peer's help.
Result<pid_t> listener_pid(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) {
    return fail(Errc::invalid, "the run directory's path is too long for a socket (" +
                                   std::to_string(path.size()) + " bytes, at most " +
                                   std::to_string(limits::kSocketPathBytes) + "): " + path);
  }
  std::memcpy(address.sun_path, path.c_str(), path.size());
  const UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return fail(Errc::io, "cannot make a socket", errno);
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return fail(Errc::peer_gone, "no worker answers at " + path, errno);
  }
  ucred peer{};
  socklen_t size = sizeof peer;
  if (::getsockopt(fd.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) {
    return fail(Errc::io, "cannot ask who listens at " + path, errno);
  }
  return peer.pid;
}

}  // namespace

struct WorkerClient::State {
  const Clock& clock;
  std::string path;
  ZmqContext context;
  std::optional<ZmqSocket> socket;
  UniqueFd worker;  ///< pidfd; invalid when the worker is in another pid namespace
  pid_t worker_pid = 0;

  State(const Clock& c, std::string p, ZmqContext z) : clock(c), path(std::move(p)), context(std::move(z)) {}
};

std::string worker_socket(const std::string& run_dir) { return endpoint::worker(run_dir); }

bool worker_listens(const std::string& run_dir) { return listener_pid(worker_socket(run_dir)).has_value(); }
bool gateway_listens(const std::string& run_dir) { return listener_pid(endpoint::api(run_dir)).has_value(); }

WorkerClient::WorkerClient(std::unique_ptr<State> state) : state_(std::move(state)) {}
WorkerClient::WorkerClient(WorkerClient&&) noexcept = default;
WorkerClient& WorkerClient::operator=(WorkerClient&&) noexcept = default;
WorkerClient::~WorkerClient() = default;

Result<WorkerClient> WorkerClient::connect(const std::string& run_dir, const Clock& clock) {
  const std::string path = worker_socket(run_dir);
  auto pid = listener_pid(path);
  if (!pid && pid.error().code == Errc::peer_gone) {
    if (pid.error().os_errno == EACCES)
      return fail(Errc::peer_gone, pid.error().text() +
                                       ". Join the group of its service (sudo usermod -aG stoker USER, then "
                                       "log in again), or name another run directory with --run-dir");
    return fail(Errc::peer_gone, pid.error().text() +
                                     ". Start a stack with `stoker serve MODEL_DIR`, or name the "
                                     "run directory of a running one with --run-dir");
  }
  if (!pid) return tl::unexpected<Error>(std::move(pid).error());
  STOKER_TRY(ZmqContext context, ZmqContext::make());
  auto state = std::make_unique<State>(clock, path, std::move(context));
  state->worker_pid = *pid;
  if (*pid > 0) state->worker = UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, *pid, 0)));
  ZmqOptions options;
  options.receive_bytes_max = static_cast<std::int64_t>(limits::kServerMessageBytes);
  options.receive_queue = 0;  // unlimited: what we asked for must not be dropped
  options.linger_ms = kLingerMs;
  STOKER_TRY(state->socket, ZmqSocket::connect(state->context, ZmqRole::dealer, path, options));
  return WorkerClient(std::move(state));
}

Result<void> WorkerClient::send(const wire::ClientMessage& message) {
  const std::string bytes = encode(message);
  if (bytes.size() > limits::kClientMessageBytes) {
    return fail(Errc::too_large, "the request has " + std::to_string(bytes.size()) + " bytes, at most " +
                                     std::to_string(limits::kClientMessageBytes) + " are allowed");
  }
  const std::array<std::string_view, 1> parts{bytes};
  STOKER_TRY(const SendOutcome outcome, state_->socket->send(parts));
  if (outcome == SendOutcome::sent) return {};
  return fail(Errc::peer_gone, "the worker at " + state_->path + " does not take requests");
}

Result<std::optional<wire::ServerMessage>> WorkerClient::take() {
  STOKER_TRY(const auto parts, state_->socket->receive());
  if (!parts || parts->empty()) return std::nullopt;
  auto message = decode_server(parts->back());
  if (!message) {
    return fail(std::move(message).error(),
                "the worker's message cannot be read (are CLI and worker of one version?)");
  }
  return *std::move(message);
}

Result<std::optional<wire::ServerMessage>> WorkerClient::receive(Duration wait_max, int wake_fd) {
  STOKER_TRY(auto waiting, take());
  if (waiting) return waiting;
  std::array<PollItem, 3> items{PollItem{&*state_->socket}};
  std::size_t count = 1;
  if (wake_fd >= 0) items[count++].fd = wake_fd;
  const std::size_t worker = count;
  if (state_->worker.valid()) items[count++].fd = state_->worker.get();
  STOKER_TRY_VOID(wait_readable({items.data(), count}, wait_max));
  if (worker == count || !items[worker].readable) return take();
  STOKER_TRY_VOID(wait_readable({items.data(), 1}, kLastMessages));
  STOKER_TRY(waiting, take());
  if (waiting) return waiting;
  return fail(Errc::peer_gone, "the worker (pid " + std::to_string(state_->worker_pid) +
                                   ") ended before it had answered; try again, its log says why");
}

Result<std::string> WorkerClient::status(Duration wait_max) {
  wire::ClientMessage request;
  request.mutable_status();
  STOKER_TRY_VOID(send(request));
  const Duration deadline = state_->clock.now() + wait_max;
  while (state_->clock.now() < deadline) {
    STOKER_TRY(const auto message, receive(deadline - state_->clock.now()));
    if (message && message->has_status()) return message->status().json();
    if (message && message->has_error()) return fail(Errc::io, message->error().message());
  }
  return fail(Errc::peer_gone, "the worker at " + state_->path + " does not answer");
}

}  // namespace stoker
