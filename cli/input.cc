#include "cli/input.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <utility>

#include "cli/terminal.h"
#include "gpu-worker/text/utf8.h"
#include "shm/base/unique_fd.h"

namespace stoker::cli {

Result<std::string> read_input(const std::string& path) {
  UniqueFd file;
  if (path != "-") {
    file = UniqueFd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!file.valid()) return fail(Errc::io, "cannot open " + path, errno);
  }
  std::string text;
  if (!read_all(path == "-" ? STDIN_FILENO : file.get(), text))
    return fail(Errc::io, "cannot read " + path, errno);
  return text;
}

bool stdin_is_piped() {
  struct stat info {};
  if (::fstat(STDIN_FILENO, &info) != 0) return false;
  // /dev/null and terminals are character devices: nothing to read from either.
  return S_ISFIFO(info.st_mode) || S_ISREG(info.st_mode) || S_ISSOCK(info.st_mode);
}

Result<std::vector<std::uint32_t>> parse_ids(std::string_view text) {
  std::vector<std::uint32_t> ids;
  const auto blank = [](char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; };
  std::size_t at = 0;
  while (at < text.size()) {
    std::size_t end = text.find(',', at);
    if (end == std::string_view::npos) end = text.size();
    std::string_view item = text.substr(at, end - at);
    while (!item.empty() && blank(item.front())) item.remove_prefix(1);
    while (!item.empty() && blank(item.back())) item.remove_suffix(1);
    std::uint32_t id = 0;
    const auto [last, error] = std::from_chars(item.data(), item.data() + item.size(), id);
    if (error != std::errc() || last != item.data() + item.size()) {
      return fail(Errc::invalid,
                  "\"" + std::string(item.substr(0, 40)) + "\" is not a token id; write ids as 1,5,9");
    }
    ids.push_back(id);
    at = end + 1;
  }
  if (ids.empty()) return fail(Errc::invalid, "there is no token id; write ids as 1,5,9");
  return ids;
}

Result<std::vector<std::uint32_t>> read_ids(const std::string& path) {
  STOKER_TRY(std::string text, read_input(path));
  const auto blank = [](char c) { return c == '\n' || c == '\r' || c == ' ' || c == '\t'; };
  std::replace_if(text.begin(), text.end(), blank, ',');
  const auto both = [](char a, char b) { return a == ',' && b == ','; };
  text.erase(std::unique(text.begin(), text.end(), both), text.end());
  while (!text.empty() && text.back() == ',') text.pop_back();
  auto ids = parse_ids(text);
  if (!ids) return fail(std::move(ids).error(), path);
  return ids;
}

Result<void> check_utf8(std::string_view text, const std::string& what) {
  const Utf8Scan scan = scan_utf8(text);
  if (scan.valid == text.size()) return {};
  return fail(Errc::invalid, what + " is not valid UTF-8 at byte " + std::to_string(scan.valid) +
                                 "; convert it first, e.g. with iconv");
}

Result<TextIds> read_text_ids(const std::string& path, const std::string& model_dir, AddedTokens added,
                              std::uint64_t ids_max) {
  STOKER_TRY(const std::string text, read_input(path));
  STOKER_TRY_VOID(check_utf8(text, path == "-" ? "stdin" : path));
  STOKER_TRY(Tokenizer tokenizer, Tokenizer::load(model_dir + "/tokenizer.json"));
  STOKER_TRY(auto ids, tokenizer.encode(text, added));
  if (ids_max > 0 && ids.size() > ids_max) ids.resize(ids_max);
  return TextIds{std::move(tokenizer), std::move(ids)};
}

Result<void> write_file(const std::string& path, const std::string& bytes) {
  std::FILE* file = std::fopen(path.c_str(), "wbe");
  if (file == nullptr) return fail(Errc::io, "cannot write " + path, errno);
  const bool written = std::fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size();
  const bool closed = std::fclose(file) == 0;
  if (!written || !closed) return fail(Errc::io, "cannot write " + path, errno);
  return {};
}

}  // namespace stoker::cli
