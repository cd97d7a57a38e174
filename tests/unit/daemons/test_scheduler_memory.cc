// Requests and the memory of their sequences: who is refused, who waits, who gives way.
#include "tests/unit/daemons/scheduler_rig.h"

using namespace stoker;
using namespace stoker::test;

TEST_CASE("what can never run is refused with both numbers") {
  SchedulerOptions options = Bench::options();
  options.context = 40;
  options.sequence_memory = kBytesPerSequence + 35 * kBytesPerToken;
  Bench bench(options);
  bench.submit(request("long", prompt(1, 41), 0));
  bench.submit(request("sum", prompt(1, 30), 11));
  bench.submit(request("full", prompt(1, 40), 0));
  bench.submit(request("memory", prompt(1, 20), 16));
  bench.submit(request("empty", {}, 5));
  bench.submit(request("vocabulary", {kVocabulary}, 5));
  Request stop = request("stop", {1}, 5);
  stop.stop = {"x"};
  bench.submit(stop);
  bench.run();
  const auto refused = [&](const std::string& id, const std::string& code, std::vector<std::string> numbers) {
    const Clients::Told& told = bench["c/" + id];
    INFO(id << ": " << told.error_text);
    CHECK(told.error == code);
    CHECK(told.endings == 1);
    for (const std::string& number : numbers) CHECK(told.error_text.find(number) != std::string::npos);
  };
  refused("long", "context_length_exceeded", {"41", "40"});
  refused("sum", "context_length_exceeded", {"30", "11", "40"});
  refused("full", "context_length_exceeded", {"40"});
  refused("memory", "memory_budget_exceeded", {"4.5 KiB", "4.4 KiB"});
  refused("empty", "invalid_request", {});
  refused("vocabulary", "invalid_request", {"512"});
  refused("stop", "no_tokenizer", {"tokenizer.json"});
  CHECK(bench.model.steps.empty());
}

TEST_CASE("the longest sequence that a budget holds") {
  FakeModel model;
  for (const std::uint32_t tokens : {1U, 2U, 35U, 99U, 100U}) {
    const std::uint64_t bytes = model.sequence_bytes(tokens);
    CHECK(longest_sequence(model, 100, bytes) == tokens);
    CHECK(longest_sequence(model, 100, bytes - 1) == tokens - 1);
    CHECK(longest_sequence(model, tokens, bytes + 1000 * kBytesPerToken) == tokens);
  }
  CHECK(longest_sequence(model, 100, 0) == 0);
}

TEST_CASE("requests that do not fit beside the others wait, and run later") {
  SchedulerOptions options = Bench::options();
  options.sequence_memory = 2 * (kBytesPerSequence + 20 * kBytesPerToken);
  Bench bench(options);
  for (std::uint32_t i = 0; i < 5; ++i) bench.submit(request("r" + std::to_string(i), prompt(i, 10), 10));
  bench.scheduler->step();
  CHECK(bench.scheduler->status().queued == 3);
  bench.run();
  for (std::uint32_t i = 0; i < 5; ++i) CHECK(bench["c/r" + std::to_string(i)].tokens.size() == 10);
  for (const FakeStep& step : bench.model.steps) CHECK(step.sequences.size() <= 2);
}

TEST_CASE("answers that outgrow the memory give way, the latest first, and go on with the same tokens") {
  SchedulerOptions options = Bench::options();
  options.reserve_ahead = 16;
  options.sequence_memory = 3 * kBytesPerSequence + 500 * kBytesPerToken;
  Bench bench(options);
  for (std::uint32_t i = 0; i < 4; ++i) bench.submit(request("r" + std::to_string(i), prompt(i, 20), 300));
  std::uint64_t most = 0;
  std::vector<std::string> order;
  for (int step = 0; step < 100'000 && bench.scheduler->step(); ++step) {
    const SchedulerStatus now = bench.scheduler->status();
    most = std::max(most, now.reserved_bytes);
    CHECK(now.sequence_bytes <= now.reserved_bytes);
    for (std::uint32_t i = 0; i < 4; ++i) {
      const std::string name = "r" + std::to_string(i);
      if (bench["c/" + name].endings > 0 && std::find(order.begin(), order.end(), name) == order.end())
        order.push_back(name);
    }
  }
  bench.run();
  CHECK(most <= options.sequence_memory);
  CHECK(order == std::vector<std::string>{"r0", "r1", "r2", "r3"});
  CHECK(bench.scheduler->status().requests_gave_way > 0);
  for (std::uint32_t i = 0; i < 4; ++i) {
    const Clients::Told& told = bench["c/r" + std::to_string(i)];
    CHECK(told.tokens == expected(prompt(i, 20), 300));
    CHECK(told.endings == 1);
    CHECK(told.stats.generated_tokens() == 300);
  }
}

TEST_CASE("without max_tokens a context's worth of memory is no reason to wait") {
  SchedulerOptions options = Bench::options();
  options.reserve_ahead = 16;
  options.sequence_memory = kBytesPerSequence + 1000 * kBytesPerToken;  // the context, once
  Bench bench(options);
  bench.rules.eos = {next_token(prompt(1, 30)), next_token(prompt(2, 30))};
  for (std::uint32_t i = 1; i <= 2; ++i) bench.submit(request("r" + std::to_string(i), prompt(i, 30), 0));
  bench.scheduler->step();
  CHECK(bench.scheduler->status().queued == 0);
  bench.run();
  CHECK(bench.scheduler->status().requests_gave_way == 0);
  for (const char* name : {"c/r1", "c/r2"}) CHECK(bench[name].finish == "stop");
}

TEST_CASE("an answer that gave way can be cancelled, and makes no noise meanwhile") {
  SchedulerOptions options = Bench::options();
  options.reserve_ahead = 16;
  options.max_sequences = 2;
  options.sequence_memory = 2 * kBytesPerSequence + 200 * kBytesPerToken;
  Bench bench(options);
  for (const char* id : {"first", "second", "third"}) bench.submit(request(id, prompt(1, 20), 150));
  while (bench.scheduler->status().requests_gave_way == 0) REQUIRE(bench.scheduler->step());
  const std::size_t said = bench["c/second"].tokens.size();
  const std::size_t heard = bench["c/second"].queue_positions.size();
  REQUIRE(said > 0);
  for (int i = 0; i < 40; ++i) bench.scheduler->step();
  CHECK(bench["c/second"].tokens.size() == said);
  CHECK(bench["c/second"].queue_positions.size() == heard);
  CHECK(bench["c/third"].tokens.empty());  // not overtaken
  bench.scheduler->cancel("c", "second");
  bench.run();
  CHECK(bench["c/second"].finish == "cancelled");
  CHECK(bench["c/second"].stats.generated_tokens() == said);
  CHECK(bench["c/first"].tokens == expected(prompt(1, 20), 150));
  CHECK(bench["c/third"].tokens == expected(prompt(1, 20), 150));
}
