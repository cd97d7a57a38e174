#include "cli/memory_bandwidth.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <span>
#include <thread>
#include <vector>

#include "shm/base/types.h"

namespace stoker::cli {

using namespace std::chrono_literals;

namespace {

constexpr std::uint64_t kBufferMin = 256_MiB, kBufferMax = 1_GiB;
constexpr std::uint64_t kBufferInCaches = 8;
constexpr Duration kMemoryTime = 300ms;
constexpr unsigned kPassesMin = 3;

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
