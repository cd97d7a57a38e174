#include <unistd.h>
#include <catch2/catch.hpp>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "trace/trace_file.h"

using namespace stoker;

namespace {

const TraceShape kFileShape{.layers = 2, .experts = 8, .top_k = 2, .candidates = 3, .expert_bytes = 99};

TraceToken token(std::uint32_t id) {
  TraceToken t = TraceToken::sized(kFileShape);
  t.step = 7 + id;
  t.sequence = 3;
  t.token = id;
  t.chosen = {1, 2, 7, 0};
  t.weights = {0.75F, 0.25F, 0.5F, 0.5F};
  t.tiers = {1, 2, 3, 4};
  t.candidates = {kNoExpert, kNoExpert, kNoExpert, 7, 5, 0};
  t.times = {{10, 0, 10, 15}, {20, 5.5F, 30, 31}};
  return t;
}

struct File {
  File() : path(std::filesystem::temp_directory_path() / ("trace_test." + std::to_string(::getpid()))) {}
  ~File() { std::filesystem::remove(path); }
  [[nodiscard]] std::string bytes() const {
    std::ostringstream out;
    out << std::ifstream(path, std::ios::binary).rdbuf();
    return out.str();
  }
  std::filesystem::path path;
};

std::string written(const File& file, std::uint32_t tokens) {
  auto writer = TraceWriter::create(file.path, kFileShape);
  REQUIRE(writer);
  for (std::uint32_t i = 0; i < tokens; ++i) REQUIRE(writer->append(token(i)));
  REQUIRE(writer->close());
  return file.bytes();
}

}  // namespace

TEST_CASE("a trace comes back as it was written") {
  const File file;
  written(file, 3);
  const auto trace = read_trace(file.path);
  REQUIRE(trace);
  CHECK(trace->shape == kFileShape);
  CHECK(trace->bytes_ignored == 0);
  REQUIRE(trace->tokens.size() == 3);
  const TraceToken& t = trace->tokens[2];
  const TraceToken want = token(2);
  CHECK((t.step == want.step && t.sequence == want.sequence && t.token == want.token));
  CHECK((t.chosen == want.chosen && t.weights == want.weights && t.tiers == want.tiers));
  CHECK((t.candidates == want.candidates && t.times == want.times));
}

TEST_CASE("a record that was cut short is left out and counted; the rest is read") {
  const File file;
  const std::string bytes = written(file, 2);
  const auto trace = parse_trace(std::string_view(bytes).substr(0, bytes.size() - 5));
  REQUIRE(trace);
  CHECK(trace->tokens.size() == 1);
  CHECK(trace->bytes_ignored == 16 + 2 * (2 * 7 + 3 * 2 + 16) - 5);
}

TEST_CASE("what cannot be a trace is refused with the reason") {
  const File file;
  const std::string good = written(file, 1);
  const auto refused = [&](std::size_t at, const std::string& with, const std::string& why) {
    std::string bytes = good;
    bytes.replace(at, with.size(), with);
    const auto trace = parse_trace(bytes);
    return !trace && trace.error().message.find(why) != std::string::npos;
  };
  CHECK(refused(0, "X", "not a routing trace"));
  CHECK(refused(8, std::string(4, '\0'), "0 layers"));
  CHECK(refused(8, std::string(4, '\xff'), "impossible shape"));
  CHECK(refused(16, std::string("\x09\0\0\0", 4), "top 9"));
  CHECK(refused(48, std::string("\x08\0", 2), "expert 8"));              // first chosen
  CHECK(refused(56, std::string("\0\0\x80\x7f", 4), "not a finite"));    // first weight: infinity
  CHECK(refused(72, std::string("\x05", 1), "tier 5"));                  // first tier
  CHECK(refused(82, std::string("\x08\0", 2), "candidate 8"));           // first candidate of layer 1
  CHECK(refused(88, std::string("\0\0\x80\xbf", 4), "not a duration"));  // first time: -1
  CHECK(refused(88, std::string("\0\0\xc0\x7f", 4), "not a duration"));  // NaN
  CHECK(refused(0, good.substr(0, 8), "nothing") == false);              // unchanged: accepted
  CHECK_FALSE(parse_trace("STRACE1\n"));
  const auto missing = read_trace("/nonexistent/trace");
  REQUIRE_FALSE(missing);
  CHECK(missing.error().code == Errc::missing);
  CHECK(missing.error().message.find("/nonexistent/trace") != std::string::npos);
}

TEST_CASE("version 1, without times, is still read; a token without times is written with zeros") {
  const File file;
  std::string bytes = written(file, 2);
  constexpr std::size_t kHeader = 32, kTimes = 2 * 16;
  const std::size_t record = (bytes.size() - kHeader) / 2;
  bytes.erase(kHeader + 2 * record - kTimes, kTimes).erase(kHeader + record - kTimes, kTimes)[6] = '1';
  const auto before = parse_trace(bytes);
  REQUIRE(before);
  REQUIRE(before->tokens.size() == 2);
  CHECK(before->tokens[1].times.empty());
  CHECK(before->tokens[1].candidates == token(1).candidates);

  auto writer = TraceWriter::create(file.path, kFileShape);
  REQUIRE(writer);
  REQUIRE(writer->append(before->tokens[0]));
  REQUIRE(writer->close());
  const auto again = read_trace(file.path);
  REQUIRE(again);
  CHECK(again->tokens[0].times == std::vector<LayerTimes>(2));
}
