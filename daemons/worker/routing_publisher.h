// Routing events of decode steps, as samples on a PUB socket. Never blocks: what a slow or absent predictor
// does not take is dropped by ZeroMQ.
#pragma once

#include <functional>

#include "daemons/common/zmq_socket.h"
#include "gpu-worker/decode.h"
#include "shm/pool.h"
#include "stoker.pb.h"

namespace stoker {

class RoutingPublisher final : public RoutingObserver {
 public:
  /// `step` gives the pool's step number of the step in progress; the hints must carry it. `pool` and what
  /// `step` refers to must outlive the publisher. Used from the engine thread only.
  RoutingPublisher(ZmqSocket socket, const Pool& pool, std::uint32_t layers,
                   std::function<std::uint64_t()> step);
  void on_lookahead(const LookaheadEvent& event) override;
  void on_routing(const RoutingEvent& event) override;
  [[nodiscard]] bool wants_timing() const override { return true; }

 private:
  void send(const wire::RoutingSample& sample);
  ZmqSocket socket_;
  const Pool& pool_;
  std::uint32_t last_layer_;
  std::function<std::uint64_t()> step_;
  std::uint64_t feedback_step_ = 0;  ///< feedback goes out once per step
  std::string bytes_;                ///< reused
};

/// The pool's counters as the predictor wants them.
wire::HintFeedback hint_feedback(const PoolCounters& counters);

}  // namespace stoker
