#include "gpu-worker/text/tokenizer.h"

#include <thread>

#include "tests/unit/text/fixture.h"

namespace stoker {
namespace {

using nlohmann::json;
using Ids = std::vector<std::uint32_t>;

Ids encode(const Tokenizer& tokenizer, const std::string& text, AddedTokens added = AddedTokens::match) {
  const auto ids = tokenizer.encode(text, added);
  REQUIRE(ids.has_value());
  return *ids;
}

TEST_CASE("ids equal those of Hugging Face tokenizers") {
  const Tokenizer tokenizer = test::fixture();
  const auto rows = test::read_json_lines("golden_tokens.jsonl");
  REQUIRE(rows.size() > 300);
  for (const json& row : rows) {
    CAPTURE(row.dump());
    const auto text = row["text"].get<std::string>();
    CHECK(encode(tokenizer, text) == row["ids"].get<Ids>());
    CHECK(encode(tokenizer, text, AddedTokens::ignore) ==
          (row.contains("plain") ? row["plain"] : row["ids"]).get<Ids>());
  }
}

TEST_CASE("merges may be written as \"a b\"") {
  json file = json::parse(test::read_data("tokenizer.json"));
  for (json& merge : file["model"]["merges"]) {
    merge = merge[0].get<std::string>() + " " + merge[1].get<std::string>();
  }
  const auto tokenizer = Tokenizer::parse(file.dump());
  REQUIRE(tokenizer.has_value());
  for (const json& row : test::read_json_lines("golden_tokens.jsonl")) {
    CHECK(encode(*tokenizer, row["text"].get<std::string>()) == row["ids"].get<Ids>());
  }
}

TEST_CASE("decoding gives the text back") {
  const Tokenizer tokenizer = test::fixture();
  const std::string text = "Feuer 火夫 🔥\n\tx = 'a'<|im_end|><tool_call>\x01";
  const Ids ids = encode(tokenizer, text);
  CHECK(tokenizer.decode(ids, false).value() == text);
  CHECK(tokenizer.decode(ids, true).value() == "Feuer 火夫 🔥\n\tx = 'a'<tool_call>\x01");
}

TEST_CASE("added tokens have names, bytes and a special flag") {
  const Tokenizer tokenizer = test::fixture();
  const auto end = tokenizer.find("<|im_end|>");
  const auto call = tokenizer.find("<tool_call>");
  REQUIRE(end.has_value());
  REQUIRE(call.has_value());
  CHECK(tokenizer.is_special(*end));
  CHECK_FALSE(tokenizer.is_special(*call));
  CHECK(tokenizer.token_bytes(*end) == "<|im_end|>");
  CHECK_FALSE(tokenizer.find("<|nothing|>").has_value());
  CHECK(tokenizer.size() == 4096 + 26);
  CHECK(tokenizer.token_bytes(tokenizer.size()).empty());
  CHECK_FALSE(tokenizer.is_special(0xFFFFFFFF));
}

TEST_CASE("an id without a token is refused by decode") {
  const Tokenizer tokenizer = test::fixture();
  const auto text = tokenizer.decode(Ids{5, 99999}, false);
  REQUIRE_FALSE(text.has_value());
  CHECK(text.error().code == Errc::invalid);
  CHECK(text.error().message.find("99999") != std::string::npos);
}

TEST_CASE("invalid UTF-8 is refused with its byte offset") {
  const Tokenizer tokenizer = test::fixture();
  struct Case {
    std::string text;
    std::string place;
  };
  const std::vector<Case> cases = {{"ab\xFF", "byte 2"},
                                   {"\xC3\xA4\xC0\x80", "byte 2"},   // overlong
                                   {"x\xED\xA0\x80", "byte 1"},      // surrogate
                                   {"x\xF4\x90\x80\x80", "byte 1"},  // beyond U+10FFFF
                                   {"abc\xE7\x81", "byte 3"},        // ends inside a character
                                   {"<|im_end|>\x80", "byte 10"}};
  for (const Case& c : cases) {
    const auto ids = tokenizer.encode(c.text, AddedTokens::match);
    REQUIRE_FALSE(ids.has_value());
    CHECK(ids.error().code == Errc::invalid);
    CHECK(ids.error().message.find(c.place) != std::string::npos);
  }
}

TEST_CASE("long runs are not quadratic and give the ids of short ones") {
  const Tokenizer tokenizer = test::fixture();
  // A quadratic merge loop would need hours here, so this test ends or does not.
  const Ids ids = encode(tokenizer, std::string(1 << 20, 'a'));
  CHECK(tokenizer.decode(ids, false).value().size() == 1 << 20);
  const Ids blanks = encode(tokenizer, std::string(1 << 20, ' ') + "x");
  CHECK(tokenizer.decode(blanks, false).value().size() == (1 << 20) + 1);
  std::string marks = "q";
  for (int i = 0; i < 100000; ++i) marks += i % 2 == 0 ? "\xCC\x81" : "\xCC\xA3";  // U+0301, U+0323
  const std::string sorted = tokenizer.decode(encode(tokenizer, marks), false).value();
  CHECK(sorted.size() == marks.size());
  CHECK(sorted.substr(0, 5) == "q\xCC\xA3\xCC\xA3");
}

TEST_CASE("one tokenizer serves several threads") {
  const Tokenizer tokenizer = test::fixture();
  const auto rows = test::read_json_lines("golden_tokens.jsonl");
  std::vector<int> wrong(4, 0);
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < wrong.size(); ++t) {
    threads.emplace_back([&, t] {
      for (const json& row : rows) {
        const auto ids = tokenizer.encode(row["text"].get<std::string>(), AddedTokens::match);
        if (!ids || *ids != row["ids"].get<Ids>()) ++wrong[t];
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == std::vector<int>(4, 0));
}

TEST_CASE("a missing file is named") {
  const auto tokenizer = Tokenizer::load("/nonexistent/tokenizer.json");
  REQUIRE_FALSE(tokenizer.has_value());
  CHECK(tokenizer.error().code == Errc::missing);
  CHECK(tokenizer.error().message.find("/nonexistent/tokenizer.json") != std::string::npos);
}

struct Refusal {
  const char* name;
  void (*change)(json&);
  Errc code;
  const char* words;
};

const Refusal kRefusals[] = {
    {"no merges", [](json& f) { f["model"].erase("merges"); }, Errc::missing, "no model.merges"},
    {"empty merges", [](json& f) { f["model"]["merges"] = json::array(); }, Errc::missing, "no model.merges"},
    {"WordPiece", [](json& f) { f["model"]["type"] = "WordPiece"; }, Errc::unsupported,
     "WordPiece is not BPE"},
    {"no model", [](json& f) { f.erase("model"); }, Errc::missing, "no model"},
    {"byte_fallback", [](json& f) { f["model"]["byte_fallback"] = true; }, Errc::unsupported,
     "byte_fallback"},
    {"ignore_merges", [](json& f) { f["model"]["ignore_merges"] = true; }, Errc::unsupported,
     "ignore_merges"},
    {"dropout", [](json& f) { f["model"]["dropout"] = 0.1; }, Errc::unsupported, "dropout"},
    {"unknown option", [](json& f) { f["model"]["magic"] = 1; }, Errc::unsupported, "\"magic\""},
    {"suffix", [](json& f) { f["model"]["end_of_word_suffix"] = "</w>"; }, Errc::unsupported,
     "end_of_word_suffix"},
    {"normalizer", [](json& f) { f["normalizer"]["type"] = "NFKC"; }, Errc::unsupported, "NFKC"},
    {"pre_tokenizer",
     [](json& f) {
       f["pre_tokenizer"] = {{"type", "Metaspace"}};
     },
     Errc::unsupported, "Metaspace"},
    {"no pre_tokenizer", [](json& f) { f["pre_tokenizer"] = nullptr; }, Errc::missing, "no pre_tokenizer"},
    {"prefix space", [](json& f) { f["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = true; },
     Errc::unsupported, "add_prefix_space"},
    {"behavior", [](json& f) { f["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "Removed"; },
     Errc::unsupported, "behavior"},
    {"regex", [](json& f) { f["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "\\w+"; },
     Errc::unsupported, "\\w"},
    {"empty match", [](json& f) { f["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "a*"; },
     Errc::unsupported, "empty string"},
    {"broken regex", [](json& f) { f["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "+a"; },
     Errc::corrupt, "does not compile"},
    {"decoder", [](json& f) { f["decoder"]["type"] = "Fuse"; }, Errc::unsupported, "decoder Fuse"},
    {"post_processor", [](json& f) { f["post_processor"]["type"] = "TemplateProcessing"; }, Errc::unsupported,
     "TemplateProcessing"},
    {"truncation",
     [](json& f) {
       f["truncation"] = {{"max_length", 5}};
     },
     Errc::unsupported, "truncation"},
    {"lstrip", [](json& f) { f["added_tokens"][3]["lstrip"] = true; }, Errc::unsupported, "lstrip"},
    {"normalized", [](json& f) { f["added_tokens"][3]["normalized"] = true; }, Errc::unsupported,
     "normalized"},
    {"repeated added token", [](json& f) { f["added_tokens"][3] = f["added_tokens"][4]; }, Errc::corrupt,
     "repeats"},
    {"shared id", [](json& f) { f["added_tokens"][3]["id"] = 7; }, Errc::corrupt,
     "id 7 belongs to two tokens"},
    {"huge id", [](json& f) { f["added_tokens"][3]["id"] = 4000000000u; }, Errc::corrupt,
     "added_tokens[3].id"},
    {"id twice in vocab", [](json& f) { f["model"]["vocab"]["zzzz"] = 7; }, Errc::corrupt,
     "id 7 is used twice"},
    {"fractional id", [](json& f) { f["model"]["vocab"]["zzzz"] = 7.5; }, Errc::corrupt, "zzzz"},
    {"no byte", [](json& f) { f["model"]["vocab"].erase("A"); }, Errc::missing, "byte 65"},
    {"merge of unknown",
     [](json& f) {
       f["model"]["merges"][9] = {"Q", "QQQQ"};
     },
     Errc::corrupt, "merges[9]"},
    {"odd merge", [](json& f) { f["model"]["merges"][9] = "a b c"; }, Errc::corrupt, "merges[9]"},
    {"merge twice", [](json& f) { f["model"]["merges"][9] = f["model"]["merges"][8]; }, Errc::corrupt,
     "repeats"},
};

TEST_CASE("what can not be run exactly is refused by name") {
  const json good = json::parse(test::read_data("tokenizer.json"));
  for (const Refusal& refusal : kRefusals) {
    CAPTURE(refusal.name);
    json file = good;
    refusal.change(file);
    const auto tokenizer = Tokenizer::parse(file.dump());
    REQUIRE_FALSE(tokenizer.has_value());
    CAPTURE(tokenizer.error().message);
    CHECK(tokenizer.error().code == refusal.code);
    CHECK(tokenizer.error().message.find(refusal.words) != std::string::npos);
  }
}

TEST_CASE("broken JSON is refused with its place") {
  const std::string good = test::read_data("tokenizer.json");
  for (const std::string& text :
       {good.substr(0, 5000), std::string(), std::string("[1]"), std::string(5000, '['),
        test::replaced(good, "\"version\"", "\"model\":1,\"version\""),
        test::replaced(good, "\"version\"", "\"\xFF\"")}) {
    const auto tokenizer = Tokenizer::parse(text);
    REQUIRE_FALSE(tokenizer.has_value());
    CHECK(tokenizer.error().code == Errc::corrupt);
  }
}

}  // namespace
}  // namespace stoker
