#include "tests/unit/daemons/scheduler_rig.h"

using namespace stoker;
using namespace stoker::test;

namespace {

Tokenizer fixture() {
  auto tokenizer = Tokenizer::load(std::string(STOKER_TEXT_DATA) + "/tokenizer.json");
  REQUIRE(tokenizer.has_value());
  return std::move(*tokenizer);
}

/// Ids of single bytes: the fixture's vocabulary starts with them.
Ids byte_ids(const Tokenizer& tokenizer, const std::string& text) {
  Ids ids;
  for (const char c : text)
    for (std::uint32_t id = 0; id < 256; ++id)
      if (tokenizer.token_bytes(id) == std::string(1, c)) ids.push_back(id);
  REQUIRE(ids.size() == text.size());
  return ids;
}

}  // namespace

TEST_CASE("a request answers what the model says, whatever the chunk") {
  for (const std::uint32_t chunk : {1U, 3U, 16U, 1000U}) {
    SchedulerOptions options = Bench::options();
    options.chunk = chunk;
    Bench bench(options);
    bench.submit(request("r", prompt(3, 50), 20));
    bench.run();
    CHECK(bench["c/r"].tokens == expected(prompt(3, 50), 20));
    CHECK(bench["c/r"].finish == "length");
    CHECK(bench["c/r"].endings == 1);
    for (const FakeStep& step : bench.model.steps) CHECK(step.tokens[0] <= std::min(chunk, 64U));
  }
}

TEST_CASE("batched requests answer as they do alone") {
  Bench bench;
  for (std::uint32_t i = 0; i < 6; ++i)
    bench.submit(request("r" + std::to_string(i), prompt(i, 5 + 13 * i), 10 + 3 * i));
  bench.run();
  std::size_t widest = 0;
  for (const FakeStep& step : bench.model.steps) widest = std::max(widest, step.sequences.size());
  CHECK(widest == 4);
  for (std::uint32_t i = 0; i < 6; ++i)
    CHECK(bench["c/r" + std::to_string(i)].tokens == expected(prompt(i, 5 + 13 * i), 10 + 3 * i));
}

TEST_CASE("a long prompt delays a running answer by one chunk per token") {
  Bench bench;
  bench.submit(request("running", prompt(1, 4), 30));
  bench.scheduler->step();
  bench.submit(request("long", prompt(2, 160), 5));
  bench.run();
  const auto& steps = bench.model.steps;
  for (std::size_t i = 1; i < 20; ++i) CHECK(steps[i].access != steps[i + 1].access);
  CHECK(bench["c/long"].tokens.size() == 5);
}

TEST_CASE("chunks are short while another request decodes") {
  SchedulerOptions options = Bench::options();
  options.chunk = 32;
  options.chunk_beside = 8;
  Bench bench(options);
  bench.submit(request("running", prompt(1, 4), 4));
  bench.scheduler->step();
  bench.submit(request("long", prompt(2, 100), 1));
  bench.run();
  std::vector<std::size_t> chunks;
  for (const FakeStep& step : bench.model.steps)
    if (step.access == Access::prefill) chunks.push_back(step.tokens[0]);
  CHECK(chunks == std::vector<std::size_t>{4, 8, 8, 32, 32, 20});
}

TEST_CASE("prompts are prefilled in order of arrival") {
  Bench bench;
  bench.submit(request("a", prompt(1, 40), 1));
  bench.submit(request("b", prompt(2, 4), 1));
  bench.run();
  std::vector<std::uint32_t> order;
  for (const FakeStep& step : bench.model.steps) order.push_back(step.sequences[0]);
  CHECK(order == std::vector<std::uint32_t>{1, 1, 1, 2});
}

TEST_CASE("end-of-text ends an answer unless it is to be ignored") {
  for (const bool ignore : {false, true}) {
    Bench bench;
    bench.model.scripts[9] = {4, 5, 511, 6};
    bench.model.script_prompt[9] = 3;
    Request r = request("r", {9, 8, 7}, 4);
    r.ignore_eos = ignore;
    bench.submit(r);
    bench.run();
    CHECK(bench["c/r"].tokens == (ignore ? Ids{4, 5, 511, 6} : Ids{4, 5, 511}));
    CHECK(bench["c/r"].finish == (ignore ? "length" : "stop"));
  }
}

TEST_CASE("without max_tokens an answer ends where the context ends") {
  SchedulerOptions options = Bench::options();
  options.context = 40;
  Bench bench(options);
  bench.submit(request("r", prompt(1, 30), 0));
  bench.run();
  CHECK(bench["c/r"].tokens.size() == 10);
  CHECK(bench["c/r"].finish == "length");
}

