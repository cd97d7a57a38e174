#include "io-worker/calibrate.h"

#include <algorithm>
#include <array>
#include <optional>
#include <random>

namespace stoker {
namespace {

constexpr std::size_t kDepths[] = {1, 2, 4, 8, 16};
constexpr double kGoodEnough = 0.9;
/// Rounds over all depths; the best of a depth counts, because other work only ever makes a disk slower.
constexpr int kRounds = 3;
/// A storage device that has not answered for so long is not going to.
constexpr Duration kStallMax = std::chrono::seconds(60);

/// Random aligned places in the files, each file as often as its share of the bytes.
class Places {
 public:
  Places(std::span<const EngineFile> files, std::uint32_t read_bytes, std::uint64_t seed) : random_(seed) {
    for (const EngineFile& file : files) {
      total_ += file.bytes >= read_bytes ? (file.bytes - read_bytes) / kDirectAlign + 1 : 0;
      ends_.push_back(total_);
    }
  }
  [[nodiscard]] bool empty() const { return total_ == 0; }

  void choose(ReadOp& op) {
    const std::uint64_t place = random_() % total_;
    const auto file = std::upper_bound(ends_.begin(), ends_.end(), place) - ends_.begin();
    const std::uint64_t first = file == 0 ? 0 : ends_[static_cast<std::size_t>(file) - 1];
    op.file = FileId(static_cast<std::uint32_t>(file));
    op.offset = (place - first) * kDirectAlign;
  }

 private:
  std::mt19937_64 random_;
  std::vector<std::uint64_t> ends_;
  std::uint64_t total_ = 0;
};

Result<void> check(const IoEngine& engine, std::span<std::byte> scratch, const ReadProbe& probe,
                   const Places& places) {
  if (probe.depth == 0 || probe.depth > engine.capacity() || engine.in_flight() > 0)
    return fail(Errc::invalid, "read probe: depth " + std::to_string(probe.depth) +
                                   " does not fit an idle engine of " + std::to_string(engine.capacity()));
  if (probe.read_bytes == 0 || probe.read_bytes % kDirectAlign != 0)
    return fail(Errc::invalid, "read probe: read size " + std::to_string(probe.read_bytes) +
                                   " is not a multiple of " + std::to_string(kDirectAlign));
  if (scratch.size() / probe.read_bytes < probe.depth)
    return fail(Errc::invalid, "read probe: " + std::to_string(probe.depth) + " reads of " +
                                   std::to_string(probe.read_bytes) +
                                   " bytes need more scratch memory than " + std::to_string(scratch.size()) +
                                   " bytes");
  if (places.empty())
    return fail(Errc::invalid, "read probe: no file holds " + std::to_string(probe.read_bytes) + " bytes");
  return {};
}

Error read_failure(const EngineFile& file, const ReadOp& op, std::int64_t result) {
  const std::string place = "read probe: " + file.path + " at offset " + std::to_string(op.offset);
  if (result < 0) return {.code = Errc::io, .os_errno = static_cast<int>(-result), .message = place};
  return {.code = Errc::io,
          .os_errno = 0,
          .message = place + ": " + std::to_string(result) + " bytes instead of " +
                     std::to_string(op.length) + " (the file has shrunk)"};
}

}  // namespace

Result<ReadRate> measure_random_reads(IoEngine& engine, std::span<const EngineFile> files,
                                      std::span<std::byte> scratch, const ReadProbe& probe,
                                      const Clock& clock) {
  Places places(files, probe.read_bytes, probe.seed);
  STOKER_TRY_VOID(check(engine, scratch, probe, places));

  std::vector<ReadOp> ops(probe.depth);  // the read that uses each part of scratch; tag = its index
  for (std::size_t i = 0; i < ops.size(); ++i) {
    ops[i] = {
        .file = {}, .target = scratch.data() + i * probe.read_bytes, .length = probe.read_bytes, .tag = i};
    places.choose(ops[i]);
  }
  const Duration begin = clock.now();
  Duration last = begin;
  ReadRate rate;
  std::optional<Error> failure;  // reads already in flight are waited for: they write to the caller's memory
  std::uint64_t submitted = engine.submit(ops) * probe.read_bytes;
  std::array<Completion, 16> done;
  while (engine.in_flight() > 0) {
    const std::size_t count = engine.reap(done, std::chrono::seconds(1));
    const Duration now = clock.now();
    if (count > 0) last = now;
    if (now - last > kStallMax) return fail(Errc::io, "read probe: the storage has not answered for 60 s");
    for (const Completion& completion : std::span(done).first(count)) {
      ReadOp& op = ops[completion.tag];
      if (completion.result != static_cast<std::int64_t>(op.length)) {
        failure = read_failure(files[op.file.value], op, completion.result);
        continue;
      }
      rate.bytes += op.length;
      if (failure || submitted >= probe.bytes_max || now - begin >= probe.time_max) continue;
      places.choose(op);
      submitted += engine.submit(std::span(&op, 1)) * op.length;
    }
  }
  if (failure) return tl::unexpected<Error>(std::move(*failure));
  rate.elapsed = last - begin;
  return rate;
}

Result<Calibration> calibrate(IoEngine& engine, std::span<const EngineFile> files,
                              std::span<std::byte> scratch, const CalibrateOptions& options,
                              const Clock& clock) {
  const std::size_t depth_max =
      std::min(engine.capacity(), options.read_bytes == 0 ? 0 : scratch.size() / options.read_bytes);
  // Deeper probes get more bytes, so that filling and emptying the queue weighs the same; e.g. 512 MiB over
  // three rounds of depths 1..16 in 3 MiB reads: 4, 5, 8, 14, 25 reads.
  const auto weight = [](std::size_t depth) { return static_cast<double>(depth) + 2; };
  double weights = 0;
  for (const std::size_t depth : kDepths)
    if (depth <= depth_max) weights += weight(depth);

  Calibration result;
  result.direct = std::all_of(files.begin(), files.end(), [](const EngineFile& file) { return file.direct; });
  for (int round = 0; round < kRounds; ++round) {
    for (std::size_t d = 0; d < std::size(kDepths); ++d) {
      const std::size_t depth = kDepths[d];
      if (depth > depth_max && depth > 1) break;  // depth 1 is tried anyway, for its error message
      const double share = (depth > depth_max ? 1 : weight(depth) / weights) / kRounds;
      const ReadProbe probe{
          .read_bytes = options.read_bytes,
          .depth = depth,
          .bytes_max = static_cast<std::uint64_t>(share * static_cast<double>(options.bytes_max)),
          .time_max = std::chrono::duration_cast<Duration>(options.time_max * share),
          .seed = options.seed + depth + std::size(kDepths) * static_cast<std::size_t>(round)};
      STOKER_TRY(const ReadRate rate, measure_random_reads(engine, files, scratch, probe, clock));
      if (round == 0) result.points.push_back({.depth = depth});
      result.points[d].bytes_per_second =
          std::max(result.points[d].bytes_per_second, rate.bytes_per_second());
      result.bytes_per_second = std::max(result.bytes_per_second, rate.bytes_per_second());
    }
  }
  for (const Calibration::Point& point : result.points) {
    if (point.bytes_per_second < kGoodEnough * result.bytes_per_second) continue;
    result.best_bytes_in_flight = point.depth * options.read_bytes;
    break;
  }
  return result;
}

}  // namespace stoker
