#include "checkpoint/verify.h"

#include <fcntl.h>
#include <openssl/evp.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <thread>

#include "checkpoint/checkpoint.h"
#include "checkpoint/file_bytes.h"
#include "checkpoint/json_input.h"
#include "checkpoint/tensor_list.h"
#include "shm/base/types.h"

namespace stoker {

namespace {

constexpr std::uint64_t kBlockBytes = 4_MiB;  // a multiple of every element size

class Sha256 {
 public:
  Sha256() : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) {
    EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr);
  }
  void add(const void* data, std::size_t bytes) { EVP_DigestUpdate(context_.get(), data, bytes); }
  std::string hex() {
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned length = 0;
    EVP_DigestFinal_ex(context_.get(), digest, &length);
    std::string out;
    for (unsigned i = 0; i < length; ++i) {
      out += "0123456789abcdef"[digest[i] >> 4];
      out += "0123456789abcdef"[digest[i] & 15];
    }
    return out;
  }

 private:
  std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> context_;
};

/// The SHA-256 that the name of the blob behind a symlink promises; empty if it is no such link.
std::string promised_hash(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::is_symlink(path, error)) return {};
  const std::string name = std::filesystem::canonical(path, error).filename().string();
  if (error || name.size() != 64) return {};
  return name.find_first_not_of("0123456789abcdef") == std::string::npos ? name : std::string();
}

/// Bad elements of one tensor, found block by block.
struct Findings {
  std::uint64_t first = 0, count = 0;

  /// `bits` are little-endian elements; bad when all bits of `mask` are set (NaN or infinity; for E4M3, whose
  /// only non-finite codes are NaN, the whole magnitude).
  template <class Int>
  void scan(std::span<const std::byte> block, std::uint64_t index, Int mask) {
    const std::size_t n = block.size() / sizeof(Int);
    std::uint64_t bad = 0;
    for (std::size_t i = 0; i < n; ++i) bad += is_bad(block, i, mask);  // no branch: this loop is vectorised
    if (bad == 0) return;
    if (count == 0)
      for (std::size_t i = n; i-- > 0;)
        if (is_bad(block, i, mask)) first = index + i;
    count += bad;
  }

 private:
  template <class Int>
  static bool is_bad(std::span<const std::byte> block, std::size_t i, Int mask) {
    Int x;
    std::memcpy(&x, block.data() + i * sizeof(Int), sizeof x);
    return static_cast<Int>(x & mask) == mask;
  }
};

struct ScaleRange {
  std::uint64_t count = 0;
  float min = std::numeric_limits<float>::infinity(), max = -std::numeric_limits<float>::infinity();

  void add(float x) {
    ++count;
    if (!(x - x == 0)) return;  // not finite: reported elsewhere
    min = std::min(min, x);
    max = std::max(max, x);
  }
  void add(std::span<const std::byte> block, DType dtype) {
    for (std::size_t i = 0; i + dtype_bytes(dtype) <= block.size(); i += dtype_bytes(dtype)) {
      std::uint32_t bits = 0;
      std::memcpy(&bits, block.data() + i, dtype_bytes(dtype));
      if (dtype == DType::bf16) bits <<= 16;
      float x = 0;
      std::memcpy(&x, &bits, sizeof x);
      add(x);
    }
  }
  void merge(const ScaleRange& other) {
    count += other.count;
    min = std::min(min, other.min);
    max = std::max(max, other.max);
  }
};

struct FileFindings {
  std::vector<VerifyProblem> problems;
  std::uint64_t problems_total = 0;
  ScaleRange scales;
  bool hashed = false;
};

