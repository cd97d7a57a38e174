#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <utility>

#include "shm/attach.h"
#include "shm/base/check.h"

namespace stoker {

namespace {

using Kind = AttachEvent::Kind;

/// Connections held at once: every process, and as many again that are about to attach. When a newcomer finds
/// no room, the oldest one that has not attached yet is dropped, so idle connections cannot lock anybody out.
constexpr std::size_t kConnectionsMax = 2 * kProcessMax;
constexpr int kBacklog = 64;

/// What an epoll event is about. The serial tells a connection from a later one in the same place.
struct Tag {
  enum class What : std::uint8_t { listener, connection, process } what;
  std::uint8_t index;
  std::uint32_t serial;
};
std::uint64_t pack(Tag tag) {
  return (static_cast<std::uint64_t>(tag.what) << 40) | (std::uint64_t{tag.index} << 32) | tag.serial;
}
Tag unpack_tag(std::uint64_t bits) {
  return {static_cast<Tag::What>(bits >> 40), static_cast<std::uint8_t>(bits >> 32),
          static_cast<std::uint32_t>(bits)};
}

struct Connection {
  UniqueFd fd;
  std::uint32_t serial = 0;
  std::uint32_t pid = 0;
  std::uint32_t process = kNone;  ///< index, once attached
};

/// A process we watch; active from attach until its end is reported.
struct Watched {
  bool active = false;
  UniqueFd pidfd;
  std::uint32_t pid = 0;
};

UniqueFd open_pidfd(std::uint32_t pid) {
  return UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, static_cast<pid_t>(pid), 0)));
}

/// When the process at the other end started. Without that a restarted loader could not tell it from a later
/// process of its pid, so who cannot be judged is not let in. Its pidfd must be open.
Result<std::uint64_t> start_ticks_of(std::uint32_t pid) {
  if (const std::uint64_t ticks = process_start_ticks(pid); ticks != 0) return ticks;
  if (!process_may_live(pid, 0)) return fail(Errc::peer_gone, "process " + std::to_string(pid) + " is gone");
  return fail(Errc::invalid,
              "the loader cannot read /proc/" + std::to_string(pid) +
                  "/stat, so that it could not tell this process from another after a restart: "
                  "run the loader where /proc shows the worker (mounted, same pid namespace, "
                  "without hidepid, or as the same user)");
}

bool in_group(int fd, const ucred& peer, gid_t group) {
  if (peer.gid == group) return true;
  std::array<gid_t, 256> groups{};
  socklen_t size = sizeof groups;
  if (::getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups.data(), &size) != 0) return false;
  const auto end = groups.begin() + static_cast<std::ptrdiff_t>(size / sizeof(gid_t));
  return std::find(groups.begin(), end, group) != end;
}

void copy_text(const std::string& text, std::span<char> to) {
  const std::size_t length = std::min(text.size(), to.size() - 1);
  std::memcpy(to.data(), text.data(), length);
  to[length] = '\0';
}

bool send_reply(int socket, const AttachReply& reply, int passed_fd) {
  iovec part{.iov_base = const_cast<AttachReply*>(&reply), .iov_len = sizeof reply};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (passed_fd >= 0) {
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &passed_fd, sizeof passed_fd);
  }
  return ::sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT) == static_cast<ssize_t>(sizeof reply);
}

void send_refusal(int socket, const Error& error) {
  AttachReply reply;
  reply.prefix.kind = static_cast<std::uint32_t>(AttachKind::refused);
  reply.status = static_cast<std::uint32_t>(error.code);
  copy_text(error.text(), reply.text);
  static_cast<void>(send_reply(socket, reply, -1));  // it may be gone already
}

Result<UniqueFd> listen_at(const AttachServerOptions& options) {
  const std::string& path = options.socket_path;
  sockaddr_un address{};
  if (path.size() >= sizeof address.sun_path)
    return fail(Errc::invalid, "socket path '" + path + "' has " + std::to_string(path.size()) +
                                   " bytes, at most " + std::to_string(sizeof address.sun_path - 1) +
                                   " are possible: choose a shorter run directory (--run-dir)");
  struct stat status {};
  if (::lstat(path.c_str(), &status) == 0) {
    if (!S_ISSOCK(status.st_mode))
      return fail(Errc::invalid,
                  "'" + path + "' exists and is not a socket: remove it, or choose another --run-dir");
    ::unlink(path.c_str());  // stale: the lock says that its loader is gone
  }
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  UniqueFd fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return fail(Errc::io, "cannot make a socket", errno);
  const mode_t mode = options.group_access ? 0660 : 0600;
  ::fchmod(fd.get(), mode);  // before bind, so that it is never more open than this
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
    return fail(Errc::io, "cannot make socket '" + path + "': choose another run directory (--run-dir)",
                errno);
  ::chmod(path.c_str(), mode);  // against the umask
  if (::listen(fd.get(), kBacklog) != 0) return fail(Errc::io, "cannot listen on '" + path + "'", errno);
  return fd;
}

}  // namespace

