#include "daemons/predictor/sample_reader.h"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace stoker {
namespace {

template <class Out, class In>
void copy(std::vector<Out>& out, const In& in) {
  out.clear();
  for (const std::uint32_t value : in) out.push_back(static_cast<Out>(value));
}

HintCounters counters_of(const wire::HintFeedback& f) {
  return {.issued = f.issued(),
          .used = f.used(),
          .late = f.late(),
          .dropped = f.dropped(),
          .wasted = f.wasted(),
          .wasted_bytes = f.wasted_bytes(),
          .demand_busy_ns = f.demand_busy_ns(),
          .now_ns = f.now_ns()};
}

double share(std::uint64_t part, std::uint64_t whole) {
  return whole == 0 ? 0 : static_cast<double>(part) / static_cast<double>(whole);
}

nlohmann::ordered_json score_json(const GuessScore& s) {
  nlohmann::ordered_json out{{"rows", s.rows},
                             {"guessed", s.sent},
                             {"right", s.right},
                             {"precision", share(s.right, s.sent)},
                             {"chosen", s.chosen},
                             {"cold", s.cold},
                             {"cold_served", s.cold_served},
                             {"cold_late", s.cold_late}};
  for (std::size_t i = 0; i < s.cold_found.size(); ++i)
    out["cold_recall_" + std::to_string(GuessScore::kRecallAt[i])] = share(s.cold_found[i], s.cold);
  return out;
}

nlohmann::ordered_json sum_json(std::span<const GuessScore> layers) {
  GuessScore sum;
  for (const GuessScore& s : layers) sum.add(s);
  return score_json(sum);
}

}  // namespace

const wire::HintBatch* SampleReader::on_sample(const wire::RoutingSample& sample) {
  if (sample.layers() == 0 || sample.experts() == 0) return nullptr;
  ++samples_;
  step_ = sample.step();
  core_.reshape({.layers = sample.layers(), .experts = sample.experts()});
  const RowKey row{.process = sample.process(),
                   .sequence = sample.sequence(),
                   .step = sample.step(),
                   .token = sample.token()};
  std::span<const Guess> guesses;
  if (sample.begins()) {
    guesses = core_.on_token(row);
  } else if (sample.lookahead_layer() > 0) {
    copy(chosen_, sample.routed());
    copy(candidates_, sample.lookahead());
    guesses = core_.on_lookahead(row, sample.lookahead_layer() - 1, chosen_, candidates_);
  }
  if (sample.chosen_size() > 0) {
    copy(chosen_, sample.chosen());
    copy(tiers_, sample.tiers());
    core_.on_routing(row, sample.layer(), chosen_, tiers_);
  }
  if (sample.has_feedback()) core_.on_feedback(row, counters_of(sample.feedback()));
  if (guesses.empty()) return nullptr;
  batch_.Clear();
  batch_.set_step(row.step);
  batch_.set_process(row.process);
  batch_.set_reads_max(core_.restraint().width());
  for (const Guess& guess : guesses) {
    wire::Hint& hint = *batch_.add_hints();
    hint.set_layer(guess.layer);
    hint.set_expert(guess.expert);
    hint.set_confidence(guess.probability);
  }
  return &batch_;
}

std::string SampleReader::json() const {
  const Restraint& restraint = core_.restraint();
  const HintCounters& loader = restraint.counters();
  nlohmann::ordered_json out{{"state", restraint.state_name()},
                             {"retreats", restraint.retreats()},
                             {"useful", loader.used + loader.late},
                             {"issued", loader.issued},
                             {"wasted", loader.wasted},
                             {"wasted_bytes", loader.wasted_bytes},
                             {"useful_share", std::max(0.0, restraint.useful_share())},
                             {"demand_busy", restraint.busy()},
                             {"gain", restraint.gain()},
                             {"threshold", restraint.threshold()},
                             {"late", loader.late},
                             {"dropped", loader.dropped},
                             {"samples", samples_},
                             {"step", step_},
                             {"near", sum_json(core_.near_scores())},
                             {"far", sum_json(core_.far_scores())}};
  nlohmann::ordered_json layers = nlohmann::ordered_json::object();
  for (std::size_t layer = 0; layer < core_.near_scores().size(); ++layer)
    layers[std::to_string(layer)] = {{"near", score_json(core_.near_scores()[layer])},
                                     {"far", score_json(core_.far_scores()[layer])}};
  out["layers"] = std::move(layers);
  return out.dump();
}

}  // namespace stoker
