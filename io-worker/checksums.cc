#include "io-worker/checksums.h"

#include <xxhash.h>

#include <cerrno>
#include <cstring>
#include <fstream>

namespace stoker {

std::uint64_t expert_checksum(const std::byte* slot, ExpertParts parts, std::uint64_t matrix_bytes) {
  // Chained by seed: no streaming state, no copy.
  std::uint64_t hash = XXH3_64bits(slot + parts.gate, matrix_bytes);
  hash = XXH3_64bits_withSeed(slot + parts.up, matrix_bytes, hash);
  return XXH3_64bits_withSeed(slot + parts.down, matrix_bytes, hash);
}

Result<std::vector<std::uint64_t>> read_checksums(const std::string& path, std::uint64_t fingerprint,
                                                  std::uint64_t expert_count) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return fail(Errc::missing, "cannot open checksum file " + path, errno);
  std::vector<std::uint64_t> words(3 + expert_count + 1);
  const auto bytes = static_cast<std::streamsize>(words.size() * 8);
  in.read(reinterpret_cast<char*>(words.data()), bytes);
  if (in.gcount() != bytes || in.peek() != std::ifstream::traits_type::eof() ||
      std::memcmp(words.data(), "STKSUMS1", 8) != 0 || words[2] != expert_count ||
      words.back() != XXH3_64bits(words.data(), (words.size() - 1) * 8))
    return fail(Errc::corrupt, path + " is not a checksum file for " + std::to_string(expert_count) +
                                   " experts: make it again with `stoker verify --checksums`");
  if (words[1] != fingerprint)
    return fail(Errc::corrupt,
                path + " belongs to another checkpoint (or the files changed since): make it again");
  return std::vector<std::uint64_t>(words.begin() + 3, words.end() - 1);
}

}  // namespace stoker
