// What Prometheus reads: the gateway's own requests, and the worker's counters out of its status.
#pragma once

#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <optional>
#include <string>

#include "daemons/gateway/json.h"
#include "stoker.pb.h"

namespace stoker::gateway {

class Metrics {
 public:
  Metrics();

  /// A response has begun. `path` is one that routes know, or "other".
  void count_response(const std::string& path, unsigned status);
  /// A generation has ended well.
  void count_generation(const wire::Stats& stats);
  void begin_generation() { running_.Increment(); }
  void end_generation() { running_.Decrement(); }
  /// The client went away before its answer was complete.
  void count_disconnect() { disconnects_.Increment(); }

  /// Prometheus' text format. `worker`: its status, if there is one.
  [[nodiscard]] std::string text(const std::optional<Json>& worker) const;

 private:
  prometheus::Registry registry_;
  prometheus::Family<prometheus::Counter>& responses_;
  prometheus::Gauge& running_;
  prometheus::Counter& disconnects_;
  prometheus::Histogram& first_token_;
  prometheus::Histogram& between_tokens_;
  prometheus::Histogram& whole_;
};

}  // namespace stoker::gateway
