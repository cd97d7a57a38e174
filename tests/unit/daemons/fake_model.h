// A model without arithmetic: the next token is a function of all tokens of the sequence and nothing else,
// so a scheduler that feeds a token twice, skips one, or mixes sequences up gives other answers.
#pragma once

#include <algorithm>
#include <atomic>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "gpu-worker/decode.h"
#include "shm/base/check.h"

namespace stoker::test {

inline constexpr std::uint32_t kVocabulary = 512;
inline constexpr std::uint64_t kBytesPerToken = 100, kBytesPerSequence = 1000, kBytesPerMark = 800;

/// What the fake model says after `tokens`, unless a script does.
inline std::uint32_t next_token(const std::vector<std::uint32_t>& tokens) {
  std::uint64_t hash = 1469598103934665603ULL;
  for (const std::uint32_t token : tokens) hash = (hash ^ token) * 1099511628211ULL;
  return static_cast<std::uint32_t>(hash >> 33) % 500;  // 500..511 are left for end-of-text in tests
}

class FakeSequence final : public Sequence {
 public:
  explicit FakeSequence(int& alive) : alive_(alive) { ++alive_; }
  FakeSequence(const FakeSequence&) = delete;
  FakeSequence& operator=(const FakeSequence&) = delete;
  ~FakeSequence() override { --alive_; }
  [[nodiscard]] std::uint32_t length() const override { return static_cast<std::uint32_t>(tokens.size()); }
  [[nodiscard]] std::uint64_t memory_bytes() const override {
    return kBytesPerSequence + kBytesPerToken * tokens.size() + (mark_.empty() ? 0 : kBytesPerMark);
  }
  Result<void> mark() override {
    mark_ = tokens;
    return {};
  }
  [[nodiscard]] std::uint32_t marked() const override { return static_cast<std::uint32_t>(mark_.size()); }
  Result<void> rewind() override {
    tokens = mark_;
    return {};
  }
  void unmark() override { mark_.clear(); }
  [[nodiscard]] Result<std::unique_ptr<Sequence>> fork() const override {
    auto other = std::make_unique<FakeSequence>(alive_);
    other->tokens = tokens;
    return other;
  }
  std::vector<std::uint32_t> tokens;

 private:
  int& alive_;
  std::vector<std::uint32_t> mark_;
};

/// One call of step(), for tests of order and batching.
struct FakeStep {
  Access access = Access::decode;
  std::vector<std::uint32_t> sequences;
  std::vector<std::size_t> tokens;
};

class FakeModel final : public Model {
 public:
  FakeModel() { config_.vocab_size = kVocabulary; }
  [[nodiscard]] const ModelConfig& config() const override { return config_; }
  [[nodiscard]] std::unique_ptr<Sequence> new_sequence() override {
    return std::make_unique<FakeSequence>(alive);
  }
  [[nodiscard]] std::uint64_t sequence_bytes(std::uint64_t length) const override {
    return kBytesPerSequence + kBytesPerToken * length;
  }
  [[nodiscard]] std::uint64_t mark_bytes() const override { return kBytesPerMark; }
  [[nodiscard]] std::uint32_t step_tokens_max() const override { return step_tokens; }
  [[nodiscard]] std::string describe() const override { return "fake"; }

  Result<StepStats> step(std::span<const Segment> segments, Access access, ExpertSource& /*source*/,
                         RoutingObserver* observer, std::span<SegmentResult> results) override {
    if (on_step) on_step();
    FakeStep record{.access = access, .sequences = {}, .tokens = {}};
    std::size_t rows = 0;
    for (const Segment& segment : segments) {
      record.sequences.push_back(segment.sequence_id);
      record.tokens.push_back(segment.tokens.size());
      rows += segment.tokens.size();
    }
    STOKER_CHECK(!segments.empty() && rows <= step_tokens && results.size() == segments.size());
    steps.push_back(record);
    if (broken) return tl::unexpected<Error>(*broken);
    logits_.assign(segments.size(), {});
    for (std::size_t i = 0; i < segments.size(); ++i) {
      run(segments[i], results[i], logits_[i]);
      if (observer != nullptr) observe(segments[i], *observer);
    }
    return StepStats{.pool = 3,
                     .hinted = 2,
                     .disk = 1,
                     .late_hint = 1,
                     .stall = std::chrono::milliseconds(1),
                     .stall_late_hint = std::chrono::microseconds(500),
                     .total = std::chrono::milliseconds(10)};
  }

  std::uint32_t step_tokens = 64;
  int alive = 0;  ///< sequences that exist
  std::vector<FakeStep> steps;
  std::optional<Error> broken;      ///< every step fails
  std::set<std::uint32_t> bad_ids;  ///< a segment with one of these tokens fails alone
  /// First prompt token -> what the model says, instead of next_token().
  std::map<std::uint32_t, std::vector<std::uint32_t>> scripts;
  std::map<std::uint32_t, std::size_t> script_prompt;  ///< its prompt's length
  std::function<void()> on_step;

 private:
  void run(const Segment& segment, SegmentResult& result, std::vector<float>& logits) {
    auto& tokens = static_cast<FakeSequence*>(segment.sequence)->tokens;
    for (const std::uint32_t token : segment.tokens) {
      tokens.push_back(token);
      if (bad_ids.count(token) > 0) result.error = Error{Errc::io, 5, "shard-1: offset 4096"};
      if (segment.logits == Segment::Logits::all) append_row(logits, tokens);
    }
    if (segment.logits == Segment::Logits::last) append_row(logits, tokens);
    if (!result.error) result.logits = logits;
  }
  void append_row(std::vector<float>& logits, const std::vector<std::uint32_t>& tokens) {
    std::uint32_t winner = next_token(tokens);
    if (const auto script = scripts.find(tokens.front()); script != scripts.end()) {
      const std::size_t said = tokens.size() - script_prompt.at(tokens.front());
      if (said < script->second.size()) winner = script->second[said];
    }
    logits.resize(logits.size() + kVocabulary, 0.0F);
    logits[logits.size() - kVocabulary + winner] = 10.0F;
  }
  static void observe(const Segment& segment, RoutingObserver& observer) {
    const std::vector<ExpertId> chosen{ExpertId{1}, ExpertId{2}, ExpertId{3}};
    const std::vector<float> weights{0.5F, 0.3F, 0.2F};
    const std::vector<Tier> tiers{Tier::pool, Tier::pool_hinted, Tier::disk};
    RoutingEvent event;
    event.sequence_id = segment.sequence_id;
    event.chosen = chosen;
    event.weights = weights;
    event.tiers = tiers;
    observer.on_routing(event);
  }

  ModelConfig config_;
  std::vector<std::vector<float>> logits_;
};

/// The fake model asks for no experts.
class NoSource final : public ExpertSource {
 public:
  void begin(LayerId, std::span<const ExpertId>, Access) override {}
  Result<SourceEvent> next(bool) override { return SourceEvent{}; }
  void release(const LeasedExpert&) override {}
  void idle() override { ++idle_calls; }
  std::atomic<unsigned> idle_calls = 0;
};

}  // namespace stoker::test
