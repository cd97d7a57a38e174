// How a worker becomes a process of the pool, and how the loader learns that it is gone.
//
// Life of a process index:
//   1. attach: the loader finds a free index, fills the process entry (pid, start ticks, empty demand
//      ring), then replies with index, names and doorbell. From now on the process may hold leases. One
//      whose start time cannot be read (another pid namespace, a /proc that hides it) is refused.
//   2. the loader dies and restarts: the entry says who holds the index; the process is watched by
//      pid and start ticks, keeps its leases, and sends reattach when it notices. Only what is certainly
//      gone loses them (process_may_live()).
//   3. detach message (orderly) or death of the process (pidfd): an event of AttachServer::poll(). The
//      entry's state is `dead`, the index stays taken until the loader has called reclaim_process().
// A closed connection is not a death: as long as the process lives it may still read its slots. Only the
// pidfd is believed. Heartbeats do not exist.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "shm/attach_messages.h"
#include "shm/base/clock.h"
#include "shm/base/result.h"
#include "shm/base/unique_fd.h"
#include "shm/pool.h"

namespace stoker {

struct AttachEvent {
  enum class Kind : std::uint8_t {
    attached,    ///< a new process: DemandIntake::attach()
    reattached,  ///< a process known already is connected again: nothing to do
    detached,    ///< orderly end: DemandIntake::detach(), then reclaim_process()
    died,        ///< as detached, but the process was killed or crashed
  } kind = Kind::attached;
  unsigned process = 0;
  std::uint32_t pid = 0;
};

struct AttachServerOptions {
  /// loader_socket_path(); the caller holds the loader lock, a stale file is replaced
  std::string socket_path;
  std::string pool_name;
  std::string weights_name;
  std::uint64_t checkpoint_fingerprint = 0;
  bool group_access = false;  ///< 0660 and members of the loader's group; else 0600 and the same user
};

/// Loader side. Used from one thread.
class AttachServer {
 public:
  /// Binds the socket and starts to watch the processes that the (adopted) pool's table holds already;
  /// those that are dead by now are reported as `died` by the first poll(). `pool` must outlive the server.
  static Result<AttachServer> create(Pool& pool, const AttachServerOptions& options);
  AttachServer(AttachServer&&) noexcept;
  AttachServer& operator=(AttachServer&&) noexcept;
  ~AttachServer();  ///< closes and removes the socket; processes stay attached

  /// Handles what has come in, waiting up to `wait_max` for it; 0 never blocks. A misbehaving client is
  /// answered and dropped; it disturbs nobody else.
  std::vector<AttachEvent> poll(Duration wait_max);
  /// Becomes readable when poll() has something to do (an epoll descriptor; do not read it).
  [[nodiscard]] int poll_fd() const;
  /// The eventfd that workers write after publishing a demand to a sleeping loader.
  [[nodiscard]] int doorbell_fd() const;
  /// Live processes found in the table of an adopted pool: DemandIntake::resume() each.
  [[nodiscard]] const std::vector<unsigned>& inherited() const;

 private:
  struct State;
  explicit AttachServer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// Worker side: the connection to one incarnation of the loader.
class AttachClient {
 public:
  /// Connects and asks for an index. Errc::missing when no loader listens, Errc::peer_gone when it does not
  /// answer within `timeout`, Errc::busy when all indices are taken, Errc::layout for another build.
  static Result<AttachClient> attach(const std::string& socket_path, Duration timeout);
  /// After the loader was lost: connects to its successor and asks for the same index. Errc::layout when the
  /// successor has another pool (then drop the old mapping and attach anew).
  static Result<AttachClient> reattach(const std::string& socket_path, unsigned index, Duration timeout);
  AttachClient(AttachClient&&) noexcept = default;
  AttachClient& operator=(AttachClient&&) noexcept;
  ~AttachClient();  ///< as detach()

  [[nodiscard]] const AttachGrant& grant() const { return grant_; }
  /// False when the loader has closed the connection (it died or stopped). One non-blocking system call.
  [[nodiscard]] bool alive() const;
  /// For poll(2): readable or hung up when the loader is gone.
  [[nodiscard]] int fd() const { return socket_.get(); }
  /// Wakes the loader (after DemandPort::publish() or LeaseTable::release() returned true).
  void ring_doorbell() const;
  /// Orderly end: the loader takes back all leases of this process. Use no slot afterwards.
  void detach();

 private:
  AttachClient(UniqueFd socket, UniqueFd doorbell, AttachGrant grant);
  static Result<AttachClient> connect(const std::string& path, const AttachRequest& request,
                                      Duration timeout);
  UniqueFd socket_, doorbell_;
  AttachGrant grant_;
};

}  // namespace stoker
