// The worker's ROUTER socket: bytes to requests, events to bytes. Runs on the main thread; computing is
// EngineLoop's. A client whose socket is gone is noticed at the next send to it (every step makes one).
#pragma once

#include <functional>
#include <random>
#include <string>

#include "daemons/common/signals.h"
#include "daemons/common/zmq_socket.h"
#include "daemons/worker/engine_loop.h"
#include "daemons/worker/request_builder.h"
#include "shm/base/clock.h"
#include "shm/base/result.h"

namespace stoker {

class Server {
 public:
  /// `status` makes the status JSON. References must outlive the server.
  Server(ZmqSocket socket, EngineLoop& engine, const TextTools& tools, std::function<std::string()> status,
         const Clock& clock);
  /// Serves until a stop signal, then ends all requests in order. Errc::peer_gone or ::layout when the
  /// loader's pool was replaced: the worker has to start anew.
  Result<void> run(StopSignals& signals);

 private:
  Result<void> receive();
  void handle(const std::string& client, const std::string& bytes);
  void generate(const std::string& client, const wire::GenerateRequest& wire);
  void send_events();
  void send(const std::string& client, const wire::ServerMessage& message);
  void finish();

  ZmqSocket socket_;
  EngineLoop& engine_;
  const TextTools& tools_;
  std::function<std::string()> status_;
  const Clock& clock_;
  std::random_device random_;
};

}  // namespace stoker
