// stoker-worker: runs the model for clients. Composition only.
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <iostream>
#include <optional>

#include "checkpoint/checkpoint.h"
#include "daemons/common/config.h"
#include "daemons/common/endpoints.h"
#include "daemons/common/exit_code.h"
#include "daemons/common/limits.h"
#include "daemons/common/log.h"
#include "daemons/common/notify.h"
#include "daemons/common/signals.h"
#include "daemons/common/size.h"
#include "daemons/common/zmq_socket.h"
#include "daemons/worker/engine_loop.h"
#include "daemons/worker/model_loader.h"
#include "daemons/worker/request_builder.h"
#include "daemons/worker/request_intake.h"
#include "daemons/worker/routing_publisher.h"
#include "daemons/worker/server.h"
#include "daemons/worker/status.h"
#include "gpu-worker/pool_source.h"
#include "shm/attach.h"
#include "shm/base/clock.h"
#include "shm/run_directory.h"
#include "shm/weights_segment.h"

namespace stoker {
namespace {

/// A loader that is starting reads gigabytes before it serves: at start we wait this much longer than for
/// one that was lost.
constexpr int kStartPatience = 10;
constexpr Duration kAttachTry = std::chrono::seconds(1);
constexpr Duration kAttachPause = std::chrono::milliseconds(50);

/// Held by the one worker of a run directory: a second one would take over its socket.
Result<UniqueFd> lock_worker(const std::string& run_dir) {
  const std::string path = endpoint::worker_lock(run_dir);
  UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd.valid()) return fail(Errc::io, "cannot open " + path, errno);
  if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return fail(Errc::io, "cannot lock " + path, errno);
    return fail(Errc::busy, "another worker runs in " + run_dir +
                                "; stop it, or give this one a --run-dir of its own and --loader-dir " +
                                run_dir);
  }
  return fd;
}

/// Everything of one worker, in order of construction.
class WorkerDaemon {
 public:
  explicit WorkerDaemon(Config& config) : config_(config), notifier_(config.notify_socket) {}
  Result<void> run();

 private:
  Result<void> attach(StopSignals& signals);
  Result<void> load_model();
  Result<void> serve(StopSignals& signals);
  [[nodiscard]] SchedulerOptions scheduler_options() const;
  [[nodiscard]] GenerationRules generation_rules() const;

  Config& config_;
  Notifier notifier_;
  SteadyClock clock_;
  UniqueFd lock_;
  std::optional<Checkpoint> checkpoint_;
  std::optional<TextTools> tools_;
  std::optional<AttachClient> client_;
  std::optional<Pool> pool_;
  std::optional<WeightsSegment> weights_;
  std::optional<WeightsImage> image_;
  std::unique_ptr<Model> model_;
  std::uint64_t sequence_memory_ = 0;
  std::unique_ptr<PoolSource> source_;
  bool stopped_early_ = false;
};

Result<void> WorkerDaemon::run() {
  STOKER_TRY(StopSignals signals, StopSignals::make());
  STOKER_TRY(config_.run_dir, make_run_directory({.explicit_path = config_.run_dir,
                                                  .xdg_runtime_dir = {},
                                                  .group_access = config_.group_access}));
  STOKER_TRY(lock_, lock_worker(config_.run_dir));
  if (config_.model_dir.empty())
    return fail(Errc::invalid, "no checkpoint directory: give --model DIR, STOKER_MODEL_DIR or model.dir");
  STOKER_TRY(checkpoint_, Checkpoint::open(config_.model_dir));
  STOKER_TRY(tools_, TextTools::load(config_.model_dir, checkpoint_->generation()));
  if (!tools_->tokenizer) log_warn("only token ids are accepted: " + tools_->tokenizer_problem);
  if (!tools_->chat_template) log_warn("conversations are refused: " + tools_->template_problem);
  STOKER_TRY_VOID(attach(signals));
  if (stopped_early_) return {};
  STOKER_TRY_VOID(load_model());
  return serve(signals);
}