TEST_CASE("max_tokens that fits the context") {
  SchedulerOptions options = Bench::options();
  options.context = 40;
  Bench bench(options);
  for (const std::uint32_t max_tokens : {5U, 11U, 1000U}) {
    Request r = request("r" + std::to_string(max_tokens), prompt(1, 30), max_tokens);
    r.fit_context = true;
    bench.submit(r);
  }
  Request full = request("full", prompt(1, 40), 5);
  full.fit_context = true;
  bench.submit(full);
  bench.run();
  CHECK(bench["c/r5"].tokens.size() == 5);
  CHECK(bench["c/r11"].tokens.size() == 10);
  CHECK(bench["c/r1000"].tokens.size() == 10);
  CHECK(bench["c/r1000"].finish == "length");
  CHECK(bench["c/full"].error == "context_length_exceeded");
}

TEST_CASE("the queue is bounded and its places are told") {
  Bench bench;
  for (int i = 0; i < 9; ++i) bench.submit(request("r" + std::to_string(i), prompt(1, 200), 50));
  CHECK(bench["c/r8"].error == "queue_full");
  CHECK(bench["c/r8"].error_text.find("8") != std::string::npos);
  bench.run();
  CHECK(bench["c/r0"].endings == 1);
  CHECK(bench["c/r7"].tokens == bench["c/r0"].tokens);
  const auto& places = bench["c/r7"].queue_positions;
  REQUIRE(places.size() > 3);
  CHECK(places[0] == 8);  // as it came: none of them ran yet
  CHECK(places[1] == 4);  // four run, this one is the fourth of those that wait
  CHECK(places.back() == 0);
  CHECK(std::is_sorted(places.rbegin(), places.rend()));
}

TEST_CASE("an id may be used again, but not at the same time") {
  Bench bench;
  bench.submit(request("r", prompt(1, 5), 5));
  bench.submit(request("r", prompt(1, 5), 5));
  CHECK(bench["c/r"].error == "duplicate_id");
  bench.submit(request("r", prompt(1, 5), 5, "another client"));
  bench.run();
  CHECK(bench["another client/r"].finish == "length");
  bench.submit(request("r", prompt(1, 5), 5));
  bench.run();
  CHECK(bench["c/r"].tokens.size() == 10);
}

TEST_CASE("a request can be cancelled in every phase") {
  SchedulerOptions options = Bench::options();
  options.max_sequences = 1;
  Bench bench(options);
  bench.submit(request("decoding", prompt(1, 4), 100));
  bench.submit(request("queued", prompt(2, 4), 100));
  bench.scheduler->step();
  bench.scheduler->step();
  bench.scheduler->cancel("c", "queued");
  CHECK(bench["c/queued"].finish == "cancelled");
  CHECK(bench.scheduler->status().queued == 0);
  bench.scheduler->cancel("another client", "decoding");
  bench.scheduler->cancel("c", "unknown");
  CHECK(bench["c/decoding"].endings == 0);
  bench.scheduler->cancel("c", "decoding");
  CHECK(bench["c/decoding"].finish == "cancelled");
  CHECK(bench["c/decoding"].stats.generated_tokens() == 2);
  CHECK(bench.model.alive == 0);
  bench.submit(request("prefilling", prompt(3, 100), 5));
  bench.scheduler->step();
  bench.scheduler->cancel("c", "prefilling");
  CHECK(bench["c/prefilling"].finish == "cancelled");
  CHECK(bench["c/prefilling"].tokens.empty());
  bench.run();
  CHECK(bench.scheduler->status().requests_cancelled == 3);
}

TEST_CASE("a client that is gone takes all its requests along, silently") {
  Bench bench;
  for (int i = 0; i < 6; ++i)
    bench.submit(request("r" + std::to_string(i), prompt(1, 40), 10, i % 2 == 0 ? "gone" : "here"));
  for (int i = 0; i < 4; ++i) bench.scheduler->step();
  const unsigned before = bench["gone/r0"].endings;
  bench.scheduler->drop_client("gone");
  bench.run();
  CHECK(bench["gone/r0"].endings == before);
  CHECK(bench["gone/r4"].endings == 0);
  for (const char* id : {"here/r1", "here/r3", "here/r5"}) CHECK(bench[id].tokens.size() == 10);
}

