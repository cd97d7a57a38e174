// stoker-loader: owns the checkpoint's files and the pool. Composition only; the loop itself is
// io-worker/loader.h.
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <optional>

#include "checkpoint/checkpoint.h"
#include "checkpoint/checksums.h"
#include "daemons/common/config.h"
#include "daemons/common/endpoints.h"
#include "daemons/common/exit_code.h"
#include "daemons/common/log.h"
#include "daemons/common/notify.h"
#include "daemons/common/signals.h"
#include "daemons/common/size.h"
#include "daemons/loader/budget.h"
#include "daemons/loader/control.h"
#include "daemons/loader/warm_start.h"
#include "io-worker/calibrate.h"
#include "io-worker/engine.h"
#include "io-worker/loader.h"
#include "io-worker/recovery.h"
#include "io-worker/weights_fill.h"
#include "shm/attach.h"
#include "shm/base/clock.h"
#include "shm/pool.h"
#include "shm/run_directory.h"
#include "shm/weights_segment.h"

namespace stoker {
namespace {

constexpr std::uint64_t kDefaultBytesInFlight = 16_MiB;
/// Below this, reading is over before a measurement would be.
constexpr std::uint64_t kCalibrateFrom = 1_GiB;
constexpr Duration kStatusEvery = std::chrono::seconds(5);

/// What a model on disk needs, found out once.
struct Plans {
  Checkpoint checkpoint;
  ExpertPlan experts;
  WeightsPlan weights;
};

Result<Plans> open_model(const Config& config) {
  if (config.model_dir.empty())
    return fail(Errc::invalid, "no checkpoint directory: give --model DIR, STOKER_MODEL_DIR or model.dir");
  STOKER_TRY(Checkpoint checkpoint, Checkpoint::open(config.model_dir));
  STOKER_TRY(ExpertPlan experts, ExpertPlan::make(checkpoint));
  STOKER_TRY(WeightsPlan weights, WeightsPlan::make(checkpoint, experts));
  return Plans{std::move(checkpoint), std::move(experts), std::move(weights)};
}

Result<std::unique_ptr<IoEngine>> make_engine(const Config& config, const std::vector<EngineFile>& files,
                                              const EngineOptions& options) {
  if (config.engine == "pread") return make_pread_engine(files, options);
  auto uring = make_uring_engine(files, options);
  if (uring || config.engine == "uring") return uring;
  log_warn("reading with pread threads, which is slower: " + uring.error().text());
  return make_pread_engine(files, options);
}

void warn_of_indirect(const std::vector<EngineFile>& files) {
  for (const EngineFile& file : files) {
    if (file.direct) continue;
    log_warn(file.path +
             " cannot be read with O_DIRECT on this file system: reads go through the page cache, which then "
             "competes with the pool for memory; put the checkpoint on ext4, xfs or btrfs");
    return;
  }
}

/// One loader from start to orderly stop. Members are destroyed in reverse: loader, engine, files, pool.
class LoaderDaemon {
 public:
  explicit LoaderDaemon(const Config& config) : config_(config), notifier_(config.notify_socket) {}
  Result<void> run();

 private:
  Result<void> prepare_memory(StopSignals& signals);
  Result<void> read_weights(StopSignals& signals);
  Result<std::uint64_t> choose_bytes_in_flight();
  Result<void> serve(StopSignals& signals);
  void handle_attach(Loader& loader, const AttachEvent& event);
  void settle_quarantine(Loader& loader, Recovery& recovery);
  void report_status();
  void unlink_names() const;

