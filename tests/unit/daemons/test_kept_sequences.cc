// Requests that go on from what was computed for others: less to compute, the same answers.
#include "tests/unit/daemons/scheduler_rig.h"

using namespace stoker;
using namespace stoker::test;

namespace {

SchedulerOptions keeping(std::uint32_t sequences) {
  SchedulerOptions options = Bench::options();
  options.kept_sequences = sequences;
  return options;
}

/// The next turn: all of the first one, its answer, and something new.
Ids next_turn(const Ids& prompt, const Ids& answer, std::uint32_t first, std::size_t length) {
  Ids ids = prompt;
  ids.insert(ids.end(), answer.begin(), answer.end());
  const Ids more = test::prompt(first, length);
  ids.insert(ids.end(), more.begin(), more.end());
  return ids;
}

std::size_t prefilled(const FakeModel& model) {
  std::size_t tokens = 0;
  for (const FakeStep& step : model.steps)
    if (step.access == Access::prefill) tokens += step.tokens.at(0);
  return tokens;
}

}  // namespace

TEST_CASE("the next turn of a conversation computes only what is new, and is answered the same") {
  Bench bench(keeping(4));
  Ids turn = prompt(1, 50);
  std::size_t computed = 0, asked = 0;
  for (std::uint32_t i = 0; i < 4; ++i) {
    const std::string id = "turn" + std::to_string(i);
    bench.submit(request(id, turn, 20));
    bench.run();
    const Clients::Told& told = bench["c/" + id];
    CHECK(told.tokens == expected(turn, 20));
    CHECK(told.stats.prompt_tokens() == turn.size());
    // All but the last token of the answer before went through the model.
    CHECK(told.stats.cached_tokens() == (i == 0 ? 0 : asked + 19));
    computed += turn.size() - told.stats.cached_tokens();
    asked = turn.size();
    CHECK(prefilled(bench.model) == computed);
    turn = next_turn(turn, told.tokens, 300 + i, 9);
  }
  const SchedulerStatus status = bench.scheduler->status();
  CHECK(status.prompt_tokens == computed);
  CHECK(status.cached_tokens == 69 + 98 + 127);
  CHECK(status.kept_sequences == 1);  // handed on from turn to turn
}

TEST_CASE("the longest beginning counts, and serves one request") {
  Bench bench(keeping(4));
  const Ids base = prompt(1, 30);
  bench.submit(request("short", base, 5));
  bench.run();
  const Ids longer = next_turn(base, bench["c/short"].tokens, 7, 10);
  Request all = request("long", longer, 5);
  all.prefill_split = 3;  // computes everything, so that both are kept
  bench.submit(all);
  bench.run();
  REQUIRE(bench.scheduler->status().kept_sequences == 2);
  const Ids next = next_turn(longer, bench["c/long"].tokens, 8, 6);
  for (const char* id : {"first", "second", "third"}) bench.submit(request(id, next, 5));
  bench.run();
  CHECK(bench["c/first"].stats.cached_tokens() == longer.size() + 4);
  CHECK(bench["c/second"].stats.cached_tokens() == base.size() + 4);
  CHECK(bench["c/third"].stats.cached_tokens() == 0);
  for (const char* id : {"first", "second", "third"})
    CHECK(bench["c/" + std::string(id)].tokens == expected(next, 5));
}

TEST_CASE("a prompt that is no continuation is computed") {
  Bench bench(keeping(4));
  const Ids base = prompt(1, 30);
  Request exact = request("exact", base, 1);  // its sequence ends with the prompt
  bench.submit(exact);
  bench.run();
  exact.id = "again";  // one token must be left to compute: its logits are wanted
  bench.submit(exact);
  Ids other = base;
  other[12] ^= 1U;
  other.push_back(3);
  bench.submit(request("other", other, 5));
  bench.run();
  CHECK(bench["c/again"].stats.cached_tokens() == 0);
  CHECK(bench["c/other"].stats.cached_tokens() == 0);
  CHECK(bench["c/other"].tokens == expected(other, 5));
}