/// Waits for a loader (bounded), then maps what it offers.
Result<void> WorkerDaemon::attach(StopSignals& signals) {
  const Duration patience = std::chrono::seconds(config_.loader_wait) * kStartPatience;
  const Duration deadline = clock_.now() + patience;
  notifier_.status("waiting for the loader");
  while (!client_) {
    auto attached = AttachClient::attach(loader_socket_path(config_.loader_dir), kAttachTry);
    if (attached) {
      client_ = *std::move(attached);
      break;
    }
    const Errc why = attached.error().code;
    if (why != Errc::missing && why != Errc::peer_gone)
      return tl::unexpected<Error>(std::move(attached).error());
    if (clock_.now() > deadline)
      return fail(std::move(attached).error(),
                  "no loader after " + std::to_string(patience / std::chrono::seconds(1)) + " s");
    PollItem stop{.fd = signals.fd()};
    STOKER_TRY_VOID(wait_readable({&stop, 1}, kAttachPause));
    if (signals.stop_requested()) {
      stopped_early_ = true;
      return {};
    }
  }
  const AttachGrant& grant = client_->grant();
  if (grant.checkpoint_fingerprint != checkpoint_->fingerprint())
    return fail(Errc::layout, "the loader in " + config_.loader_dir + " serves another checkpoint than " +
                                  config_.model_dir + "; give both the same --model, or another --run-dir");
  STOKER_TRY(pool_, Pool::attach(grant.pool_name));
  STOKER_TRY(weights_, WeightsSegment::attach(grant.weights_name, checkpoint_->fingerprint()));
  return {};
}

Result<void> WorkerDaemon::load_model() {
  const ModelConfig& model = checkpoint_->config();
  STOKER_TRY(image_, WeightsImage::parse(weights_->image()));
  STOKER_TRY(LoadedModel loaded, stoker::load_model(config_, model, *image_, *pool_, clock_));
  model_ = std::move(loaded.model);
  sequence_memory_ = loaded.sequence_memory;
  const std::uint64_t matrix_bytes =
      std::uint64_t{model.hidden_size} * model.moe_intermediate * dtype_bytes(checkpoint_->expert_dtype());
  STOKER_TRY(source_, PoolSource::make(*pool_, *client_, *image_, model, matrix_bytes, clock_,
                                       {.loader_socket = loader_socket_path(config_.loader_dir),
                                        .loader_wait_max = std::chrono::seconds(config_.loader_wait)}));
  log_info("model: " + model_->describe());
  return {};
}

SchedulerOptions WorkerDaemon::scheduler_options() const {
  SchedulerOptions options;
  options.max_sequences = config_.max_sequences;
  options.queue_max = config_.queue;
  options.chunk = config_.chunk;
  const std::uint32_t asked = std::min(config_.context, checkpoint_->config().max_position_embeddings);
  // Otherwise every request that names no small max_tokens would be refused, and clients told of a context
  // that they cannot have.
  options.context = longest_sequence(*model_, asked, sequence_memory_);
  if (options.context == 0) options.context = asked;  // each request is refused with the numbers
  if (options.context < asked)
    log_warn("the context is " + std::to_string(options.context) + " tokens instead of " +
             std::to_string(asked) + ": one sequence may take " + format_bytes(sequence_memory_) +
             " (--sequence-memory)");
  options.sequence_memory = sequence_memory_;
  options.kept_sequences = config_.kept_sequences;
  return options;
}

GenerationRules WorkerDaemon::generation_rules() const {
  GenerationRules rules;
  rules.token_limit = checkpoint_->config().vocab_size;
  if (tools_->tokenizer) {
    rules.tokenizer = &*tools_->tokenizer;
    rules.token_limit = std::min(rules.token_limit, tools_->tokenizer->size());
  }
  rules.eos = checkpoint_->generation().eos_token_ids;
  if (rules.eos.empty()) rules.eos = checkpoint_->config().eos_token_ids;
  return rules;
}

