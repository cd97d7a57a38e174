// The HTML page: the numbers are the replay's, and what came from outside cannot break the markup.
#include "trace/html_report.h"

#include <catch2/catch.hpp>

#include "tests/unit/trace/toy_trace.h"
#include "trace/foreign.h"
#include "trace/html_charts.h"
#include "trace/replay.h"

using namespace stoker;

namespace {

using test::kToy;

Trace toy() {
  auto trace = parse_any_trace(kToy);
  REQUIRE(trace);
  return *std::move(trace);
}

std::string report(const Trace& trace, std::size_t skip = 0) {
  return html_report(trace, {.title = "a <toy> & more",
                             .slots_per_layer = {2, 3},
                             .per_layer = true,
                             .skip = skip,
                             .progress = {}});
}

bool has(const std::string& page, const std::string& part) { return page.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("the figures are those of the replay") {
  const Trace trace = toy();
  const std::string page = report(trace);
  CHECK(has(page, "<tr><th>lru</th><td data-hits=\"12\" data-misses=\"18\">40.0"));
  for (const auto policy : {ReplayPolicy::lfru, ReplayPolicy::stoker, ReplayPolicy::belady})
    for (const std::uint32_t slots : {2U, 3U}) {
      const ReplayResult r = replay(trace, {.policy = policy, .slots = slots * 3, .per_layer = true});
      CHECK(has(page, "data-hits=\"" + std::to_string(r.hits) + "\" data-misses=\"" +
                          std::to_string(r.misses) + "\">" + html::number("%.1f", 100 * r.hit_rate())));
    }
  CHECK(has(page, "<title>a &lt;toy&gt; &amp; more</title>"));
  CHECK(has(page, "The trace has no timings."));
  CHECK_FALSE(has(page, "The slowest step"));
  for (const char* outside : {"<script", "http-equiv", "src=", "url(", "@import", "href="})
    CHECK_FALSE(has(page, outside));
}

TEST_CASE("times: stall per layer over the steps, and the slowest step") {
  Trace trace = toy();
  for (std::size_t t = 1; t < trace.tokens.size(); ++t) {
    const auto slower = static_cast<float>(t == 3 ? 4 : 1);
    trace.tokens[t].times = {{100, 40 * slower, 200 * slower, 300 * slower},
                             {1400, 0, 1400, 1500},
                             {1600, 100, 1800, 2000 * slower}};
  }
  CHECK(slowest_token(trace, 0) == &trace.tokens[3]);
  CHECK(slowest_token(trace, 4) == &trace.tokens[4]);
  CHECK(slowest_token(trace, 5) == nullptr);
  const std::string page = report(trace);
  CHECK(has(page, "4 steps; the layers of a mean step take 3.50 ms"));  // (2 + 2 + 8 + 2) / 4
  CHECK(has(page, "layer 0: 0.070 ms per step"));                       // (40 + 40 + 160 + 40) / 4 us
  CHECK(has(page, "layer 1: 0.000 ms per step"));
  CHECK(has(page, "Step 3 (token id 0): 8.00 ms, of which 0.26 ms stall; 6 experts from disk."));
  // Two tokens of one step share its times.
  trace.tokens[4].step = trace.tokens[3].step;
  CHECK(has(report(trace), "3 steps;"));
}

TEST_CASE("48 layers of 512 experts, all different, stay far below 1 MB") {
  Trace trace;
  trace.shape = {.layers = 48, .experts = 512, .top_k = 10, .candidates = 0, .expert_bytes = 1};
  for (std::uint32_t t = 0; t < 200; ++t) {
    TraceToken token = TraceToken::sized(trace.shape);
    token.step = t;
    for (std::uint32_t i = 0; i < 480; ++i)
      token.chosen[i] = static_cast<std::uint16_t>((i % 10 * 51 + t * t * (i / 10 + 1) % 51) % 512);
    trace.tokens.push_back(std::move(token));
  }
  const std::string page = html_report(
      trace, {.title = "", .slots_per_layer = {64}, .per_layer = true, .skip = 0, .progress = {}});
  CHECK(page.size() < 400'000);
}

TEST_CASE("text from outside becomes well-formed XML") {
  CHECK(html::escape("a<b>&\"c") == "a&lt;b&gt;&amp;&quot;c");
  CHECK(html::escape("tab\tline\n\x01\x7f") == "tab\tline\n?\x7f");
  CHECK(html::escape("\xC3\xA4\xE2\x82\xAC\xF0\x9F\x94\xA5") == "\xC3\xA4\xE2\x82\xAC\xF0\x9F\x94\xA5");
  CHECK(html::escape("\xC3") == "?");
  CHECK(html::escape("\xC0\xAF") == "??");              // overlong
  CHECK(html::escape("\xED\xA0\x80") == "???");         // surrogate
  CHECK(html::escape("\xEF\xBF\xBF") == "???");         // U+FFFF
  CHECK(html::escape("\xF5\x80\x80\x80x") == "????x");  // beyond Unicode
}
