// A small world in virtual time: the production Loader, leases and demand protocol over a real shared-memory
// pool, a simulated kernel with faults, and a few simulated workers. Everything random comes from one seed.
//
// After every action the invariants of design.md 9 are checked: slots add up, ready slots hold the bytes of
// their expert, leased slots keep generation and bytes, errors carry text, nothing waits for ever.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "io-worker/loader.h"
#include "io-worker/sim_engine.h"
#include "shm/lease.h"
#include "shm/pool.h"

namespace stoker::sim {

struct WorldOptions {
  std::uint64_t seed = 1;
  unsigned actions = 1000;
  bool checksums = false;        ///< then misdirected reads and bit flips are injected too
  bool skip_quarantine = false;  ///< the planted bug: a successor frees filling slots at once
};

struct WorldReport {
  std::string violation;  ///< empty: all invariants held
  std::uint64_t leases = 0, failures = 0, loader_deaths = 0, worker_deaths = 0, hints = 0, preloads = 0;
  SimCounts faults;
};

class World {
 public:
  explicit World(const WorldOptions& options);
  ~World();
  WorldReport run();

 private:
  static constexpr std::uint32_t kLayers = 2, kExpertsPerLayer = 12, kTopK = 3;
  static constexpr std::uint32_t kMatrixBytes = 1500;

  struct Held {
    SlotId slot;
    ExpertKey expert;
    std::uint32_t generation = 0;
  };
  struct Worker {
    unsigned index = 0;
    bool alive = false;
    std::unique_ptr<LeaseTable> leases;
    std::unique_ptr<DemandPort> demands;
    std::vector<std::pair<DemandTicket, ExpertKey>> waiting;
    std::vector<Held> held;
    unsigned polls = 0;  ///< since the oldest demand was sent
  };

  void build_files();
  void make_pool();
  void start_loader();
  void preload_some();
  void crash_loader();
  void maybe_end_quarantine();
  void attach(Worker& worker);
  void kill(Worker& worker);
  void act();
  void worker_act(Worker& worker);
  void begin_event(Worker& worker);
  void poll(Worker& worker);
  void hold(Worker& worker, SlotId slot, ExpertKey expert);
  void let_go(Worker& worker);
  void turn();
  void push_hints();
  void settle();
  void check();
  void check_content(SlotId slot, ExpertKey expert, const char* when);
  void violate(const std::string& what);
  [[nodiscard]] std::uint32_t below(std::uint32_t bound);
  [[nodiscard]] bool content_is(SlotId slot, ExpertKey expert) const;

  WorldOptions options_;
  std::mt19937_64 random_;
  ManualClock clock_;
  std::vector<ShardFile> files_;
  std::vector<std::vector<std::byte>> bytes_;     ///< per file
  std::vector<std::vector<std::byte>> expected_;  ///< per expert: gate | up | down
  std::unique_ptr<ExpertPlan> plan_;
  std::shared_ptr<SimKernel> kernel_;
  std::string pool_name_;
  std::unique_ptr<Pool> pool_;
  std::unique_ptr<SimEngine> engine_;
  std::unique_ptr<Preload> preload_;
  std::unique_ptr<Loader> loader_;
  std::uint64_t hint_bytes_max_ = 0;  ///< that this loader may have in flight
  std::vector<Worker> workers_;
  std::vector<unsigned> unreported_deaths_;  ///< processes that died and that the loader has not heard of
  std::map<std::uint32_t, std::uint32_t> verified_;  ///< slot -> generation whose bytes were checked
  WorldReport report_;
};

}  // namespace stoker::sim