struct AttachServer::State {
  Pool& pool;
  AttachServerOptions options;
  UniqueFd listener, epoll, doorbell;
  std::array<Connection, kConnectionsMax> connections{};
  std::array<Watched, kProcessMax> processes{};
  std::uint32_t next_serial = 1;
  std::vector<unsigned> inherited{};
  std::vector<AttachEvent> events{};  ///< not yet returned by poll()

  State(Pool& p, AttachServerOptions o, UniqueFd l, UniqueFd e, UniqueFd d)
      : pool(p), options(std::move(o)), listener(std::move(l)), epoll(std::move(e)), doorbell(std::move(d)) {}
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  ~State() { ::unlink(options.socket_path.c_str()); }

  bool watch_fd(int fd, Tag tag) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u64 = pack(tag);
    return ::epoll_ctl(epoll.get(), EPOLL_CTL_ADD, fd, &event) == 0;
  }

  Result<void> inherit();
  void accept_all();
  void drop(Connection& connection) { connection = Connection{}; }  // closing takes it out of the epoll set
  void on_readable(Connection& connection);
  void handle(Connection& connection, const AttachRequest& request);
  Result<unsigned> admit(const Connection& connection);
  Result<unsigned> readmit(const Connection& connection, std::uint32_t index);
  Result<void> watch_process(unsigned index, std::uint32_t pid);
  void end_process(unsigned index, Kind kind);
  void on_process_end(unsigned index);
};

/// The processes that the predecessor's table holds. An error when one of them may live and cannot be
/// watched.
Result<void> AttachServer::State::inherit() {
  for (unsigned i = 0; i < kProcessMax; ++i) {
    ProcessEntry& entry = pool.process(i);
    const std::uint32_t state = entry.state.load(std::memory_order_acquire);
    if (state == static_cast<std::uint32_t>(ProcessState::free)) continue;
    const std::uint32_t pid = entry.pid.load(std::memory_order_relaxed);
    const std::uint64_t ticks = entry.start_ticks.load(std::memory_order_relaxed);
    // The ticks are compared after the pidfd is open, so it cannot be a later process of the same pid.
    const bool attached = state == static_cast<std::uint32_t>(ProcessState::attached);
    const auto watched = attached ? watch_process(i, pid) : Result<void>{};
    if (attached && process_may_live(pid, ticks)) {
      if (!watched)
        return fail(watched.error(), "process " + std::to_string(pid) +
                                         " holds slots of the pool and its end could not be noticed; stop it "
                                         "and start the loader again");
      inherited.push_back(i);
      continue;
    }
    processes[i].pid = pid;
    end_process(i, Kind::died);
  }
  return {};
}

Result<void> AttachServer::State::watch_process(unsigned index, std::uint32_t pid) {
  UniqueFd pidfd = open_pidfd(pid);
  if (!pidfd.valid())
    return fail(
        Errc::peer_gone,
        "cannot watch process " + std::to_string(pid) + " (did it end, or is it in another pid namespace?)",
        errno);
  if (!watch_fd(pidfd.get(), {Tag::What::process, static_cast<std::uint8_t>(index), 0}))
    return fail(Errc::io, "epoll: cannot watch process " + std::to_string(pid), errno);
  processes[index] = Watched{true, std::move(pidfd), pid};
  return {};
}

void AttachServer::State::end_process(unsigned index, Kind kind) {
  pool.process(index).state.store(static_cast<std::uint32_t>(ProcessState::dead), std::memory_order_release);
  events.push_back({.kind = kind, .process = index, .pid = processes[index].pid});
  processes[index] = Watched{};
  for (Connection& connection : connections)
    if (connection.fd.valid() && connection.process == index) drop(connection);
}

