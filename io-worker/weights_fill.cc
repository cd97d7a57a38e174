#include "io-worker/weights_fill.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "shm/base/check.h"

namespace stoker {

namespace {

constexpr std::uint64_t kReadBytes = 4_MiB;  // one bounce buffer
constexpr std::uint64_t kGapMax = 128_KiB;   // reading through a gap beats another request
constexpr std::size_t kBuffers = 8;
constexpr unsigned kRetries = 8;

/// One aligned read and the plan's copies that it serves, [first, last) with partial overlap allowed.
struct Window {
  FileId file;
  std::uint64_t begin = 0, end = 0;  // aligned, except that end may be clipped to the file size
  std::size_t first = 0, last = 0;   // indices into plan.copies
};

std::vector<Window> make_windows(const WeightsPlan& plan, const std::vector<ShardFile>& files) {
  std::vector<Window> windows;
  const auto& copies = plan.copies;
  for (std::size_t i = 0; i < copies.size();) {
    const FileId file = copies[i].file;
    std::size_t run = i;  // copies [i, run) of one file without big gaps
    std::uint64_t run_end = copies[i].file_offset;
    while (run < copies.size() && copies[run].file == file && copies[run].file_offset <= run_end + kGapMax) {
      run_end = std::max(run_end, copies[run].file_offset + copies[run].bytes);
      ++run;
    }
    std::size_t first = i;
    for (std::uint64_t at = align_down(copies[i].file_offset, kDirectAlign); at < run_end; at += kReadBytes) {
      const std::uint64_t end =
          std::min({align_up(run_end, kDirectAlign), at + kReadBytes, files[file.value].bytes});
      while (first < run && copies[first].file_offset + copies[first].bytes <= at) ++first;
      std::size_t last = first;
      while (last < run && copies[last].file_offset < end) ++last;
      windows.push_back({file, at, end, first, last});
    }
    i = run;
  }
  return windows;
}

void widen_bf16(std::byte* target, const std::byte* source, std::uint64_t count) {
  for (std::uint64_t i = 0; i < count; ++i) {
    std::uint16_t half = 0;
    std::memcpy(&half, source + 2 * i, 2);
    const std::uint32_t wide = static_cast<std::uint32_t>(half) << 16;
    std::memcpy(target + 4 * i, &wide, 4);
  }
}

/// Copies the part of one plan entry that lies in the window. Windows are cut at 4 KiB, so a BF16 value
/// can only be cut in two when its tensor starts at an odd byte; then its first byte waits in the image.
void scatter(const WeightsPlan::Copy& copy, const Window& window, const std::byte* buffer, std::byte* image) {
  const std::uint64_t begin = std::max(copy.file_offset, window.begin);
  const std::uint64_t end = std::min(copy.file_offset + copy.bytes, window.end);
  if (begin >= end) return;
  const std::byte* source = buffer + (begin - window.begin);
  const std::uint64_t done = begin - copy.file_offset;
  if (!copy.widen_bf16) {
    std::memcpy(image + copy.image_offset + done, source, end - begin);
    return;
  }
  std::uint64_t at = done, left = end - begin;
  if (at % 2 == 1) {  // second byte of a value: the first one is in the upper half already
    image[copy.image_offset + 2 * (at - 1) + 3] = *source;
    ++source, ++at, --left;
  }
  widen_bf16(image + copy.image_offset + 2 * at, source, left / 2);
  if (left % 2 == 1) image[copy.image_offset + 2 * (at + left - 1) + 2] = source[left - 1];
}

/// Page-aligned private memory for the bounce buffers.
class Bounce {
 public:
  Bounce()
      : base_(::mmap(nullptr, kBuffers * kReadBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
                     0)) {}
  ~Bounce() {
    if (base_ != MAP_FAILED) ::munmap(base_, kBuffers * kReadBytes);
  }
  Bounce(const Bounce&) = delete;
  Bounce& operator=(const Bounce&) = delete;
  [[nodiscard]] bool valid() const { return base_ != MAP_FAILED; }
  [[nodiscard]] std::byte* buffer(std::size_t i) const {
    return static_cast<std::byte*>(base_) + i * kReadBytes;
  }

