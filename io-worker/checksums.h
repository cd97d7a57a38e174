// Optional per-expert checksums: published checkpoints carry none, so `stoker verify --checksums FILE`
// makes them once from a copy known to be good, and the loader verifies every read against them.
//
// File: "STKSUMS1" | u64 fingerprint | u64 count | u64 xxh3[count] | u64 xxh3 of all before; little endian.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"

namespace stoker {

/// XXH3-64 over gate, up and down (each `matrix_bytes` long) of the expert in `slot`.
std::uint64_t expert_checksum(const std::byte* slot, ExpertParts parts, std::uint64_t matrix_bytes);

Result<std::vector<std::uint64_t>> read_checksums(const std::string& path, std::uint64_t fingerprint,
                                                  std::uint64_t expert_count);

}  // namespace stoker
