// The gateway's connection to the worker, on a thread of its own: it connects, and connects again when the
// worker was restarted. Every request that was submitted is answered, by the worker or with why it cannot be.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "daemons/common/worker_client.h"
#include "shm/base/clock.h"
#include "shm/base/unique_fd.h"
#include "stoker.pb.h"

namespace stoker::gateway {

class WorkerLink {
 public:
  /// Called on the link's thread with every message about request `id`; the last one is done, error or
  /// tokens.
  using Deliver = std::function<void(const std::string& id, wire::ServerMessage message)>;

  WorkerLink(std::string run_dir, const Clock& clock, Deliver deliver);
  WorkerLink(const WorkerLink&) = delete;
  WorkerLink& operator=(const WorkerLink&) = delete;
  ~WorkerLink();  ///< stop() and join
  Result<void> start();
  /// Nothing is delivered any more once this has returned.
  void stop();
  /// Until it is known whether there is a worker, or `most` has passed.
  void wait_known(Duration most);

  // From any thread; none waits for the worker.
  /// The id that messages about this request will have.
  std::string submit(wire::GenerateRequest request);
  void cancel(const std::string& id);
  /// The worker's status (JSON), some seconds old at most; nothing while there is no worker that answers.
  [[nodiscard]] std::shared_ptr<const std::string> status() const;

 private:
  void run();
  void serve(WorkerClient& client);
  Result<void> send_queued(WorkerClient& client);
  void handle(const wire::ServerMessage& message);
  void end_all(const char* code, const std::string& text);
  void post(wire::ClientMessage message);
  void wait_for_work();
  void set_known();
  [[nodiscard]] bool stopping() const;

  const std::string run_dir_;
  const Clock& clock_;
  const Deliver deliver_;
  UniqueFd event_fd_;           ///< readable: something is queued, or stop
  std::set<std::string> open_;  ///< sent to the worker, not over; link thread only
  Duration status_due_{};
  mutable std::mutex mutex_;
  std::vector<wire::ClientMessage> queued_;  ///< guarded by mutex_, as all below
  std::shared_ptr<const std::string> status_;
  Duration status_at_{};
  std::condition_variable known_changed_;
  std::uint64_t last_id_ = 0;
  bool known_ = false;  ///< the worker has answered once, or there was none
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace stoker::gateway
