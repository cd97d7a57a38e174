#include "cli/input.h"

#include <stdlib.h>

#include <catch2/catch.hpp>
#include <filesystem>

using namespace stoker;
using namespace stoker::cli;

namespace {

/// A file with this content, while it is needed.
class ScratchFile {
 public:
  explicit ScratchFile(const std::string& bytes) {
    std::string name = (std::filesystem::temp_directory_path() / "stoker-input-XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    directory_ = name;
    REQUIRE(write_file(path(), bytes).has_value());
  }
  ScratchFile(const ScratchFile&) = delete;
  ScratchFile& operator=(const ScratchFile&) = delete;
  ~ScratchFile() { std::filesystem::remove_all(directory_); }
  [[nodiscard]] std::string path() const { return directory_ + "/text"; }

 private:
  std::string directory_;
};

}  // namespace

TEST_CASE("a text file becomes the model's ids, all of them or the first") {
  const ScratchFile file("hello world <|im_end|>");
  const auto all = read_text_ids(file.path(), STOKER_TEXT_DATA, AddedTokens::match, 0);
  REQUIRE(all.has_value());
  CHECK(all->ids == *all->tokenizer.encode("hello world <|im_end|>", AddedTokens::match));
  const auto plain = read_text_ids(file.path(), STOKER_TEXT_DATA, AddedTokens::ignore, 0);
  REQUIRE(plain.has_value());
  CHECK(plain->ids.size() > all->ids.size());
  const auto first = read_text_ids(file.path(), STOKER_TEXT_DATA, AddedTokens::match, 2);
  REQUIRE(first.has_value());
  CHECK(first->ids == std::vector<std::uint32_t>{all->ids[0], all->ids[1]});
  CHECK(read_text_ids(file.path(), STOKER_TEXT_DATA, AddedTokens::match, 1000)->ids == all->ids);
}

TEST_CASE("text that cannot become ids names the file") {
  const ScratchFile file("ab\xFF");
  const auto bytes = read_text_ids(file.path(), STOKER_TEXT_DATA, AddedTokens::match, 0);
  REQUIRE_FALSE(bytes.has_value());
  CHECK(bytes.error().code == Errc::invalid);
  CHECK(bytes.error().message.find(file.path() + " is not valid UTF-8 at byte 2") != std::string::npos);
  CHECK_FALSE(read_text_ids("/nowhere/text", STOKER_TEXT_DATA, AddedTokens::match, 0).has_value());
  const ScratchFile good("ab");
  const auto no_model = read_text_ids(good.path(), "/nowhere", AddedTokens::match, 0);
  REQUIRE_FALSE(no_model.has_value());
  CHECK(no_model.error().text().find("/nowhere/tokenizer.json") != std::string::npos);
}
