// The loader's side thread: everything that is not a demand. It takes hints from ZeroMQ and stop signals,
// and rings the loader's doorbell when there is something for the loop. Demands never pass through here.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "daemons/common/signals.h"
#include "daemons/common/zmq_socket.h"
#include "io-worker/loader.h"
#include "shm/base/result.h"
#include "shm/base/unique_fd.h"

namespace stoker {

struct ControlOptions {
  std::string hints_path;
  bool group_access = false;
  int doorbell_fd = -1;  ///< eventfd that ends a waiting IoEngine::reap()
  int attach_fd = -1;    ///< AttachServer::poll_fd(); when it stirs, the doorbell rings
  std::uint32_t layers = 0, experts_per_layer = 0;
};

class Control {
 public:
  /// Binds the hints socket and starts the thread. `signals` must outlive the object.
  static Result<std::unique_ptr<Control>> start(StopSignals& signals, const ControlOptions& options);
  Control(const Control&) = delete;
  Control& operator=(const Control&) = delete;
  ~Control();  ///< stops the thread

  [[nodiscard]] bool stop_requested() const { return stop_requested_.load(std::memory_order_acquire); }
  /// Moves the hints that have arrived into `out` (cleared first).
  void take_hints(std::vector<LoaderHint>& out);

 private:
  Control(StopSignals& signals, const ControlOptions& options, ZmqContext context, ZmqSocket hints,
          UniqueFd wake, UniqueFd attach_edges);
  void run();
  void receive_hints();
  void ring() const;

  StopSignals& signals_;
  ControlOptions options_;
  ZmqContext context_;
  ZmqSocket hints_;
  UniqueFd wake_;          ///< eventfd that ends the thread
  UniqueFd attach_edges_;  ///< epoll, edge-triggered on attach_fd: each stir is told once
  std::atomic<bool> stop_requested_{false};
  std::atomic<bool> quit_{false};
  std::uint64_t malformed_ = 0;
  std::uint32_t batches_ = 0;
  std::mutex mutex_;
  std::vector<LoaderHint> inbox_;  ///< guarded by mutex_
  std::thread thread_;             ///< last: starts when the rest is there
};

}  // namespace stoker
