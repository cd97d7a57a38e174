// ZeroMQ over ipc://, as move-only objects and Results. The only user of libzmq besides its tests.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "shm/base/clock.h"
#include "shm/base/result.h"

namespace stoker {

/// Must outlive its sockets. One per process.
class ZmqContext {
 public:
  static Result<ZmqContext> make();

 private:
  friend class ZmqSocket;
  struct Close {
    void operator()(void* context) const;
  };
  explicit ZmqContext(void* context) : context_(context) {}
  std::unique_ptr<void, Close> context_;
};

enum class ZmqRole : std::uint8_t { router, dealer, pub, sub, push, pull };

struct ZmqOptions {
  std::int64_t receive_bytes_max = 1 << 20;  ///< a larger incoming message closes the connection
  int send_queue = 1000;                     ///< messages per peer
  int receive_queue = 1000;
  int linger_ms = 0;          ///< how long close() may wait for unsent messages
  bool group_access = false;  ///< bind: socket file 0660 instead of 0600
};

enum class SendOutcome : std::uint8_t {
  sent,
  full,       ///< the peer's queue is full (or there is no peer, for push); nothing was sent
  peer_gone,  ///< router only: no such client any more
};

/// Used by one thread at a time.
class ZmqSocket {
 public:
  /// Binds to the socket file `path`. A ROUTER reports unknown peers (peer_gone) instead of dropping.
  /// The file is removed when the socket goes; the caller makes sure (with a lock) that it is alone there.
  /// Errc::invalid when the path is longer than a socket address can be, with both numbers.
  static Result<ZmqSocket> bind(const ZmqContext& context, ZmqRole role, const std::string& path,
                                const ZmqOptions& options);
  /// Connects (in the background; the peer may come later or come back). A SUB gets everything.
  static Result<ZmqSocket> connect(const ZmqContext& context, ZmqRole role, const std::string& path,
                                   const ZmqOptions& options);

  /// Sends all parts or none, without blocking.
  Result<SendOutcome> send(std::span<const std::string_view> parts);
  /// One whole message, or nothing if none is waiting. Messages with more than 4 parts are skipped.
  Result<std::optional<std::vector<std::string>>> receive();

  [[nodiscard]] void* handle() const { return socket_.get(); }

 private:
  struct Close {
    void operator()(void* socket) const;
  };
  /// Removes the socket file of a bound socket: libzmq leaves it.
  class SocketFile {
   public:
    SocketFile() = default;
    explicit SocketFile(std::string path) : path_(std::move(path)) {}
    SocketFile(SocketFile&& other) noexcept : path_(std::exchange(other.path_, {})) {}
    SocketFile& operator=(SocketFile&& other) noexcept;
    ~SocketFile();

   private:
    std::string path_;
  };
  static Result<ZmqSocket> open(const ZmqContext& context, ZmqRole role, const std::string& path,
                                const ZmqOptions& options);
  explicit ZmqSocket(void* socket) : socket_(socket) {}
  SocketFile file_;
  std::unique_ptr<void, Close> socket_;
};

struct PollItem {
  const ZmqSocket* socket = nullptr;  ///< or, when null,
  int fd = -1;                        ///< a plain descriptor
  bool readable = false;              ///< result
};

/// Waits until something is readable; EINTR counts as nothing. At most 8 items.
Result<void> wait_readable(std::span<PollItem> items, Duration wait_max);

}  // namespace stoker
