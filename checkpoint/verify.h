// Reads every byte of a checkpoint once and says what is wrong with it: what `stoker verify` runs.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "shm/base/result.h"

namespace stoker {

struct VerifyOptions {
  unsigned threads = 0;            ///< files read at a time; 0: one per core
  bool hash = true;                ///< compare SHA-256 where the Hugging Face cache tells it
  std::size_t problems_max = 100;  ///< later ones are counted only
};

struct VerifyProblem {
  std::string file;
  std::string tensor;       ///< empty: the file as a whole
  std::uint64_t index = 0;  ///< first bad element, row-major
  std::uint64_t count = 0;  ///< bad elements in this tensor
  std::string what;

  [[nodiscard]] std::string text() const;
};

struct VerifyReport {
  std::uint64_t tensors = 0;
  std::uint64_t tensor_bytes = 0;
  std::uint64_t files = 0;
  std::uint64_t file_bytes = 0;
  std::uint64_t hashed_files = 0;  ///< symlinks to blobs named by their SHA-256 (Hugging Face cache)
  std::uint64_t scales = 0;        ///< FP8 tile scales seen; the next two are over the finite ones
  float scale_min = 0, scale_max = 0;
  std::uint64_t problems_total = 0;
  std::vector<VerifyProblem> problems;  ///< by file, then offset; at most problems_max

  [[nodiscard]] bool good() const { return problems_total == 0; }
};

struct VerifyProgress {
  std::uint64_t done_bytes = 0, total_bytes = 0;
};
/// One call at a time; false cancels (Errc::cancelled).
using VerifyCallback = std::function<bool(const VerifyProgress&)>;

/// Opens the checkpoint (errors as Checkpoint::open), then streams all data: FP8 codes must not be NaN
/// (0x7F, 0xFF), BF16, F16 and F32 values neither NaN nor infinite. Contents of file holes are read as zeros.
/// A read error fails the call; bad content is reported.
Result<VerifyReport> verify_checkpoint(const std::string& directory, const VerifyOptions& options = {},
                                       const VerifyCallback& progress = {});

}  // namespace stoker
