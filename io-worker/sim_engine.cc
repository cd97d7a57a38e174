#include "io-worker/sim_engine.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <utility>

#include "io-worker/engine_common.h"
#include "shm/base/check.h"

namespace stoker {

SimFile sim_file(std::string path, std::vector<std::byte> bytes) {
  const std::uint64_t size = bytes.size();
  return {
      .path = std::move(path), .bytes = size, .content = [data = std::move(bytes)](auto offset, auto out) {
        std::memcpy(out.data(), data.data() + offset, out.size());
      }};
}

SimKernel::SimKernel(ManualClock& clock, std::vector<SimFile> files, SimOptions options)
    : clock_(&clock), files_(std::move(files)), options_(std::move(options)), random_(options_.seed) {
  STOKER_CHECK(options_.bytes_per_second > 0);
  for (const SimFile& file : files_) opened_bytes_.push_back(file.bytes);
}

std::vector<EngineFile> SimKernel::engine_files() const {
  std::vector<EngineFile> files;
  for (std::size_t i = 0; i < files_.size(); ++i)
    files.push_back({.fd = UniqueFd(), .path = files_[i].path, .bytes = opened_bytes_[i], .direct = true});
  return files;
}

// ---- time

Duration SimKernel::next_event() const {
  Duration next = Duration::max();
  for (const Read& read : reads_) {
    if (read.half_due != Duration::zero()) next = std::min(next, read.half_due);
    if (!read.held) next = std::min(next, read.due);
  }
  return next;
}

void SimKernel::advance_to(Duration time) {
  for (;;) {
    // The earliest event; among equals the oldest read, so that a history does not depend on the vector's
    // order.
    const Duration next = next_event();
    if (next > time || next == Duration::max()) break;
    if (next > clock_->now()) clock_->advance(next - clock_->now());
    for (std::size_t i = 0; i < reads_.size(); ++i) {
      const bool half = reads_[i].half_due == next;
      if (half || (!reads_[i].held && reads_[i].due == next)) {
        happen(i);
        break;
      }
    }
  }
  if (time > clock_->now() && time != Duration::max()) clock_->advance(time - clock_->now());
}

void SimKernel::happen(std::size_t index) {
  Read& read = reads_[index];
  if (read.half_due != Duration::zero()) {
    land(read, read.early_bytes);
    ++counts_.early_landings;
    read.half_due = Duration::zero();
    return;
  }
  if (read.result > 0) land(read, static_cast<std::uint64_t>(read.result));
  if (read.result > 0 && read.flips_bit) flip_one_bit(read);
  if (!read.abandoned)
    done_.push_back({.engine = read.engine, .completion = {.tag = read.op.tag, .result = read.result}});
  reads_.erase(reads_.begin() + static_cast<std::ptrdiff_t>(index));
}

void SimKernel::land(const Read& read, std::uint64_t bytes) {
  const SimFile& file = files_[read.op.file.value];
  if (read.abandoned) ++counts_.late_landings;
  if (read.source_offset >= file.bytes) return;
  const std::uint64_t there = std::min(bytes, file.bytes - read.source_offset);
  file.content(read.source_offset, std::span(read.op.target, there));
}

void SimKernel::flip_one_bit(const Read& read) {
  const std::uint64_t bit = below(static_cast<std::uint64_t>(read.result) * 8);
  read.op.target[bit / 8] ^= std::byte{1} << (bit % 8);
}

// ---- one read

void SimKernel::start(std::uint32_t engine, const ReadOp& op) {
  ++counts_.reads;
  Read read{.engine = engine, .held = held_, .op = op, .source_offset = op.offset};
  const std::vector<EngineFileFacts> facts(files_.size(), {.fd = -1, .direct = true});
  if (const std::int64_t error = refusal(op, facts); error != 0) {
    read.result = error;
    read.held = false;
    read.due = clock_->now();
    reads_.push_back(read);
    return;
  }
  const std::uint64_t bytes = files_[op.file.value].bytes;
  const std::uint64_t left = op.offset < bytes ? bytes - op.offset : 0;
  read.result = static_cast<std::int64_t>(std::min<std::uint64_t>(left, op.length));
  choose_fault(read);
  schedule(read);
  reads_.push_back(read);
}

/// Transfer times add up on the device, latencies overlap: with latency 3 and transfer 1, four reads in
/// flight reach the device's bandwidth.
void SimKernel::schedule(Read& read) {
  const Duration now = clock_->now();
  if (read.result == -EAGAIN) {
    read.due = now;
    return;
  }
  const auto transfer = std::chrono::duration_cast<Duration>(
      std::chrono::duration<double>(static_cast<double>(read.op.length) / options_.bytes_per_second));
  const auto uniform = [&](Duration most) {
    return Duration(below(static_cast<std::uint64_t>(most.count()) + 1));
  };
  device_free_ = std::max(device_free_, now + options_.latency) + transfer;
  read.due = device_free_ + uniform(options_.latency_jitter);
  if (chance(options_.faults.reorder)) {
    ++counts_.reordered;
    read.due += uniform(options_.faults.reorder_max);
  }
  if (chance(options_.faults.stuck)) {
    ++counts_.stuck;
    read.due += options_.faults.stuck_for;
  }
  const bool lands = read.result > 0 || read.result == -EIO;
  if (!lands || !chance(options_.faults.early_landing)) return;
  const std::uint64_t most = read.result > 0 ? static_cast<std::uint64_t>(read.result) : read.op.length;
  read.half_due = now + (read.due - now) / 2 + Duration(1);
  read.due = std::max(read.due, read.half_due);
  read.early_bytes = below(most + 1);
}

void SimKernel::choose_fault(Read& read) {
  const SimFaults& faults = options_.faults;
  const auto whole = static_cast<std::uint64_t>(read.result);
  if (again_left_ == 0 && chance(faults.again)) again_left_ = faults.again_burst;
  if (again_left_ > 0) {
    --again_left_;
    ++counts_.again;
    read.result = -EAGAIN;
  } else if (hits_bad_range(read.op) || chance(faults.io_error)) {
    ++counts_.io_error;
    read.result = -EIO;
  } else if (whole > kDirectAlign && chance(faults.short_aligned)) {
    ++counts_.short_aligned;
    read.result = static_cast<std::int64_t>(kDirectAlign * (1 + below((whole - 1) / kDirectAlign)));
  } else if (whole > 1 && chance(faults.short_unaligned)) {
    ++counts_.short_unaligned;
    read.result = static_cast<std::int64_t>(1 + below(whole - 1));
  } else if (whole > 0 && chance(faults.misdirected)) {
    // Another aligned place of the same file that can give as many bytes, if there is one.
    const std::uint64_t places = (files_[read.op.file.value].bytes - whole) / kDirectAlign + 1;
    read.source_offset = below(places) * kDirectAlign;
    if (read.source_offset != read.op.offset) ++counts_.misdirected;
  } else if (whole > 0 && chance(faults.bit_flip)) {
    ++counts_.bit_flip;
    read.flips_bit = true;
  }
}

bool SimKernel::hits_bad_range(const ReadOp& op) {
  const auto bad =
      std::find_if(options_.bad_ranges.begin(), options_.bad_ranges.end(), [&](const SimBadRange& range) {
        return range.file == op.file && range.offset < op.offset + op.length &&
               op.offset < range.offset + range.length;
      });
  if (bad == options_.bad_ranges.end()) return false;
  if (bad->failures > 0 && --bad->failures == 0) options_.bad_ranges.erase(bad);
  return true;
}

// ---- for engines

std::size_t SimKernel::take(std::uint32_t engine, std::span<Completion> out) {
  std::size_t count = 0;
  std::erase_if(done_, [&](const Done& done) {
    if (done.engine != engine || count == out.size()) return false;
    out[count++] = done.completion;
    return true;
  });
  return count;
}

void SimKernel::abandon(std::uint32_t engine) {
  std::erase_if(done_, [&](const Done& done) { return done.engine == engine; });
  std::erase_if(reads_, [&](const Read& read) {
    if (read.engine != engine) return false;
    const bool lost = read.result <= 0 || chance(options_.faults.lost_at_crash);
    if (lost) ++counts_.lost_at_crash;
    return lost;
  });
  const auto late_max = static_cast<std::uint64_t>(options_.faults.late_after_crash_max.count());
  for (Read& read : reads_) {
    if (read.engine != engine) continue;
    read.abandoned = true;
    read.held = false;
    read.due = clock_->now() + Duration(below(late_max + 1));
    if (read.half_due > read.due) read.half_due = Duration::zero();
  }
}

void SimKernel::release() {
  held_ = false;
  for (std::uint32_t engine = 0; engine < engines_; ++engine) release_engine(engine);
}

void SimKernel::release_engine(std::uint32_t engine) {
  for (Read& read : reads_) {
    if (read.engine != engine || !read.held) continue;
    read.held = false;
    read.due = std::max(read.due, clock_->now());
  }
}

bool SimKernel::busy(std::uint32_t engine) const {
  return std::any_of(reads_.begin(), reads_.end(), [&](const Read& read) { return read.engine == engine; });
}

// ---- for tests

std::size_t SimKernel::in_flight(FileId file) const {
  return static_cast<std::size_t>(
      std::count_if(reads_.begin(), reads_.end(), [&](const Read& read) { return read.op.file == file; }));
}

void SimKernel::truncate(FileId file, std::uint64_t bytes) {
  STOKER_CHECK(file.value < files_.size() && bytes <= files_[file.value].bytes);
  files_[file.value].bytes = bytes;
}

bool SimKernel::chance(double probability) {
  // 53 bits, as a double has; the distributions of <random> differ between libraries.
  if (probability <= 0) return false;
  return static_cast<double>(random_() >> 11) * 0x1p-53 < probability;
}

std::uint64_t SimKernel::below(std::uint64_t bound) { return bound == 0 ? 0 : random_() % bound; }

// ---- engine

SimEngine::SimEngine(std::shared_ptr<SimKernel> kernel, const EngineOptions& options)
    : kernel_(std::move(kernel)),
      id_(kernel_->new_engine()),
      depth_(options.depth),
      doorbell_fd_(options.doorbell_fd) {
  STOKER_CHECK(check_options(options).has_value());
}

SimEngine::~SimEngine() {
  if (crashed_) return;
  kernel_->release_engine(id_);
  while (kernel_->busy(id_)) kernel_->advance_to(kernel_->next_event());
  kernel_->abandon(id_);  // completions that nobody reaped
}

void SimEngine::crash() {
  kernel_->abandon(id_);
  in_flight_ = 0;
  crashed_ = true;
}

std::size_t SimEngine::submit(std::span<const ReadOp> ops) {
  STOKER_CHECK(!crashed_);
  const std::size_t taken = std::min(ops.size(), depth_ - in_flight_);
  for (const ReadOp& op : ops.first(taken)) kernel_->start(id_, op);
  in_flight_ += taken;
  return taken;
}

std::size_t SimEngine::reap(std::span<Completion> out, Duration wait_max) {
  STOKER_CHECK(!crashed_);
  if (out.empty()) return 0;
  const Duration now = kernel_->now();
  const Duration deadline = wait_max > Duration::max() - now ? Duration::max() : now + wait_max;
  kernel_->advance_to(now);
  std::size_t count = kernel_->take(id_, out);
  // A doorbell that is already ringing ends the wait before it begins; none can ring during it.
  if (count == 0 && drain_doorbell(doorbell_fd_)) return 0;
  while (count == 0) {
    const Duration next = kernel_->next_event();
    if (next > deadline || next == Duration::max()) {
      kernel_->advance_to(deadline);
      return 0;
    }
    kernel_->advance_to(next);
    count = kernel_->take(id_, out);
  }
  in_flight_ -= count;
  return count;
}

std::string SimEngine::describe() const {
  return "simulated (seed " + std::to_string(kernel_->options_.seed) + ")";
}

}  // namespace stoker
