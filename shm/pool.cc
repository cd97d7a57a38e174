#include "shm/pool.h"

#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <optional>
#include <utility>

#include "shm/base/check.h"
#include "shm/base/hex.h"
#include "shm/payload.h"
#include "shm/segment.h"

namespace stoker {

namespace {

constexpr std::uint64_t kSlotBytesMax = 1_GiB;
constexpr std::uint64_t kPayloadBytesMax = 1ULL << 46;

std::string control_name(const std::string& name) { return name + ".control"; }

/// The header's numbers, read once and validated; nothing later reads them from shared memory again.
struct Geometry {
  std::uint64_t slot_bytes = 0;
  std::uint32_t slot_count = 0;
  std::uint32_t layers = 0;
  std::uint32_t experts_per_layer = 0;
  std::uint64_t checkpoint_fingerprint = 0;
  ControlLayout layout{};
  std::uint64_t payload_bytes = 0;
  std::string payload_path = {};  ///< hugetlbfs file, or ""
  [[nodiscard]] std::uint32_t expert_count() const { return layers * experts_per_layer; }
};

/// Sizes that follow from slot and expert counts; Errc::invalid when they are out of range.
Result<Geometry> plan(Geometry g) {
  const std::uint64_t experts = std::uint64_t{g.layers} * g.experts_per_layer;
  if (g.slot_bytes == 0 || g.slot_bytes % kDirectAlign != 0 || g.slot_bytes > kSlotBytesMax)
    return fail(Errc::invalid, "pool: slot size " + std::to_string(g.slot_bytes) + " is not a multiple of " +
                                   std::to_string(kDirectAlign) + " up to 1 GiB");
  if (g.slot_count == 0 || g.slot_count >= kNone || g.slot_count * g.slot_bytes > kPayloadBytesMax)
    return fail(Errc::invalid, "pool: " + std::to_string(g.slot_count) + " slots of " +
                                   bytes_text(g.slot_bytes) + " is out of range");
  if (experts == 0 || experts >= kNone)
    return fail(Errc::invalid, "pool: " + std::to_string(experts) + " experts is out of range");
  g.layout = ControlLayout::of(g.slot_count, experts);
  g.payload_bytes = align_up(g.slot_count * g.slot_bytes, kHugePageBytes);
  return g;
}

/// The path comes from shared memory: only an absolute path to this pool's own file name is believed.
/// What it leads to is checked again when it is opened (hugetlbfs, owner, mode).
Result<std::string> read_payload_path(const PoolHeader& header, const std::string& name) {
  std::array<char, kPayloadPathBytes> copy;
  std::memcpy(copy.data(), header.payload_path, copy.size());
  if (std::memchr(copy.data(), 0, copy.size()) == nullptr)
    return fail(Errc::corrupt, "pool '" + name + "': payload path is not terminated");
  std::string path(copy.data());
  const std::string suffix = "/" + payload_name(name);
  if (!path.empty() &&
      (path.front() != '/' || path.find("/../") != std::string::npos || path.size() <= suffix.size() ||
       path.compare(path.size() - suffix.size(), suffix.size(), suffix) != 0))
    return fail(Errc::corrupt, "pool '" + name + "': payload path is not a path to " + payload_name(name));
  return path;
}

Result<Geometry> validate(const Segment& control, const std::string& name) {
  if (control.bytes() < sizeof(PoolHeader))
    return fail(Errc::corrupt, "pool '" + name + "': control object has " + std::to_string(control.bytes()) +
                                   " bytes, the header alone needs " + std::to_string(sizeof(PoolHeader)));
  const auto& header = *reinterpret_cast<const PoolHeader*>(control.data());
  const std::uint64_t magic = header.magic.load(std::memory_order_acquire);
  if (magic == 0)
    return fail(Errc::missing, "pool '" + name + "' is still being built: try again in a moment");
  const std::uint32_t version = header.layout_version;
  const std::uint64_t hash = header.layout_hash;
  if (magic != kPoolMagic || version != kLayoutVersion || hash != kLayoutHash)
    return fail(Errc::layout, "pool '" + name + "' has layout version " + std::to_string(version) + " (" +
                                  hex(hash) + ", magic " + hex(magic) + "), this program has version " +
                                  std::to_string(kLayoutVersion) + " (" + hex(kLayoutHash) + ", magic " +
                                  hex(kPoolMagic) + "): run loader and worker of the same build");
  Geometry g;
  g.slot_bytes = header.slot_bytes;
  g.slot_count = header.slot_count;
  g.layers = header.layers;
  g.experts_per_layer = header.experts_per_layer;
  g.checkpoint_fingerprint = header.checkpoint_fingerprint;
  auto planned = plan(g);
  if (!planned)
    return fail(Errc::corrupt, "header of pool '" + name + "' is damaged: " + planned.error().message);
  g = *std::move(planned);
  STOKER_TRY(g.payload_path, read_payload_path(header, name));
  const std::uint32_t expert_count = header.expert_count;
  const std::uint64_t control_bytes = header.control_bytes;
  const std::uint64_t payload_bytes = header.payload_bytes;
  if (expert_count != g.expert_count() || control_bytes != g.layout.bytes ||
      control_bytes != control.bytes() || payload_bytes != g.payload_bytes)
    return fail(Errc::corrupt, "pool '" + name + "': sizes contradict each other (control object " +
                                   std::to_string(control.bytes()) + " bytes, header says " +
                                   std::to_string(control_bytes) + ", its counts need " +
                                   std::to_string(g.layout.bytes) +
                                   "): start the loader again to replace it");
  return g;
}

/// Objects begin their life here; the bytes are zero already, except what `kNone` means.
void build_control(Segment& control, const PoolSpec& spec, const Geometry& g, const Payload& payload) {
  std::byte* base = control.data();
  auto& header = *new (base) PoolHeader{};
  new (base + g.layout.counters) PoolCounters{};
  for (unsigned i = 0; i < kProcessMax; ++i)
    new (base + g.layout.processes + i * sizeof(ProcessEntry)) ProcessEntry{};
  for (std::uint32_t i = 0; i < g.slot_count; ++i)
    new (base + g.layout.slots + i * sizeof(SlotControl)) SlotControl{};
  for (std::uint32_t i = 0; i < g.expert_count(); ++i) {
    auto* expert = new (base + g.layout.experts + i * sizeof(ExpertEntry)) ExpertEntry{};
    expert->slot.store(kNone, std::memory_order_relaxed);
  }
  header.layout_version = kLayoutVersion;
  header.page_bytes = payload.page_bytes;
  header.layout_hash = kLayoutHash;
  header.slot_bytes = g.slot_bytes;
  header.slot_count = g.slot_count;
  header.expert_count = g.expert_count();
  header.layers = g.layers;
  header.experts_per_layer = g.experts_per_layer;
  header.checkpoint_fingerprint = spec.checkpoint_fingerprint;
  header.control_bytes = g.layout.bytes;
  header.payload_bytes = g.payload_bytes;
  STOKER_CHECK(payload.path.size() < kPayloadPathBytes);
  std::memcpy(header.payload_path, payload.path.c_str(), payload.path.size() + 1);
  header.magic.store(kPoolMagic, std::memory_order_release);
}

}  // namespace

struct Pool::State {
  Segment control;
  Segment payload;
  Geometry geometry;
  bool adopted = false;
  std::string note;
};

Pool::Pool(std::unique_ptr<State> state) : state_(std::move(state)) {}
Pool::Pool(Pool&&) noexcept = default;
Pool& Pool::operator=(Pool&&) noexcept = default;
Pool::~Pool() = default;

namespace {

/// pid of a live process that is attached to the pool, 0 when there is none.
std::uint32_t live_process(const Segment& control, const Geometry& g) {
  const auto* processes = reinterpret_cast<const ProcessEntry*>(control.data() + g.layout.processes);
  for (unsigned i = 0; i < kProcessMax; ++i) {
    if (processes[i].state.load(std::memory_order_acquire) !=
        static_cast<std::uint32_t>(ProcessState::attached))
      continue;
    const std::uint32_t pid = processes[i].pid.load(std::memory_order_relaxed);
    if (process_may_live(pid, processes[i].start_ticks.load(std::memory_order_relaxed))) return pid;
  }
  return 0;
}

bool same_spec(const PoolSpec& spec, const Geometry& g) {
  return spec.slot_bytes == g.slot_bytes && spec.slot_count == g.slot_count && spec.layers == g.layers &&
         spec.experts_per_layer == g.experts_per_layer &&
         spec.checkpoint_fingerprint == g.checkpoint_fingerprint;
}

Result<Segment> open_payload(const std::string& name, const Geometry& g) {
  STOKER_TRY(Segment payload, Segment::open({.name = payload_name(name),
                                             .advise_huge = g.payload_path.empty(),
                                             .hugetlbfs_path = g.payload_path},
                                            true));
  if (payload.bytes() != g.payload_bytes)
    return fail(Errc::corrupt, "pool '" + name + "': payload has " + std::to_string(payload.bytes()) +
                                   " bytes, the header says " + std::to_string(g.payload_bytes) +
                                   ": start the loader again to replace it");
  return payload;
}

/// What a loader finds: a pool to go on with, or nothing of use (then both are empty and the names may be
/// replaced). An error means that the names must not be touched.
struct Found {
  std::optional<Segment> control = {}, payload = {};
  Geometry geometry = {};
};

Result<Found> look_for_predecessor(const PoolSpec& spec) {
  auto control = Segment::open({.name = control_name(spec.name)}, true);
  if (!control) {
    // Another user's object cannot be replaced and must not be trusted; everything else can go.
    if (control.error().code == Errc::invalid || control.error().code == Errc::io)
      return fail(control.error(), "pool");
    return Found{};
  }
  const auto geometry = validate(*control, spec.name);
  if (!geometry) {
    // The process table of another layout cannot be read, but its users hold a shared flock.
    if (geometry.error().code == Errc::layout && !control->lock_exclusive())
      return fail(Errc::busy, "a running process still uses it; stop it first. " + geometry.error().message);
    return Found{};
  }
  Found found{.control = {}, .payload = {}, .geometry = *geometry};
  if (same_spec(spec, *geometry) && control->group_access() == spec.group_access)
    if (auto payload = open_payload(spec.name, *geometry)) {
      STOKER_TRY_VOID(payload->populate());
      found.payload = *std::move(payload);
      found.control = *std::move(control);
      return found;
    }
  if (const std::uint32_t pid = live_process(*control, *geometry); pid != 0)
    return fail(Errc::busy, "pool '" + spec.name + "' was made for another checkpoint or size and process " +
                                std::to_string(pid) + " is still attached to it: stop that process first");
  return Found{};
}

}  // namespace

Result<Pool> Pool::create_or_adopt(const PoolSpec& spec) {
  STOKER_TRY(Geometry geometry, plan({.slot_bytes = spec.slot_bytes,
                                      .slot_count = spec.slot_count,
                                      .layers = spec.layers,
                                      .experts_per_layer = spec.experts_per_layer,
                                      .checkpoint_fingerprint = spec.checkpoint_fingerprint}));
  STOKER_TRY(Found found, look_for_predecessor(spec));
  std::unique_ptr<State> state;
  if (found.control) {
    std::uint32_t page_bytes = 0;
    std::string note =
        found.geometry.payload_path.empty()
            ? describe_pages(*found.payload, spec.huge_pages == HugePages::automatic, "", page_bytes)
            : "2 MiB pages (hugetlbfs file " + found.geometry.payload_path + ")";
    state = std::make_unique<State>(
        State{*std::move(found.control), *std::move(found.payload), found.geometry, true, std::move(note)});
  } else {
    unlink(spec.name);
    STOKER_TRY(Payload payload, create_payload(spec, geometry.payload_bytes));
    geometry.payload_path = payload.path;
    auto control = Segment::create(
        {.name = control_name(spec.name), .bytes = geometry.layout.bytes, .group_access = spec.group_access});
    if (!control) {
      if (payload.path.empty())
        Segment::remove(payload_name(spec.name));
      else
        ::unlink(payload.path.c_str());
      return tl::unexpected<Error>(std::move(control).error());
    }
    build_control(*control, spec, geometry, payload);
    state = std::make_unique<State>(
        State{*std::move(control), std::move(payload.segment), geometry, false, std::move(payload.note)});
  }
  Pool pool(std::move(state));
  PoolHeader& header = pool.header();
  header.loader_ready.store(0, std::memory_order_relaxed);
  header.loader_sleeping.store(0, std::memory_order_relaxed);
  header.loader_pid.store(static_cast<std::uint32_t>(::getpid()), std::memory_order_relaxed);
  header.epoch.fetch_add(1, std::memory_order_release);
  return pool;
}

Result<Pool> Pool::attach(const std::string& name) {
  STOKER_TRY(Segment control, Segment::open({.name = control_name(name)}, true));
  STOKER_TRY(Geometry geometry, validate(control, name));
  STOKER_TRY(Segment payload, open_payload(name, geometry));
  static_cast<void>(control.lock_shared());  // see look_for_predecessor; held until the mapping's owner goes
  std::string note =
      geometry.payload_path.empty() ? "" : "2 MiB pages (hugetlbfs file " + geometry.payload_path + ")";
  if (note.empty()) {
    const auto& header = *reinterpret_cast<const PoolHeader*>(control.data());
    note = header.page_bytes == kHugePageBytes ? "2 MiB pages (transparent huge pages)"
                                               : "4 KiB pages (see the loader's log)";
  }
  return Pool(std::make_unique<State>(
      State{std::move(control), std::move(payload), geometry, false, std::move(note)}));
}

void Pool::unlink(const std::string& name) {
  if (const auto control = Segment::open({.name = control_name(name)}, false);
      control && control->bytes() >= sizeof(PoolHeader)) {
    const auto path = read_payload_path(*reinterpret_cast<const PoolHeader*>(control->data()), name);
    if (path && !path->empty()) ::unlink(path->c_str());
  }
  Segment::remove(control_name(name));
  Segment::remove(payload_name(name));
}

bool Pool::adopted() const { return state_->adopted; }
std::string Pool::page_note() const { return state_->note; }
PoolHeader& Pool::header() const { return *reinterpret_cast<PoolHeader*>(state_->control.data()); }
PoolCounters& Pool::counters() const {
  return *reinterpret_cast<PoolCounters*>(state_->control.data() + state_->geometry.layout.counters);
}
ProcessEntry& Pool::process(unsigned index) const {
  STOKER_CHECK(index < kProcessMax);
  return reinterpret_cast<ProcessEntry*>(state_->control.data() + state_->geometry.layout.processes)[index];
}
std::span<SlotControl> Pool::slots() const {
  return {reinterpret_cast<SlotControl*>(state_->control.data() + state_->geometry.layout.slots),
          slot_count()};
}
std::span<ExpertEntry> Pool::experts() const {
  return {reinterpret_cast<ExpertEntry*>(state_->control.data() + state_->geometry.layout.experts),
          expert_count()};
}
std::byte* Pool::payload(SlotId slot) const {
  STOKER_CHECK(slot.value < slot_count());
  return state_->payload.data() + slot.value * slot_bytes();
}
std::span<std::byte> Pool::payload() const { return {state_->payload.data(), slot_count() * slot_bytes()}; }
std::uint64_t Pool::slot_bytes() const { return state_->geometry.slot_bytes; }
std::uint32_t Pool::slot_count() const { return state_->geometry.slot_count; }
std::uint32_t Pool::expert_count() const { return state_->geometry.expert_count(); }

std::string pool_name(const std::string& run_directory) {
  char* canonical = ::realpath(run_directory.c_str(), nullptr);
  const std::string path = canonical != nullptr ? canonical : run_directory;
  std::free(canonical);
  return "stoker." + name_hash(path + '\0' + std::to_string(::geteuid()));
}

PoolCensus census(const Pool& pool) {
  PoolCensus result;
  for (const SlotControl& slot : pool.slots()) {
    const SlotWord word = unpack(slot.word.load(std::memory_order_acquire));
    ++result.by_state[static_cast<unsigned>(word.state)];
    if (word.readers != 0) ++result.leased;
  }
  return result;
}

std::uint32_t reclaim_process(Pool& pool, unsigned process_index) {
  ProcessEntry& process = pool.process(process_index);
  process.state.store(static_cast<std::uint32_t>(ProcessState::dead), std::memory_order_release);
  const auto bit = static_cast<std::uint16_t>(1U << process_index);
  std::uint32_t dropped = 0;
  for (SlotControl& slot : pool.slots()) {
    // A reader bit in any other state is nonsense somebody wrote; such a slot gets its word from the
    // loader's next transition.
    const auto cleared = update(slot, [bit](SlotWord word) -> std::optional<SlotWord> {
      if ((word.readers & bit) == 0) return std::nullopt;
      if (word.state != SlotState::ready && word.state != SlotState::retiring) return std::nullopt;
      word.readers = static_cast<std::uint16_t>(word.readers & ~bit);
      return word;
    });
    if (cleared) ++dropped;
  }
  for (DemandEntry& demand : process.demands)
    demand.state.store(static_cast<std::uint32_t>(DemandState::free), std::memory_order_relaxed);
  process.demand_head.store(0, std::memory_order_relaxed);
  process.demand_tail.store(0, std::memory_order_relaxed);
  process.waiting.store(0, std::memory_order_relaxed);
  process.pid.store(0, std::memory_order_relaxed);
  process.start_ticks.store(0, std::memory_order_relaxed);
  process.state.store(static_cast<std::uint32_t>(ProcessState::free), std::memory_order_release);
  return dropped;
}

}  // namespace stoker
