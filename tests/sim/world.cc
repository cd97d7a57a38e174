#include "tests/sim/world.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "checkpoint/checksums.h"

namespace stoker::sim {

World::World(const WorldOptions& options) : options_(options), random_(options.seed) {
  build_files();
  SimOptions sim;
  sim.seed = options.seed * 77 + 1;
  sim.faults.short_aligned = 0.05;
  sim.faults.short_unaligned = 0.05;
  sim.faults.again = 0.01;
  sim.faults.io_error = 0.02;
  sim.faults.reorder = 0.3;
  if (options.checksums) {
    sim.faults.misdirected = 0.02;
    sim.faults.bit_flip = 0.02;
  }
  // One expert can never be read: its demands must end in an error that says so.
  sim.bad_ranges.push_back({FileId{0}, 5 * 3 * kMatrixBytes, 100, 0});
  std::vector<SimFile> sim_files;
  for (std::size_t f = 0; f < files_.size(); ++f) sim_files.push_back(sim_file(files_[f].path, bytes_[f]));
  kernel_ = std::make_shared<SimKernel>(clock_, std::move(sim_files), sim);
  make_pool();
  workers_.resize(3);
  for (unsigned i = 0; i < workers_.size(); ++i) workers_[i].index = i;
  start_loader();
}

World::~World() {
  loader_.reset();
  if (engine_) engine_->crash();
  engine_.reset();
  kernel_->advance(std::chrono::seconds(60));
  pool_.reset();
  Pool::unlink(pool_name_);
}

/// Two files, matrices of an odd size back to back, so that experts are unaligned and one straddles files.
void World::build_files() {
  const std::uint32_t experts = kLayers * kExpertsPerLayer;
  std::vector<std::byte> all(std::size_t{experts} * 3 * kMatrixBytes);
  std::mt19937_64 content(options_.seed ^ 0x5EED);
  for (std::byte& b : all) b = static_cast<std::byte>(content());
  const std::size_t cut = all.size() / 2 + kMatrixBytes;  // in the middle of an expert, between matrices
  bytes_.emplace_back(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(cut));
  bytes_.emplace_back(all.begin() + static_cast<std::ptrdiff_t>(cut), all.end());
  for (std::size_t f = 0; f < 2; ++f)
    files_.push_back({.path = "/sim/shard-" + std::to_string(f), .bytes = bytes_[f].size()});

  std::vector<std::vector<Extent>> extents(experts);
  std::vector<ExpertParts> parts(experts);
  std::uint32_t slot_bytes = 0;
  for (std::uint32_t e = 0; e < experts; ++e) {
    std::uint32_t at = 0;
    std::uint32_t* part[3] = {&parts[e].gate, &parts[e].up, &parts[e].down};
    for (std::uint32_t m = 0; m < 3; ++m) {
      const std::uint64_t begin = (std::uint64_t{e} * 3 + m) * kMatrixBytes;
      const FileId file{begin < cut ? 0U : 1U};
      const std::uint64_t offset = file.value == 0 ? begin : begin - cut;
      const std::uint64_t aligned = align_down(offset, kDirectAlign);
      const auto length = static_cast<std::uint32_t>(align_up(offset + kMatrixBytes, kDirectAlign) - aligned);
      extents[e].push_back({file, aligned, length, at});
      *part[m] = at + static_cast<std::uint32_t>(offset - aligned);
      at += length;
    }
    slot_bytes = std::max(slot_bytes, at);
    const auto* first = all.data() + std::size_t{e} * 3 * kMatrixBytes;
    expected_.emplace_back(first, first + 3 * kMatrixBytes);
  }
  plan_ = std::make_unique<ExpertPlan>(
      ExpertPlan::from_extents(kLayers, slot_bytes, 3 * kMatrixBytes, extents, parts));
}

void World::make_pool() {
  pool_name_ = "stoker.sim." + std::to_string(::getpid());
  Pool::unlink(pool_name_);
  PoolSpec spec;
  spec.name = pool_name_;
  spec.slot_bytes = plan_->slot_bytes();
  spec.slot_count = kTopK + below(16);
  spec.layers = kLayers;
  spec.experts_per_layer = kExpertsPerLayer;
  spec.huge_pages = HugePages::off;
  auto pool = Pool::create_or_adopt(spec);
  STOKER_CHECK(pool.has_value());
  pool_ = std::make_unique<Pool>(std::move(*pool));
}

void World::start_loader() {
  pool_->header().epoch.fetch_add(1);
  if (options_.skip_quarantine)
    for (SlotControl& slot : pool_->slots())
      (void)update(slot, [](SlotWord w) -> std::optional<SlotWord> {
        if (w.state != SlotState::filling) return std::nullopt;
        return SlotWord{SlotState::free, w.epoch, 0, w.generation};
      });
  engine_ = std::make_unique<SimEngine>(kernel_, EngineOptions{.depth = 6 + below(20)});
  LoaderOptions options;
  options.bytes_in_flight = plan_->slot_bytes() * (1 + below(6));
  options.hint_share = 0.3;
  options.hint_budget = below(2) * 3 * plan_->slot_bytes();
  // One expert may exceed a small share, two may not.
  hint_bytes_max_ = std::max(plan_->slot_bytes(), options.bytes_in_flight * 3 / 10);
  if (options_.checksums) {
    std::vector<std::byte> slot(plan_->slot_bytes());
    for (std::uint32_t e = 0; e < plan_->expert_count(); ++e) {
      const ExpertParts p = plan_->parts(ExpertKey{e});
      std::memcpy(slot.data() + p.gate, expected_[e].data(), kMatrixBytes);
      std::memcpy(slot.data() + p.up, expected_[e].data() + kMatrixBytes, kMatrixBytes);
      std::memcpy(slot.data() + p.down, expected_[e].data() + 2 * kMatrixBytes, kMatrixBytes);
      options.checksums.push_back(expert_checksum(slot.data(), p, kMatrixBytes));
    }
  }
  loader_ = std::make_unique<Loader>(*pool_, *plan_, files_, *engine_, clock_, options);
  preload_.reset();
  if (below(2) == 0) preload_some();
  for (const Worker& w : workers_)
    if (w.alive) loader_->add_process(w.index);
  unreported_deaths_.clear();  // the new loader looked for itself
}

/// A manifest of some experts, in any order; it may name what is resident.
void World::preload_some() {
  WarmManifest manifest;
  for (std::uint32_t e = 0; e < plan_->expert_count(); ++e)
    if (below(3) != 0) manifest.push_back({ExpertKey{e}, 1.0F, below(100)});
  std::shuffle(manifest.begin(), manifest.end(), random_);
  preload_ = std::make_unique<Preload>(manifest, *plan_, 1 + below(pool_->slot_count()));
  loader_->set_preload(*preload_);
}

void World::crash_loader() {
  ++report_.loader_deaths;
  if (preload_) report_.preloads += preload_->restored();
  loader_.reset();
  engine_->crash();
  engine_.reset();
}

void World::maybe_end_quarantine() {
  if (loader_ && loader_->quarantined() > 0 && kernel_->abandoned() == 0) loader_->release_quarantine();
}

void World::attach(Worker& worker) {
  ProcessEntry& entry = pool_->process(worker.index);
  if (entry.state.load() != static_cast<std::uint32_t>(ProcessState::free)) return;  // not reclaimed yet
  entry.pid.store(static_cast<std::uint32_t>(::getpid()));
  entry.start_ticks.store(process_start_ticks(static_cast<std::uint32_t>(::getpid())));
  entry.state.store(static_cast<std::uint32_t>(ProcessState::attached));
  loader_->add_process(worker.index);
  worker.leases = std::make_unique<LeaseTable>(*pool_, worker.index);
  worker.demands = std::make_unique<DemandPort>(*pool_, worker.index);
  worker.alive = true;
}

/// kill -9: nothing is given back. The loader hears of it later, or a new loader finds out.
void World::kill(Worker& worker) {
  ++report_.worker_deaths;
  worker.alive = false;
  worker.waiting.clear();
  worker.held.clear();
  worker.leases.reset();
  worker.demands.reset();
  pool_->process(worker.index).start_ticks.store(1);  // as if the pid were another process now
  unreported_deaths_.push_back(worker.index);
}

WorldReport World::run() {
  for (unsigned i = 0; i < options_.actions && report_.violation.empty(); ++i) {
    act();
    check();
  }
  if (report_.violation.empty()) settle();
  report_.faults = kernel_->counts();
  return report_;
}

void World::act() {
  // Now and then long enough for a dead loader's reads to be over and for back-offs to end.
  kernel_->advance(below(40) == 0 ? std::chrono::microseconds(150'000)
                                  : std::chrono::microseconds(below(120)));
  const std::uint32_t dice = below(1000);
  if (dice < 6 && loader_) return crash_loader();
  if (!loader_) {
    if (dice < 300) start_loader();
    if (!loader_ && dice < 700) worker_act(workers_[below(3)]);
    return;
  }
  maybe_end_quarantine();
  if (dice < 12) {
    if (Worker& w = workers_[below(3)]; w.alive) kill(w);
  } else if (dice < 60 && !unreported_deaths_.empty()) {
    loader_->drop_process(unreported_deaths_.back());
    unreported_deaths_.pop_back();
  } else if (dice < 100) {
    push_hints();
  } else if (dice < 550) {
    turn();
  } else {
    worker_act(workers_[below(3)]);
  }
}

void World::worker_act(Worker& worker) {
  if (!worker.alive) {
    if (loader_) attach(worker);
    return;
  }
  if (!worker.waiting.empty())
    poll(worker);
  else if (!worker.held.empty())
    let_go(worker);
  else
    begin_event(worker);
}

void World::begin_event(Worker& worker) {
  pool_->header().step.fetch_add(1);
  const std::uint32_t layer = below(kLayers);
  auto& progress = pool_->process(worker.index).progress;
  progress.store(progress_of(step_of_progress(progress.load()) + 1, layer));
  std::vector<std::uint32_t> wanted;
  while (wanted.size() < kTopK) {
    // Squared: some experts are hotter than others.
    const std::uint32_t e = below(kExpertsPerLayer) * below(kExpertsPerLayer) / kExpertsPerLayer;
    if (std::find(wanted.begin(), wanted.end(), e) == wanted.end()) wanted.push_back(e);
  }
  for (const std::uint32_t e : wanted) {
    const ExpertKey key{layer * kExpertsPerLayer + e};
    if (const auto lease = worker.leases->try_lease(key)) {
      hold(worker, lease->slot, key);
    } else if (const auto ticket = worker.demands->post(key, 0)) {
      worker.waiting.push_back({*ticket, key});
    }
  }
  (void)worker.demands->publish();
  worker.polls = 0;
  // The rule of PoolSource: never wait while holding what could be computed.
  if (!worker.waiting.empty()) let_go(worker);
}

void World::poll(Worker& worker) {
  if (++worker.polls > 1'000'000) return violate("a demand was never answered");
  std::erase_if(worker.waiting, [&](const auto& waiting) {
    const auto [ticket, key] = waiting;
    const DemandResult result = worker.demands->poll(ticket);
    if (result.state == DemandState::pending) return false;
    worker.demands->release(ticket);
    if (result.state == DemandState::failed) {
      ++report_.failures;
      if (result.error.find("expert") == std::string::npos)
        violate("a failure without a text: " + result.error);
    } else if (!worker.leases->adopt(result.slot)) {
      violate("a grant without a lease");
    } else {
      hold(worker, result.slot, key);
    }
    return true;
  });
  let_go(worker);
}

void World::hold(Worker& worker, SlotId slot, ExpertKey expert) {
  ++report_.leases;
  const SlotWord word = unpack(pool_->slots()[slot.value].word.load());
  check_content(slot, expert, "when leased");
  worker.held.push_back({slot, expert, word.generation});
}

void World::let_go(Worker& worker) {
  for (const Held& held : worker.held) {
    const SlotWord word = unpack(pool_->slots()[held.slot.value].word.load());
    if (word.generation != held.generation) violate("a leased slot was refilled");
    check_content(held.slot, held.expert, "before release");
    (void)worker.leases->release(held.slot);
  }
  worker.held.clear();
}

/// A demand never waits behind a hint that was not in flight before it, nor behind more than their share.
void World::turn() {
  const auto& issued = pool_->counters().loader.hints_issued;
  const std::uint64_t before = issued.load();
  loader_->turn(std::chrono::microseconds(below(2) * 50));
  if (loader_->demands_queued() > 0 && issued.load() != before) violate("a hint overtook a demand");
  if (loader_->hint_bytes_in_flight() > hint_bytes_max_) violate("hints exceed their share");
}

void World::push_hints() {
  LoaderHint hints[4];
  for (LoaderHint& h : hints) {
    const std::uint32_t process = below(3);
    const std::uint64_t step = step_of_progress(pool_->process(process).progress.load());
    h = {.expert = ExpertKey{below(kLayers * kExpertsPerLayer + 2)},
         .confidence = 0.5F,
         .process = process,
         .step = step + below(3),
         .batch = below(5),
         .batch_reads = 1 + below(4)};
  }
  report_.hints += std::size(hints);
  loader_->push_hints(hints);
}

/// Everything that was asked for must be answered once a loader lives and time passes.
void World::settle() {
  if (!loader_) start_loader();
  for (int i = 0; i < 4000 && report_.violation.empty(); ++i) {
    kernel_->advance(std::chrono::milliseconds(1));
    maybe_end_quarantine();
    for (const unsigned dead : std::exchange(unreported_deaths_, {})) loader_->drop_process(dead);
    loader_->turn(std::chrono::milliseconds(1));
    bool waiting = false;
    for (Worker& w : workers_) {
      if (!w.alive) continue;
      poll(w);
      waiting = waiting || !w.waiting.empty();
    }
    if (!waiting && loader_->quarantined() == 0 && loader_->demand_backlog() == 0 && i > 100) break;
  }
  loader_->drain();
  if (preload_) report_.preloads += preload_->restored();
  check();
  for (const Worker& w : workers_)
    if (w.alive && !w.waiting.empty()) violate("a demand was left unanswered");
  const PoolCensus last = census(*pool_);
  if (last.leased != 0) violate("a lease leaked");
  if (last.by_state[static_cast<unsigned>(SlotState::quarantined)] != 0) violate("a slot stayed quarantined");
  if (last.by_state[static_cast<unsigned>(SlotState::filling)] != 0) violate("a slot stayed filling");
}

void World::check() {
  const PoolCensus now = census(*pool_);
  std::uint32_t sum = 0;
  for (const std::uint32_t n : now.by_state) sum += n;
  if (sum != pool_->slot_count()) violate("slots do not add up");
  auto slots = pool_->slots();
  for (std::uint32_t i = 0; i < slots.size(); ++i) {
    const SlotWord word = unpack(slots[i].word.load());
    if (word.state != SlotState::ready) continue;
    const auto seen = verified_.find(i);
    if (seen != verified_.end() && seen->second == word.generation && below(64) != 0) continue;
    verified_[i] = word.generation;
    check_content(SlotId{i}, ExpertKey{slots[i].expert.load()}, "while ready");
  }
}

void World::check_content(SlotId slot, ExpertKey expert, const char* when) {
  if (expert.value >= plan_->expert_count() || !content_is(slot, expert))
    violate("slot " + std::to_string(slot.value) + " does not hold expert " + std::to_string(expert.value) +
            " " + when);
}

bool World::content_is(SlotId slot, ExpertKey expert) const {
  const std::byte* base = pool_->payload(slot);
  const ExpertParts parts = plan_->parts(expert);
  const std::byte* expected = expected_[expert.value].data();
  return std::memcmp(base + parts.gate, expected, kMatrixBytes) == 0 &&
         std::memcmp(base + parts.up, expected + kMatrixBytes, kMatrixBytes) == 0 &&
         std::memcmp(base + parts.down, expected + 2 * kMatrixBytes, kMatrixBytes) == 0;
}

void World::violate(const std::string& what) {
  if (report_.violation.empty()) report_.violation = what + " (seed " + std::to_string(options_.seed) + ")";
}

std::uint32_t World::below(std::uint32_t bound) { return static_cast<std::uint32_t>(random_() % bound); }

}  // namespace stoker::sim