 private:
  void* base_;
};

/// One window being read into one buffer.
struct Read {
  std::size_t window = 0;
  std::uint64_t done = 0;
  unsigned retries = 0;
  bool busy = false;
};

class Filler {
 public:
  Filler(WeightsSegment& segment, const WeightsPlan& plan, const std::vector<ShardFile>& files,
         IoEngine& engine)
      : plan_(plan),
        files_(files),
        engine_(engine),
        image_(segment.writable()),
        windows_(make_windows(plan, files)) {
    for (const Window& w : windows_) total_ += w.end - w.begin;
  }

  Result<void> run(const std::function<void(std::uint64_t, std::uint64_t)>& progress) {
    if (!bounce_.valid()) return fail(Errc::no_memory, "no memory for read buffers", errno);
    Completion completions[kBuffers];
    while (finished_ < windows_.size()) {
      for (std::size_t b = 0; b < kBuffers && next_ < windows_.size(); ++b)
        if (!reads_[b].busy) {
          reads_[b] = {.window = next_++, .done = 0, .retries = 0, .busy = true};
          submit(b);
        }
      const std::size_t n = engine_.reap(completions, std::chrono::seconds(1));
      for (std::size_t i = 0; i < n; ++i) STOKER_TRY_VOID(land(completions[i]));
      if (n > 0 && progress) progress(done_bytes_, total_);
    }
    return {};
  }

 private:
  void submit(std::size_t b) {
    const Window& w = windows_[reads_[b].window];
    const std::uint64_t at = align_down(reads_[b].done, kDirectAlign);
    reads_[b].done = at;
    const ReadOp op{.file = w.file,
                    .offset = w.begin + at,
                    .target = bounce_.buffer(b) + at,
                    .length = static_cast<std::uint32_t>(align_up(w.end - w.begin, kDirectAlign) - at),
                    .tag = b};
    STOKER_CHECK(engine_.submit({&op, 1}) == 1);  // at most kBuffers are in flight
  }

  Result<void> land(const Completion& c) {
    Read& read = reads_[c.tag];
    const Window& w = windows_[read.window];
    if (c.result < 0) {
      if (++read.retries > kRetries)
        return fail(Errc::io,
                    "cannot read weights from " + files_[w.file.value].path + " at offset " +
                        std::to_string(w.begin + read.done),
                    static_cast<int>(-c.result));
      submit(c.tag);
      return {};
    }
    read.done += static_cast<std::uint64_t>(c.result);
    if (read.done < w.end - w.begin) {
      if (c.result == 0 || ++read.retries > kRetries)
        return fail(Errc::corrupt, files_[w.file.value].path + " ends at byte " +
                                       std::to_string(w.begin + read.done) + ", before its tensors do");
      submit(c.tag);
      return {};
    }
    for (std::size_t i = w.first; i < w.last; ++i)
      scatter(plan_.copies[i], w, bounce_.buffer(c.tag), image_.data());
    done_bytes_ += w.end - w.begin;
    ++finished_;
    read.busy = false;
    return {};
  }

  const WeightsPlan& plan_;
  const std::vector<ShardFile>& files_;
  IoEngine& engine_;
  std::span<std::byte> image_;
  std::vector<Window> windows_;
  Bounce bounce_;
  Read reads_[kBuffers];
  std::size_t next_ = 0, finished_ = 0;
  std::uint64_t done_bytes_ = 0, total_ = 0;
};

}  // namespace

Result<void> fill_weights(WeightsSegment& segment, const WeightsPlan& plan,
                          const std::vector<ShardFile>& files, IoEngine& engine,
                          const std::function<void(std::uint64_t, std::uint64_t)>& progress) {
  STOKER_CHECK(engine.capacity() >= kBuffers);
  std::byte* image = segment.writable().data();
  std::memcpy(image, plan.header.data(), plan.header.size());
  for (const auto& [offset, bytes] : plan.literals) std::memcpy(image + offset, bytes.data(), bytes.size());
  Filler filler(segment, plan, files, engine);
  const auto result = filler.run(progress);
  if (!result) {
    // Reads still in flight target buffers that are about to go.
    Completion completion;
    while (engine.in_flight() > 0) (void)engine.reap({&completion, 1}, std::chrono::seconds(1));
    return result;
  }
  segment.mark_complete();
  return {};
}

}  // namespace stoker
