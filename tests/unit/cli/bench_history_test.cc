#include <catch2/catch.hpp>

#include "cli/bench_history.h"
#include "tests/unit/checkpoint/scratch.h"
#include "tests/unit/cli/bench_rows.h"

using namespace stoker;
using namespace stoker::cli;
using Json = nlohmann::ordered_json;

TEST_CASE("a history grows at its end and reads back as it was") {
  const stoker::test::ScratchDir scratch;
  const std::string path = scratch / "history.jsonl";
  const Json first = cli::test::row({4, 5}), second = cli::test::row({6, 7});
  REQUIRE(append_history(path, {first}));
  Json with_change = second;
  with_change["change"] = {{"ratio", 2}};
  REQUIRE(append_history(path, {with_change}));
  const auto rows = parse_history(stoker::test::slurp(path), path);
  REQUIRE(rows);
  CHECK(*rows == Rows{first, second});
  CHECK_FALSE(append_history(scratch / "nowhere/history.jsonl", {}));
}

TEST_CASE("a history that is none: file and line are named") {
  const std::string good = bench_text({cli::test::row({4, 5})}, BenchFormat::jsonl);
  CHECK(parse_history("", "h")->empty());
  CHECK(parse_history(good + "\n" + good, "h")->size() == 2);
  Json no_test = cli::test::row({1}), text_speed = no_test, no_speed = no_test;
  no_test.erase("test");
  text_speed["tokens_per_second"]["mean"] = "fast";
  no_speed["tokens_per_second"]["mean"] = 0;
  for (const std::string& bad : {std::string("{"), std::string("[]"), std::string("1"), good.substr(0, 100),
                                 no_test.dump(), text_speed.dump(), no_speed.dump()}) {
    const auto rows = parse_history(good + bad + "\n", "my.jsonl");
    CHECK_FAILS(rows, Errc::invalid, "my.jsonl line 2");
  }
}

TEST_CASE("the change is against the last row of the same test, model and pool") {
  const Json slow = cli::test::row({4, 5}), fast = cli::test::row({8, 9}),
             cold = cli::test::row({1, 2}, false);
  Json other_pool = fast, other_model = fast;
  other_pool["pool_slots"] = 5;
  other_model["model"] = "other";
  Rows now{cli::test::row({9, 9.5}), cli::test::row({1, 2}, false)};
  add_changes(now, {slow, fast, other_pool, other_model});
  CHECK(now[0]["change"]["ratio"].get<double>() == Approx(9.25 / 8.5));
  CHECK(now[0]["change"]["beyond_noise"] == false);  // 9 is in both ranges
  CHECK(now[0]["change"]["commit"] == "abcdef0");
  CHECK(now[0]["change"]["differs"].empty());
  CHECK(now[1]["change"]["ratio"].is_null());
  CHECK_THAT(now[1]["change"]["text"].get<std::string>(), Catch::Matchers::Contains("nothing to compare"));

  now = {cli::test::row({20})};
  add_changes(now, {fast});
  CHECK(now[0]["change"]["beyond_noise"] == false);  // one repetition

  now = {cli::test::row({9, 9.5})};
  now[0]["cpu"] = "another";
  add_changes(now, {fast, slow});
  CHECK(now[0]["change"]["beyond_noise"] == true);
  CHECK(now[0]["change"]["differs"] == Json::array({"cpu"}));
  CHECK_THAT(now[0]["change"]["text"].get<std::string>(), Catch::Matchers::Contains("other cpu"));
  CHECK_THAT(bench_text(now, BenchFormat::md), Catch::Matchers::Contains(" change |"));
}