void AttachServer::State::accept_all() {
  for (int turn = 0; turn < kBacklog; ++turn) {
    UniqueFd fd(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!fd.valid()) return;
    ucred peer{};
    socklen_t size = sizeof peer;
    if (::getsockopt(fd.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) continue;
    const bool allowed = peer.uid == ::geteuid() || peer.uid == 0 ||
                         (options.group_access && in_group(fd.get(), peer, ::getegid()));
    if (!allowed) {
      send_refusal(fd.get(), {Errc::invalid, 0,
                              "user " + std::to_string(peer.uid) + " may not attach to the pool of user " +
                                  std::to_string(::geteuid())});
      continue;
    }
    Connection* place = nullptr;
    for (Connection& connection : connections) {
      const bool empty = !connection.fd.valid();
      if (!empty && connection.process != kNone) continue;
      if (place == nullptr || empty || (place->fd.valid() && connection.serial < place->serial))
        place = &connection;
      if (empty) break;
    }
    STOKER_CHECK(place != nullptr);  // at most kProcessMax of them have a process
    *place = Connection{std::move(fd), next_serial++, static_cast<std::uint32_t>(peer.pid), kNone};
    const auto index = static_cast<std::uint8_t>(place - connections.data());
    if (!watch_fd(place->fd.get(), {Tag::What::connection, index, place->serial})) drop(*place);
  }
}

void AttachServer::State::on_readable(Connection& connection) {
  std::array<std::byte, sizeof(AttachRequest) + 64> buffer;
  const ssize_t got = ::recv(connection.fd.get(), buffer.data(), buffer.size(), MSG_DONTWAIT | MSG_TRUNC);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (got <= 0) return drop(connection);  // closed. Its process, if any, is still watched by pidfd.
  const std::size_t size = std::min(static_cast<std::size_t>(got), buffer.size());
  const auto request = parse_attach_request({buffer.data(), size});
  if (request) return handle(connection, *request);
  send_refusal(connection.fd.get(), request.error());
  drop(connection);
}

void AttachServer::State::handle(Connection& connection, const AttachRequest& request) {
  const auto kind = static_cast<AttachKind>(request.prefix.kind);
  if (kind == AttachKind::detach) {
    if (connection.process == kNone) return drop(connection);
    return end_process(connection.process, Kind::detached);
  }
  const auto index = kind == AttachKind::attach ? admit(connection) : readmit(connection, request.index);
  if (!index) {
    send_refusal(connection.fd.get(), index.error());
    return drop(connection);
  }
  AttachReply reply;
  reply.prefix.kind = static_cast<std::uint32_t>(AttachKind::granted);
  reply.index = *index;
  reply.epoch = pool.header().epoch.load(std::memory_order_relaxed);
  reply.checkpoint_fingerprint = options.checkpoint_fingerprint;
  copy_text(options.pool_name, reply.pool_name);
  copy_text(options.weights_name, reply.weights_name);
  connection.process = *index;
  if (kind == AttachKind::attach)
    events.push_back({.kind = Kind::attached, .process = *index, .pid = connection.pid});
  if (!send_reply(connection.fd.get(), reply, doorbell.get())) {
    // A new process never learned its index: nothing to wait for. A known one will come again.
    if (kind == AttachKind::attach) return end_process(*index, Kind::died);
    return drop(connection);
  }
  if (kind == AttachKind::reattach)
    events.push_back({.kind = Kind::reattached, .process = *index, .pid = connection.pid});
}

Result<unsigned> AttachServer::State::admit(const Connection& connection) {
  if (connection.process != kNone) return fail(Errc::invalid, "this connection is attached already");
  constexpr auto kFree = static_cast<std::uint32_t>(ProcessState::free);
  unsigned index = 0;
  while (index < kProcessMax &&
         (processes[index].active || pool.process(index).state.load(std::memory_order_acquire) != kFree))
    ++index;
  if (index == kProcessMax)
    return fail(Errc::busy, std::to_string(kProcessMax) +
                                " processes are attached to this pool, which is the limit: stop one");
  if (connection.pid == 0)
    return fail(Errc::invalid,
                "this process is in another pid namespace, where the loader could not notice its end: run "
                "loader and worker in the same one (containers can share it)");
  STOKER_TRY_VOID(watch_process(index, connection.pid));
  const auto ticks = start_ticks_of(connection.pid);
  if (!ticks) {
    processes[index] = Watched{};
    return tl::unexpected<Error>(ticks.error());
  }
  // The bytes may be a dead predecessor's, or a vandal's: everything is written before `attached`.
  ProcessEntry& entry = pool.process(index);
  for (DemandEntry& demand : entry.demands)
    demand.state.store(static_cast<std::uint32_t>(DemandState::free), std::memory_order_relaxed);
  entry.demand_head.store(0, std::memory_order_relaxed);
  entry.demand_tail.store(0, std::memory_order_relaxed);
  entry.waiting.store(0, std::memory_order_relaxed);
  entry.pid.store(connection.pid, std::memory_order_relaxed);
  entry.start_ticks.store(*ticks, std::memory_order_relaxed);
  entry.state.store(static_cast<std::uint32_t>(ProcessState::attached), std::memory_order_release);
  return index;
}

Result<unsigned> AttachServer::State::readmit(const Connection& connection, std::uint32_t index) {
  if (connection.process != kNone) return fail(Errc::invalid, "this connection is attached already");
  const ProcessEntry& entry = pool.process(index);
  if (!processes[index].active || processes[index].pid != connection.pid ||
      !process_may_live(connection.pid, entry.start_ticks.load(std::memory_order_relaxed)))
    return fail(Errc::layout, "process " + std::to_string(connection.pid) + " does not hold index " +
                                  std::to_string(index) + " of this pool (it was made anew): attach again");
  for (Connection& other : connections)
    if (other.fd.valid() && other.process == index) drop(other);
  return index;
}

/// The process is dead. If its last message said goodbye, it ended in order.
void AttachServer::State::on_process_end(unsigned index) {
  for (Connection& connection : connections) {
    if (!connection.fd.valid() || connection.process != index) continue;
    on_readable(connection);
    break;
  }
  if (processes[index].active) end_process(index, Kind::died);
}

AttachServer::AttachServer(std::unique_ptr<State> state) : state_(std::move(state)) {}
AttachServer::AttachServer(AttachServer&&) noexcept = default;
AttachServer& AttachServer::operator=(AttachServer&&) noexcept = default;
AttachServer::~AttachServer() = default;

Result<AttachServer> AttachServer::create(Pool& pool, const AttachServerOptions& options) {
  if (options.pool_name.size() >= kAttachNameBytes || options.weights_name.size() >= kAttachNameBytes)
    return fail(Errc::too_large, "shared-memory name '" + options.pool_name + "' or '" +
                                     options.weights_name + "' is longer than " +
                                     std::to_string(kAttachNameBytes - 1) + " bytes");
  UniqueFd epoll(::epoll_create1(EPOLL_CLOEXEC));
  UniqueFd doorbell(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!epoll.valid() || !doorbell.valid())
    return fail(Errc::io, "cannot make epoll and eventfd descriptors", errno);
  STOKER_TRY(UniqueFd listener, listen_at(options));
  auto state =
      std::make_unique<State>(pool, options, std::move(listener), std::move(epoll), std::move(doorbell));
  if (!state->watch_fd(state->listener.get(), {Tag::What::listener, 0, 0}))
    return fail(Errc::io, "epoll_ctl", errno);
  STOKER_TRY_VOID(state->inherit());
  return AttachServer(std::move(state));
}

std::vector<AttachEvent> AttachServer::poll(Duration wait_max) {
  std::array<epoll_event, 64> ready;
  const std::int64_t ms = (std::max(wait_max, Duration::zero()).count() + 999'999) / 1'000'000;
  const int timeout = state_->events.empty() ? static_cast<int>(std::min<std::int64_t>(ms, 3'600'000)) : 0;
  const int count = ::epoll_wait(state_->epoll.get(), ready.data(), static_cast<int>(ready.size()), timeout);
  for (int i = 0; i < count; ++i) {
    const Tag tag = unpack_tag(ready[static_cast<std::size_t>(i)].data.u64);
    if (tag.what == Tag::What::listener) {
      state_->accept_all();
    } else if (tag.what == Tag::What::connection) {
      Connection& connection = state_->connections[tag.index];
      if (connection.fd.valid() && connection.serial == tag.serial) state_->on_readable(connection);
    } else if (state_->processes[tag.index].active) {
      pollfd dead{.fd = state_->processes[tag.index].pidfd.get(), .events = POLLIN, .revents = 0};
      if (::poll(&dead, 1, 0) == 1) state_->on_process_end(tag.index);  // not a later process of this index
    }
  }
  return std::exchange(state_->events, {});
}

int AttachServer::poll_fd() const { return state_->epoll.get(); }
int AttachServer::doorbell_fd() const { return state_->doorbell.get(); }
const std::vector<unsigned>& AttachServer::inherited() const { return state_->inherited; }

}  // namespace stoker
