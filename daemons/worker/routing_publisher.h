// Routing events of decode steps, as samples on a PUB socket. Never blocks: what a slow or absent predictor
// does not take is dropped by ZeroMQ.
#pragma once

#include <functional>

#include "daemons/common/zmq_socket.h"
#include "gpu-worker/decode.h"
#include "shm/base/clock.h"
#include "shm/pool.h"
#include "stoker.pb.h"

namespace stoker {

struct RoutingFacts {
  std::uint32_t layers = 0, experts = 0;
  unsigned process = 0;                 ///< the worker's index in the pool
  std::function<std::uint64_t()> step;  ///< the worker's own count of the step in progress
};

class RoutingPublisher final : public RoutingObserver {
 public:
  /// `pool`, `clock` and what `facts.step` refers to must outlive the publisher. Used from the engine thread
  /// only.
  RoutingPublisher(ZmqSocket socket, const Pool& pool, const Clock& clock, RoutingFacts facts);
  void on_token(std::uint32_t sequence_id, std::uint32_t token) override;
  void on_lookahead(const LookaheadEvent& event) override;
  void on_routing(const RoutingEvent& event) override;
  [[nodiscard]] bool wants_timing() const override { return true; }

 private:
  wire::RoutingSample& begin(std::uint64_t step, std::uint32_t sequence_id, std::uint32_t token);
  void send();
  ZmqSocket socket_;
  const Pool& pool_;
  const Clock& clock_;
  RoutingFacts facts_;
  std::uint64_t feedback_step_ = 0;  ///< feedback goes out once per step
  wire::RoutingSample sample_;       ///< reused
  std::string bytes_;                ///< reused
};

/// The pool's counters as the predictor wants them.
wire::HintFeedback hint_feedback(const PoolCounters& counters, Duration now);

}  // namespace stoker
