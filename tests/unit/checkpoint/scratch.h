// Temporary directories with small checkpoints to break.
#pragma once

#include <unistd.h>

#include <catch2/catch.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>
#include <string>

#include "checkpoint/checkpoint.h"
#include "checkpoint/synth.h"

namespace stoker::test {

class ScratchDir {
 public:
  ScratchDir() {
    std::string pattern = (std::filesystem::temp_directory_path() / "stoker-test-XXXXXX").string();
    REQUIRE(::mkdtemp(pattern.data()) != nullptr);
    path_ = pattern;
  }
  ~ScratchDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  ScratchDir(const ScratchDir&) = delete;
  ScratchDir& operator=(const ScratchDir&) = delete;
  [[nodiscard]] std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

inline std::string slurp(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

inline void spill(const std::string& path, const std::string& bytes) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out << bytes;
  REQUIRE(out.good());
}

/// Smaller than the preset: 2 layers (linear, full), 4 experts, ragged tiles where `ragged`.
inline SynthSpec mini_spec(const std::string& directory) {
  SynthSpec spec = *synth_preset("tiny");
  spec.directory = directory;
  spec.config.layers = 2;
  spec.config.mixers = {MixerType::linear_attention, MixerType::full_attention};
  spec.config.experts = 4;
  spec.config.experts_per_token = 2;
  spec.config.vocab_size = 64;
  spec.config.eos_token_ids = {63};
  spec.shards = 3;
  spec.threads = 2;
  return spec;
}

inline void replace_once(std::string& text, const std::string& from, const std::string& to) {
  const auto at = text.find(from);
  REQUIRE(at != std::string::npos);
  text.replace(at, from.size(), to);
}

/// Changes the JSON header of a shard in place; data_offsets stay relative, so the length may change too.
inline void edit_header(const std::string& path, const std::function<void(std::string&)>& edit) {
  std::string bytes = slurp(path);
  std::uint64_t length = 0;
  for (unsigned i = 0; i < 8; ++i) length |= std::uint64_t{static_cast<unsigned char>(bytes[i])} << (8 * i);
  std::string header = bytes.substr(8, length);
  edit(header);
  std::string prefix(8, '\0');
  for (unsigned i = 0; i < 8; ++i) prefix[i] = static_cast<char>((header.size() >> (8 * i)) & 0xFF);
  spill(path, prefix + header + bytes.substr(8 + length));
}

/// The shard that holds the tensor.
inline std::string shard_of(const std::string& directory, const std::string& tensor) {
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    const std::string path = entry.path().string();
    if (!path.ends_with(".safetensors")) continue;
    const auto header = read_safetensors_header(path);
    REQUIRE(header);
    for (const TensorInfo& info : *header)
      if (info.name == tensor) return path;
  }
  FAIL("no shard holds " << tensor);
  return {};
}

/// The error of a Result that must have failed.
template <class T>
Error error_of(const Result<T>& result) {
  REQUIRE_FALSE(result.has_value());
  return result.error();
}

}  // namespace stoker::test

#define CHECK_FAILS(expression, expected_code, part)                      \
  do {                                                                    \
    const ::stoker::Error failure = ::stoker::test::error_of(expression); \
    INFO(failure.text());                                                 \
    CHECK(failure.code == (expected_code));                               \
    CHECK_THAT(failure.message, Catch::Matchers::Contains(part));         \
  } while (false)
