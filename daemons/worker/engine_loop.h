// The thread that computes. It alone touches scheduler, model and expert source; the server thread talks
// to it through two mailboxes, so that sockets are served while a step runs.
#pragma once

#include <condition_variable>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "daemons/worker/scheduler.h"
#include "shm/base/unique_fd.h"

namespace stoker {

/// One event on its way to a client.
struct Outgoing {
  std::string client;
  wire::ServerMessage message;
};

class EngineLoop final : private EventSink {
 public:
  /// References must outlive the loop. Call start() before anything else.
  EngineLoop(Model& model, ExpertSource& source, const GenerationRules& rules, RoutingObserver* observer,
             const Clock& clock, const SchedulerOptions& options);
  EngineLoop(const EngineLoop&) = delete;
  EngineLoop& operator=(const EngineLoop&) = delete;
  ~EngineLoop() override;  ///< stop() and join; as long as the step in progress takes

  Result<void> start();

  // From the server thread; none blocks on the model.
  void submit(Request request);
  void cancel(std::string client, std::string id);
  void drop_client(std::string client);
  /// Ends all requests with `shutting_down` after the step in progress; finished() then turns true.
  void stop();

  /// Readable when take_events() or finished() has news.
  [[nodiscard]] int event_fd() const { return event_fd_.get(); }
  std::vector<Outgoing> take_events();
  [[nodiscard]] bool finished();
  /// Why the loop ended on its own: another pool took the place of ours. Empty otherwise.
  [[nodiscard]] std::optional<Error> lost();
  /// As of the end of the last step.
  [[nodiscard]] SchedulerStatus status();

 private:
  struct Command {
    enum class Kind : std::uint8_t { submit, cancel, drop } kind = Kind::submit;
    Request request;
    std::string client, id;
  };
  void send(const std::string& client, wire::ServerMessage message) override;
  void post(Command command);
  void run();
  void apply(std::vector<Command>& commands);
  void publish_status();

  Scheduler scheduler_;  ///< engine thread only
  UniqueFd event_fd_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<Command> inbox_;  ///< guarded by mutex_, as all below
  std::vector<Outgoing> outbox_;
  SchedulerStatus status_;
  std::optional<Error> lost_;
  bool stop_ = false;
  bool finished_ = false;
  std::thread thread_;
};

}  // namespace stoker
