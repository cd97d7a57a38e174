// How fast the storage is, measured with the reads that matter: expert-sized, random, through an engine.
// The loader calibrates at start (depth is bytes in flight, design.md 5); every report that states a
// share of "raw bandwidth" takes it from here, in the same run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "io-worker/engine.h"
#include "shm/base/clock.h"
#include "shm/base/result.h"

namespace stoker {

/// One measurement: random reads of `read_bytes` with `depth` of them in flight, until `bytes_max` have
/// been read or `time_max` is over, whichever is first (at least one full depth of reads).
struct ReadProbe {
  std::uint32_t read_bytes = 3 << 20;  ///< multiple of kDirectAlign
  std::size_t depth = 1;
  std::uint64_t bytes_max = 256_MiB;
  Duration time_max = std::chrono::milliseconds(500);
  std::uint64_t seed = 1;  ///< of the offsets
};

struct ReadRate {
  std::uint64_t bytes = 0;
  Duration elapsed{};
  [[nodiscard]] double bytes_per_second() const {
    return elapsed > Duration::zero() ? static_cast<double>(bytes) / seconds(elapsed) : 0;
  }
};

/// `engine` is idle and was made with `files`; `scratch` is kDirectAlign-aligned and holds
/// depth * read_bytes, its content is overwritten. Errc::io names file, offset and errno of a read that
/// failed, or that the storage has not answered for 60 s (only then are reads still in flight);
/// Errc::invalid when scratch, engine or every file is too small.
Result<ReadRate> measure_random_reads(IoEngine& engine, std::span<const EngineFile> files,
                                      std::span<std::byte> scratch, const ReadProbe& probe,
                                      const Clock& clock);

struct CalibrateOptions {
  std::uint32_t read_bytes = 3 << 20;
  std::uint64_t bytes_max = 512_MiB;                   ///< over all depths
  Duration time_max = std::chrono::milliseconds(750);  ///< over all depths
  std::uint64_t seed = 1;
};

struct Calibration {
  struct Point {
    std::size_t depth = 0;
    double bytes_per_second = 0;
  };
  std::uint64_t best_bytes_in_flight = 0;  ///< the smallest within 10 % of the best bandwidth
  double bytes_per_second = 0;             ///< the best bandwidth of all depths
  bool direct = false;        ///< false: some files go through the page cache, so this is memory speed
  std::vector<Point> points;  ///< per depth tried: 1, 2, 4, 8, 16 as far as engine and scratch allow
};

Result<Calibration> calibrate(IoEngine& engine, std::span<const EngineFile> files,
                              std::span<std::byte> scratch, const CalibrateOptions& options,
                              const Clock& clock);

}  // namespace stoker
