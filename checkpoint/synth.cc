#include "checkpoint/synth.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <mutex>
#include <optional>
#include <thread>

#include "checkpoint/file_bytes.h"
#include "checkpoint/synth_files.h"
#include "checkpoint/synth_layout.h"
#include "checkpoint/synth_values.h"
#include "shm/base/types.h"

namespace stoker {

namespace {

constexpr std::uint64_t kChunkBytes = 4_MiB;
constexpr std::uint64_t kSpareBytes = 64_MiB;

Result<UniqueFd> create_file(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
  if (!fd.valid()) return fail(Errc::io, "cannot create " + path, errno);
  return fd;
}

Result<void> write_at(int fd, const std::string& path, std::uint64_t offset, const void* data,
                      std::size_t bytes) {
  const auto* at = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t n = ::pwrite(fd, at, bytes, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return fail(Errc::io, "cannot write " + path + " at offset " + std::to_string(offset), errno);
    at += n;
    offset += static_cast<std::uint64_t>(n);
    bytes -= static_cast<std::size_t>(n);
  }
  return {};
}

Result<void> write_file(const std::string& path, const std::string& text) {
  STOKER_TRY(const UniqueFd fd, create_file(path));
  return write_at(fd.get(), path, 0, text.data(), text.size());
}

SynthReport make_report(const SynthSpec& spec, const std::vector<SynthShard>& shards) {
  SynthReport report;
  for (const SynthShard& shard : shards)
    for (const SynthTensor& tensor : shard.tensors) {
      ++report.tensors;
      report.tensor_bytes += tensor.info.bytes;
      if (!tensor.hole) report.written_bytes += tensor.info.bytes;
    }
  report.files = static_cast<std::uint32_t>(shards.size());
  report.experts = std::uint64_t{spec.config.layers} * spec.config.experts;
  for (std::uint32_t l = 0; l < spec.config.layers; ++l)
    for (std::uint32_t e = 0; e < spec.config.experts; ++e)
      report.real_experts += synth_expert_is_real(spec, l, e);
  return report;
}

Result<void> check_spec(const SynthSpec& spec) {
  const bool fp8 = spec.format == SynthFormat::fp8_bf16_scales || spec.format == SynthFormat::fp8_f32_scales;
  if (fp8 && (spec.config.scale_block_rows == 0 || spec.config.scale_block_cols == 0))
    return fail(Errc::invalid, "an FP8 checkpoint needs a scale block such as 128 x 128");
  if (spec.shards == 0 || spec.shards > 1000)
    return fail(Errc::invalid,
                "the number of shards is " + std::to_string(spec.shards) + "; 1 to 1000 are supported");
  if (spec.config.mixers.size() != spec.config.layers)
    return fail(Errc::invalid, "the spec names " + std::to_string(spec.config.mixers.size()) +
                                   " mixers for " + std::to_string(spec.config.layers) + " layers");
  if (!(spec.real_share >= 0 && spec.real_share <= 1))
    return fail(Errc::invalid, "the share of real experts must be from 0 to 1");
  const RoutingLocality& r = spec.routing;
  if (r.topics == 0 || r.subtopics == 0 || r.topics > 4096 || r.subtopics > 4096 || !(r.topic_tokens >= 1) ||
      !(r.subtopic_tokens >= 1))
    return fail(Errc::invalid,
                "the routing locality needs 1 to 4096 topics and subtopics that last a token or more");
  auto parsed = parse_model_config(synth_config_json(spec));
  // The parser says what is wrong with a file; here the caller's arguments are.
  if (!parsed) return fail(Errc::invalid, "the model to synthesize: " + parsed.error().message);
  return {};
}

/// One piece of one tensor: what a thread generates and writes at a time.
struct Chunk {
  const SynthTensor* tensor;
  std::uint64_t first;  ///< byte in the tensor
  std::uint64_t bytes;
};

/// Threads take chunks of one shard from a counter; the first error or a cancel stops all.
class ShardWriter {
 public:
  ShardWriter(const SynthValues& values, const SynthCallback& callback, SynthProgress progress,
              unsigned threads)
      : values_(values), callback_(callback), progress_(progress), threads_(threads) {}

