#include "daemons/gateway/metrics.h"

#include <map>
#include <regex>
#include <set>
#include <sstream>

#include "tests/unit/gateway/rig.h"

using namespace stoker;
using namespace stoker::gateway;
using namespace stoker::gateway::test;

namespace {

/// Reads Prometheus' text format and holds it to its grammar: every sample belongs to the family that was
/// announced last, by one HELP and one TYPE line, and no family comes twice.
class Exposition {
 public:
  explicit Exposition(const std::string& text) {
    REQUIRE(text.ends_with('\n'));
    std::istringstream in(text);
    for (std::string line; std::getline(in, line);) {
      CAPTURE(line);
      line.starts_with('#') ? comment(line) : sample(line);
    }
  }

  std::map<std::string, double> samples;  ///< by name with labels
  std::map<std::string, std::string> types, helps;

 private:
  void comment(const std::string& line) {
    static const std::regex form(R"(# (HELP|TYPE) ([a-zA-Z_:][a-zA-Z0-9_:]*) (.+))");
    std::smatch parts;
    REQUIRE(std::regex_match(line, parts, form));
    auto& seen = parts[1] == "HELP" ? helps : types;
    REQUIRE(seen.emplace(parts[2], parts[3]).second);
    family_ = parts[2];
  }
  void sample(const std::string& line) {
    static const std::regex form(
        R"(([a-zA-Z_:][a-zA-Z0-9_:]*)(\{[a-zA-Z_]+="[^"\\\n]*"(,[a-zA-Z_]+="[^"\\\n]*")*\})? (\S+))");
    std::smatch parts;
    REQUIRE(std::regex_match(line, parts, form));
    const std::string name = parts[1];
    const bool histogram = types[family_] == "histogram";
    if (histogram) {
      const std::string suffix = name.substr(std::min(family_.size(), name.size()));
      REQUIRE((suffix == "_bucket" || suffix == "_sum" || suffix == "_count"));
      REQUIRE(name.starts_with(family_));
    } else {
      REQUIRE(name == family_);
    }
    REQUIRE(samples.emplace(name + parts[2].str(), std::stod(parts[4])).second);
  }
  std::string family_;
};

}  // namespace

TEST_CASE("metrics: the gateway's own") {
  Metrics metrics;
  metrics.count_response("/v1/models", 200);
  metrics.count_response("/v1/models", 200);
  metrics.count_response("other", 404);
  metrics.begin_generation();
  metrics.count_disconnect();
  wire::Stats stats = done_with("stop", 10, 4, 3).stats();
  stats.set_ttft_seconds(2);
  stats.set_decode_seconds(1);
  metrics.count_generation(stats);
  metrics.count_generation(wire::Stats());  // no token: nothing to time
  const Exposition text(metrics.text(std::nullopt));
  CHECK(text.samples.at(R"(stoker_http_responses_total{path="/v1/models",status="200"})") == 2);
  CHECK(text.samples.at(R"(stoker_http_responses_total{path="other",status="404"})") == 1);
  CHECK(text.samples.at("stoker_http_generations") == 1);
  CHECK(text.samples.at("stoker_http_disconnects_total") == 1);
  CHECK(text.samples.at("stoker_time_to_first_token_seconds_count") == 1);
  CHECK(text.samples.at("stoker_time_to_first_token_seconds_sum") == 2);
  CHECK(text.samples.at("stoker_inter_token_seconds_sum") == 0.5);
  CHECK(text.samples.at("stoker_request_seconds_sum") == 3);
  CHECK(text.samples.at("stoker_worker_up") == 0);
  CHECK(text.types.at("stoker_http_responses_total") == "counter");
  CHECK(text.types.at("stoker_request_seconds") == "histogram");
  metrics.end_generation();
  CHECK(Exposition(metrics.text(std::nullopt)).samples.at("stoker_http_generations") == 0);
}

TEST_CASE("metrics: the worker's, out of its status") {
  const Metrics metrics;
  const Exposition text(metrics.text(json_of(R"({
      "tokens": {"prompt": 12, "decode_seconds": 1.5},
      "requests": {"queued": 1, "prefilling": 2, "decoding": 3, "done": 4, "failed": 5, "cancelled": 6,
                   "refused": 7},
      "experts": {"pool": 8, "disk": 9}, "worker": {"experts_from_vram": 10},
      "loader": {"read_bytes": 12345678901, "hints_issued": "many"}, "pool": 7, "memory": null})")));
  CHECK(text.samples.at("stoker_worker_up") == 1);
  CHECK(text.samples.at("stoker_prompt_tokens_total") == 12);
  CHECK(text.samples.at(R"(stoker_step_seconds_total{phase="decode"})") == 1.5);
  CHECK(text.samples.count(R"(stoker_step_seconds_total{phase="prefill"})") == 0);
  CHECK(text.samples.at(R"(stoker_requests{state="prefilling"})") == 2);
  CHECK(text.samples.at(R"(stoker_requests_total{end="refused"})") == 7);
  CHECK(text.samples.at(R"(stoker_expert_uses_total{tier="vram"})") == 10);
  CHECK(text.samples.at(R"(stoker_expert_uses_total{tier="disk"})") == 9);
  CHECK(text.samples.at("stoker_disk_read_bytes_total") == 12345678901.0);
  CHECK(text.types.at("stoker_requests") == "gauge");
  CHECK(text.types.at("stoker_requests_total") == "counter");
  CHECK(text.helps.at("stoker_step_seconds_total") == "Time in steps of the model");
  CHECK(text.types.count("stoker_hints_total") == 0);
  CHECK(text.types.count("stoker_pool_bytes") == 0);
}

TEST_CASE("metrics: any JSON may be a status") {
  const Metrics metrics;
  for (const char* status :
       {"{}", "[]", "null", "7", R"({"tokens": []})", R"({"tokens": {"prompt": null}})"}) {
    CAPTURE(status);
    CHECK(Exposition(metrics.text(json_of(status))).samples.at("stoker_worker_up") == 1);
  }
}