/// Shared by the threads: progress, cancellation, the first read error.
class Progress {
 public:
  Progress(const VerifyCallback& callback, std::uint64_t total) : callback_(callback), now_{0, total} {}
  void add(std::uint64_t bytes) {
    const std::lock_guard lock(mutex_);
    constexpr std::uint64_t kStep = 64_MiB;
    const std::uint64_t before = now_.done_bytes;
    now_.done_bytes += bytes;
    const bool tell = before / kStep != now_.done_bytes / kStep || now_.done_bytes == now_.total_bytes;
    if (!error_ && tell && callback_ && !callback_(now_))
      set_error({Errc::cancelled, 0, "verify was cancelled"});
  }
  void stop(Error error) {
    const std::lock_guard lock(mutex_);
    set_error(std::move(error));
  }
  [[nodiscard]] bool stopped() const { return stopped_; }
  [[nodiscard]] const std::optional<Error>& error() const { return error_; }

 private:
  void set_error(Error error) {
    if (!error_) error_ = std::move(error);
    stopped_ = true;
  }
  const VerifyCallback& callback_;
  std::mutex mutex_;
  VerifyProgress now_;
  std::optional<Error> error_;
  std::atomic<bool> stopped_{false};
};

/// Streams one shard from its first byte to its last; each tensor is looked at as it passes.
class FileVerifier {
 public:
  FileVerifier(const ShardFile& file, std::vector<const TensorInfo*> tensors, const VerifyOptions& options,
               Progress& progress)
      : file_(file),
        tensors_(std::move(tensors)),
        options_(options),
        progress_(progress),
        buffer_(kBlockBytes) {}

  Result<FileFindings> run() {
    STOKER_TRY(opened_, open_regular(file_.path));
    ::posix_fadvise(opened_.fd.get(), 0, 0, POSIX_FADV_SEQUENTIAL);
    const std::string promised = options_.hash ? promised_hash(file_.path) : std::string();
    if (!promised.empty()) sha_.emplace();
    std::uint64_t at = 0;
    for (const TensorInfo* tensor : tensors_) {
      STOKER_TRY_VOID(skip(at, tensor->begin));
      STOKER_TRY_VOID(check(*tensor));
      at = tensor->begin + tensor->bytes;
    }
    STOKER_TRY_VOID(skip(at, file_.bytes));
    // Verifying must not push everything else out of the page cache.
    ::posix_fadvise(opened_.fd.get(), 0, 0, POSIX_FADV_DONTNEED);
    if (sha_) check_hash(promised);
    return std::move(findings_);
  }

 private:
  Result<std::span<const std::byte>> read(std::uint64_t offset, std::uint64_t bytes) {
    if (progress_.stopped()) return fail(Errc::cancelled, "stopped");
    STOKER_TRY_VOID(read_exactly(opened_, file_.path, offset, buffer_.data(), bytes));
    if (sha_) sha_->add(buffer_.data(), bytes);
    progress_.add(bytes);
    return std::span<const std::byte>(buffer_).first(bytes);
  }

  /// Header, gaps and tensors that are no part of the model matter to the hash only.
  Result<void> skip(std::uint64_t from, std::uint64_t to) {
    if (!sha_) {
      progress_.add(to - from);
      return {};
    }
    for (; from < to; from += std::min(kBlockBytes, to - from)) {
      STOKER_TRY([[maybe_unused]] const auto block, read(from, std::min(kBlockBytes, to - from)));
    }
    return {};
  }

  Result<void> check(const TensorInfo& tensor) {
    const bool scale =
        tensor.name.ends_with(kScaleSuffix) && (tensor.dtype == DType::bf16 || tensor.dtype == DType::f32);
    Findings found;
    for (std::uint64_t at = 0; at < tensor.bytes; at += kBlockBytes) {
      STOKER_TRY(const auto block, read(tensor.begin + at, std::min(kBlockBytes, tensor.bytes - at)));
      switch (tensor.dtype) {
        case DType::f8_e4m3:
          found.scan<std::uint8_t>(block, at, 0x7F);
          break;
        case DType::bf16:
          found.scan<std::uint16_t>(block, at / 2, 0x7F80);
          break;
        case DType::f16:
          found.scan<std::uint16_t>(block, at / 2, 0x7C00);
          break;
        case DType::f32:
          found.scan<std::uint32_t>(block, at / 4, 0x7F800000);
          break;
        default:
          break;
      }
      if (scale) findings_.scales.add(block, tensor.dtype);
    }
    if (found.count > 0)
      add({file_.path, tensor.name, found.first, found.count,
           tensor.dtype == DType::f8_e4m3 ? "FP8 code is NaN"
                                          : (scale ? "scale is NaN or infinite" : "NaN or infinite")});
    return {};
  }