  Result<void> write(const SynthShard& shard, const std::string& path) {
    STOKER_TRY(const UniqueFd fd, create_file(path));
    if (::ftruncate(fd.get(), static_cast<off_t>(shard.header.size() + shard.data_bytes)) != 0)
      return fail(Errc::io, "cannot size " + path, errno);
    STOKER_TRY_VOID(write_at(fd.get(), path, 0, shard.header.data(), shard.header.size()));
    chunks_.clear();
    for (const SynthTensor& tensor : shard.tensors)
      for (std::uint64_t at = 0; at < tensor.info.bytes && !tensor.hole; at += kChunkBytes)
        chunks_.push_back({&tensor, at, std::min(kChunkBytes, tensor.info.bytes - at)});
    next_ = 0;
    std::vector<std::thread> threads;
    for (unsigned i = 1; i < threads_; ++i)
      threads.emplace_back([&] { work(fd.get(), path, shard.header.size()); });
    work(fd.get(), path, shard.header.size());
    for (std::thread& thread : threads) thread.join();
    if (error_) return tl::unexpected<Error>(*error_);
    if (::fdatasync(fd.get()) != 0) return fail(Errc::io, "cannot flush " + path, errno);
    // A benchmark that follows should find the disk, not our page cache.
    ::posix_fadvise(fd.get(), 0, 0, POSIX_FADV_DONTNEED);
    return {};
  }

 private:
  void work(int fd, const std::string& path, std::uint64_t data_start) {
    std::vector<std::byte> buffer(kChunkBytes);
    while (!stop_) {
      const std::size_t i = next_.fetch_add(1);
      if (i >= chunks_.size()) return;
      const Chunk& chunk = chunks_[i];
      const std::span<std::byte> out = std::span(buffer).first(chunk.bytes);
      values_.fill(*chunk.tensor, chunk.first / dtype_bytes(chunk.tensor->info.dtype), out);
      report(write_at(fd, path, data_start + chunk.tensor->info.begin + chunk.first, out.data(), out.size()),
             chunk.bytes);
    }
  }

  void report(Result<void> written, std::uint64_t bytes) {
    const std::lock_guard lock(mutex_);
    if (error_) return;
    if (!written) error_ = std::move(written).error();
    // Scales come in thousands of tiny tensors: not each is worth a call.
    constexpr std::uint64_t kStep = 16_MiB;
    const std::uint64_t before = progress_.done_bytes;
    progress_.done_bytes += bytes;
    const bool tell =
        before / kStep != progress_.done_bytes / kStep || progress_.done_bytes == progress_.total_bytes;
    if (!error_ && tell && callback_ && !callback_(progress_))
      error_ = Error{Errc::cancelled, 0, "synth was cancelled"};
    if (error_) stop_ = true;
  }

