// ExpertSource over the shared pool: hits by one compare-and-swap, misses through the demand table.
//
// Life of one wanted expert in an event:
//   hit    try_lease succeeds at begin(): handed out first.
//   miss   a demand entry; the loader fills a slot and grants it with our reader bit already set.
//   more misses than demand entries: the rest waits in `unsent_` and is sent as entries come free.
// We never wait while holding a lease that we could have computed: next() hands out everything that is
// leased before it blocks, so any pool that can hold one expert makes progress, with any number of workers.
//
// If the loader dies, hits go on; a wait that lasts reconnects to the next loader (bounded by
// `loader_wait_max`), which serves the entries that are still pending: they live in shared memory.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/config.h"
#include "gpu-worker/expert_source.h"
#include "gpu-worker/weights.h"
#include "shm/attach.h"
#include "shm/base/clock.h"
#include "shm/demand.h"
#include "shm/lease.h"
#include "shm/pool.h"

namespace stoker {

struct PoolSourceOptions {
  std::string loader_socket;  ///< loader_socket_path() of the run directory
  Duration loader_wait_max = std::chrono::seconds(60);
};

class PoolSource final : public ExpertSource {
 public:
  /// `client` is attached; `pool` is the pool it named; `image` holds expert_parts and expert_scales for
  /// every layer (shm/weights_segment.h); `matrix_bytes` is one matrix of an expert as stored. All must
  /// outlive the source. Tables that point outside a slot are refused.
  static Result<std::unique_ptr<PoolSource>> make(Pool& pool, AttachClient& client, const WeightsImage& image,
                                                  const ModelConfig& config, std::uint64_t matrix_bytes,
                                                  const Clock& clock, PoolSourceOptions options);

  void begin(LayerId layer, std::span<const ExpertId> wanted, Access access) override;
  Result<SourceEvent> next(bool wait) override;
  void release(const LeasedExpert& expert) override;
  std::optional<LeasedExpert> try_lease(LayerId layer, ExpertId expert) override;
  void idle() override;

  /// This worker's own count of the step in progress (ProcessEntry::progress): what hints for it must carry.
  [[nodiscard]] std::uint64_t step() const { return step_; }
  [[nodiscard]] unsigned process() const { return client_.grant().index; }
  [[nodiscard]] std::uint32_t reconnects() const { return reconnects_; }

 private:
  struct LayerTables {
    const std::int32_t* parts = nullptr;  ///< [experts, 3]
    const float* scales = nullptr;        ///< [experts, scales_per_expert] or null
    std::uint32_t scales_per_expert = 0;
  };
  struct Hit {
    ExpertId expert;
    SlotId slot;
    Tier tier = Tier::pool;
  };
  struct Pending {
    ExpertId expert;
    DemandTicket ticket;
  };

  PoolSource(Pool& pool, AttachClient& client, std::vector<LayerTables> tables,
             std::uint32_t experts_per_layer, const Clock& clock, PoolSourceOptions options);
  void send_demands();
  bool take_completed(SourceEvent& event);
  void abandon();
  void settle_abandoned();
  Result<void> wait_for_loader();
  [[nodiscard]] LeasedExpert leased(LayerId layer, ExpertId expert, SlotId slot, Tier tier) const;
  void count(Tier tier);
  static Tier tier_of(std::uint32_t from_disk);

  Pool& pool_;
  AttachClient& client_;
  std::vector<LayerTables> tables_;
  std::uint32_t experts_per_layer_;
  const Clock& clock_;
  PoolSourceOptions options_;
  LeaseTable leases_;
  DemandPort demands_;

  LayerId layer_{};
  Access access_ = Access::decode;
  std::uint64_t step_ = 0;       ///< our own count
  std::uint64_t pool_step_ = 0;  ///< PoolHeader::step: of all workers together
  std::vector<Hit> hits_;
  std::size_t next_hit_ = 0;
  std::vector<ExpertId> unsent_;
  std::size_t next_unsent_ = 0;
  std::vector<Pending> pending_;
  std::vector<DemandTicket> abandoned_;  ///< demands of an event that ended early; their grants are dropped
  std::uint32_t reconnects_ = 0;
};

}  // namespace stoker
