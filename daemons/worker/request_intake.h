// Between Server and EngineLoop: the thread that makes requests out of messages. Template and tokenizer need
// seconds for a prompt of many megabytes; neither sockets nor the model wait for that.
//
// Life of a request here:
//   1. waiting    in order of arrival, all clients together; bounded together with what EngineLoop holds for
//                 the scheduler. Over the bounds the client at once reads `queue_full`.
//   2. building   one at a time, no lock held
//   3. submitted to EngineLoop; or answered with the reason why it cannot be
// A cancel, a drop or a stop ends it in 1 and 2 at once (what the builder makes of it then is thrown away);
// in 3 it is EngineLoop's. So every request is answered once, and no cancel waits for somebody else's
// tokens. Answers leave through EngineLoop: only the server's thread touches the socket.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "daemons/common/limits.h"
#include "daemons/worker/engine_loop.h"
#include "daemons/worker/request_builder.h"
#include "shm/base/clock.h"
#include "stoker.pb.h"

namespace stoker {

/// Of what waits here and in EngineLoop's inbox together.
struct IntakeLimits {
  std::size_t requests = 256;
  std::size_t bytes = limits::kWaitingRequestBytes;
};

class RequestIntake {
 public:
  using NewSeed = std::function<std::uint64_t()>;
  /// build_request() with its tools; called on the intake's thread only.
  using Builder =
      std::function<tl::expected<Request, RequestProblem>(const wire::GenerateRequest&, const NewSeed&)>;

  /// References must outlive the intake. Call start() before anything else.
  RequestIntake(EngineLoop& engine, Builder build, const Clock& clock, const IntakeLimits& limits);
  RequestIntake(const RequestIntake&) = delete;
  RequestIntake& operator=(const RequestIntake&) = delete;
  ~RequestIntake();  ///< stop() and join; as long as the build in progress takes
  void start();

  // From the server thread; none waits for a build.
  void submit(std::string client, wire::GenerateRequest request);
  void cancel(const std::string& client, const std::string& id);
  void drop_client(const std::string& client);
  /// Ends all requests that are still here with `shutting_down`; later ones are refused with it. EngineLoop
  /// is to be stopped after this.
  void stop();

  /// After stop(): the build that was in progress has ended too.
  [[nodiscard]] bool finished();
  /// Counts what happened here, which the scheduler knows nothing of.
  void add_to(SchedulerStatus& status);

 private:
  /// Who a request is from and what it holds.
  struct Ticket {
    std::string client, id;
    std::size_t bytes = 0;
    Duration arrived{};
  };
  struct Waiting {
    Ticket ticket;
    wire::GenerateRequest request;
  };
  using Matches = std::function<bool(const Ticket&)>;

  void run();
  void hand_on(const Ticket& ticket, tl::expected<Request, RequestProblem> built);
  std::vector<Ticket> take_out(const Matches& matches);
  void refuse(const Ticket& ticket, const char* code, const std::string& text);
  [[nodiscard]] std::optional<std::string> why_full(std::size_t bytes);

  EngineLoop& engine_;
  const Builder build_;
  const Clock& clock_;
  const IntakeLimits limits_;
  std::random_device random_;  ///< intake's thread only
  std::mutex mutex_;           ///< taken before EngineLoop's, never while building
  std::condition_variable wake_;
  std::deque<Waiting> waiting_;     ///< guarded by mutex_, as all below
  std::optional<Ticket> building_;  ///< empty again when nobody wants the result any more
  std::size_t bytes_ = 0;           ///< of waiting_ and building_
  std::uint64_t refused_ = 0, cancelled_ = 0;
  bool stop_ = false;
  bool finished_ = false;
  std::thread thread_;
};

}  // namespace stoker
