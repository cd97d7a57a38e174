// The thread that computes. It alone touches scheduler, model and expert source; the others talk to it
// through two mailboxes, so that sockets are served and requests built while a step runs.
#pragma once

#include <condition_variable>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "daemons/worker/scheduler.h"
#include "shm/base/unique_fd.h"

namespace stoker {

/// What clients read in a `shutting_down` error.
inline constexpr const char* kStoppingText = "the worker is stopping; send the request again later";

/// One event on its way to a client.
struct Outgoing {
  std::string client;
  wire::ServerMessage message;
};

/// What was posted and the scheduler has not looked at yet: a step may take long.
struct Backlog {
  std::size_t requests = 0;
  std::size_t bytes = 0;     ///< of the requests
  std::size_t commands = 0;  ///< requests and all else
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

  // From any thread; none blocks on the model.
  /// Whoever submits keeps backlog() within bounds.
  void submit(Request request);
  void cancel(std::string client, std::string id);
  void drop_client(std::string client);
  [[nodiscard]] Backlog backlog();
  /// An answer that the model has no part in; it leaves with the others.
  void answer(std::string client, wire::ServerMessage message);
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
  /// Requests of one id of one client, from submit() to their last event.
  struct Live {
    std::uint32_t requests = 0;
    bool cancelled = false;  ///< all of them, by a command that is in the inbox or was applied
  };
  using LiveMap = std::map<std::pair<std::string, std::string>, Live>;

  void send(const std::string& client, wire::ServerMessage message) override;
  void run();
  void end();
  void take_inbox(std::vector<Command>& commands);
  void apply(std::vector<Command>& commands);
  void ended(const std::string& client, const std::string& id);
  void publish_status();
  void ring() const;

  Scheduler scheduler_;  ///< engine thread only
  UniqueFd event_fd_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<Command> inbox_;  ///< guarded by mutex_, as all below
  Backlog backlog_;             ///< of inbox_; commands is not kept
  LiveMap live_;  ///< a cancel waits only for one of these, and once: so they bound the inbox too
  std::vector<Outgoing> outbox_;
  SchedulerStatus status_;
  std::optional<Error> lost_;
  bool stop_ = false;
  bool finished_ = false;
  std::thread thread_;
};

}  // namespace stoker
