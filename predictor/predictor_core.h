// From routing to guesses: which experts a row will want in layers that it has not reached. Pure: no sockets,
// no clock, no messages; the daemon and `stoker trace score` run the same code.
//
// Three sources (caching.md 2), joined into one probability per (layer, expert) by predictor/blend.h:
//   look-ahead   the next layer's router on this layer's hidden state, one layer ahead; from the worker.
//
//   cross-layer  which experts of layer l + d followed an expert of layer l. d = 1 and d = horizon.
//
//   token id     what this token id chose before. Known before the step begins, for all layers.
//
// Every layer of a row is guessed twice: `far`, when it comes within `horizon` layers (at the step's start
// the first `horizon` layers at once), and `near`, from the layer before it. All guesses are judged and
// learned from when the routing is known, sent or not: while it retreats the predictor goes on learning.
//
// Memory is taken in reshape() and bounded; no allocation per sample.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "predictor/blend.h"
#include "predictor/restraint.h"
#include "predictor/token_table.h"
#include "predictor/top_row.h"

namespace stoker {

struct PredictorShape {
  std::uint32_t layers = 0, experts = 0;
  bool operator==(const PredictorShape&) const = default;
};

struct PredictorOptions {
  /// How many layers ahead the far guess is, at least 1: then only layer 0 has one, from the token. More
  /// costs bytes and brings little where a layer takes longer than a read (docs/hints.md).
  std::uint32_t horizon = 1;
  std::size_t token_table_bytes = std::size_t{64} << 20;
  /// Sources in use. With a look-ahead the cross-layer tables add nothing that was measured (docs/hints.md);
  /// they are for traces and models without one.
  bool lookahead = true, cross_layer = false, token_table = true;
  RestraintOptions restraint;
};

/// One row of one step of one worker.
struct RowKey {
  std::uint32_t process = 0, sequence = 0;
  std::uint64_t step = 0;  ///< the worker's own count
  std::uint32_t token = 0;
};

struct Guess {
  std::uint32_t layer = 0, expert = 0;
  float probability = 0;
};

/// What became of guesses, in expert uses of rows.
struct GuessScore {
  static constexpr std::array<std::uint32_t, 3> kRecallAt = {10, 16, 24};
  std::uint64_t rows = 0;                     ///< rows and layers judged
  std::uint64_t sent = 0, right = 0;          ///< guesses above the threshold; of these, chosen
  std::uint64_t chosen = 0;                   ///< experts chosen
  std::uint64_t cold = 0;                     ///< of these: not resident without a hint
  std::array<std::uint64_t, 3> cold_found{};  ///< of the cold: among the best 10, 16, 24 guesses
  std::uint64_t cold_served = 0;              ///< of the cold: in the pool in time because of a hint
  std::uint64_t cold_late = 0;                ///< of the cold: the hint's read was still in flight
  void add(const GuessScore& other);
  void subtract(const GuessScore& earlier);  ///< of the same predictor
};

class PredictorCore {
 public:
  explicit PredictorCore(const PredictorOptions& options);

  /// For a model of this shape; forgets all if it is another one than before.
  void reshape(const PredictorShape& shape);

  /// The row's step begins. Guesses are valid until the next call.
  std::span<const Guess> on_token(const RowKey& row);
  /// The row chose `chosen` (best first) in `layer`; `candidates` (best first) are what the look-ahead says
  /// of layer + 1.
  std::span<const Guess> on_lookahead(const RowKey& row, std::uint32_t layer,
                                      std::span<const std::uint16_t> chosen,
                                      std::span<const std::uint16_t> candidates);
  /// The layer is done; tiers (of gpu-worker/expert_source.h, parallel to chosen) say where its experts were.
  void on_routing(const RowKey& row, std::uint32_t layer, std::span<const std::uint16_t> chosen,
                  std::span<const std::uint8_t> tiers);
  void on_feedback(const RowKey& row, const HintCounters& counters) {
    restraint_.on_step(row.process, row.step, counters);
  }

  [[nodiscard]] const Restraint& restraint() const { return restraint_; }
  [[nodiscard]] const PredictorShape& shape() const { return shape_; }
  /// By layer.
  [[nodiscard]] std::span<const GuessScore> near_scores() const { return scores_[kNear]; }
  [[nodiscard]] std::span<const GuessScore> far_scores() const { return scores_[kFar]; }

