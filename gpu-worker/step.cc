#include "gpu-worker/step.h"

#include <algorithm>

#include "shm/base/check.h"

namespace stoker {

Step begin_step(std::span<const Segment> segments, Access access, ExpertSource& source,
                RoutingObserver* observer, std::span<SegmentResult> results, Duration now) {
  Step step{};
  step.segments = segments;
  step.results = results;
  step.access = access;
  step.source = &source;
  step.observer = observer;
  step.timed = observer != nullptr && observer->wants_timing();
  step.began = now;
  return step;
}

void Step::fail(std::uint32_t segment, Error error) {
  if (!results[segment].error) results[segment].error = std::move(error);
}

bool Step::any_alive() const {
  return std::any_of(results.begin(), results.end(), [](const SegmentResult& r) { return !r.error; });
}

void Step::count_stall(const SourceEvent& event, Duration before, Duration now) {
  stats.stall += now - before;
  if (event.kind == SourceEvent::Kind::leased && event.leased.tier == Tier::disk_late_hint)
    stats.stall_late_hint += now - before;
  timing.stalled += now - before;
  timing.landed = now - began;
}

void Step::announce(std::uint32_t candidates) const {
  if (!looks_ahead(candidates)) return;
  for (const Row& row : rows) observer->on_token(segments[row.segment].sequence_id, row.token);
}

Step::Range Step::logits_rows(std::size_t s) const {
  const std::size_t end = first_row[s + 1];
  if (results[s].error || segments[s].logits == Segment::Logits::none) return {end, end};
  return {segments[s].logits == Segment::Logits::all ? first_row[s] : end - 1, end};
}

void Step::hand_out(const float* logits, std::size_t vocab) const {
  for (std::size_t s = 0; s < segments.size(); ++s) {
    const auto [begin, end] = logits_rows(s);
    if (begin == end) continue;
    results[s].logits = {logits, (end - begin) * vocab};
    logits += (end - begin) * vocab;
  }
}

Error not_finite_error() {
  return {Errc::corrupt, 0, "the model produced non-finite values: checkpoint damaged, run `stoker verify`"};
}

RowTable::RowTable(std::size_t rows_max) : rows_max_(rows_max) {
  rows_.reserve(rows_max);
  first_row_.reserve(rows_max + 1);
}

void RowTable::lay_out(Step& step, std::uint32_t vocab_size) {
  STOKER_CHECK(step.segments.size() == step.results.size());
  rows_.clear();
  first_row_.clear();
  for (std::size_t s = 0; s < step.segments.size(); ++s) {
    const Segment& segment = step.segments[s];
    STOKER_CHECK(segment.sequence != nullptr && !segment.tokens.empty());
    STOKER_CHECK(rows_.size() + segment.tokens.size() <= rows_max_);
    step.results[s] = SegmentResult{};
    first_row_.push_back(static_cast<std::uint32_t>(rows_.size()));
    std::uint32_t position = segment.sequence->length();
    for (const std::uint32_t token : segment.tokens) {
      STOKER_CHECK(token < vocab_size);
      rows_.push_back({static_cast<std::uint32_t>(s), token, position++});
    }
  }
  first_row_.push_back(static_cast<std::uint32_t>(rows_.size()));
  step.rows = rows_;
  step.first_row = first_row_;
}

}  // namespace stoker
