#include "daemons/worker/routing_publisher.h"

#include <array>

namespace stoker {

namespace {
wire::LayerTimes layer_times(const LayerTiming& timing) {
  const auto microseconds = [](Duration d) { return static_cast<float>(1e6 * seconds(d)); };
  wire::LayerTimes times;
  times.set_demanded(microseconds(timing.demanded));
  times.set_stalled(microseconds(timing.stalled));
  times.set_landed(microseconds(timing.landed));
  times.set_done(microseconds(timing.done));
  return times;
}
}  // namespace

RoutingPublisher::RoutingPublisher(ZmqSocket socket, const Pool& pool, std::uint32_t layers,
                                   std::function<std::uint64_t()> step)
    : socket_(std::move(socket)), pool_(pool), last_layer_(layers - 1), step_(std::move(step)) {}

void RoutingPublisher::on_lookahead(const LookaheadEvent& event) {
  wire::RoutingSample sample;
  sample.set_step(step_());
  sample.set_sequence(event.sequence_id);
  sample.set_token(event.token);
  sample.set_lookahead_layer(event.layer);
  for (const ExpertId expert : event.candidates) sample.add_lookahead(expert.value);
  for (const float score : event.scores) sample.add_lookahead_scores(score);
  send(sample);
}

void RoutingPublisher::on_routing(const RoutingEvent& event) {
  wire::RoutingSample sample;
  sample.set_step(step_());
  sample.set_layer(event.layer);
  sample.set_sequence(event.sequence_id);
  sample.set_token(event.token);
  for (const ExpertId expert : event.chosen) sample.add_chosen(expert.value);
  for (const float weight : event.weights) sample.add_weights(weight);
  for (const Tier tier : event.tiers) sample.add_tiers(static_cast<std::uint32_t>(tier));
  *sample.mutable_times() = layer_times(event.timing);
  if (event.layer == last_layer_ && feedback_step_ != sample.step()) {
    feedback_step_ = sample.step();
    *sample.mutable_feedback() = hint_feedback(pool_.counters());
  }
  send(sample);
}

void RoutingPublisher::send(const wire::RoutingSample& sample) {
  bytes_.clear();
  sample.AppendToString(&bytes_);
  const std::array<std::string_view, 1> parts{bytes_};
  static_cast<void>(socket_.send(parts));  // samples may be lost; nothing depends on them but speed
}

wire::HintFeedback hint_feedback(const PoolCounters& counters) {
  const auto get = [](const std::atomic<std::uint64_t>& value) {
    return value.load(std::memory_order_relaxed);
  };
  wire::HintFeedback feedback;
  feedback.set_issued(get(counters.loader.hints_issued));
  feedback.set_used(get(counters.worker.hint_hits));
  feedback.set_late(get(counters.worker.late_hints));
  feedback.set_dropped(get(counters.loader.hints_dropped));
  feedback.set_wasted(get(counters.loader.hints_wasted));
  feedback.set_wasted_bytes(get(counters.loader.wasted_bytes));
  return feedback;
}

}  // namespace stoker
