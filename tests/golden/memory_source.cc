#include "tests/golden/memory_source.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "shm/base/check.h"
#include "shm/base/unique_fd.h"
#include "tests/golden/generator.h"

namespace stoker::golden {
namespace {

/// All files of a checkpoint, open.
class Files {
 public:
  static Result<Files> open(const Checkpoint& checkpoint) {
    Files files;
    for (const ShardFile& file : checkpoint.files()) {
      UniqueFd fd(::open(file.path.c_str(), O_RDONLY | O_CLOEXEC));
      if (fd.get() < 0) return fail(Errc::io, "cannot open " + file.path, errno);
      files.files_.push_back({std::move(fd), file.path, file.bytes});
    }
    return files;
  }

  /// Reads `length` bytes, less where the file ends before.
  Result<void> read(FileId id, std::uint64_t offset, std::byte* target, std::uint64_t length) const {
    const File& file = files_.at(id.value);
    std::uint64_t left = std::min(length, file.bytes - offset);
    while (left > 0) {
      const ssize_t n = ::pread(file.fd.get(), target, left, static_cast<off_t>(offset));
      if (n <= 0) return fail(Errc::io, file.path + ": read at " + std::to_string(offset), n < 0 ? errno : 0);
      const auto got = static_cast<std::uint64_t>(n);
      offset += got;
      target += got;
      left -= got;
    }
    return {};
  }

 private:
  struct File {
    UniqueFd fd;
    std::string path;
    std::uint64_t bytes = 0;
  };
  std::vector<File> files_;
};

}  // namespace

Result<AlignedBytes> build_image(const Checkpoint& checkpoint, const WeightsPlan& plan) {
  STOKER_TRY(const Files files, Files::open(checkpoint));
  AlignedBytes image(plan.image_bytes);
  std::memset(image.data(), 0, plan.image_bytes);
  std::memcpy(image.data(), plan.header.data(), plan.header.size());
  std::vector<std::byte> narrow;
  for (const WeightsPlan::Copy& copy : plan.copies) {
    std::byte* target = image.data() + copy.image_offset;
    if (!copy.widen_bf16) {
      STOKER_TRY_VOID(files.read(copy.file, copy.file_offset, target, copy.bytes));
      continue;
    }
    narrow.resize(copy.bytes);
    STOKER_TRY_VOID(files.read(copy.file, copy.file_offset, narrow.data(), copy.bytes));
    for (std::uint64_t i = 0; i < copy.bytes / 2; ++i) {
      std::uint16_t bits = 0;
      std::memcpy(&bits, narrow.data() + 2 * i, 2);
      const float value = from_bf16(bits);
      std::memcpy(target + 4 * i, &value, 4);
    }
  }
  for (const auto& [offset, bytes] : plan.literals)
    std::memcpy(image.data() + offset, bytes.data(), bytes.size());
  return image;
}

Result<std::unique_ptr<MemorySource>> MemorySource::make(const Checkpoint& checkpoint, const ExpertPlan& plan,
                                                         const WeightsImage& image) {
  STOKER_TRY(const Files files, Files::open(checkpoint));
  auto source = std::make_unique<MemorySource>();
  source->experts_per_layer_ = plan.experts_per_layer();
  source->slot_bytes_ = plan.slot_bytes();
  source->slots_ = AlignedBytes(plan.expert_count() * plan.slot_bytes());
  for (std::uint32_t key = 0; key < plan.expert_count(); ++key) {
    source->parts_.push_back(plan.parts(ExpertKey(key)));
    const auto [extents, count] = plan.extents(ExpertKey(key));
    for (std::size_t i = 0; i < count; ++i)
      STOKER_TRY_VOID(files.read(extents[i].file, extents[i].offset,
                                 source->slots_.data() + key * plan.slot_bytes() + extents[i].slot_offset,
                                 extents[i].length));
  }
  for (std::uint32_t layer = 0; layer < plan.layers(); ++layer) {
    const TensorInfo* t = image.find("stoker.layers." + std::to_string(layer) + ".expert_scales");
    source->scales_.push_back(t == nullptr ? Scales{}
                                           : Scales{reinterpret_cast<const float*>(image.data(*t)),
                                                    t->elements() / plan.experts_per_layer()});
  }
  return source;
}

std::uint32_t MemorySource::draw(std::uint32_t below) {
  random_ = random_ * 1664525U + 1013904223U;
  return (random_ >> 8) % below;
}

void MemorySource::begin(LayerId layer, std::span<const ExpertId> wanted, Access) {
  STOKER_CHECK(waiting_.empty() && leased_ == 0);
  layer_ = layer;
  waiting_.assign(wanted.begin(), wanted.end());
  if (random_ == 0) return;
  for (std::size_t i = waiting_.size(); i > 1; --i)
    std::swap(waiting_[i - 1], waiting_[draw(static_cast<std::uint32_t>(i))]);
}

Result<SourceEvent> MemorySource::next(bool wait) {
  SourceEvent event;
  if (waiting_.empty()) return event;
  if (random_ != 0 && !wait && draw(2) == 0) {
    event.kind = SourceEvent::Kind::pending;
    return event;
  }
  const ExpertId expert = waiting_.front();
  waiting_.pop_front();
  event.kind = SourceEvent::Kind::leased;
  event.leased = lease(layer_, expert);
  return event;
}

std::optional<LeasedExpert> MemorySource::try_lease(LayerId layer, ExpertId expert) {
  STOKER_CHECK(layer.value != layer_.value && layer.value < scales_.size());
  if (random_ != 0 && draw(4) == 0) return std::nullopt;  // as if it was not there
  return lease(layer, expert);
}

LeasedExpert MemorySource::lease(LayerId layer, ExpertId expert) {
  const std::uint32_t key = std::uint32_t{layer.value} * experts_per_layer_ + expert.value;
  const std::byte* slot = slots_.data() + key * slot_bytes_;
  const Scales& scales = scales_[layer.value];
  ++leased_;
  return {expert,
          Tier::pool,
          key,
          slot + parts_[key].gate,
          slot + parts_[key].up,
          slot + parts_[key].down,
          scales.data == nullptr ? nullptr : scales.data + expert.value * scales.per_expert};
}

void MemorySource::release(const LeasedExpert& expert) {
  STOKER_CHECK(leased_ > 0 && expert.handle < parts_.size());
  --leased_;
}

}  // namespace stoker::golden
