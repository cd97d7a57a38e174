#include "checkpoint/checksums.h"

#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>

#include "checkpoint/file_bytes.h"

namespace stoker {

std::uint64_t expert_checksum(const std::byte* slot, ExpertParts parts, std::uint64_t matrix_bytes) {
  // Chained by seed: no streaming state, no copy.
  std::uint64_t hash = XXH3_64bits(slot + parts.gate, matrix_bytes);
  hash = XXH3_64bits_withSeed(slot + parts.up, matrix_bytes, hash);
  return XXH3_64bits_withSeed(slot + parts.down, matrix_bytes, hash);
}

namespace {

/// One expert as the loader would place it in a slot.
Result<void> read_expert(const std::vector<OpenedFile>& files, const std::vector<ShardFile>& names,
                         const ExpertPlan& plan, ExpertKey key, std::vector<std::byte>& slot) {
  const auto [extents, count] = plan.extents(key);
  for (std::size_t i = 0; i < count; ++i) {
    const Extent& e = extents[i];
    const std::size_t file = e.file.value;
    const std::uint64_t bytes = std::min<std::uint64_t>(e.length, files[file].bytes - e.offset);
    STOKER_TRY_VOID(
        read_exactly(files[file], names[file].path, e.offset, slot.data() + e.slot_offset, bytes));
  }
  return {};
}

Result<void> write_words(const std::string& path, const std::vector<std::uint64_t>& words) {
  const std::string partial = path + ".partial";
  {
    std::ofstream out(partial, std::ios::binary | std::ios::trunc);
    out.write(reinterpret_cast<const char*>(words.data()), static_cast<std::streamsize>(words.size() * 8));
    out.close();
    if (!out) return fail(Errc::io, "cannot write " + partial, errno);
  }
  if (std::rename(partial.c_str(), path.c_str()) != 0) return fail(Errc::io, "cannot write " + path, errno);
  return {};
}

}  // namespace

Result<void> write_checksums(const Checkpoint& checkpoint, const std::string& path,
                             const std::function<bool(std::uint64_t, std::uint64_t)>& progress) {
  STOKER_TRY(const ExpertPlan plan, ExpertPlan::make(checkpoint));
  std::vector<OpenedFile> files;
  for (const ShardFile& file : checkpoint.files()) {
    STOKER_TRY(OpenedFile opened, open_regular(file.path));
    files.push_back(std::move(opened));
  }
  std::vector<std::uint64_t> words(3 + std::size_t{plan.expert_count()} + 1);
  std::memcpy(words.data(), "STKSUMS1", 8);
  words[1] = checkpoint.fingerprint();
  words[2] = plan.expert_count();
  std::vector<std::byte> slot(plan.slot_bytes());
  for (std::uint32_t key = 0; key < plan.expert_count(); ++key) {
    if (key % 64 == 0 && progress && !progress(key, plan.expert_count()))
      return fail(Errc::cancelled, "stopped while reading the experts");
    STOKER_TRY_VOID(read_expert(files, checkpoint.files(), plan, ExpertKey{key}, slot));
    words[3 + key] = expert_checksum(slot.data(), plan.parts(ExpertKey{key}), plan.expert_bytes() / 3);
  }
  words.back() = XXH3_64bits(words.data(), (words.size() - 1) * 8);
  return write_words(path, words);
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