  const Config& config_;
  Notifier notifier_;
  SteadyClock clock_;
  std::string run_dir_, pool_name_, weights_name_;
  std::optional<LoaderLock> lock_;
  std::optional<Plans> model_;
  std::vector<EngineFile> files_;
  std::optional<Pool> pool_;
  std::optional<WeightsSegment> weights_;
  std::uint64_t reported_bytes_ = 0;
  Duration reported_at_{};
};

Result<void> LoaderDaemon::run() {
  STOKER_TRY(StopSignals signals, StopSignals::make());
  STOKER_TRY(run_dir_, make_run_directory({.explicit_path = config_.run_dir,
                                           .xdg_runtime_dir = {},
                                           .group_access = config_.group_access}));
  STOKER_TRY(lock_, LoaderLock::acquire(run_dir_, config_.group_access));
  STOKER_TRY(model_, open_model(config_));
  STOKER_TRY_VOID(prepare_memory(signals));
  const auto served = serve(signals);
  notifier_.stopping();
  pool_->header().loader_ready.store(0, std::memory_order_release);
  pool_->header().loader_pid.store(0, std::memory_order_release);
  if (config_.unlink_on_exit) unlink_names();
  return served;
}

Result<void> LoaderDaemon::prepare_memory(StopSignals& signals) {
  const ModelConfig& model = model_->checkpoint.config();
  STOKER_TRY(const Budget budget, plan_budget({.ram = config_.ram.of(machine_memory()),
                                               .ram_is_explicit = config_.origins.count("loader.ram") > 0,
                                               .pool_slots = config_.pool_slots,
                                               .weights_bytes = model_->weights.image_bytes,
                                               .slot_bytes = model_->experts.slot_bytes(),
                                               .expert_count = model_->experts.expert_count(),
                                               .experts_per_token = model.experts_per_token}));
  std::vector<std::string> paths;
  for (const ShardFile& file : model_->checkpoint.files()) paths.push_back(file.path);
  STOKER_TRY(files_, open_files(paths));
  warn_of_indirect(files_);
  STOKER_TRY_VOID(lock_files_shared(files_));

  pool_name_ = pool_name(run_dir_);
  weights_name_ = pool_name_ + ".weights";
  log_info("memory: " + format_bytes(budget.total_bytes) + " = weights " +
           format_bytes(model_->weights.image_bytes) + " + pool of " + std::to_string(budget.slots) + " of " +
           std::to_string(model_->experts.expert_count()) + " experts, " +
           format_bytes(model_->experts.slot_bytes()) + " each");
  notifier_.status("allocating " + format_bytes(budget.total_bytes));
  STOKER_TRY(pool_, Pool::create_or_adopt(
                        {.name = pool_name_,
                         .slot_bytes = model_->experts.slot_bytes(),
                         .slot_count = budget.slots,
                         .layers = model_->experts.layers(),
                         .experts_per_layer = model_->experts.experts_per_layer(),
                         .checkpoint_fingerprint = model_->checkpoint.fingerprint(),
                         .group_access = config_.group_access,
                         .huge_pages = config_.huge_pages == "off" ? HugePages::off : HugePages::automatic,
                         .hugetlbfs_dir = {}}));
  const std::string pages =
      "pool: " + std::string(pool_->adopted() ? "adopted warm, " : "new, ") + pool_->page_note();
  pool_->header().page_bytes == kPageBytes&& config_.huge_pages != "off" ? log_warn(pages) : log_info(pages);
  return read_weights(signals);
}

Result<void> LoaderDaemon::read_weights(StopSignals& signals) {
  STOKER_TRY(weights_,
             WeightsSegment::create_or_adopt(weights_name_, model_->weights.image_bytes,
                                             model_->checkpoint.fingerprint(), config_.group_access));
  if (weights_->complete()) {
    log_info("resident weights: adopted warm");
    return {};
  }
  STOKER_TRY(const auto engine, make_engine(config_, files_, {}));
  const Duration started = clock_.now();
  Duration told = started;
  const auto progress = [&](std::uint64_t done, std::uint64_t total) {
    if (signals.stop_requested()) {
      // Nothing but private buffers is being written: leaving now is as safe as being killed.
      log_info("stopped while reading the resident weights");
      if (config_.unlink_on_exit) unlink_names();
      std::_Exit(0);
    }
    if (clock_.now() - told < std::chrono::milliseconds(500)) return;
    told = clock_.now();
    notifier_.status("reading resident weights: " + format_bytes(done) + " of " + format_bytes(total));
  };
  STOKER_TRY_VOID(fill_weights(*weights_, model_->weights, model_->checkpoint.files(), *engine, progress));
  const double took = seconds(clock_.now() - started);
  log_info("resident weights: " + format_bytes(model_->weights.image_bytes) + " in " + std::to_string(took) +
           " s");
  return {};
}

/// Depth as bytes: what the user said, or what a short measurement at start finds best.
Result<std::uint64_t> LoaderDaemon::choose_bytes_in_flight() {
  if (config_.bytes_in_flight.percent > 0)
    return fail(Errc::invalid, "--bytes-in-flight is a number of bytes (16MiB), not a share");
  if (config_.bytes_in_flight.bytes > 0) return config_.bytes_in_flight.bytes;
  const std::uint64_t slot = model_->experts.slot_bytes();
  if (slot * model_->experts.expert_count() < kCalibrateFrom) return kDefaultBytesInFlight;
  constexpr std::uint64_t kScratchReads = 16;
  const std::size_t bytes = align_up(slot * kScratchReads, kHugePageBytes);
  const std::unique_ptr<void, decltype(&std::free)> scratch(std::aligned_alloc(kHugePageBytes, bytes),
                                                            &std::free);
  if (scratch == nullptr) return fail(Errc::no_memory, "no memory to measure the storage with");
  STOKER_TRY(const auto engine, make_engine(config_, files_, {}));
  notifier_.status("measuring the storage");
  const auto measured = calibrate(*engine, files_, std::span(static_cast<std::byte*>(scratch.get()), bytes),
                                  {.read_bytes = static_cast<std::uint32_t>(slot)}, clock_);
  if (!measured) {
    log_warn("cannot measure the storage, reading with " + format_bytes(kDefaultBytesInFlight) +
             " in flight: " + measured.error().text());
    return kDefaultBytesInFlight;
  }
  log_info("storage: " + format_bytes(static_cast<std::uint64_t>(measured->bytes_per_second)) + "/s with " +
           format_bytes(measured->best_bytes_in_flight) + " in flight" +
           (measured->direct ? "" : " (page cache, not the device)"));
  return measured->best_bytes_in_flight;
}

Result<void> LoaderDaemon::serve(StopSignals& signals) {
  const ExpertPlan& plan = model_->experts;
  LoaderOptions options{.hint_share = config_.hint_share,
                        .hint_budget = config_.hint_budget.of(machine_memory()),
                        .spin = std::chrono::milliseconds(config_.spin_ms),
                        .checksums = {}};
  STOKER_TRY(options.bytes_in_flight, choose_bytes_in_flight());
  if (!config_.checksums.empty()) {
    STOKER_TRY(options.checksums,
               read_checksums(config_.checksums, model_->checkpoint.fingerprint(), plan.expert_count()));
  }
  STOKER_TRY(AttachServer attach,
             AttachServer::create(*pool_, {.socket_path = loader_socket_path(run_dir_),
                                           .pool_name = pool_name_,
                                           .weights_name = weights_name_,
                                           .checkpoint_fingerprint = model_->checkpoint.fingerprint(),
                                           .group_access = config_.group_access}));
  // An expert may be three reads; room for one more on top, so that bytes are what limits.
  const std::size_t depth =
      std::clamp<std::size_t>(3 * (options.bytes_in_flight / plan.slot_bytes() + 1), 64, kEngineDepthMax);
  STOKER_TRY(const auto engine, make_engine(config_, files_,
                                            {.depth = depth,
                                             .doorbell_fd = attach.doorbell_fd(),
                                             .registered = pool_->payload(),
                                             .registered_granule = plan.slot_bytes()}));
  log_info("engine: " + engine->describe());
  STOKER_TRY(const std::string manifest, warm_manifest_path(config_, config_.model_dir));
  WarmStart warm(*pool_, plan, model_->checkpoint.fingerprint(), manifest, clock_);
  Loader loader(*pool_, plan, model_->checkpoint.files(), *engine, clock_, options);
  STOKER_TRY(const auto control, Control::start(signals, {.hints_path = endpoint::hints(run_dir_),
                                                          .group_access = config_.group_access,
                                                          .doorbell_fd = attach.doorbell_fd(),
                                                          .attach_fd = attach.poll_fd(),
                                                          .layers = plan.layers(),
                                                          .experts_per_layer = plan.experts_per_layer()}));
  if (loader.quarantined() > 0)
    log_warn(std::to_string(loader.quarantined()) +
             " slots are quarantined until the last loader's reads are known to be over");
  warm.begin(loader);
  pool_->header().loader_ready.store(1, std::memory_order_release);
  notifier_.ready("serving");
  log_info("ready in " + run_dir_);

  Recovery recovery(files_, clock_);
  std::vector<LoaderHint> hints;
  Duration next_status = clock_.now();
  while (!control->stop_requested()) {
    for (const AttachEvent& event : attach.poll({})) handle_attach(loader, event);
    control->take_hints(hints);
    if (!hints.empty()) loader.push_hints(hints);
    if (loader.quarantined() > 0) settle_quarantine(loader, recovery);
    const bool recovering = loader.quarantined() > 0;
    static_cast<void>(loader.turn(recovering ? Recovery::kPollEvery : Duration(std::chrono::seconds(1))));
    warm.look();
    if (clock_.now() >= next_status) {
      report_status();
      next_status = clock_.now() + kStatusEvery;
    }
  }
  log_info("stopping: finishing reads in flight");
  loader.drain();
  warm.end();
  return {};
}

void LoaderDaemon::handle_attach(Loader& loader, const AttachEvent& event) {
  const std::string who =
      "process " + std::to_string(event.pid) + " (index " + std::to_string(event.process) + ")";
  switch (event.kind) {
    case AttachEvent::Kind::attached:
    case AttachEvent::Kind::reattached:
      loader.add_process(event.process);
      log_info(who + " attached");
      return;
    case AttachEvent::Kind::detached:
      loader.drop_process(event.process);
      log_info(who + " detached");
      return;
    case AttachEvent::Kind::died:
      loader.drop_process(event.process);
      log_warn(who + " died; its leases were taken back");
      return;
  }
}

void LoaderDaemon::settle_quarantine(Loader& loader, Recovery& recovery) {
  const Recovery::Verdict verdict = recovery.poll();
  if (verdict == Recovery::Verdict::wait) return;
  loader.release_quarantine();
  log_info(verdict == Recovery::Verdict::over_by_lock
               ? "quarantine lifted: no read of the last loader is left"
               : "quarantine lifted: waited longer than the device's time-out");
}

void LoaderDaemon::report_status() {
  const Duration now = clock_.now();
  const PoolCensus slots = census(*pool_);
  const std::uint64_t bytes = pool_->counters().loader.read_bytes.load(std::memory_order_relaxed);
  const double elapsed = seconds(now - reported_at_);
  const std::uint32_t ready = slots.by_state[static_cast<unsigned>(SlotState::ready)];
  std::string text = "pool " + format_bytes(pool_->slot_count() * pool_->slot_bytes()) + ", " +
                     std::to_string(100ULL * ready / pool_->slot_count()) + " % filled";
  if (reported_at_ != Duration{} && elapsed > 0)
    text += ", reading " +
            format_bytes(static_cast<std::uint64_t>(static_cast<double>(bytes - reported_bytes_) / elapsed)) +
            "/s";
  reported_at_ = now;
  reported_bytes_ = bytes;
  notifier_.status(text);
  log_debug(text);
}

void LoaderDaemon::unlink_names() const {
  Pool::unlink(pool_name_);
  WeightsSegment::unlink(weights_name_);
}

int main_checked(int argc, const char* const* argv) {
  const auto config = load_config(Program::loader, standard_sources(argc, argv));
  if (!config) {
    std::cerr << "stoker-loader: " << config.error().text() << "\n";
    return 2;
  }
  if (!config->help.empty()) {
    std::cout << config->help;
    return 0;
  }
  log_start("loader", config->log_level, config->journal);
  for (const std::string& line : describe(*config, Program::loader)) log_info(line);
  LoaderDaemon daemon(*config);
  const auto ended = daemon.run();
  if (ended) return 0;
  log_error(ended.error().text());
  return exit_code_of(ended.error());
}

}  // namespace
}  // namespace stoker

int main(int argc, char** argv) { return stoker::main_checked(argc, argv); }
