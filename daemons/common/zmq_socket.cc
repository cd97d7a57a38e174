#include "daemons/common/zmq_socket.h"

#include <sys/stat.h>
#include <unistd.h>
#include <zmq.h>

#include <array>
#include <cerrno>

#include "daemons/common/limits.h"
#include "shm/base/check.h"

namespace stoker {
namespace {

constexpr std::size_t kPartsMax = 4;

tl::unexpected<Error> zmq_fail(const std::string& what) {
  const int error = zmq_errno();
  return fail(Errc::io, what + ": " + zmq_strerror(error));
}

int socket_type(ZmqRole role) {
  switch (role) {
    case ZmqRole::router:
      return ZMQ_ROUTER;
    case ZmqRole::dealer:
      return ZMQ_DEALER;
    case ZmqRole::pub:
      return ZMQ_PUB;
    case ZmqRole::sub:
      return ZMQ_SUB;
    case ZmqRole::push:
      return ZMQ_PUSH;
    case ZmqRole::pull:
      return ZMQ_PULL;
  }
  return -1;
}

/// Restores the umask on every way out.
class UmaskGuard {
 public:
  explicit UmaskGuard(mode_t mask) : before_(::umask(mask)) {}
  UmaskGuard(const UmaskGuard&) = delete;
  UmaskGuard& operator=(const UmaskGuard&) = delete;
  ~UmaskGuard() { ::umask(before_); }

 private:
  mode_t before_;
};

}  // namespace

void ZmqContext::Close::operator()(void* context) const {
  while (zmq_ctx_term(context) != 0 && zmq_errno() == EINTR) {
  }
}

Result<ZmqContext> ZmqContext::make() {
  void* context = zmq_ctx_new();
  if (context == nullptr) return zmq_fail("cannot start ZeroMQ");
  return ZmqContext(context);
}

void ZmqSocket::Close::operator()(void* socket) const { zmq_close(socket); }

ZmqSocket::SocketFile::~SocketFile() {
  if (!path_.empty()) ::unlink(path_.c_str());
}

ZmqSocket::SocketFile& ZmqSocket::SocketFile::operator=(SocketFile&& other) noexcept {
  std::swap(path_, other.path_);
  return *this;
}

Result<ZmqSocket> ZmqSocket::open(const ZmqContext& context, ZmqRole role, const std::string& path,
                                  const ZmqOptions& options) {
  if (path.size() > limits::kSocketPathBytes)
    return fail(Errc::invalid, "socket path " + path + " has " + std::to_string(path.size()) +
                                   " bytes, at most " + std::to_string(limits::kSocketPathBytes) +
                                   " are possible; choose a shorter --run-dir");
  void* raw = zmq_socket(context.context_.get(), socket_type(role));
  if (raw == nullptr) return zmq_fail("cannot make a socket for " + path);
  ZmqSocket socket(raw);
  const int mandatory = 1;
  const auto set = [&](int option, const void* value, std::size_t bytes) {
    return zmq_setsockopt(raw, option, value, bytes) == 0;
  };
  bool ok = set(ZMQ_LINGER, &options.linger_ms, sizeof options.linger_ms) &&
            set(ZMQ_SNDHWM, &options.send_queue, sizeof options.send_queue) &&
            set(ZMQ_RCVHWM, &options.receive_queue, sizeof options.receive_queue) &&
            set(ZMQ_MAXMSGSIZE, &options.receive_bytes_max, sizeof options.receive_bytes_max);
  if (role == ZmqRole::router) ok = ok && set(ZMQ_ROUTER_MANDATORY, &mandatory, sizeof mandatory);
  if (role == ZmqRole::sub) ok = ok && set(ZMQ_SUBSCRIBE, "", 0);
  if (!ok) return zmq_fail("cannot set socket options for " + path);
  return socket;
}

Result<ZmqSocket> ZmqSocket::bind(const ZmqContext& context, ZmqRole role, const std::string& path,
                                  const ZmqOptions& options) {
  STOKER_TRY(ZmqSocket socket, open(context, role, path, options));
  // libzmq creates the file in this call, on this thread, after removing a stale one.
  const UmaskGuard guard(options.group_access ? 0117 : 0177);
  if (zmq_bind(socket.handle(), ("ipc://" + path).c_str()) != 0) return zmq_fail("cannot listen on " + path);
  socket.file_ = SocketFile(path);
  return socket;
}

Result<ZmqSocket> ZmqSocket::connect(const ZmqContext& context, ZmqRole role, const std::string& path,
                                     const ZmqOptions& options) {
  STOKER_TRY(ZmqSocket socket, open(context, role, path, options));
  if (zmq_connect(socket.handle(), ("ipc://" + path).c_str()) != 0)
    return zmq_fail("cannot connect to " + path);
  return socket;
}

Result<SendOutcome> ZmqSocket::send(std::span<const std::string_view> parts) {
  STOKER_CHECK(!parts.empty());
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const int flags = ZMQ_DONTWAIT | (i + 1 < parts.size() ? ZMQ_SNDMORE : 0);
    while (zmq_send(socket_.get(), parts[i].data(), parts[i].size(), flags) < 0) {
      const int error = zmq_errno();
      if (error == EINTR) continue;
      if (error == EAGAIN) return SendOutcome::full;
      if (error == EHOSTUNREACH) return SendOutcome::peer_gone;
      return zmq_fail("cannot send");
    }
  }
  return SendOutcome::sent;
}

Result<std::optional<std::vector<std::string>>> ZmqSocket::receive() {
  for (;;) {
    std::vector<std::string> parts;
    std::size_t count = 0;
    for (bool more = true; more;) {
      zmq_msg_t message;
      zmq_msg_init(&message);
      if (zmq_msg_recv(&message, socket_.get(), ZMQ_DONTWAIT) < 0) {
        const int error = zmq_errno();
        zmq_msg_close(&message);
        if (error == EINTR) continue;
        if (error == EAGAIN) return std::optional<std::vector<std::string>>{};
        return zmq_fail("cannot receive");
      }
      if (++count <= kPartsMax)
        parts.emplace_back(static_cast<const char*>(zmq_msg_data(&message)), zmq_msg_size(&message));
      more = zmq_msg_more(&message) != 0;
      zmq_msg_close(&message);
    }
    if (count <= kPartsMax) return std::optional(std::move(parts));
  }
}

Result<void> wait_readable(std::span<PollItem> items, Duration wait_max) {
  std::array<zmq_pollitem_t, 8> native{};
  STOKER_CHECK(items.size() <= native.size());
  for (std::size_t i = 0; i < items.size(); ++i) {
    native[i].socket = items[i].socket != nullptr ? items[i].socket->handle() : nullptr;
    native[i].fd = items[i].fd;
    native[i].events = ZMQ_POLLIN;
    items[i].readable = false;
  }
  const auto milliseconds = std::chrono::ceil<std::chrono::milliseconds>(wait_max).count();
  if (zmq_poll(native.data(), static_cast<int>(items.size()), static_cast<long>(milliseconds)) < 0) {
    if (zmq_errno() == EINTR) return {};
    return zmq_fail("cannot wait for messages");
  }
  for (std::size_t i = 0; i < items.size(); ++i) items[i].readable = (native[i].revents & ZMQ_POLLIN) != 0;
  return {};
}

}  // namespace stoker
