// The worker's ROUTER socket: bytes to messages, events to bytes. Runs on the main thread; building requests
// is RequestIntake's, computing EngineLoop's. A client whose socket is gone is noticed at the next send to it
// (every step makes one).
#pragma once

#include <functional>
#include <set>
#include <string>

#include "daemons/common/signals.h"
#include "daemons/common/zmq_socket.h"
#include "daemons/worker/engine_loop.h"
#include "daemons/worker/request_intake.h"
#include "shm/base/clock.h"
#include "shm/base/result.h"

namespace stoker {

class Server {
 public:
  /// `status` makes the status JSON. References must outlive the server.
  Server(ZmqSocket socket, EngineLoop& engine, RequestIntake& intake, std::function<std::string()> status,
         const Clock& clock);
  /// How serving ended: `unfinished` when a step or the tokenising of a prompt did not end in time. Then
  /// the engine or the intake cannot be destroyed either, and only leaving the process helps.
  enum class End : std::uint8_t { complete, unfinished };
  /// Serves until a stop signal, then ends all requests in order. Errc::layout when the loader's pool was
  /// replaced, Errc::device_lost: the worker has to start anew.
  Result<End> run(StopSignals& signals);

 private:
  Result<void> receive();
  void handle(const std::string& client, const std::string& bytes);
  void send_events();
  void send(const std::string& client, const wire::ServerMessage& message);
  Result<SendOutcome> try_send(const std::string& client, const wire::ServerMessage& message);
  void tell_slow_clients();
  End finish();

  ZmqSocket socket_;
  EngineLoop& engine_;
  RequestIntake& intake_;
  std::function<std::string()> status_;
  const Clock& clock_;
  /// Clients whose queue was full: their requests are dropped and they do not know yet. Nothing else is sent
  /// to them, nor taken from them, until the error that says so has found room.
  std::set<std::string> slow_;
};

}  // namespace stoker