 private:
  enum Kind : std::uint8_t { kNear, kFar };
  static constexpr std::size_t kKept = 48;       ///< candidates of one guess that are remembered
  static constexpr std::size_t kSequences = 64;  ///< rows in flight that are remembered
  static constexpr std::size_t kChosenMax = 16;  ///< of a layer's choice, best first
  static constexpr std::size_t kAges = 1024;
  static constexpr std::size_t kProcesses = 16;  ///< kProcessMax of the pool
  using CrossRow = TopRow<32>;

  struct Candidate {
    Features features;
    float probability = 0;
    std::uint16_t expert = 0;
    bool sent = false;
  };
  struct Pending {  ///< a guess that waits for its layer's routing
    std::uint64_t step = 0;
    std::uint32_t layer = 0, count = 0;
    bool waiting = false, from_token_only = false;
    std::array<Candidate, kKept> candidates;  ///< most probable first
  };
  struct Choice {
    std::uint64_t step = 0;
    std::uint32_t count = 0;
    std::array<std::uint16_t, kChosenMax> experts;
    [[nodiscard]] std::span<const std::uint16_t> view() const { return std::span(experts).first(count); }
  };
  struct Row {
    std::uint32_t process = 0, sequence = 0;
    std::uint64_t used = 0;        ///< tick; 0: empty
    std::vector<Choice> chosen;    ///< by layer
    std::vector<Pending> pending;  ///< [kind][layer % ring]
  };
  struct Use {
    std::uint32_t visit = 0;  ///< of the layer, when last used; 0: never
    float frequency = 0;      ///< decayed, as of then
  };

  /// While nothing is sent, guessing at every fourth step is enough to stay in practice.
  [[nodiscard]] bool rests(const RowKey& key) const {
    return restraint_.state() == Restraint::State::retreated && key.step % 4 != 0;
  }
  Row& row_of(const RowKey& key);
  Pending& pending(Row& row, Kind kind, std::uint32_t layer);
  static void remember(Row& row, const RowKey& key, std::uint32_t layer,
                       std::span<const std::uint16_t> chosen);
  [[nodiscard]] std::span<const std::uint16_t> choice(const Row& row, const RowKey& key,
                                                      std::uint32_t layer) const;
  void guess(Row& row, const RowKey& key, Kind kind, std::uint32_t layer,
             std::span<const std::uint16_t> source, std::span<const std::uint16_t> candidates);
  Features& touch(std::uint16_t expert);
  void gather(const RowKey& key, Kind kind, std::uint32_t layer, std::span<const std::uint16_t> source,
              std::span<const std::uint16_t> candidates);
  void add_history(std::uint32_t layer);
  void keep_best(Pending& into, const Blend& blend);
  void send(Pending& from, const RowKey& key, Kind kind);
  void judge(Row& row, const RowKey& key, Kind kind, std::uint32_t layer,
             std::span<const std::uint16_t> chosen, std::span<const std::uint8_t> tiers);
  void learn_tables(const Row& row, const RowKey& key, std::uint32_t layer,
                    std::span<const std::uint16_t> chosen);
  [[nodiscard]] CrossRow& cross(Kind kind, std::uint32_t layer, std::uint32_t expert) {
    return cross_[kind][std::size_t{layer} * shape_.experts + expert];
  }
  [[nodiscard]] std::uint32_t distance(Kind kind) const { return kind == kNear ? 1 : options_.horizon; }
  [[nodiscard]] Blend& blend_of(Kind kind, const Pending& p) {
    return blends_[p.from_token_only ? 2 : std::size_t{kind}];
  }

  PredictorOptions options_;
  PredictorShape shape_;
  Restraint restraint_;
  std::vector<Blend> blends_;                   ///< near, far, far from the token alone
  std::array<std::vector<CrossRow>, 2> cross_;  ///< [kind][layer * experts + expert]: what follows it
  TokenTable tokens_;
  std::vector<Use> uses_;              ///< [layer * experts + expert]
  std::vector<std::uint32_t> visits_;  ///< by layer: rows seen
  std::vector<float> fade_, recency_;  ///< by age in visits
  std::vector<Row> rows_;
  std::array<std::vector<GuessScore>, 2> scores_;
  /// [kind][process][layer * experts + expert]: the step it was sent in (low bits); two rows of a batch send
  /// it once.
  std::array<std::vector<std::uint32_t>, 2> sent_;
  std::uint64_t tick_ = 0;

  // Scratch of one guess.
  std::vector<Features> features_;    ///< by expert
  std::vector<std::uint32_t> stamp_;  ///< by expert: features_ is of this guess
  std::vector<std::uint16_t> touched_;
  std::vector<Candidate> ranked_;
  std::uint32_t guess_number_ = 0;
  std::vector<Guess> guesses_;
};

}  // namespace stoker
