// What the disk of this machine can do, measured the way a model would use it: a yardstick of `stoker bench`.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/context.h"
#include "cli/interrupts.h"

namespace stoker::cli {

struct DiskProbe {
  std::vector<std::string> files;  ///< the checkpoint's shards
  std::uint64_t read_bytes = 0;    ///< of one expert; rounded up to what O_DIRECT can read
  double seconds = 0.5;            ///< per depth: 1, 2, 4, 8, 16
  std::string engine;              ///< uring, pread; "" or auto: the first that works
};

struct DiskBandwidth {
  double bytes_per_second = 0;  ///< at the best depth
  std::uint64_t depth = 0;
  bool direct = false;  ///< false: no O_DIRECT here, so this is the page cache's speed
};

/// Random reads through `raw_read`, a program of its own beside the daemons: the engines belong to the
/// loader, and the command line links none. Ends early with the signal's exit code.
tl::expected<DiskBandwidth, ExitReport> measure_disk(const DiskProbe& probe, Interrupts& interrupts);

/// What `raw_read --json` prints. Errc::corrupt when it is something else.
Result<DiskBandwidth> parse_raw_read(const std::string& text);

}  // namespace stoker::cli
