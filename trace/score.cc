#include "trace/score.h"

#include <algorithm>
#include <span>
#include <vector>

#include "trace/pool_model.h"

namespace stoker {
namespace {

// Values of Tier in gpu-worker/expert_source.h.
constexpr std::uint8_t kTierPool = 1, kTierHinted = 2, kTierDisk = 3;

class Player {
 public:
  Player(const Trace& trace, const ScoreOptions& options)
      : trace_(trace),
        options_(options),
        core_(options.predictor),
        pool_(trace.shape.layers, trace.shape.experts, options.slots),
        tier_(trace.shape.experts) {
    core_.reshape({.layers = trace.shape.layers, .experts = trace.shape.experts});
  }

  ScoreResult run() {
    const auto& tokens = trace_.tokens;
    for (std::size_t first = 0, last = 0; first < tokens.size(); first = last) {
      while (last < tokens.size() && tokens[last].step == tokens[first].step) ++last;
      if (first >= options_.skip && !counting_) begin_counting();
      step(std::span(tokens).subspan(first, last - first));
    }
    result_.issued = pool_.issued() - before_.issued;
    result_.used = pool_.used() - before_.used;
    result_.wasted = pool_.wasted() - before_.wasted;
    collect(result_);
    subtract_before();
    return result_;
  }

 private:
  void begin_counting() {
    counting_ = true;
    result_ = ScoreResult{};
    before_.issued = pool_.issued();
    before_.used = pool_.used();
    before_.wasted = pool_.wasted();
    collect(before_);
  }

  void step(std::span<const TraceToken> rows) {
    ++step_;
    for (const TraceToken& row : rows) take(core_.on_token(key_of(row)));
    for (std::uint32_t layer = 0; layer < trace_.shape.layers; ++layer) event(rows, layer);
    ++result_.steps;
    result_.steps_retreated += core_.restraint().state() == Restraint::State::retreated ? 1U : 0U;
    if (!rows.empty())
      core_.on_feedback(key_of(rows.front()), {.issued = pool_.issued(),
                                               .used = pool_.used(),
                                               .wasted = pool_.wasted(),
                                               .wasted_bytes = pool_.wasted() * trace_.shape.expert_bytes});
  }

  /// In the order of the worker: look up and demand, look ahead, compute, report.
  void event(std::span<const TraceToken> rows, std::uint32_t layer) {
    keys_.clear();
    for (const TraceToken& row : rows)
      for (const std::uint16_t expert : chosen(row, layer))
        keys_.push_back(layer * trace_.shape.experts + expert);
    std::sort(keys_.begin(), keys_.end());
    keys_.erase(std::unique(keys_.begin(), keys_.end()), keys_.end());
    pool_.use(step_, layer, keys_, found_);
    for (std::size_t i = 0; i < keys_.size(); ++i) {
      ++result_.uses;
      result_.demand_reads += found_[i] == Found::absent ? 1U : 0U;
      tier_[keys_[i] % trace_.shape.experts] = found_[i] == Found::absent   ? kTierDisk
                                               : found_[i] == Found::hinted ? kTierHinted
                                                                            : kTierPool;
    }
    for (const TraceToken& row : rows)
      take(core_.on_lookahead(key_of(row), layer, chosen(row, layer), candidates(row, layer + 1)));
    for (const TraceToken& row : rows) {
      const auto experts = chosen(row, layer);
      tiers_.clear();
      for (const std::uint16_t expert : experts) tiers_.push_back(tier_[expert]);
      core_.on_routing(key_of(row), layer, experts, tiers_);
    }
  }

  /// The loader's part: in order, at most so many reads.
  void take(std::span<const Guess> guesses) {
    if (!options_.hints) return;
    std::uint32_t reads = core_.restraint().width();
    for (const Guess& g : guesses)
      if (reads > 0 && pool_.hint(step_, g.layer * trace_.shape.experts + g.expert)) --reads;
  }

  [[nodiscard]] RowKey key_of(const TraceToken& row) const {
    return {.process = 0, .sequence = row.sequence, .step = step_, .token = row.token};
  }
  /// Padding is at the end.
  static std::span<const std::uint16_t> real(std::span<const std::uint16_t> ids) {
    return ids.first(static_cast<std::size_t>(std::find(ids.begin(), ids.end(), kNoExpert) - ids.begin()));
  }
  [[nodiscard]] std::span<const std::uint16_t> chosen(const TraceToken& row, std::uint32_t layer) const {
    const std::uint32_t k = trace_.shape.top_k;
    return real(std::span(row.chosen).subspan(std::size_t{layer} * k, k));
  }
  [[nodiscard]] std::span<const std::uint16_t> candidates(const TraceToken& row, std::uint32_t layer) const {
    const std::uint32_t n = trace_.shape.candidates;
    if (layer >= trace_.shape.layers || n == 0) return {};
    return real(std::span(row.candidates).subspan(std::size_t{layer} * n, n));
  }

  void collect(ScoreResult& into) const {
    for (const GuessScore& s : core_.near_scores()) into.near.add(s);
    for (const GuessScore& s : core_.far_scores()) into.far.add(s);
    into.first = core_.far_scores().front();
  }
  void subtract_before() {
    result_.near.subtract(before_.near);
    result_.far.subtract(before_.far);
    result_.first.subtract(before_.first);
  }

  const Trace& trace_;
  const ScoreOptions& options_;
  PredictorCore core_;
  PoolModel pool_;
  ScoreResult result_, before_;
  bool counting_ = false;
  std::uint32_t step_ = 0;
  std::vector<std::uint32_t> keys_;
  std::vector<Found> found_;
  std::vector<std::uint8_t> tier_, tiers_;
};

}  // namespace

ScoreResult score(const Trace& trace, const ScoreOptions& options) { return Player(trace, options).run(); }

}  // namespace stoker
