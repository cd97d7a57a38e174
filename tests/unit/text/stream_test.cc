#include <random>

#include "gpu-worker/text/tokenizer.h"
#include "gpu-worker/text/utf8.h"
#include "tests/unit/text/fixture.h"

namespace stoker {
namespace {

/// The id of a single byte: bytes come first in the fixture's vocabulary, so their tokens are one byte long.
std::uint32_t byte_id(const Tokenizer& tokenizer, unsigned char byte) {
  for (std::uint32_t id = 0; id < 256; ++id) {
    if (tokenizer.token_bytes(id) == std::string(1, static_cast<char>(byte))) return id;
  }
  FAIL("no token for a byte");
  return 0;
}

std::string stream(const Tokenizer& tokenizer, const std::string& bytes) {
  StreamDecoder decoder(tokenizer, true);
  std::string out;
  for (const char c : bytes) {
    out += decoder.push(byte_id(tokenizer, static_cast<unsigned char>(c)));
    CHECK(scan_utf8(out).valid == out.size());  // never half a character
  }
  return out + decoder.flush();
}

TEST_CASE("characters come out whole, whatever bytes the tokens end at") {
  const Tokenizer tokenizer = test::fixture();
  CHECK(stream(tokenizer, "aä火🔥z") == "aä火🔥z");
}

// Table 3-8 of the Unicode standard and its neighbours; Python's errors="replace" gives the same.
TEST_CASE("bytes that are no UTF-8 become one U+FFFD per maximal subsequence") {
  const Tokenizer tokenizer = test::fixture();
  const std::string r(kReplacementCharacter);
  CHECK(stream(tokenizer, "a\x80z") == "a" + r + "z");
  CHECK(stream(tokenizer, "\xF1\x80\x80z") == r + "z");
  CHECK(stream(tokenizer, "\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41") == r + r + r + r + "A");
  CHECK(stream(tokenizer, "\xED\xA0\x80") == r + r + r);
  CHECK(stream(tokenizer, "\xC0\xAF") == r + r);
  CHECK(stream(tokenizer, "\xF4\x91\x92\x93") == r + r + r + r);
  CHECK(stream(tokenizer, "ok\xF0\x9F\x94") == "ok" + r);
  CHECK(stream(tokenizer, "\xE7\x81<") == r + "<");
}

TEST_CASE("ids without a token add nothing to a stream") {
  const Tokenizer tokenizer = test::fixture();
  StreamDecoder decoder(tokenizer, true);
  CHECK(decoder.push(0xFFFFFFFF).empty());
  CHECK(decoder.push(*tokenizer.find("<|im_end|>")).empty());
  CHECK(decoder.push(*tokenizer.find("<tool_call>")) == "<tool_call>");
  CHECK(decoder.flush().empty());
}

TEST_CASE("a stop string ends the text before it") {
  StopScanner scanner({"</s>", "STOP"});
  CHECK(scanner.push("abc<").text == "abc");
  CHECK(scanner.push("/s").text.empty());
  const auto step = scanner.push("> more");
  CHECK(step.stopped);
  CHECK(step.text.empty());
  CHECK(scanner.found() == "</s>");
  CHECK(scanner.push("later").stopped);
  CHECK(scanner.push("later").text.empty());
  CHECK(scanner.flush().empty());
}

TEST_CASE("what only looked like a stop string is shown") {
  StopScanner scanner({"</s>"});
  CHECK(scanner.push("a</s").text == "a");
  CHECK(scanner.push("x").text == "</sx");
  CHECK(scanner.push("<").text.empty());
  CHECK(scanner.flush() == "<");
}

TEST_CASE("no stop strings, and empty ones, never stop") {
  StopScanner scanner({""});
  CHECK(scanner.push("text").text == "text");
  CHECK_FALSE(scanner.push("text").stopped);
}

// The rule of the header, written the slow way: the earliest end, and there the longest stop.
std::pair<std::string, bool> expected_stop(const std::string& text, const std::vector<std::string>& stops) {
  for (std::size_t end = 1; end <= text.size(); ++end) {
    std::size_t longest = 0;
    for (const std::string& stop : stops) {
      if (stop.size() <= end && text.compare(end - stop.size(), stop.size(), stop) == 0) {
        longest = std::max(longest, stop.size());
      }
    }
    if (longest > 0) return {text.substr(0, end - longest), true};
  }
  return {text, false};
}

TEST_CASE("the result of stop strings does not depend on how the text is cut") {
  std::mt19937 random(11);
  const auto letters = [&](std::size_t length) {
    std::string text;
    for (std::size_t i = 0; i < length; ++i) text += static_cast<char>('a' + random() % 2);
    return text;
  };
  for (int round = 0; round < 3000; ++round) {
    const std::vector<std::string> stops = {letters(1 + random() % 6), letters(3 + random() % 6)};
    const std::string text = letters(random() % 30);
    StopScanner scanner(stops);
    std::string shown;
    bool stopped = false;
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t length = 1 + random() % 5;
      const auto step = scanner.push(std::string_view(text).substr(at, length));
      shown += step.text;
      stopped = step.stopped;
      at += length;
    }
    shown += scanner.flush();
    CAPTURE(text, stops[0], stops[1]);
    CHECK(std::pair(shown, stopped) == expected_stop(text, stops));
  }
}

}  // namespace
}  // namespace stoker
