#include "shm/weights_segment.h"

#include <atomic>
#include <cstdio>
#include <new>
#include <utility>

#include "shm/base/check.h"
#include "shm/base/hex.h"
#include "shm/base/types.h"
#include "shm/segment.h"

namespace stoker {

namespace {

constexpr std::uint64_t kWeightsMagic = 0x31535447'57544B53ULL;  // "SKTWGTS1"
constexpr std::uint32_t kWeightsVersion = 1;
constexpr std::uint64_t kWeightsBytesMax = 1ULL << 46;

/// First page of the object; the image follows at kPageBytes.
struct alignas(kPageBytes) WeightsHeader {
  std::atomic<std::uint64_t> magic;  ///< 0 while being filled; stored with release when the image is whole
  std::uint32_t version;
  std::uint32_t reserved;
  std::uint64_t fingerprint;
  std::uint64_t image_bytes;
};
static_assert(sizeof(WeightsHeader) == kPageBytes);

WeightsHeader& header_of(const Segment& segment) { return *reinterpret_cast<WeightsHeader*>(segment.data()); }

/// Size of the image of a complete segment of this fingerprint; every header word is read once.
Result<std::uint64_t> validate(const Segment& segment, const std::string& name, std::uint64_t fingerprint) {
  if (segment.bytes() < sizeof(WeightsHeader))
    return fail(Errc::corrupt, "weights '" + name + "': object is smaller than its header");
  const WeightsHeader& header = header_of(segment);
  const std::uint64_t magic = header.magic.load(std::memory_order_acquire);
  if (magic == 0) return fail(Errc::missing, "weights '" + name + "' are still being read by the loader");
  const std::uint32_t version = header.version;
  if (magic != kWeightsMagic || version != kWeightsVersion)
    return fail(Errc::layout, "weights '" + name + "' have format version " + std::to_string(version) +
                                  " (magic " + hex(magic) + "), this program has version " +
                                  std::to_string(kWeightsVersion) + " (magic " + hex(kWeightsMagic) +
                                  "): run loader and worker of the same build");
  const std::uint64_t found = header.fingerprint;
  if (found != fingerprint)
    return fail(Errc::layout, "weights '" + name + "' are of checkpoint " + hex(found) + ", wanted " +
                                  hex(fingerprint) + ": restart the loader");
  const std::uint64_t bytes = header.image_bytes;
  if (bytes == 0 || bytes > kWeightsBytesMax || kPageBytes + align_up(bytes, kPageBytes) != segment.bytes())
    return fail(Errc::corrupt, "weights '" + name + "': header says " + std::to_string(bytes) +
                                   " bytes, the object has " + std::to_string(segment.bytes()) +
                                   ": restart the loader");
  return bytes;
}

}  // namespace

struct WeightsSegment::State {
  Segment segment;
  std::uint64_t image_bytes;
  bool writable;
  bool complete;
};

WeightsSegment::WeightsSegment(std::unique_ptr<State> state) : state_(std::move(state)) {}
WeightsSegment::WeightsSegment(WeightsSegment&&) noexcept = default;
WeightsSegment& WeightsSegment::operator=(WeightsSegment&&) noexcept = default;
WeightsSegment::~WeightsSegment() = default;

Result<WeightsSegment> WeightsSegment::create_or_adopt(const std::string& name, std::uint64_t bytes,
                                                       std::uint64_t fingerprint, bool group_access) {
  if (bytes == 0 || bytes > kWeightsBytesMax)
    return fail(Errc::invalid, "weights '" + name + "': " + std::to_string(bytes) + " bytes is out of range");
  {
    auto old = Segment::open({.name = name, .advise_huge = true}, true);
    if (!old && (old.error().code == Errc::invalid || old.error().code == Errc::io))
      return tl::unexpected<Error>(std::move(old).error());
    if (old && old->group_access() == group_access)
      if (const auto image_bytes = validate(*old, name, fingerprint); image_bytes && *image_bytes == bytes) {
        STOKER_TRY_VOID(old->populate());
        return WeightsSegment(std::make_unique<State>(State{*std::move(old), bytes, true, true}));
      }
  }
  // An incomplete one is never filled further, and it is unmapped by now: two copies would not fit the
  // budget.
  Segment::remove(name);
  STOKER_TRY(Segment segment, Segment::create({.name = name,
                                               .bytes = kPageBytes + align_up(bytes, kPageBytes),
                                               .group_access = group_access,
                                               .advise_huge = true}));
  auto& header = *new (segment.data()) WeightsHeader{};
  header.version = kWeightsVersion;
  header.fingerprint = fingerprint;
  header.image_bytes = bytes;
  return WeightsSegment(std::make_unique<State>(State{std::move(segment), bytes, true, false}));
}

Result<WeightsSegment> WeightsSegment::attach(const std::string& name, std::uint64_t fingerprint) {
  STOKER_TRY(Segment segment, Segment::open({.name = name, .advise_huge = true}, false));
  STOKER_TRY(const std::uint64_t bytes, validate(segment, name, fingerprint));
  return WeightsSegment(std::make_unique<State>(State{std::move(segment), bytes, false, true}));
}

void WeightsSegment::unlink(const std::string& name) { Segment::remove(name); }

bool WeightsSegment::complete() const { return state_->complete; }

void WeightsSegment::mark_complete() {
  STOKER_CHECK(state_->writable);
  header_of(state_->segment).magic.store(kWeightsMagic, std::memory_order_release);
  state_->complete = true;
}

std::span<std::byte> WeightsSegment::writable() {
  STOKER_CHECK(state_->writable);
  return {state_->segment.data() + kPageBytes, state_->image_bytes};
}

std::span<const std::byte> WeightsSegment::image() const {
  return {state_->segment.data() + kPageBytes, state_->image_bytes};
}

}  // namespace stoker