TEST_CASE("an expert that cannot be read fails one request, the others go on unharmed") {
  Bench bench;
  bench.submit(request("good", prompt(1, 10), 20));
  bench.submit(request("bad prompt", {7, 8, 505}, 5));
  Request forced = request("bad decode", {9}, 0);
  forced.forced = {1, 2, 505, 3, 4};
  bench.submit(forced);
  bench.model.bad_ids = {505};
  bench.run();
  CHECK(bench["c/good"].tokens == expected(prompt(1, 10), 20));
  CHECK(bench["c/bad prompt"].error == "expert_read");
  CHECK(bench["c/bad prompt"].error_text.find("shard-1: offset 4096") != std::string::npos);
  CHECK(bench["c/bad decode"].error == "expert_read");
  CHECK(bench["c/bad decode"].tokens == Ids{1, 2, 505});
  CHECK(bench.scheduler->status().requests_failed == 2);
}

TEST_CASE("when the loader stays away every request is answered, and the next ones run again") {
  Bench bench;
  for (int i = 0; i < 6; ++i) bench.submit(request("r" + std::to_string(i), prompt(1, 10), 20));
  for (int i = 0; i < 5; ++i) bench.scheduler->step();
  bench.model.broken = Error{Errc::peer_gone, 0, "the loader did not come back within 60 s"};
  bench.run();
  for (int i = 0; i < 6; ++i) CHECK(bench["c/r" + std::to_string(i)].error == "loader_gone");
  CHECK_FALSE(bench.scheduler->lost().has_value());
  bench.model.broken.reset();
  bench.submit(request("after", prompt(1, 10), 5));
  bench.run();
  CHECK(bench["c/after"].tokens == expected(prompt(1, 10), 5));
  bench.model.broken = Error{Errc::layout, 0, "another pool"};
  bench.submit(request("lost", prompt(1, 10), 5));
  bench.run();
  CHECK(bench["c/lost"].error == "loader_gone");
  CHECK(bench.scheduler->lost().has_value());
}

TEST_CASE("when the GPU is lost every request is answered with what happened, and the worker is to end") {
  Bench bench;
  for (int i = 0; i < 6; ++i) bench.submit(request("r" + std::to_string(i), prompt(1, 10), 20));
  for (int i = 0; i < 5; ++i) bench.scheduler->step();
  bench.model.broken = Error{Errc::device_lost, 0, "GPU 0 cannot be used any more"};
  bench.scheduler->step();
  for (int i = 0; i < 6; ++i) {
    CHECK(bench["c/r" + std::to_string(i)].error == "device_lost");
    CHECK(bench["c/r" + std::to_string(i)].error_text == "GPU 0 cannot be used any more");
  }
  CHECK(bench.scheduler->idle());
  REQUIRE(bench.scheduler->lost().has_value());
  CHECK(bench.scheduler->lost()->code == Errc::device_lost);
}

TEST_CASE("stopping ends everything with the reason") {
  Bench bench;
  for (int i = 0; i < 6; ++i) bench.submit(request("r" + std::to_string(i), prompt(1, 10), 20));
  bench.scheduler->step();
  bench.scheduler->fail_all(error_code::kShuttingDown, "bye");
  bench.run();
  for (int i = 0; i < 6; ++i) CHECK(bench["c/r" + std::to_string(i)].error == "shutting_down");
}

TEST_CASE("forced ids replace sampling and their logits come back") {
  Bench bench;
  Request r = request("r", {9, 8}, 0);
  r.forced = {4, 511, 6};  // an end-of-text among them ends nothing
  r.raw_logits = true;
  bench.submit(r);
  bench.run();
  const Clients::Told& told = bench["c/r"];
  CHECK(told.tokens == Ids{4, 511, 6});
  CHECK(told.finish == "length");
  REQUIRE(told.events.size() == 3);
  Ids sequence{9, 8};
  for (std::size_t i = 0; i < 3; ++i) {
    REQUIRE(told.events[i].logits().size() == kVocabulary * sizeof(float));
    std::vector<float> row(kVocabulary);
    std::memcpy(row.data(), told.events[i].logits().data(), told.events[i].logits().size());
    CHECK(row[next_token(sequence)] == 10.0F);
    sequence.push_back(told.tokens[i]);
  }
}

TEST_CASE("logits of the last or of all positions, in one forward or split") {
  for (const std::uint32_t split : {0U, 1U, 7U, 19U}) {
    Bench bench;
    Request last = request("last", prompt(1, 20), 0);
    last.logits = true;
    last.prefill_split = split;
    Request all = last;
    all.id = "all";
    all.all_positions = true;
    bench.submit(last);
    bench.submit(all);
    bench.run();
    CHECK(bench["c/last"].positions == Ids{19});
    CHECK(bench["c/last"].winners == Ids{next_token(prompt(1, 20))});
    REQUIRE(bench["c/all"].positions.size() == 20);
    Ids sequence;
    for (std::uint32_t i = 0; i < 20; ++i) {
      sequence.push_back(prompt(1, 20)[i]);
      CHECK(bench["c/all"].positions[i] == i);
      CHECK(bench["c/all"].winners[i] == next_token(sequence));
    }
    CHECK(bench["c/all"].finish == "stop");
    if (split > 0 && split < 16) CHECK(bench.model.steps[0].tokens[0] == split);
  }
}

