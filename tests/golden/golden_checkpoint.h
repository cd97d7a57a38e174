// Writes the checkpoint of a golden as published: per-expert names, shards, index, config files. The C++ half
// of tools/oracle/checkpoint.py.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "shm/base/result.h"
#include "tests/golden/golden_file.h"

namespace stoker::golden {

/// A stored tensor: a weight, or the scales of the weight before it.
struct Stored {
  std::string name;
  DType dtype = DType::other;
  std::vector<std::uint64_t> shape;
};

/// Names and shapes of model.md 2, scales included, in the order in which they fill shards.
std::vector<Stored> stored_tensors(const Golden& golden);

/// Writes into `directory` (made if missing). Every shard is checked against the manifest's SHA-256: a
/// difference means that this machine's arithmetic or this code is wrong, and is Errc::corrupt. `tokenizer`:
/// a tokenizer.json to copy in, or empty.
Result<void> write_checkpoint(const Golden& golden, const std::string& directory,
                              const std::string& tokenizer);

}  // namespace stoker::golden
