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

RoutingPublisher::RoutingPublisher(ZmqSocket socket, const Pool& pool, const Clock& clock, RoutingFacts facts)
    : socket_(std::move(socket)), pool_(pool), clock_(clock), facts_(std::move(facts)) {}

wire::RoutingSample& RoutingPublisher::begin(std::uint64_t step, std::uint32_t sequence_id,
                                             std::uint32_t token) {
  sample_.Clear();
  sample_.set_layers(facts_.layers);
  sample_.set_experts(facts_.experts);
  sample_.set_process(facts_.process);
  sample_.set_step(step);
  sample_.set_sequence(sequence_id);
  sample_.set_token(token);
  return sample_;
}

void RoutingPublisher::on_token(std::uint32_t sequence_id, std::uint32_t token) {
  // The step gets its number when its first layer begins.
  begin(facts_.step() + 1, sequence_id, token).set_begins(true);
  send();
}

void RoutingPublisher::on_lookahead(const LookaheadEvent& event) {
  wire::RoutingSample& sample = begin(facts_.step(), event.sequence_id, event.token);
  sample.set_lookahead_layer(event.layer);
  for (const ExpertId expert : event.chosen) sample.add_routed(expert.value);
  for (const ExpertId expert : event.candidates) sample.add_lookahead(expert.value);
  for (const float score : event.scores) sample.add_lookahead_scores(score);
  send();
}

void RoutingPublisher::on_routing(const RoutingEvent& event) {
  wire::RoutingSample& sample = begin(facts_.step(), event.sequence_id, event.token);
  sample.set_layer(event.layer);
  for (const ExpertId expert : event.chosen) sample.add_chosen(expert.value);
  for (const float weight : event.weights) sample.add_weights(weight);
  for (const Tier tier : event.tiers) sample.add_tiers(static_cast<std::uint32_t>(tier));
  *sample.mutable_times() = layer_times(event.timing);
  if (event.layer + 1 == facts_.layers && feedback_step_ != sample.step()) {
    feedback_step_ = sample.step();
    *sample.mutable_feedback() = hint_feedback(pool_.counters(), clock_.now());
  }
  send();
}

void RoutingPublisher::send() {
  bytes_.clear();
  sample_.AppendToString(&bytes_);
  const std::array<std::string_view, 1> parts{bytes_};
  static_cast<void>(socket_.send(parts));  // samples may be lost; nothing depends on them but speed
}

wire::HintFeedback hint_feedback(const PoolCounters& counters, Duration now) {
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
  feedback.set_demand_busy_ns(get(counters.loader.demand_busy_ns));
  feedback.set_now_ns(static_cast<std::uint64_t>(now.count()));
  return feedback;
}

}  // namespace stoker