TEST_CASE("scores: the probability of every prompt token but the first, whatever the chunks") {
  // The fake's logits: 10 for the next token of its sequence, 0 for all others (fake_model.h).
  const double sure = 10 - std::log(std::exp(10.0) + kVocabulary - 1), other = sure - 10;
  Ids good{9, 8};
  while (good.size() < 39) good.push_back(next_token(good));
  good.push_back((next_token(good) + 1) % kVocabulary);  // and one it did not expect
  for (const std::uint32_t split : {0U, 16U, 39U}) {
    Bench bench;
    Request r = request("s", good, 0);
    r.score = true;
    r.prefill_split = split;
    bench.submit(r);
    bench.run();
    const auto& scores = bench["c/s"].scores;
    REQUIRE(scores.size() == 39);
    for (std::size_t i = 1; i < 38; ++i) CHECK(scores[i] == Approx(sure));
    CHECK(scores[38] == Approx(other));
    CHECK(bench["c/s"].finish == "stop");
    CHECK(bench["c/s"].tokens.empty());
  }
}

TEST_CASE("statistics add up") {
  Bench bench;
  bench.submit(request("r", prompt(1, 20), 5));
  bench.clock.advance(100ms);
  bench.run();
  const wire::Stats& stats = bench["c/r"].stats;
  CHECK(stats.prompt_tokens() == 20);
  CHECK(stats.generated_tokens() == 5);
  CHECK(stats.queue_seconds() == Approx(0.1));
  CHECK(stats.prefill_seconds() == Approx(0.02));  // two chunks
  CHECK(stats.ttft_seconds() == Approx(0.12));
  CHECK(stats.decode_seconds() == Approx(0.04));  // four steps
  CHECK(stats.stall_seconds() == Approx(0.006));
  CHECK(stats.stall_late_hint_seconds() == Approx(0.003));
  // Prefill chunks count distinct experts (3 pool, 2 hinted, 2 disk), decode rows their own choice (1, 1, 1).
  CHECK(stats.experts_pool() == 2 * 3 + 4);
  CHECK(stats.experts_hinted() == 2 * 2 + 4);
  CHECK(stats.experts_disk() == 2 * 2 + 4);
  const SchedulerStatus status = bench.scheduler->status();
  CHECK(status.prompt_tokens == 20);
  CHECK(status.generated_tokens == 5);
  CHECK(status.prefill_steps == 2);
  CHECK(status.decode_steps == 4);
}

TEST_CASE("log-probabilities come with every token") {
  Bench bench;
  Request r = request("r", {1, 2}, 2);
  r.logprobs = 3;
  bench.submit(r);
  bench.run();
  for (const wire::TokenEvent& event : bench["c/r"].events) {
    CHECK(event.logprob().id() == event.token());
    REQUIRE(event.top_size() == 3);
    CHECK(event.top(0).id() == event.token());
    CHECK(event.top(0).logprob() == event.logprob().logprob());
    CHECK(event.top(1).logprob() < event.top(0).logprob());
  }
}

TEST_CASE("text is whole characters and stops at stop strings across tokens") {
  const Tokenizer tokenizer = fixture();
  const auto say = [&](const std::string& text, std::vector<std::string> stops, std::uint32_t max_tokens) {
    Bench bench(Bench::options(), &tokenizer);
    bench.model.scripts[9] = byte_ids(tokenizer, text);
    bench.model.script_prompt[9] = 1;
    Request r = request("r", {9}, max_tokens);
    r.stop = std::move(stops);
    bench.submit(r);
    bench.run();
    for (const wire::TokenEvent& event : bench["c/r"].events)
      if (!event.text().empty()) CHECK((event.text()[0] & 0xC0) != 0x80);  // never starts inside a character
    return bench["c/r"];
  };
  const Clients::Told plain = say("grün🔥!", {}, 10);
  CHECK(plain.text == "grün🔥!");
  const Clients::Told cut = say("grün🔥!", {}, 7);  // ends inside the fire
  CHECK(cut.text == "grün\xEF\xBF\xBD");
  CHECK(cut.finish == "length");
  const Clients::Told stopped = say("one STOP two", {"STOP", "unused"}, 12);
  CHECK(stopped.text == "one ");
  CHECK(stopped.finish == "stop");
  CHECK(stopped.tokens.size() == 8);
  const Clients::Told almost = say("one STO", {"STOP"}, 7);
  CHECK(almost.text == "one STO");
  CHECK(almost.finish == "length");
}
