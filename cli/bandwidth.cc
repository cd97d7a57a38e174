#include "cli/bandwidth.h"

#include <poll.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <nlohmann/json.hpp>
#include <span>
#include <thread>

#include "cli/input.h"
#include "cli/process.h"
#include "cli/stack.h"
#include "shm/base/types.h"

namespace stoker::cli {

using namespace std::chrono_literals;

namespace {

constexpr std::uint64_t kBufferMin = 256_MiB, kBufferMax = 1_GiB;
constexpr std::uint64_t kBufferInCaches = 8;
constexpr Duration kMemoryTime = 300ms;
constexpr unsigned kPassesMin = 3;

/// The signal that came before the child ended, or 0.
int wait_for(ChildProcess& child, Interrupts& interrupts) {
  while (!child.wait(0ns)) {
    std::array polled{pollfd{child.pidfd(), POLLIN, 0}, pollfd{interrupts.fd(), POLLIN, 0}};
    ::poll(polled.data(), polled.size(), -1);
    if (const int signal = interrupts.take(); signal != 0) {
      static_cast<void>(child.stop(1s));
      return signal;
    }
  }
  return 0;
}

tl::expected<DiskBandwidth, ExitReport> raw_read(const DiskProbe& probe, const std::string& engine,
                                                 Interrupts& interrupts) {
  const auto stop = [](std::string why) {
    return tl::unexpected(ExitReport{kFailure, "cannot measure the disk", std::move(why)});
  };
  // Takes what the child prints; gone with the descriptor.
  const UniqueFd memory(::memfd_create("raw_read", MFD_CLOEXEC));
  if (!memory.valid()) return stop("no memory file for the output of raw_read");
  const std::string output = "/proc/self/fd/" + std::to_string(memory.get());
  const std::uint64_t read_bytes = align_up(std::max<std::uint64_t>(probe.read_bytes, 1), kDirectAlign);
  ChildSpec spec{"raw_read",
                 {bin_directory() + "/raw_read", "--json", "--engine", engine, "--size",
                  std::to_string(read_bytes), "--seconds", std::to_string(probe.seconds)},
                 output};
  spec.argv.insert(spec.argv.end(), probe.files.begin(), probe.files.end());
  auto child = ChildProcess::spawn(spec);
  if (!child) return stop(child.error().text());
  if (const int signal = wait_for(*child, interrupts); signal != 0)
    return tl::unexpected(ExitReport{exit_code_of_signal(signal), "interrupted", "nothing was measured"});
  if (shell_status(child->status()) != 0) return stop(last_words(output));
  const auto text = read_input(output);
  if (!text) return stop(text.error().text());
  const auto parsed = parse_raw_read(*text);
  if (!parsed) return stop(parsed.error().text());
  return *parsed;
}

/// Anonymous memory, huge pages if they are to be had, all of it there.
class Buffer {
 public:
  explicit Buffer(std::uint64_t bytes)
      : data_(::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)),
        bytes_(bytes) {
    if (data_ == MAP_FAILED) return;
    ::madvise(data_, bytes_, MADV_HUGEPAGE);
    auto* words = static_cast<std::uint64_t*>(data_);
    // Written, not only populated: pages that were never written may all be the one page of zeros.
    for (std::uint64_t at = 0; at < bytes_ / sizeof *words; at += 512) words[at] = at;
  }
  ~Buffer() {
    if (data_ != MAP_FAILED) ::munmap(data_, bytes_);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  [[nodiscard]] bool valid() const { return data_ != MAP_FAILED; }
  [[nodiscard]] std::span<const std::uint64_t> words() const {
    return {static_cast<const std::uint64_t*>(data_), bytes_ / sizeof(std::uint64_t)};
  }

 private:
  void* data_;
  std::uint64_t bytes_;
};

/// Four sums that do not wait for each other: with any vector width this outruns memory.
std::uint64_t sum(std::span<const std::uint64_t> words) {
  std::uint64_t a = 0, b = 0, c = 0, d = 0;
  for (std::size_t i = 0; i + 4 <= words.size(); i += 4) {
    a += words[i];
    b += words[i + 1];
    c += words[i + 2];
    d += words[i + 3];
  }
  return a + b + c + d;
}

/// Seconds that all threads together take to read all words once.
double read_once(std::span<const std::uint64_t> words, unsigned threads, const Clock& clock) {
  std::atomic<std::uint64_t> total = 0;  // used, so that the compiler keeps the reads
  const std::size_t part = words.size() / threads;
  const Duration before = clock.now();
  {
    std::vector<std::jthread> readers;
    for (unsigned t = 0; t < threads; ++t)
      readers.emplace_back([&total, mine = words.subspan(t * part, part)] { total += sum(mine); });
  }
  return seconds(clock.now() - before);
}

}  // namespace

Result<DiskBandwidth> parse_raw_read(const std::string& text) {
  DiskBandwidth best;
  try {
    const auto report = nlohmann::json::parse(text);
    best.direct = report.at("direct").get<bool>();
    for (const auto& point : report.at("points")) {
      const double rate = point.at("gb_per_second").get<double>() * 1e9;
      if (rate <= best.bytes_per_second) continue;
      best.bytes_per_second = rate;
      best.depth = point.at("depth").get<std::uint64_t>();
    }
  } catch (const nlohmann::json::exception&) {
    return fail(Errc::corrupt, "raw_read printed no report; is it of another version?");
  }
  if (best.bytes_per_second <= 0) return fail(Errc::corrupt, "raw_read measured nothing");
  return best;
}

tl::expected<DiskBandwidth, ExitReport> measure_disk(const DiskProbe& probe, Interrupts& interrupts) {
  const bool choose = probe.engine.empty() || probe.engine == "auto";
  auto measured = raw_read(probe, choose ? "uring" : probe.engine, interrupts);
  // As the loader does: pread where io_uring cannot be had.
  if (!measured && choose && measured.error().code == kFailure) return raw_read(probe, "pread", interrupts);
  return measured;
}

Result<double> measure_memory(unsigned threads, const Clock& clock) {
  const auto cache = static_cast<std::uint64_t>(std::max(0L, ::sysconf(_SC_LEVEL3_CACHE_SIZE)));
  const Buffer buffer(std::clamp(align_up(kBufferInCaches * cache, kHugePageBytes), kBufferMin, kBufferMax));
  if (!buffer.valid()) return fail(Errc::no_memory, "no memory for the measurement of its bandwidth", errno);
  double best = 0;
  const Duration end = clock.now() + kMemoryTime;
  for (unsigned pass = 0; pass < kPassesMin || clock.now() < end; ++pass)
    best = std::max(
        best, static_cast<double>(buffer.words().size_bytes()) / read_once(buffer.words(), threads, clock));
  return best;
}

}  // namespace stoker::cli
