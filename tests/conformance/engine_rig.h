// A file with known content, memory to read it into, a doorbell, and one engine of each kind: what the
// conformance tests of IoEngine run on.
#pragma once

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cstring>
#include <filesystem>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "io-worker/engine.h"
#include "io-worker/sim_engine.h"
#include "shm/base/check.h"
#include "shm/base/clock.h"
#include "shm/base/unique_fd.h"

namespace stoker::test {

/// Different at every 8-byte word of every seed, so that data from the wrong place is noticed.
inline std::vector<std::byte> pattern(std::size_t bytes, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> data((bytes + 7) / 8 * 8);
  for (std::size_t at = 0; at < data.size(); at += 8) {
    const std::uint64_t word = random();
    std::memcpy(data.data() + at, &word, sizeof word);
  }
  data.resize(bytes);
  return data;
}

/// A file in the first folder that takes O_DIRECT; removed at the end.
class TempFile {
 public:
  explicit TempFile(std::span<const std::byte> content) {
    for (const std::filesystem::path& folder :
         {std::filesystem::temp_directory_path(), std::filesystem::current_path()}) {
      path_ = (folder / "stoker-conformance-XXXXXX").string();
      const UniqueFd fd(::mkstemp(path_.data()));
      if (!fd.valid()) continue;
      STOKER_CHECK(::write(fd.get(), content.data(), content.size()) == static_cast<ssize_t>(content.size()));
      STOKER_CHECK(::fsync(fd.get()) == 0);
      const auto files = open_files({path_});
      if (files && files->front().direct) return;
      if (folder == std::filesystem::current_path()) return;  // no better place: tests of O_DIRECT say so
      std::filesystem::remove(path_);
    }
    STOKER_CHECK(false && "no folder to write to");
  }
  ~TempFile() { std::filesystem::remove(path_); }
  TempFile(const TempFile&) = delete;
  TempFile& operator=(const TempFile&) = delete;
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_;
};

/// Shared and page-aligned, as the pool is.
class SharedMemory {
 public:
  explicit SharedMemory(std::size_t bytes)
      : data_(::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)),
        bytes_(bytes) {
    STOKER_CHECK(data_ != MAP_FAILED);
  }
  ~SharedMemory() { ::munmap(data_, bytes_); }
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;
  [[nodiscard]] std::byte* data() const { return static_cast<std::byte*>(data_); }
  [[nodiscard]] std::span<std::byte> span() const { return {data(), bytes_}; }

 private:
  void* data_;
  std::size_t bytes_;
};

/// The kinds of engine. make() returns an error where the machine does not have it.
struct Uring {
  static constexpr bool kReal = true;
  static Result<std::unique_ptr<IoEngine>> make(const std::vector<EngineFile>& files,
                                                const EngineOptions& options,
                                                const std::shared_ptr<SimKernel>&) {
    return make_uring_engine(files, options);
  }
};
struct Pread {
  static constexpr bool kReal = true;
  static Result<std::unique_ptr<IoEngine>> make(const std::vector<EngineFile>& files,
                                                const EngineOptions& options,
                                                const std::shared_ptr<SimKernel>&) {
    return make_pread_engine(files, options);
  }
};
struct Sim {
  static constexpr bool kReal = false;
  static Result<std::unique_ptr<IoEngine>> make(const std::vector<EngineFile>&, const EngineOptions& options,
                                                const std::shared_ptr<SimKernel>& kernel) {
    return std::make_unique<SimEngine>(kernel, options);
  }
};

inline constexpr std::size_t kRigFileBytes = (16 << 20) + 1234;
inline constexpr std::size_t kRigMemoryBytes = 64 << 20;
/// Longer than any test may take; ctest's own limit ends a test that really waits so long.
inline constexpr Duration kForever = std::chrono::minutes(10);

/// The content of every rig's file.
inline const std::vector<std::byte>& rig_content() {
  static const std::vector<std::byte> content = pattern(kRigFileBytes, 7);
  return content;
}

template <class Kind>
class Rig {
 public:
  explicit Rig(std::size_t depth = 32, bool registered = true)
      : content(rig_content()), file(content), memory(kRigMemoryBytes), doorbell(::eventfd(0, EFD_CLOEXEC)) {
    auto opened = open_files({file.path()});
    STOKER_CHECK(opened.has_value());
    files = std::move(*opened);
    kernel = std::make_shared<SimKernel>(clock, std::vector{sim_file(file.path(), content)}, SimOptions{});
    if (!Kind::kReal) files = kernel->engine_files();
    EngineOptions options{.depth = depth, .doorbell_fd = doorbell.get()};
    if (registered) options.registered = memory.span();
    auto made = Kind::make(files, options, kernel);
    if (made)
      engine = std::move(*made);
    else
      WARN("skipped: " << made.error().text());
  }

  [[nodiscard]] bool usable() const { return engine != nullptr; }

  ReadOp op(std::uint64_t offset, std::uint32_t length, std::size_t memory_offset, std::uint64_t tag) const {
    return {.file = FileId(0),
            .offset = offset,
            .target = memory.data() + memory_offset,
            .length = length,
            .tag = tag};
  }
  void submit_all(const std::vector<ReadOp>& ops) const { REQUIRE(engine->submit(ops) == ops.size()); }

  /// Reaps until `count` completions are there.
  std::vector<Completion> reap(std::size_t count) const {
    std::vector<Completion> all;
    std::vector<Completion> some(7);  // not a divisor of anything, so that reap() has to stop in the middle
    while (all.size() < count) {
      const std::size_t got =
          engine->reap(std::span(some).first(std::min(some.size(), count - all.size())), kForever);
      all.insert(all.end(), some.begin(), some.begin() + static_cast<std::ptrdiff_t>(got));
    }
    return all;
  }
  /// Reads one thing and waits for it.
  std::int64_t read(const ReadOp& op) const {
    submit_all({op});
    const auto done = reap(1);
    REQUIRE(done[0].tag == op.tag);
    return done[0].result;
  }
  [[nodiscard]] bool equal(std::size_t memory_offset, std::uint64_t file_offset, std::size_t bytes) const {
    return std::memcmp(memory.data() + memory_offset, content.data() + file_offset, bytes) == 0;
  }
  void ring() const {
    const std::uint64_t one = 1;
    STOKER_CHECK(::write(doorbell.get(), &one, sizeof one) == sizeof one);
  }

  const std::vector<std::byte>& content;
  TempFile file;
  SharedMemory memory;
  UniqueFd doorbell;
  ManualClock clock;
  std::shared_ptr<SimKernel> kernel;
  std::vector<EngineFile> files;
  std::unique_ptr<IoEngine> engine;  ///< last: drains into memory
};

}  // namespace stoker::test