  const SynthValues& values_;
  const SynthCallback& callback_;
  SynthProgress progress_;
  unsigned threads_;
  std::vector<Chunk> chunks_;
  std::atomic<std::size_t> next_{0};
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::optional<Error> error_;
};

Result<void> check_target(const SynthSpec& spec, std::uint64_t bytes) {
  struct stat info {};
  const bool there = ::lstat(spec.directory.c_str(), &info) == 0;
  if (spec.directory.empty()) return fail(Errc::invalid, "no directory given to write the checkpoint to");
  if (there && !spec.force)
    return fail(Errc::invalid, spec.directory + " exists already; give another directory or --force");
  if (there) {
    // --force replaces checkpoints, not whatever directory was mistyped.
    std::error_code ignored;
    const bool ours = std::filesystem::exists(spec.directory + "/config.json", ignored) ||
                      std::filesystem::is_empty(spec.directory, ignored);
    if (!S_ISDIR(info.st_mode) || !ours)
      return fail(Errc::invalid,
                  spec.directory + " exists and does not look like a checkpoint; not replacing it");
  }
  std::filesystem::path parent = std::filesystem::path(spec.directory).parent_path();
  if (parent.empty()) parent = ".";
  struct statvfs space {};
  if (::statvfs(parent.c_str(), &space) != 0)
    return fail(Errc::io, "cannot write to " + parent.string(), errno);
  const std::uint64_t free_bytes = std::uint64_t{space.f_bavail} * space.f_frsize;
  if (free_bytes < bytes + kSpareBytes)
    return fail(Errc::no_memory, "the checkpoint needs " + std::to_string(bytes + kSpareBytes) +
                                     " bytes, but " + parent.string() + " has " + std::to_string(free_bytes) +
                                     " free; free some, use another disk or --sparse");
  return {};
}

Result<void> copy_file(const std::string& from, const std::string& to) {
  if (from.empty()) return {};
  STOKER_TRY(const std::string bytes, read_file(from, 256_MiB));
  return write_file(to, bytes);
}

Result<void> write_small_files(const SynthSpec& spec, const std::vector<SynthShard>& shards,
                               const std::string& directory) {
  STOKER_TRY_VOID(write_file(directory + "/config.json", synth_config_json(spec)));
  STOKER_TRY_VOID(write_file(directory + "/generation_config.json", synth_generation_json(spec)));
  if (shards.size() > 1)
    STOKER_TRY_VOID(write_file(directory + "/model.safetensors.index.json", synth_index_json(shards)));
  STOKER_TRY_VOID(copy_file(spec.tokenizer_path, directory + "/tokenizer.json"));
  STOKER_TRY_VOID(copy_file(spec.tokenizer_config_path, directory + "/tokenizer_config.json"));
  STOKER_TRY_VOID(copy_file(spec.template_path, directory + "/chat_template.jinja"));
  if (spec.routing_tokens == 0) return {};
  std::string ids;
  for (std::uint32_t id : RoutingModel(spec).walk(spec.routing_tokens)) ids += std::to_string(id) + "\n";
  return write_file(directory + "/routing_tokens.txt", ids);
}

Result<void> write_all(const SynthSpec& spec, const std::vector<SynthShard>& shards,
                       const SynthReport& report, const std::string& directory,
                       const SynthCallback& progress) {
  if (::mkdir(directory.c_str(), 0755) != 0) return fail(Errc::io, "cannot create " + directory, errno);
  STOKER_TRY_VOID(write_small_files(spec, shards, directory));
  const SynthValues values(spec);
  const unsigned threads =
      spec.threads == 0 ? std::max(1U, std::thread::hardware_concurrency()) : spec.threads;
  ShardWriter writer(values, progress, {0, report.written_bytes}, std::min(threads, 64U));
  for (const SynthShard& shard : shards) STOKER_TRY_VOID(writer.write(shard, directory + "/" + shard.name));
  return {};
}

/// The old checkpoint, if any, steps aside first, so that the name never stands for half a directory.
Result<void> put_in_place(const std::string& partial, const std::string& directory) {
  const std::string aside = directory + ".replaced";
  std::error_code ignored;
  std::filesystem::remove_all(aside, ignored);
  if (::rename(directory.c_str(), aside.c_str()) != 0 && errno != ENOENT)
    return fail(Errc::io, "cannot move the old " + directory + " aside", errno);
  if (::rename(partial.c_str(), directory.c_str()) != 0)
    return fail(Errc::io, "cannot rename " + partial, errno);
  std::filesystem::remove_all(aside, ignored);
  return {};
}

}  // namespace

Result<SynthReport> synth_plan(const SynthSpec& spec) {
  STOKER_TRY_VOID(check_spec(spec));
  return make_report(spec, synth_shards(spec));
}

Result<SynthReport> synthesize(const SynthSpec& spec_in, const SynthCallback& progress) {
  SynthSpec spec = spec_in;
  while (spec.directory.size() > 1 && spec.directory.back() == '/') spec.directory.pop_back();
  STOKER_TRY_VOID(check_spec(spec));
  const std::vector<SynthShard> shards = synth_shards(spec);
  const SynthReport report = make_report(spec, shards);
  STOKER_TRY_VOID(check_target(spec, report.written_bytes));
  const std::string partial = spec.directory + ".partial";
  std::error_code ignored;
  std::filesystem::remove_all(partial, ignored);
  Result<void> written = write_all(spec, shards, report, partial, progress);
  if (written) written = put_in_place(partial, spec.directory);
  if (!written) {
    std::filesystem::remove_all(partial, ignored);
    return tl::unexpected<Error>(std::move(written).error());
  }
  return report;
}

}  // namespace stoker
