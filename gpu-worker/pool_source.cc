#include "gpu-worker/pool_source.h"

#include <algorithm>
#include <thread>

#include "shm/base/counter.h"
#include "shm/usage.h"

namespace stoker {

namespace {
// A lost wake-up or a dead loader costs at most this before it is noticed.
constexpr Duration kWaitSlice = std::chrono::milliseconds(20);
constexpr Duration kReattachTimeout = std::chrono::seconds(2);
}  // namespace

Result<std::unique_ptr<PoolSource>> PoolSource::make(Pool& pool, AttachClient& client,
                                                     const WeightsImage& image, const ModelConfig& config,
                                                     std::uint64_t matrix_bytes, const Clock& clock,
                                                     PoolSourceOptions options) {
  const std::uint32_t layers = config.layers, experts_per_layer = config.experts;
  if (pool.expert_count() != layers * experts_per_layer)
    return fail(Errc::layout, "the pool holds " + std::to_string(pool.expert_count()) +
                                  " experts, the model has " + std::to_string(layers * experts_per_layer) +
                                  ": restart the loader");
  std::vector<LayerTables> tables(layers);
  for (std::uint32_t l = 0; l < layers; ++l) {
    const std::string prefix = "stoker.layers." + std::to_string(l) + ".";
    const TensorInfo* parts = image.find(prefix + "expert_parts");
    const TensorInfo* scales = image.find(prefix + "expert_scales");
    const std::vector<std::uint64_t> parts_shape{experts_per_layer, 3};
    if (parts == nullptr || parts->dtype != DType::i32 || parts->shape != parts_shape)
      return fail(Errc::layout, "the weights segment has no " + prefix + "expert_parts: restart the loader");
    tables[l].parts = reinterpret_cast<const std::int32_t*>(image.data(*parts));
    for (std::uint32_t i = 0; i < experts_per_layer * 3; ++i)
      if (tables[l].parts[i] < 0 ||
          static_cast<std::uint64_t>(tables[l].parts[i]) + matrix_bytes > pool.slot_bytes())
        return fail(Errc::layout, prefix + "expert_parts points outside the slot");
    if (scales == nullptr) continue;
    if (scales->dtype != DType::f32 || scales->shape.size() != 2 || scales->shape[0] != experts_per_layer)
      return fail(Errc::layout, prefix + "expert_scales has a wrong shape: restart the loader");
    tables[l].scales = reinterpret_cast<const float*>(image.data(*scales));
    tables[l].scales_per_expert = static_cast<std::uint32_t>(scales->shape[1]);
  }
  return std::unique_ptr<PoolSource>(
      new PoolSource(pool, client, std::move(tables), experts_per_layer, clock, std::move(options)));
}

PoolSource::PoolSource(Pool& pool, AttachClient& client, std::vector<LayerTables> tables,
                       std::uint32_t experts_per_layer, const Clock& clock, PoolSourceOptions options)
    : pool_(pool),
      client_(client),
      tables_(std::move(tables)),
      experts_per_layer_(experts_per_layer),
      clock_(clock),
      options_(std::move(options)),
      leases_(pool, client.grant().index),
      demands_(pool, client.grant().index) {
  hits_.reserve(experts_per_layer);
  unsent_.reserve(experts_per_layer);
  pending_.reserve(kDemandMax);
  abandoned_.reserve(kDemandMax);
  // Goes on where the last process at this index stopped: its hints must not look as if they were early.
  step_ = step_of_progress(pool.process(process()).progress.load(std::memory_order_relaxed));
}

void PoolSource::begin(LayerId layer, std::span<const ExpertId> wanted, Access access) {
  abandon();
  if (layer.value == 0) {
    pool_step_ = pool_.header().step.fetch_add(1, std::memory_order_relaxed) + 1;
    ++step_;
  }
  pool_.process(process()).progress.store(progress_of(step_, layer.value), std::memory_order_relaxed);

  layer_ = layer;
  access_ = access;
  hits_.clear();
  next_hit_ = 0;
  unsent_.clear();
  next_unsent_ = 0;
  for (const ExpertId expert : wanted) {
    const ExpertKey key{layer.value * experts_per_layer_ + expert.value};
    // A prefill is a scan: it must not look like use, or it would push out the decode working set.
    if (access == Access::decode)
      record_use(pool_.experts()[key.value].usage, static_cast<std::uint32_t>(pool_step_));
    if (const auto lease = leases_.try_lease(key))
      hits_.push_back({expert, lease->slot, lease->hint_hit ? Tier::pool_hinted : Tier::pool});
    else
      unsent_.push_back(expert);
  }
  send_demands();
}

void PoolSource::idle() { abandon(); }

/// A step that failed half-way leaves leases and demands behind; what these are granted later is given back.
void PoolSource::abandon() {
  for (const Pending& p : pending_) abandoned_.push_back(p.ticket);
  pending_.clear();
  for (; next_hit_ < hits_.size(); ++next_hit_) (void)leases_.release(hits_[next_hit_].slot);
  next_unsent_ = unsent_.size();
  settle_abandoned();
}

void PoolSource::send_demands() {
  if (next_unsent_ == unsent_.size()) return;
  const std::uint32_t flags = access_ == Access::prefill ? std::uint32_t{kDemandScan} : 0U;
  while (next_unsent_ < unsent_.size()) {
    const ExpertId expert = unsent_[next_unsent_];
    const auto ticket = demands_.post(ExpertKey{layer_.value * experts_per_layer_ + expert.value}, flags);
    if (!ticket) break;  // all entries in use; more come free as grants arrive
    pending_.push_back({expert, *ticket});
    ++next_unsent_;
  }
  if (demands_.publish()) client_.ring_doorbell();
}

Result<SourceEvent> PoolSource::next(bool wait) {
  SourceEvent event;
  for (;;) {
    if (next_hit_ < hits_.size()) {
      const Hit& hit = hits_[next_hit_++];
      event.kind = SourceEvent::Kind::leased;
      count(hit.tier);
      event.leased = leased(layer_, hit.expert, hit.slot, hit.tier);
      return event;
    }
    if (take_completed(event)) {
      if (next_unsent_ < unsent_.size()) send_demands();
      return event;
    }
    if (pending_.empty() && next_unsent_ == unsent_.size()) {
      event.kind = SourceEvent::Kind::done;
      return event;
    }
    if (!wait) {
      event.kind = SourceEvent::Kind::pending;
      return event;
    }
    const Duration started = clock_.now();
    const bool woken = demands_.wait(kWaitSlice);
    add(pool_.counters().worker.stall_ns, static_cast<std::uint64_t>((clock_.now() - started).count()));
    settle_abandoned();
    if (next_unsent_ < unsent_.size()) send_demands();
    if (!woken && !client_.alive()) STOKER_TRY_VOID(wait_for_loader());
  }
}

/// The oldest finished demand, if any, as an event.
bool PoolSource::take_completed(SourceEvent& event) {
  for (std::size_t i = 0; i < pending_.size(); ++i) {
    const Pending p = pending_[i];
    if (demands_.state(p.ticket) == DemandState::pending) continue;
    DemandResult result = demands_.poll(p.ticket);
    pending_.erase(pending_.begin() + static_cast<std::ptrdiff_t>(i));
    demands_.release(p.ticket);
    const bool granted = result.state == DemandState::granted && leases_.adopt(result.slot);
    if (!granted) {
      event.kind = SourceEvent::Kind::failed;
      event.expert = p.expert;
      event.error = {Errc::io, result.os_errno,
                     result.error.empty() ? "the loader's grant holds no lease" : std::move(result.error)};
      return true;
    }
    event.kind = SourceEvent::Kind::leased;
    const Tier tier = tier_of(result.from_disk);
    count(tier);
    event.leased = leased(layer_, p.expert, result.slot, tier);
    return true;
  }
  return false;
}

Tier PoolSource::tier_of(std::uint32_t from_disk) {
  switch (static_cast<DemandOrigin>(from_disk)) {
    case DemandOrigin::resident:
      return Tier::pool;
    case DemandOrigin::hint_in_flight:
      return Tier::disk_late_hint;
    case DemandOrigin::disk:
      return Tier::disk;
  }
  return Tier::disk;
}

/// Gives back what an event that ended early is granted after all.
void PoolSource::settle_abandoned() {
  std::erase_if(abandoned_, [this](DemandTicket ticket) {
    const DemandState state = demands_.state(ticket);
    if (state == DemandState::pending) return false;
    if (state == DemandState::granted)
      if (const SlotId slot = demands_.poll(ticket).slot; leases_.adopt(slot)) (void)leases_.release(slot);
    demands_.release(ticket);
    return true;
  });
}

Result<void> PoolSource::wait_for_loader() {
  const Duration deadline = clock_.now() + options_.loader_wait_max;
  for (;;) {
    auto again = AttachClient::reattach(options_.loader_socket, client_.grant().index, kReattachTimeout);
    if (again) {
      client_ = std::move(*again);
      ++reconnects_;
      return {};
    } else if (again.error().code == Errc::layout) {
      return tl::unexpected<Error>(again.error());  // another model's loader took the run directory
    }
    std::this_thread::sleep_for(kWaitSlice);
    // A demand may have been granted just before the loader died.
    for (const Pending& p : pending_)
      if (demands_.state(p.ticket) != DemandState::pending) return {};
    if (clock_.now() >= deadline)
      return fail(Errc::peer_gone, "the loader is gone and did not come back within " +
                                       std::to_string(static_cast<int>(seconds(options_.loader_wait_max))) +
                                       " s: restart it, or run `stoker doctor`");
  }
}

void PoolSource::release(const LeasedExpert& expert) {
  if (leases_.release(SlotId{expert.handle})) client_.ring_doorbell();
}

/// A hint that had brought it counts as used, although the use may never come: what asks for experts ahead of
/// their layer goes by the same guess as the hint did.
std::optional<LeasedExpert> PoolSource::try_lease(LayerId layer, ExpertId expert) {
  STOKER_CHECK(layer.value != layer_.value);
  // An abandoned demand may be for this very expert, and a grant and a lease share one bit (shm/lease.h).
  if (!abandoned_.empty()) return std::nullopt;
  const auto lease = leases_.try_lease(ExpertKey{layer.value * experts_per_layer_ + expert.value});
  if (!lease) return std::nullopt;
  return leased(layer, expert, lease->slot, Tier::pool);
}

LeasedExpert PoolSource::leased(LayerId layer, ExpertId expert, SlotId slot, Tier tier) const {
  const LayerTables& table = tables_[layer.value];
  const std::int32_t* parts = table.parts + static_cast<std::size_t>(expert.value) * 3;
  const std::byte* base = pool_.payload(slot);
  return {.expert = expert,
          .tier = tier,
          .handle = slot.value,
          .gate = base + parts[0],
          .up = base + parts[1],
          .down = base + parts[2],
          .scales = table.scales == nullptr
                        ? nullptr
                        : table.scales + static_cast<std::size_t>(expert.value) * table.scales_per_expert};
}

void PoolSource::count(Tier tier) {
  auto& c = pool_.counters().worker;
  switch (tier) {
    case Tier::vram:
    case Tier::pool:
      return add(c.pool_hits);
    case Tier::pool_hinted:
      return add(c.hint_hits);
    case Tier::disk:
      return add(c.disk_misses);
    case Tier::disk_late_hint:
      return add(c.late_hints);
  }
}

}  // namespace stoker