TEST_CASE("what needs every position of the prompt, or asks for it, computes every position") {
  Bench bench(keeping(4));
  const Ids base = prompt(1, 30);
  bench.submit(request("base", base, 5));
  bench.run();
  const Ids next = next_turn(base, bench["c/base"].tokens, 7, 10);
  Request scored = request("scored", next, 0), positions = request("positions", next, 0),
          fresh = request("fresh", next, 5), last = request("last", next, 0);
  scored.score = true;
  positions.logits = positions.all_positions = true;
  fresh.no_reuse = true;
  last.logits = true;
  for (const Request& r : {scored, positions, fresh}) bench.submit(r);
  bench.run();
  CHECK(bench["c/scored"].scores.size() == next.size() - 1);
  CHECK(bench["c/positions"].winners.size() == next.size());
  CHECK(bench["c/fresh"].tokens == expected(next, 5));
  for (const char* id : {"c/scored", "c/positions", "c/fresh"}) CHECK(bench[id].stats.cached_tokens() == 0);
  const std::uint32_t kept = bench.scheduler->status().kept_sequences;
  CHECK(kept == 3);  // not that of `fresh`
  bench.submit(last);
  bench.run();
  CHECK(bench["c/last"].stats.cached_tokens() == base.size() + 4);
  CHECK(bench["c/last"].winners == Ids{next_token(next)});
}

TEST_CASE("a prompt that comes again, or goes on differently, is computed from the mark at its end") {
  Bench bench(keeping(4));
  const Ids base = prompt(1, 100);
  bench.submit(request("first", base, 20));
  bench.run();
  CHECK(bench["c/first"].stats.cached_tokens() == 0);
  CHECK(bench.scheduler->status().kept_bytes == kBytesPerSequence + 119 * kBytesPerToken + kBytesPerMark);
  SECTION("the same question") {
    for (const char* id : {"c/again", "c/and again"}) {
      bench.submit(request(id + 2, base, 20));
      bench.run();
      CHECK(bench[id].stats.cached_tokens() == 99);
      CHECK(bench[id].tokens == bench["c/first"].tokens);
    }
  }
  SECTION("the answer comes back as other tokens") {
    Ids edited = next_turn(base, bench["c/first"].tokens, 7, 100);
    edited[105] ^= 1U;
    bench.submit(request("edited", edited, 20));
    bench.run();
    CHECK(bench["c/edited"].stats.cached_tokens() == 99);
    CHECK(bench["c/edited"].tokens == expected(edited, 20));
    // The new mark is at the end of the new prompt.
    bench.submit(request("once more", edited, 5));
    bench.run();
    CHECK(bench["c/once more"].stats.cached_tokens() == edited.size() - 1);
    CHECK(bench["c/once more"].tokens == expected(edited, 5));
  }
  SECTION("a short new turn leaves the mark where it was") {
    const Ids next = next_turn(base, bench["c/first"].tokens, 7, 10);
    bench.submit(request("next", next, 5));
    bench.run();
    CHECK(bench["c/next"].stats.cached_tokens() == 119);
    bench.submit(request("back", base, 20));
    bench.run();
    CHECK(bench["c/back"].stats.cached_tokens() == 99);
    CHECK(bench["c/back"].tokens == bench["c/first"].tokens);
  }
  SECTION("a difference before the mark") {
    Ids other = base;
    other[50] ^= 1U;
    bench.submit(request("other", other, 5));
    bench.run();
    CHECK(bench["c/other"].stats.cached_tokens() == 0);
    CHECK(bench["c/other"].tokens == expected(other, 5));
  }
}

