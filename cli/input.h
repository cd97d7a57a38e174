// Where text and ids on the command line come from: arguments, files, stdin.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "gpu-worker/text/tokenizer.h"
#include "shm/base/result.h"

namespace stoker::cli {

/// All of a file; "-" is stdin. The error names the path and the errno.
Result<std::string> read_input(const std::string& path);

/// True when stdin has something to read that is not a person: a pipe, a file, a socket.
bool stdin_is_piped();

/// "1,5,9" (white space allowed) as token ids. Errc::invalid names the text that is not an id.
Result<std::vector<std::uint32_t>> parse_ids(std::string_view text);

/// All ids in a file, separated by commas or white space; errors name it.
Result<std::vector<std::uint32_t>> read_ids(const std::string& path);

/// Refuses text that is not UTF-8 with the offset of the first bad byte (Errc::invalid); `what` names the
/// text.
Result<void> check_utf8(std::string_view text, const std::string& what);

/// A text as token ids, with the tokenizer that made them.
struct TextIds {
  Tokenizer tokenizer;
  std::vector<std::uint32_t> ids;
};

/// The text in `path` ("-" is stdin) as ids of the model in `model_dir`: the first `ids_max` (0: all).
/// Errors name the file.
Result<TextIds> read_text_ids(const std::string& path, const std::string& model_dir, AddedTokens added,
                              std::uint64_t ids_max);

/// Replaces the file's content; errors name the path.
Result<void> write_file(const std::string& path, const std::string& bytes);

}  // namespace stoker::cli