  void check_hash(const std::string& promised) {
    findings_.hashed = true;
    if (const std::string found = sha_->hex(); found != promised)
      add({file_.path, "", 0, 1,
           "SHA-256 is " + found + ", the cache says " + promised + "; download it again"});
  }

  void add(VerifyProblem problem) {
    ++findings_.problems_total;
    if (findings_.problems.size() < options_.problems_max) findings_.problems.push_back(std::move(problem));
  }

  const ShardFile& file_;
  std::vector<const TensorInfo*> tensors_;
  const VerifyOptions& options_;
  Progress& progress_;
  std::vector<std::byte> buffer_;
  OpenedFile opened_;
  std::optional<Sha256> sha_;
  FileFindings findings_;
};

std::vector<std::vector<const TensorInfo*>> tensors_by_file(const Checkpoint& checkpoint) {
  std::vector<std::vector<const TensorInfo*>> out(checkpoint.files().size());
  for (const auto& [name, ref] : checkpoint.tensors()) out[ref.file.value].push_back(&ref.info);
  for (auto& tensors : out)
    std::sort(tensors.begin(), tensors.end(), [](const TensorInfo* a, const TensorInfo* b) {
      return a->begin != b->begin ? a->begin < b->begin : a->bytes < b->bytes;
    });
  return out;
}

void merge(VerifyReport& report, std::vector<FileFindings>& findings, std::size_t problems_max) {
  ScaleRange scales;
  for (FileFindings& file : findings) {
    scales.merge(file.scales);
    report.hashed_files += file.hashed;
    report.problems_total += file.problems_total;
    for (VerifyProblem& problem : file.problems)
      if (report.problems.size() < problems_max) report.problems.push_back(std::move(problem));
  }
  report.scales = scales.count;
  if (scales.min <= scales.max) {
    report.scale_min = scales.min;
    report.scale_max = scales.max;
  }
}

}  // namespace

std::string VerifyProblem::text() const {
  if (tensor.empty()) return file + ": " + what;
  return file + ": tensor \"" + printable(tensor) + "\": " + what + " at element " + std::to_string(index) +
         (count > 1 ? " (and " + std::to_string(count - 1) + " more)" : "");
}

Result<VerifyReport> verify_checkpoint(const std::string& directory, const VerifyOptions& options,
                                       const VerifyCallback& callback) {
  STOKER_TRY(const Checkpoint checkpoint, Checkpoint::open(directory));
  VerifyReport report;
  report.files = checkpoint.files().size();
  for (const ShardFile& file : checkpoint.files()) report.file_bytes += file.bytes;
  report.tensors = checkpoint.tensors().size();
  for (const auto& [name, ref] : checkpoint.tensors()) report.tensor_bytes += ref.info.bytes;

  auto tensors = tensors_by_file(checkpoint);
  std::vector<FileFindings> findings(checkpoint.files().size());
  Progress progress(callback, report.file_bytes);
  std::atomic<std::size_t> next{0};
  const auto work = [&] {
    for (std::size_t i = next++; i < findings.size() && !progress.stopped(); i = next++) {
      FileVerifier verifier(checkpoint.files()[i], std::move(tensors[i]), options, progress);
      if (auto found = verifier.run())
        findings[i] = *std::move(found);
      else
        progress.stop(std::move(found).error());
    }
  };
  const unsigned wanted =
      options.threads == 0 ? std::max(1U, std::thread::hardware_concurrency()) : options.threads;
  std::vector<std::thread> threads;
  for (unsigned i = 1; i < std::min<std::size_t>({wanted, findings.size(), 16}); ++i)
    threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
  if (progress.error()) return tl::unexpected<Error>(*progress.error());
  merge(report, findings, options.problems_max);
  return report;
}

}  // namespace stoker