TEST_CASE("a mark is given up before anybody waits or gives way") {
  SchedulerOptions options = keeping(4);
  options.reserve_ahead = 16;
  options.sequence_memory = 2 * kBytesPerSequence + (116 + 176) * kBytesPerToken + kBytesPerMark - 1;
  Bench bench(options);
  bench.submit(request("marked", prompt(1, 100), 60));
  while (bench["c/marked"].tokens.empty()) REQUIRE(bench.scheduler->step());
  const std::uint64_t alone = bench.scheduler->status().reserved_bytes;
  CHECK(alone == kBytesPerSequence + 116 * kBytesPerToken + kBytesPerMark);
  // Fits beside the other only without its mark.
  bench.submit(request("second", prompt(2, 160), 24));
  bench.scheduler->step();
  CHECK(bench.scheduler->status().queued == 0);
  CHECK(bench.scheduler->status().reserved_bytes == options.sequence_memory + 1 - kBytesPerMark);
  while (bench.scheduler->step()) {
    const SchedulerStatus now = bench.scheduler->status();
    CHECK(now.sequence_bytes <= now.reserved_bytes);
    CHECK(now.reserved_bytes + now.kept_bytes <= options.sequence_memory);
  }
  bench.run();
  CHECK(bench["c/marked"].tokens == expected(prompt(1, 100), 60));
  CHECK(bench["c/second"].tokens == expected(prompt(2, 160), 24));
}

TEST_CASE("kept sequences are in nobody's way") {
  SchedulerOptions options = keeping(8);
  options.reserve_ahead = 16;
  options.sequence_memory = 2 * kBytesPerSequence + 300 * kBytesPerToken;
  Bench bench(options);
  const auto run_within = [&] {
    while (bench.scheduler->step()) {
      const SchedulerStatus now = bench.scheduler->status();
      CHECK(now.reserved_bytes + now.kept_bytes <= options.sequence_memory);
    }
    bench.run();
  };
  for (std::uint32_t i = 0; i < 3; ++i) bench.submit(request("r" + std::to_string(i), prompt(i, 60), 10));
  run_within();
  CHECK(bench.scheduler->status().kept_sequences >= 2);
  bench.submit(request("large", prompt(9, 100), 190));
  bench.scheduler->step();
  CHECK(bench.scheduler->status().queued == 0);
  run_within();
  CHECK(bench["c/large"].tokens == expected(prompt(9, 100), 190));
  CHECK(bench.scheduler->status().requests_gave_way == 0);
  // Two that outgrow the memory together: one gives way, and may go on from what another left.
  for (const char* id : {"a", "b"}) bench.submit(request(id, prompt(5, 60), 150));
  run_within();
  CHECK(bench.scheduler->status().requests_gave_way > 0);
  for (const char* id : {"c/a", "c/b"}) CHECK(bench[id].tokens == expected(prompt(5, 60), 150));
}

TEST_CASE("no more are kept than asked for, the last ones") {
  Bench bench(keeping(2));
  std::vector<Ids> next;
  for (std::uint32_t i = 0; i < 3; ++i) {
    const std::string id = "r" + std::to_string(i);
    bench.submit(request(id, prompt(i, 20), 5));
    bench.run();
    next.push_back(next_turn(prompt(i, 20), bench["c/" + id].tokens, 7, 10));
  }
  CHECK(bench.scheduler->status().kept_sequences == 2);
  CHECK(bench.scheduler->status().kept_bytes == 2 * (kBytesPerSequence + 24 * kBytesPerToken));
  for (const std::uint32_t i : {1U, 2U, 0U}) {
    const std::string id = "n" + std::to_string(i);
    bench.submit(request(id, next[i], 5));
    bench.run();
    CHECK(bench["c/" + id].stats.cached_tokens() == (i == 0 ? 0 : 24));
  }
}

TEST_CASE("a cancelled answer can be gone on from, one that failed cannot") {
  Bench bench(keeping(4));
  const Ids base = prompt(1, 50);
  bench.submit(request("r", base, 100));
  while (bench["c/r"].tokens.size() < 30) REQUIRE(bench.scheduler->step());
  SECTION("cancelled") {
    bench.scheduler->cancel("c", "r");
    const Ids next = next_turn(base, bench["c/r"].tokens, 7, 10);
    bench.submit(request("next", next, 5));
    bench.run();
    CHECK(bench["c/next"].stats.cached_tokens() == 50 + 29);
    CHECK(bench["c/next"].tokens == expected(next, 5));
  }
  SECTION("its client left") {
    bench.scheduler->drop_client("c");
    CHECK(bench.scheduler->status().kept_sequences == 1);
  }
  SECTION("failed") {
    bench.scheduler->fail_all("internal_error", "test");
    CHECK(bench.scheduler->status().kept_sequences == 0);
    CHECK(bench.model.alive == 0);
  }
}

