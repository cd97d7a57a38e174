#include "predictor/predictor_core.h"

#include <algorithm>
#include <cmath>

namespace stoker {

namespace {

// Values of Tier in gpu-worker/expert_source.h; the predictor does not include the worker's headers.
constexpr std::uint8_t kTierHinted = 2;
constexpr std::uint8_t kTierLate = 4;
constexpr float kFade = 0.99F;  // of a use, per visit of its layer
/// Blends start with ranks scaled to this; real ones are learned.
constexpr std::uint32_t kUsualTopK = 10;

bool contains(std::span<const std::uint16_t> values, std::uint16_t value) {
  return std::find(values.begin(), values.end(), value) != values.end();
}

template <class Step>
void each(GuessScore& a, const GuessScore& b, Step step) {
  step(a.rows, b.rows);
  step(a.sent, b.sent);
  step(a.right, b.right);
  step(a.chosen, b.chosen);
  step(a.cold, b.cold);
  for (std::size_t i = 0; i < a.cold_found.size(); ++i) step(a.cold_found[i], b.cold_found[i]);
  step(a.cold_served, b.cold_served);
  step(a.cold_late, b.cold_late);
}

}  // namespace

void GuessScore::add(const GuessScore& other) {
  each(*this, other, [](std::uint64_t& a, std::uint64_t b) { a += b; });
}

void GuessScore::subtract(const GuessScore& earlier) {
  each(*this, earlier, [](std::uint64_t& a, std::uint64_t b) { a -= b; });
}

PredictorCore::PredictorCore(const PredictorOptions& options)
    : options_(options), restraint_(options.restraint) {
  options_.horizon = std::max(1U, options_.horizon);
  for (std::size_t age = 0; age < kAges; ++age) {
    fade_.push_back(std::pow(kFade, static_cast<float>(age)));
    recency_.push_back(1.0F / std::sqrt(static_cast<float>(age) + 1.0F));
  }
}

void PredictorCore::reshape(const PredictorShape& shape) {
  if (shape == shape_) return;
  shape_ = shape;
  const std::size_t all = std::size_t{shape.layers} * shape.experts;
  blends_.clear();
  for (const bool ranked : {true, false, false}) blends_.emplace_back(shape.layers, kUsualTopK, ranked);
  for (const Kind kind : {kNear, kFar}) {
    cross_[kind].assign(options_.cross_layer ? all : 0, CrossRow{});
    scores_[kind].assign(shape.layers, GuessScore{});
    sent_[kind].assign(kProcesses * all, 0);
  }
  if (options_.token_table) tokens_.resize(shape.layers, options_.token_table_bytes);
  uses_.assign(all, Use{});
  visits_.assign(shape.layers, 0);
  rows_.assign(kSequences, Row{});
  for (Row& row : rows_) {
    row.chosen.resize(shape.layers);
    row.pending.resize(2 * (std::size_t{options_.horizon} + 2));
  }
  features_.assign(shape.experts, Features{});
  stamp_.assign(shape.experts, 0);
  touched_.reserve(shape.experts);
  ranked_.reserve(shape.experts);
  guesses_.reserve((std::size_t{options_.horizon} + 1) * kKept);
}

PredictorCore::Row& PredictorCore::row_of(const RowKey& key) {
  Row* oldest = rows_.data();
  for (Row& row : rows_) {
    if (row.used != 0 && row.process == key.process && row.sequence == key.sequence) {
      row.used = ++tick_;
      return row;
    }
    if (row.used < oldest->used) oldest = &row;
  }
  oldest->process = key.process;
  oldest->sequence = key.sequence;
  oldest->used = ++tick_;
  for (Choice& c : oldest->chosen) c.count = 0;
  for (Pending& p : oldest->pending) p.waiting = false;
  return *oldest;
}

PredictorCore::Pending& PredictorCore::pending(Row& row, Kind kind, std::uint32_t layer) {
  const std::size_t ring = std::size_t{options_.horizon} + 2;
  return row.pending[kind * ring + layer % ring];
}

void PredictorCore::remember(Row& row, const RowKey& key, std::uint32_t layer,
                             std::span<const std::uint16_t> chosen) {
  Choice& c = row.chosen[layer];
  c.step = key.step;
  c.count = static_cast<std::uint32_t>(std::min(chosen.size(), kChosenMax));
  std::copy_n(chosen.begin(), c.count, c.experts.begin());
}

std::span<const std::uint16_t> PredictorCore::choice(const Row& row, const RowKey& key,
                                                     std::uint32_t layer) const {
  const Choice& c = row.chosen[layer];
  return c.step == key.step ? c.view() : std::span<const std::uint16_t>();
}

// ---- guessing ----

std::span<const Guess> PredictorCore::on_token(const RowKey& key) {
  guesses_.clear();
  if (rests(key)) return {};
  Row& row = row_of(key);
  for (std::uint32_t layer = 0; layer < std::min(options_.horizon, shape_.layers); ++layer)
    guess(row, key, kFar, layer, {}, {});
  return guesses_;
}

std::span<const Guess> PredictorCore::on_lookahead(const RowKey& key, std::uint32_t layer,
                                                   std::span<const std::uint16_t> chosen,
                                                   std::span<const std::uint16_t> candidates) {
  guesses_.clear();
  Row& row = row_of(key);
  remember(row, key, layer, chosen);
  if (rests(key)) return {};
  if (layer + 1 < shape_.layers)
    guess(row, key, kNear, layer + 1, chosen, options_.lookahead ? candidates : candidates.first(0));
  if (options_.horizon > 1 && layer + options_.horizon < shape_.layers)
    guess(row, key, kFar, layer + options_.horizon, chosen, {});
  return guesses_;
}

void PredictorCore::guess(Row& row, const RowKey& key, Kind kind, std::uint32_t layer,
                          std::span<const std::uint16_t> source, std::span<const std::uint16_t> candidates) {
  gather(key, kind, layer, source, candidates);
  Pending& p = pending(row, kind, layer);
  p.waiting = true;
  p.step = key.step;
  p.layer = layer;
  p.from_token_only = source.empty();
  keep_best(p, blend_of(kind, p));
  send(p, key, kind);
}

Features& PredictorCore::touch(std::uint16_t expert) {
  if (stamp_[expert] != guess_number_) {
    stamp_[expert] = guess_number_;
    features_[expert] = Features{};
    touched_.push_back(expert);
  }
  return features_[expert];
}

/// Features of every expert that any source names.
void PredictorCore::gather(const RowKey& key, Kind kind, std::uint32_t layer,
                           std::span<const std::uint16_t> source, std::span<const std::uint16_t> candidates) {
  if (++guess_number_ == 0) {
    stamp_.assign(stamp_.size(), 0);
    guess_number_ = 1;
  }
  touched_.clear();
  for (std::size_t r = 0; r < std::min<std::size_t>(candidates.size(), Features::kNoRank); ++r)
    if (candidates[r] < shape_.experts) touch(candidates[r]).rank = static_cast<std::uint8_t>(r);
  if (options_.cross_layer && !source.empty() && layer >= distance(kind)) {
    for (const std::uint16_t expert : source.first(std::min(source.size(), kChosenMax))) {
      const CrossRow& next = cross(kind, layer - distance(kind), expert);
      // Two more uses than there were: what was seen once says little.
      const float each =
          1.0F / ((static_cast<float>(next.uses()) + 2.0F) * static_cast<float>(source.size()));
      for (const auto& e : next.entries())
        if (e.count > 0) touch(e.expert).cross += each * static_cast<float>(e.count);
    }
  }
  if (options_.token_table) {
    if (const TokenTable::Row* seen = tokens_.find(key.token, layer); seen != nullptr && seen->uses() > 0) {
      const float each = 1.0F / (static_cast<float>(seen->uses()) + 0.5F);
      for (const auto& e : seen->entries())
        if (e.count > 0) touch(e.expert).token += each * static_cast<float>(e.count);
    }
  }
  add_history(layer);
}

/// How recent and how popular, and sums of shares as features.
void PredictorCore::add_history(std::uint32_t layer) {
  const float usual = static_cast<float>(shape_.experts) * (1.0F - kFade);
  for (const std::uint16_t expert : touched_) {
    Features& f = features_[expert];
    f.cross = share_feature(f.cross);
    f.token = share_feature(f.token);
    const Use& use = uses_[std::size_t{layer} * shape_.experts + expert];
    if (use.visit == 0) continue;
    const std::size_t age = std::min<std::size_t>(visits_[layer] - use.visit, kAges - 1);
    f.recent = recency_[age];
    f.popular = std::log1p(use.frequency * fade_[age] * usual / kUsualTopK);
  }
}

void PredictorCore::keep_best(Pending& into, const Blend& blend) {
  ranked_.clear();
  for (const std::uint16_t expert : touched_)
    ranked_.push_back({features_[expert], blend.probability(into.layer, features_[expert]), expert, false});
  into.count = static_cast<std::uint32_t>(std::min(ranked_.size(), kKept));
  std::partial_sort(ranked_.begin(), ranked_.begin() + into.count, ranked_.end(),
                    [](const Candidate& a, const Candidate& b) {
                      return a.probability != b.probability ? a.probability > b.probability
                                                            : a.expert < b.expert;
                    });
  std::copy_n(ranked_.begin(), into.count, into.candidates.begin());
}

/// What is worth a read, once per step of a worker: rows of one batch want much the same.
void PredictorCore::send(Pending& from, const RowKey& key, Kind kind) {
  const float threshold = restraint_.threshold();
  if (restraint_.width() == 0) return;
  const auto now = static_cast<std::uint32_t>(key.step);
  const std::size_t first =
      (key.process % kProcesses * shape_.layers + from.layer) * std::size_t{shape_.experts};
  for (Candidate& c : std::span(from.candidates).first(from.count)) {
    if (c.probability < threshold) return;
    std::uint32_t& last = sent_[kind][first + c.expert];
    if (last == now) continue;
    last = now;
    c.sent = true;
    guesses_.push_back({from.layer, c.expert, c.probability});
  }
}

// ---- judging and learning ----

void PredictorCore::on_routing(const RowKey& key, std::uint32_t layer, std::span<const std::uint16_t> chosen,
                               std::span<const std::uint8_t> tiers) {
  Row& row = row_of(key);
  remember(row, key, layer, chosen);
  judge(row, key, kNear, layer, chosen, tiers);
  judge(row, key, kFar, layer, chosen, tiers);
  learn_tables(row, key, layer, chosen);
}

void PredictorCore::judge(Row& row, const RowKey& key, Kind kind, std::uint32_t layer,
                          std::span<const std::uint16_t> chosen, std::span<const std::uint8_t> tiers) {
  Pending& p = pending(row, kind, layer);
  if (!p.waiting || p.step != key.step || p.layer != layer) return;
  p.waiting = false;
  GuessScore& score = scores_[kind][layer];
  ++score.rows;
  Blend& blend = blend_of(kind, p);
  for (Candidate& c : std::span(p.candidates).first(p.count)) {
    const bool right = contains(chosen, c.expert);
    blend.learn(layer, c.features, right);
    score.sent += c.sent ? 1U : 0U;
    score.right += c.sent && right ? 1U : 0U;
  }
  for (std::size_t i = 0; i < chosen.size(); ++i) {
    ++score.chosen;
    if (tiers[i] < kTierHinted) continue;
    ++score.cold;
    score.cold_served += tiers[i] == kTierHinted ? 1U : 0U;
    score.cold_late += tiers[i] == kTierLate ? 1U : 0U;
    for (std::uint32_t place = 0; place < p.count; ++place) {
      if (p.candidates[place].expert != chosen[i]) continue;
      for (std::size_t n = 0; n < score.cold_found.size(); ++n)
        score.cold_found[n] += place < GuessScore::kRecallAt[n] ? 1U : 0U;
    }
  }
}

void PredictorCore::learn_tables(const Row& row, const RowKey& key, std::uint32_t layer,
                                 std::span<const std::uint16_t> chosen) {
  if (options_.token_table) tokens_.at(key.token, layer).add(chosen);
  if (options_.cross_layer) {
    for (const Kind kind : {kNear, kFar}) {
      if (layer < distance(kind) || (kind == kFar && options_.horizon == 1)) continue;
      for (const std::uint16_t expert : choice(row, key, layer - distance(kind)))
        cross(kind, layer - distance(kind), expert).add(chosen);
    }
  }
  const std::uint32_t visit = ++visits_[layer];
  for (const std::uint16_t expert : chosen) {
    Use& use = uses_[std::size_t{layer} * shape_.experts + expert];
    use.frequency = use.frequency * fade_[std::min<std::size_t>(visit - use.visit, kAges - 1)] + 1.0F;
    use.visit = visit;
  }
}

}  // namespace stoker
