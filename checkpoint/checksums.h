// Optional per-expert checksums: published checkpoints carry none, so `stoker verify --checksums FILE`
// makes them once from a copy known to be good, and the loader verifies every read against them.
//
// File: "STKSUMS1" | u64 fingerprint | u64 count | u64 xxh3[count] | u64 xxh3 of all before; little endian.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"

namespace stoker {

/// XXH3-64 over gate, up and down (each `matrix_bytes` long) of the expert in `slot`.
std::uint64_t expert_checksum(const std::byte* slot, ExpertParts parts, std::uint64_t matrix_bytes);

/// Reads every expert of `checkpoint` once and writes the file for it: to <path>.partial, then renamed.
/// `progress` gets experts done and in all, now and then; false cancels (Errc::cancelled). Errors name the
/// file.
Result<void> write_checksums(const Checkpoint& checkpoint, const std::string& path,
                             const std::function<bool(std::uint64_t done, std::uint64_t total)>& progress);

/// Checksums by ExpertKey. Errc::missing or ::corrupt when the file is not there, damaged, or of another
/// checkpoint.
Result<std::vector<std::uint64_t>> read_checksums(const std::string& path, std::uint64_t fingerprint,
                                                  std::uint64_t expert_count);

}  // namespace stoker