namespace {

/// Conversations that have their first 40 tokens in common.
Request conversation(const std::string& id, std::uint32_t question, std::uint32_t system = 1) {
  Ids ids = prompt(system, 40);
  const Ids rest = prompt(question, 9);
  ids.insert(ids.end(), rest.begin(), rest.end());
  Request r = request(id, ids, 5);
  r.beginning = 40;
  return r;
}

SchedulerOptions keeping_beginnings(std::uint32_t sequences) {
  SchedulerOptions options = keeping(sequences);
  options.beginning_from = 20;
  return options;
}

}  // namespace

TEST_CASE("a beginning that comes again is kept, and serves everybody") {
  Bench bench(keeping_beginnings(4));
  const auto cached = [&](const Request& r) {
    bench.submit(r);
    bench.run();
    CHECK(bench["c/" + r.id].tokens == expected(r.prompt, 5));
    return bench["c/" + r.id].stats.cached_tokens();
  };
  CHECK(cached(conversation("first", 100)) == 0);
  CHECK(cached(conversation("second", 101)) == 0);  // was asked for before: now it is kept
  CHECK(cached(conversation("third", 102)) == 40);
  CHECK(cached(conversation("fourth", 103)) == 40);
  CHECK(cached(conversation("another", 102, 7)) == 0);
  // Those that were used last stay.
  for (std::uint32_t i = 0; i < 12; ++i) CHECK(cached(conversation("r" + std::to_string(i), 110 + i)) == 40);
  // The next turn goes on from the answer, not from the beginning.
  Request last = conversation("last", 121);
  last.prompt = next_turn(last.prompt, bench["c/r11"].tokens, 3, 4);
  CHECK(cached(last) == 49 + 4);
  CHECK(bench.scheduler->status().kept_sequences <= 4);
}

TEST_CASE("requests that run at the same time go on from forks of one beginning") {
  Bench bench(keeping_beginnings(8));
  for (const std::uint32_t i : {1U, 2U}) {
    bench.submit(conversation("warm" + std::to_string(i), 90 + i));
    bench.run();
  }
  for (std::uint32_t i = 0; i < 4; ++i) bench.submit(conversation("r" + std::to_string(i), 100 + i));
  bench.run();
  for (std::uint32_t i = 0; i < 4; ++i) {
    const std::string id = "r" + std::to_string(i);
    CHECK(bench["c/" + id].stats.cached_tokens() == 40);
    CHECK(bench["c/" + id].tokens == expected(conversation(id, 100 + i).prompt, 5));
  }
}

TEST_CASE("a beginning is in nobody's way") {
  SchedulerOptions options = keeping_beginnings(4);
  // One request and nothing beside it.
  options.sequence_memory = kBytesPerSequence + 70 * kBytesPerToken;
  Bench bench(options);
  for (std::uint32_t i = 0; i < 4; ++i) {
    const std::string id = "r" + std::to_string(i);
    bench.submit(conversation(id, 100 + i));
    bench.run();
    CHECK(bench["c/" + id].tokens == expected(conversation(id, 100 + i).prompt, 5));
    CHECK(bench["c/" + id].stats.cached_tokens() == 0);
  }
  // Too short to be worth it; and not where nothing is kept.
  for (const SchedulerOptions& other : {keeping(4), keeping_beginnings(0)}) {
    Bench none(other);
    for (std::uint32_t i = 0; i < 3; ++i) none.submit(conversation("r" + std::to_string(i), 100 + i));
    none.run();
    for (std::uint32_t i = 0; i < 3; ++i) CHECK(none["c/r" + std::to_string(i)].stats.cached_tokens() == 0);
  }
}
