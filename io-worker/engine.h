// IoEngine: asynchronous reads, driven by the caller. Nothing happens between calls; completions are
// values. Implementations: UringEngine, PreadEngine, SimEngine; one conformance suite for all
// (tests/conformance).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "shm/base/clock.h"
#include "shm/base/result.h"
#include "shm/base/types.h"
#include "shm/base/unique_fd.h"

namespace stoker {

/// On a file open with O_DIRECT, offset, target and length are multiples of kDirectAlign; a read that is
/// not completes with -EINVAL on every engine and file system (kernels differ: some accept 512, some
/// quietly go through the page cache). The last read of a file asks for the rounded-up length and comes
/// back short. Also as completions: -EBADF for a file index that does not exist, -EINVAL for length 0 or
/// a range beyond 2^63.
struct ReadOp {
  FileId file{};  ///< index into the files the engine was made with
  std::uint64_t offset = 0;
  std::byte* target = nullptr;  ///< must stay valid until the completion
  std::uint32_t length = 0;
  std::uint64_t tag = 0;  ///< given back in the completion
};

/// result > 0: bytes read, may be fewer than asked (short read, or end of file); 0: end of file;
/// < 0: -errno. Retrying and resuming short reads is the caller's business (io-worker/loader.h).
struct Completion {
  std::uint64_t tag = 0;
  std::int64_t result = 0;
};

/// An open shard. Held open (and flock'ed shared, see recovery.h) for the life of the engine.
struct EngineFile {
  UniqueFd fd;
  std::string path;
  std::uint64_t bytes = 0;
  bool direct = false;  ///< O_DIRECT in force
};

/// Opens all files read-only, O_CLOEXEC, O_DIRECT where the file system takes it (not tmpfs, not where
/// statx says that reads must be aligned to more than kDirectAlign); the caller logs direct == false.
/// Fails with Errc::missing, ::invalid (not a regular file) or ::io, naming the path and the remedy.
Result<std::vector<EngineFile>> open_files(const std::vector<std::string>& paths);

/// One owner: the first thread that calls submit or reap makes all further calls and destroys the engine.
class IoEngine {
 public:
  virtual ~IoEngine() = default;  ///< drains: no read is in flight afterwards
  /// Takes a prefix of `ops` and returns its length; fewer when full. Never blocks on the device.
  virtual std::size_t submit(std::span<const ReadOp> ops) = 0;
  /// Fills `out` with finished reads, in any order. Waits up to `wait_max` for the first one, or for the
  /// doorbell (an eventfd the engine was made with), whichever is first; 0 = poll. A doorbell or a signal
  /// may end the wait with 0 completions.
  virtual std::size_t reap(std::span<Completion> out, Duration wait_max) = 0;
  [[nodiscard]] virtual std::size_t in_flight() const noexcept = 0;
  [[nodiscard]] virtual std::size_t capacity() const noexcept = 0;
  /// "io_uring (registered buffers)", "pread (4 threads): io_uring refused: ..." for logs and status.
  [[nodiscard]] virtual std::string describe() const = 0;
};

struct EngineOptions {
  std::size_t depth = 64;  ///< reads in flight at most
  int doorbell_fd = -1;    ///< eventfd whose writes end a waiting reap; -1 = none. Its count is the
                           ///< engine's: others only write.
  std::span<std::byte> registered{};  ///< to register as fixed buffers (the pool payload); may be empty
  /// Registered memory is cut at multiples of this (slot bytes), because a fixed read cannot span two pieces.
  std::uint64_t registered_granule = kHugePageBytes;
  unsigned pread_threads = 4;
};

inline constexpr std::size_t kEngineDepthMax = 4096;

/// Both: `files` (their descriptors) must outlive the engine. Errc::invalid for depth outside
/// 1..kEngineDepthMax. make_uring_engine fails with Errc::unsupported or ::no_memory and the likely cause
/// (sysctl, seccomp, memlock) where io_uring cannot be had: use make_pread_engine then.
Result<std::unique_ptr<IoEngine>> make_uring_engine(const std::vector<EngineFile>& files,
                                                    const EngineOptions&);
Result<std::unique_ptr<IoEngine>> make_pread_engine(const std::vector<EngineFile>& files,
                                                    const EngineOptions&);

}  // namespace stoker
