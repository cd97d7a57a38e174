// A connection to a worker: DEALER socket for messages, and a pidfd on the worker itself, so that its death
// is news at once and not after a time-out.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "shm/base/clock.h"
#include "shm/base/result.h"
#include "stoker.pb.h"

namespace stoker {

/// Path of the worker's socket in a run directory.
std::string worker_socket(const std::string& run_dir);

/// Whether somebody listens on the worker's socket right now.
bool worker_listens(const std::string& run_dir);
/// The same of the gateway's.
bool gateway_listens(const std::string& run_dir);

class WorkerClient {
 public:
  /// Errc::peer_gone when nobody listens in `run_dir`; the text says what to do.
  static Result<WorkerClient> connect(const std::string& run_dir, const Clock& clock);
  WorkerClient(WorkerClient&&) noexcept;
  WorkerClient& operator=(WorkerClient&&) noexcept;
  ~WorkerClient();

  Result<void> send(const wire::ClientMessage& message);
  /// The next message; nothing when `wait_max` has passed or `wake_fd` (-1: none) is readable.
  /// Errc::peer_gone when the worker has ended; Errc::corrupt for a message that does not parse.
  Result<std::optional<wire::ServerMessage>> receive(Duration wait_max, int wake_fd = -1);
  /// Asks for the worker's status (JSON). Errc::peer_gone when it does not answer in `wait_max`.
  Result<std::string> status(Duration wait_max);

 private:
  /// A message that is already here, without waiting.
  Result<std::optional<wire::ServerMessage>> take();
  struct State;
  explicit WorkerClient(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace stoker
