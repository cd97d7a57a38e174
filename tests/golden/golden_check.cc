#include "tests/golden/golden_check.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace stoker::golden {

std::unique_ptr<GoldenRun> open_golden(const std::string& name) {
  // Elsewhere when the test was carried to another machine.
  const char* data = std::getenv("STOKER_GOLDEN_DATA");
  auto run = GoldenRun::make(data != nullptr ? data : STOKER_GOLDEN_DATA, name);
  if (!run) FAIL(run.error().text());
  return std::move(*run);
}

std::unique_ptr<Model> open_model(const GoldenRun& run, Simd simd) {
  auto model = run.load_model(simd);
  if (!model) FAIL(model.error().text());
  return std::move(*model);
}

std::vector<float> logits_of(Model& model, MemorySource& source, const Feed& feed) {
  auto logits = run(model, source, std::span(&feed, 1));
  if (!logits) FAIL(logits.error().text());
  REQUIRE(source.leased() == 0);
  return std::move(logits->front());
}

std::vector<float> logits_after_detours(Model& model, MemorySource& source,
                                        std::span<const std::uint32_t> tokens, std::size_t mark,
                                        std::size_t detour) {
  const std::unique_ptr<Sequence> sequence = model.new_sequence();
  const auto feed_to = [&](Sequence& to, std::span<const std::uint32_t> piece) {
    const Segment segment{&to, 0, piece, Segment::Logits::all};
    SegmentResult result;
    const Access access = piece.size() == 1 ? Access::decode : Access::prefill;
    const auto stats = model.step(std::span(&segment, 1), access, source, nullptr, std::span(&result, 1));
    if (!stats) FAIL(stats.error().text());
    REQUIRE(!result.error);
    return std::vector<float>(result.logits.begin(), result.logits.end());
  };
  const auto feed = [&](std::span<const std::uint32_t> piece) { return feed_to(*sequence, piece); };
  std::vector<float> logits = feed(tokens.first(mark));
  CHECK(sequence->marked() == 0);
  const std::uint64_t before = sequence->memory_bytes();
  REQUIRE(sequence->mark().has_value());
  CHECK(sequence->marked() == mark);
  CHECK(sequence->memory_bytes() == before + model.mark_bytes());
  for (const std::size_t length : {std::size_t{1}, detour}) {
    std::vector<std::uint32_t> astray(length);
    for (std::size_t i = 0; i < length; ++i) astray[i] = tokens[(7 * i + 3) % tokens.size()];
    static_cast<void>(feed(astray));
    CHECK(sequence->length() == mark + length);
    REQUIRE(sequence->rewind().has_value());
    CHECK(sequence->length() == mark);
    CHECK(sequence->memory_bytes() == model.sequence_bytes(mark) + model.mark_bytes());
  }
  // Forks go on alone: what one writes into a block that it had in common is seen by nobody else.
  const auto fork = [&] {
    auto other = sequence->fork();
    REQUIRE(other.has_value());
    CHECK((*other)->length() == mark);
    CHECK((*other)->marked() == 0);
    CHECK((*other)->memory_bytes() == model.sequence_bytes(mark));
    return *std::move(other);
  };
  const auto astray = fork(), same = fork();
  const std::vector<std::uint32_t> others(tokens.rbegin(), tokens.rend());
  const std::span<const std::uint32_t> to_come = tokens.subspan(mark);
  const std::size_t half = (to_come.size() + 1) / 2;
  std::vector<float> rest = feed(to_come.first(half));
  static_cast<void>(feed_to(*astray, std::span(others).first(std::min(detour, others.size()))));
  if (half < to_come.size()) {
    const std::vector<float> end = feed(to_come.subspan(half));
    rest.insert(rest.end(), end.begin(), end.end());
  }
  CHECK(same_bits(feed_to(*same, to_come), rest));
  logits.insert(logits.end(), rest.begin(), rest.end());
  sequence->unmark();
  CHECK(sequence->marked() == 0);
  return logits;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

const Case& longest_split_case(const Golden& golden) {
  const Case* best = nullptr;
  for (const Case& item : golden.cases)
    if (item.splits.size() > 1 && (best == nullptr || item.tokens.size() > best->tokens.size())) best = &item;
  REQUIRE(best != nullptr);
  return *best;
}

void check_golden(const std::string& name) {
  const auto opened = open_golden(name);
  const auto model = open_model(*opened, Simd::automatic);
  check_golden(*opened, *model, name);
}

void check_golden(GoldenRun& run, Model& model, const std::string& name, std::span<const std::size_t> cases) {
  const Golden& golden = run.golden();
  std::size_t checked = 0;
  double worst = 0;
  for (std::size_t i = 0; i < golden.cases.size(); ++i) {
    if (!cases.empty() && std::find(cases.begin(), cases.end(), i) == cases.end()) continue;
    const Case& item = golden.cases[i];
    ++checked;
    for (const auto& split : item.splits) {
      CAPTURE(name, item.name, split);
      const auto logits = logits_of(model, run.source(), {item.tokens, split});
      REQUIRE(logits.size() == item.tokens.size() * golden.config.vocab_size);
      const Difference difference = compare(golden, item, logits);
      CAPTURE(difference.position);
      CHECK(difference.relative < kLogitsTolerance);
      CHECK(difference.argmax == "");
      worst = std::max(worst, difference.relative);
    }
    if (item.greedy.empty()) continue;
    CAPTURE(name, item.name);
    const auto tokens =
        greedy(model, run.source(), std::span(item.tokens).first(item.prompt), item.greedy.size());
    if (!tokens) FAIL(tokens.error().text());
    CHECK(*tokens == item.greedy);
  }
  std::printf("%-14s %2zu cases, worst relative difference %.1e (%s)\n", name.c_str(), checked, worst,
              model.describe().c_str());
}

}  // namespace stoker::golden
