#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "shm/attach.h"

namespace stoker {

namespace {

struct Reply {
  std::array<std::byte, sizeof(AttachReply) + 64> bytes;
  std::size_t size = 0;
  UniqueFd passed;
};

/// One packet and the descriptor that came with it.
Result<Reply> receive(int socket, const std::string& path) {
  Reply reply;
  iovec part{.iov_base = reply.bytes.data(), .iov_len = reply.bytes.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  ssize_t got = 0;
  // A loader that refuses before it has read our request resets the connection; the kernel reports that
  // once, ahead of the refusal that is queued already.
  bool reset_seen = false;
  do {
    got = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
  } while (got < 0 && (errno == EINTR || (errno == ECONNRESET && !std::exchange(reset_seen, true))));
  if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
    return fail(Errc::peer_gone, "the loader at '" + path + "' does not answer: is it stopped or stuck?");
  if (got <= 0)
    return fail(Errc::peer_gone, "the loader at '" + path + "' closed the connection", got < 0 ? errno : 0);
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS ||
        header->cmsg_len != CMSG_LEN(sizeof(int)))
      continue;
    int fd = -1;
    std::memcpy(&fd, CMSG_DATA(header), sizeof fd);
    reply.passed = UniqueFd(fd);
  }
  reply.size = static_cast<std::size_t>(got);
  return reply;
}

}  // namespace

AttachClient::AttachClient(UniqueFd socket, UniqueFd doorbell, AttachGrant grant)
    : socket_(std::move(socket)), doorbell_(std::move(doorbell)), grant_(std::move(grant)) {}

AttachClient& AttachClient::operator=(AttachClient&& other) noexcept {
  if (this != &other) {
    detach();
    socket_ = std::move(other.socket_);
    doorbell_ = std::move(other.doorbell_);
    grant_ = std::move(other.grant_);
  }
  return *this;
}

AttachClient::~AttachClient() { detach(); }

Result<AttachClient> AttachClient::connect(const std::string& path, const AttachRequest& request,
                                           Duration timeout) {
  sockaddr_un address{};
  if (path.size() >= sizeof address.sun_path)
    return fail(Errc::invalid, "socket path '" + path + "' has " + std::to_string(path.size()) +
                                   " bytes, at most " + std::to_string(sizeof address.sun_path - 1) +
                                   " are possible: choose a shorter run directory (--run-dir)");
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!socket.valid()) return fail(Errc::io, "cannot make a socket", errno);
  // Zero would mean "for ever".
  const auto us = std::max<std::int64_t>(timeout.count() / 1000, 1000);
  const timeval limit{.tv_sec = us / 1'000'000, .tv_usec = us % 1'000'000};
  ::setsockopt(socket.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  ::setsockopt(socket.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    const int error = errno;
    if (error == ENOENT || error == ECONNREFUSED)
      return fail(Errc::missing, "no loader listens at '" + path + "': start one (stoker serve)", error);
    if (error == EAGAIN || error == EINPROGRESS)
      return fail(Errc::peer_gone, "the loader at '" + path + "' does not accept connections", error);
    return fail(error == EACCES ? Errc::invalid : Errc::io, "cannot connect to the loader at '" + path + "'",
                error);
  }
  if (::send(socket.get(), &request, sizeof request, MSG_NOSIGNAL) != static_cast<ssize_t>(sizeof request) &&
      errno != EPIPE && errno != ECONNRESET)  // a refusal may be waiting to be read
    return fail(Errc::peer_gone, "cannot send to the loader at '" + path + "'", errno);
  STOKER_TRY(Reply reply, receive(socket.get(), path));
  STOKER_TRY(AttachGrant grant,
             parse_attach_reply({reply.bytes.data(), std::min(reply.size, reply.bytes.size())}));
  if (!reply.passed.valid()) return fail(Errc::invalid, "the loader at '" + path + "' sent no doorbell");
  return AttachClient(std::move(socket), std::move(reply.passed), std::move(grant));
}

Result<AttachClient> AttachClient::attach(const std::string& socket_path, Duration timeout) {
  AttachRequest request;
  request.prefix.kind = static_cast<std::uint32_t>(AttachKind::attach);
  return connect(socket_path, request, timeout);
}

Result<AttachClient> AttachClient::reattach(const std::string& socket_path, unsigned index,
                                            Duration timeout) {
  AttachRequest request;
  request.prefix.kind = static_cast<std::uint32_t>(AttachKind::reattach);
  request.index = index;
  STOKER_TRY(AttachClient client, connect(socket_path, request, timeout));
  if (client.grant().index != index)
    return fail(Errc::layout, "the loader gave index " + std::to_string(client.grant().index) +
                                  " instead of " + std::to_string(index));
  return client;
}

bool AttachClient::alive() const {
  if (!socket_.valid()) return false;
  pollfd state{.fd = socket_.get(), .events = POLLRDHUP, .revents = 0};
  return ::poll(&state, 1, 0) == 0;  // the loader sends nothing on its own: anything is an end
}

void AttachClient::ring_doorbell() const {
  const std::uint64_t one = 1;
  // Fails only when the counter is full, that is when it is ringing already; or when the loader is gone.
  static_cast<void>(::write(doorbell_.get(), &one, sizeof one) == sizeof one);
}

void AttachClient::detach() {
  if (!socket_.valid()) return;
  AttachRequest request;
  request.prefix.kind = static_cast<std::uint32_t>(AttachKind::detach);
  request.index = grant_.index;
  // A loader that is gone needs no goodbye: its successor will find our pid dead.
  static_cast<void>(::send(socket_.get(), &request, sizeof request, MSG_NOSIGNAL | MSG_DONTWAIT));
  socket_.reset();
  doorbell_.reset();
}

}  // namespace stoker