Result<void> WorkerDaemon::serve(StopSignals& signals) {
  STOKER_TRY(const ZmqContext context, ZmqContext::make());
  std::optional<RoutingPublisher> publisher;
  if (config_.samples) {
    STOKER_TRY(ZmqSocket pub,
               ZmqSocket::bind(context, ZmqRole::pub, endpoint::samples(config_.run_dir),
                               {.send_queue = limits::kSampleQueue, .group_access = config_.group_access}));
    const ModelConfig& model = checkpoint_->config();
    publisher.emplace(std::move(pub), *pool_, clock_,
                      RoutingFacts{.layers = model.layers,
                                   .experts = model.experts,
                                   .process = source_->process(),
                                   .step = [this] { return source_->step(); }});
  }
  const SchedulerOptions options = scheduler_options();
  const GenerationRules rules = generation_rules();
  EngineLoop engine(*model_, *source_, rules, publisher ? &*publisher : nullptr, clock_, options);
  STOKER_TRY_VOID(engine.start());
  RequestIntake intake(engine,
                       [this](const wire::GenerateRequest& request, const RequestIntake::NewSeed& new_seed) {
                         return build_request(*tools_, request, new_seed);
                       },
                       clock_, {.requests = options.queue_max});
  intake.start();

  StatusFacts facts{.config = &config_,
                    .model = &checkpoint_->config(),
                    .pool = &*pool_,
                    .backend = model_->describe(),
                    .rates = model_->rates(),
                    .context = options.context,
                    .sequence_memory = options.sequence_memory,
                    .weights_bytes = weights_->image().size(),
                    .has_tokenizer = tools_->tokenizer.has_value(),
                    .has_chat_template = tools_->chat_template.has_value(),
                    .started = clock_.now()};
  // Bound last: a client that can connect gets answers.
  STOKER_TRY(ZmqSocket router, ZmqSocket::bind(context, ZmqRole::router, endpoint::worker(config_.run_dir),
                                               {.receive_bytes_max = limits::kClientMessageBytes,
                                                .send_queue = limits::kClientSendQueue,
                                                .linger_ms = 1000,
                                                .group_access = config_.group_access}));
  const auto status = [&] {
    SchedulerStatus now = engine.status();
    intake.add_to(now);
    return status_json(facts, now, clock_.now());
  };
  Server server(std::move(router), engine, intake, status, clock_);
  notifier_.ready("serving " + config_.model_dir);
  log_info("ready in " + config_.run_dir + ": context " + std::to_string(options.context) +
           " tokens, up to " + std::to_string(options.max_sequences) + " requests at once, " +
           format_bytes(options.sequence_memory) + " for their state");
  const auto served = server.run(signals);
  notifier_.stopping();
  if (!served) return tl::unexpected<Error>(served.error());
  // The step waits for a loader that is gone, or a prompt takes this long to tokenise; all that can be
  // answered is. Leases and shared memory survive a kill, so this is safe too.
  if (*served == Server::End::unfinished) std::_Exit(0);
  return {};
}

int main_checked(int argc, const char* const* argv) {
  auto config = load_config(Program::worker, standard_sources(argc, argv));
  if (!config) {
    std::cerr << "stoker-worker: " << config.error().text() << "\n";
    return 2;
  }
  if (!config->help.empty()) {
    std::cout << config->help;
    return 0;
  }
  log_start("worker", config->log_level, config->journal);
  for (const std::string& line : describe(*config, Program::worker)) log_info(line);
  WorkerDaemon daemon(*config);
  const auto ended = daemon.run();
  if (ended) return 0;
  log_error(ended.error().text());
  return exit_code_of(ended.error());
}

}  // namespace
}  // namespace stoker

int main(int argc, char** argv) { return stoker::main_checked(argc, argv); }
