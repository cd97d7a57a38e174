// Continuous batching: requests in, steps of the model out, events to the clients. No sockets, no
// threads: one owner calls everything.
//
// Life of a request:
//   1. queued      admitted to the queue (bounded); waits for a place and for memory.
//   2. prefilling  owns a sequence; its prompt goes through the model in chunks, oldest request first.
//   3. decoding    one token per step, together with all other decoding requests.
//   4. done        DoneEvent (after LogitsEvents or ScoreEvents, if asked for), or ErrorEvent. Its
//                  sequence may be kept for a request that goes on from it (kept_sequences.h), as long as
//                  nobody needs the memory.
// Prefill chunks and decode steps alternate while there is work of both kinds, so a long prompt delays the
// others by at most one chunk per token.
//
// Memory is reserved for the prompt and some tokens of the answer at step 1 -> 2, and for more as the answer
// grows: most answers end long before max_tokens, and many clients give none. Where there is no more, the
// request that came last gives way: it goes back to its place in the queue, and later computes prompt and
// answer so far again (to the same bits, whatever the chunks) and goes on. No request is accepted that would
// not fit alone, so the one that came first always goes on, and none that has started fails for lack of
// memory.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "daemons/worker/generation.h"
#include "daemons/worker/kept_sequences.h"
#include "daemons/worker/rate_meter.h"
#include "gpu-worker/decode.h"
#include "gpu-worker/expert_source.h"
#include "shm/base/clock.h"
#include "stoker.pb.h"

namespace stoker {

/// Takes events for clients. Must not block, and must not call back into the scheduler.
class EventSink {
 public:
  virtual ~EventSink() = default;
  virtual void send(const std::string& client, wire::ServerMessage message) = 0;
};

struct SchedulerOptions {
  std::uint32_t max_sequences = 8;     ///< computed together; also bounded by Model::step_tokens_max()
  std::uint32_t queue_max = 256;       ///< waiting at most
  std::uint32_t chunk = 1024;          ///< prompt tokens per prefill step; also bounded by the model
  std::uint32_t chunk_beside = 256;    ///< while another request decodes: its next token waits for the chunk
  std::uint32_t context = 32768;       ///< prompt + answer at most
  std::uint64_t sequence_memory = 0;   ///< budget in bytes for all sequences' state
  std::uint32_t reserve_ahead = 1024;  ///< tokens of an answer whose memory is reserved at a time
  std::uint32_t kept_sequences = 8;    ///< of requests that ended, at most; within sequence_memory
  /// The place before a prompt's last token is marked if at least so many tokens are computed up to there: it
  /// costs a step of one token.
  std::uint32_t mark_from = 64;
  /// Beginnings of conversations with at least so many tokens are kept: a fork costs a copy of the state, and
  /// one more chunk once.
  std::uint32_t beginning_from = 256;
  /// Queued requests hear of their place at most this often; also how a dead client in the queue is noticed.
  Duration progress_every = std::chrono::milliseconds(250);
};

/// The most tokens, at most `context`, of one sequence whose state `bytes` hold; 0: not even one.
[[nodiscard]] std::uint32_t longest_sequence(const Model& model, std::uint32_t context, std::uint64_t bytes);

/// A copy of everything `status` wants to know.
struct SchedulerStatus {
  std::uint32_t queued = 0, prefilling = 0, decoding = 0;
  std::uint64_t sequence_bytes = 0;  ///< held now
  std::uint64_t reserved_bytes = 0;  ///< promised to active requests
  std::uint64_t requests_done = 0, requests_failed = 0, requests_cancelled = 0, requests_refused = 0;
  std::uint64_t requests_gave_way = 0;  ///< times that one went back to the queue for want of memory
  std::uint64_t prompt_tokens = 0, generated_tokens = 0;  ///< computed
  std::uint64_t cached_tokens = 0;  ///< of prompts, not computed: a kept sequence had them
  std::uint64_t kept_bytes = 0;     ///< held by kept sequences now
  std::uint32_t kept_sequences = 0;
  std::uint64_t prefill_steps = 0, decode_steps = 0;
  double prefill_seconds = 0, decode_seconds = 0, stall_seconds = 0;
  std::uint64_t experts_vram = 0, experts_pool = 0, experts_hinted = 0, experts_disk = 0,
                experts_late_hint = 0, experts_copied = 0, experts_on_cpu = 0, experts_copied_ahead = 0;
  double generated_per_second_1s = 0, generated_per_second_60s = 0, prompt_per_second_60s = 0;
};

class Scheduler {
 public:
  /// All references must outlive the scheduler; `observer` (may be null) hears of decode steps only.
  Scheduler(Model& model, ExpertSource& source, const GenerationRules& rules, RoutingObserver* observer,
            EventSink& sink, const Clock& clock, const SchedulerOptions& options);
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;
  ~Scheduler();

  /// Queues a request and says so with a ProgressEvent, or answers it at once with an ErrorEvent that names
  /// both numbers.
  void submit(Request request);
  /// Ends a request with finish_reason "cancelled"; unknown ids are ignored (it may just have finished).
  void cancel(const std::string& client, const std::string& id);
  /// The client is gone: its requests end silently. Their ids.
  std::vector<std::string> drop_client(const std::string& client);
  /// Ends everything with an error; for shutdown.
  void fail_all(const char* code, const std::string& text);

  /// Runs at most one step of the model. False: there was nothing to do.
  bool step();
  /// For the owner to call now and then while idle().
  void while_idle() { source_.idle(); }
  [[nodiscard]] bool idle() const { return queue_.empty() && active_.empty(); }
  [[nodiscard]] SchedulerStatus status();
  /// Set once no request can succeed any more: the loader runs with another pool than ours (Errc::layout), or
  /// the GPU is lost (Errc::device_lost).
  [[nodiscard]] const std::optional<Error>& lost() const { return lost_; }

 private:
  struct Entry;
  class Tally;

  Result<std::uint32_t> resolve_max_tokens(const Request& request) const;
  const char* refusal(const Request& request, std::string& text) const;
  void refuse(const Request& request, const char* code, const std::string& text);
  [[nodiscard]] std::uint64_t bytes_to(const Entry& entry, std::uint64_t length) const;
  void admit();
  void give_sequence(Entry& entry);
  void reserve(Entry& entry, std::uint64_t bytes);
  void keep(Entry& entry);
  void mark(Entry& entry);
  void keep_beginning(Entry& entry);
  void count_mark(Entry& entry);
  bool unmark_one();
  void leave(Entry& entry);
  void start(Entry& entry);
  void make_room();
  [[nodiscard]] Entry* last_decoding();
  void give_way(Entry& entry);
  void report_progress();
  void report_progress(const Entry& entry, std::uint32_t position);
  void prefill(Entry& entry);
  void prefill_done(Entry& entry, std::span<const float> logits);
  void send_prompt_logits(Entry& entry, std::uint32_t first_position, std::uint32_t rows,
                          std::span<const float> logits);
  void send_scores(Entry& entry, std::uint32_t first_position, std::uint32_t rows,
                   std::span<const float> logits);
  void decode();
  void accept(Entry& entry, std::span<const float> logits);
  void step_failed(std::span<Entry* const> members, const Error& error);
  void count_step(const StepStats& stats, bool prefill);
  void finish(Entry& entry, const std::string& reason);
  void fail(Entry& entry, const char* code, const std::string& text);
  void erase_finished();
  [[nodiscard]] Entry* oldest_prefilling();
  [[nodiscard]] bool any_decoding() const;

  Model& model_;
  ExpertSource& source_;
  const GenerationRules& rules_;
  EventSink& sink_;
  const Clock& clock_;
  SchedulerOptions options_;
  std::unique_ptr<Tally> tally_;
  std::deque<std::unique_ptr<Entry>> queue_;    ///< by ticket
  std::vector<std::unique_ptr<Entry>> active_;  ///< in order of admission
  std::uint64_t reserved_ = 0;  ///< marks included; with kept_.bytes() never above sequence_memory
  KeptSequences kept_;
  std::uint64_t last_ticket_ = 0;
  std::uint32_t last_sequence_id_ = 0;
  bool decode_next_ = false;  ///< alternation
  Duration last_progress_{};
  SchedulerStatus totals_;
  std::optional<Error> lost_;
  RateMeter generated_rate_, prompt_rate_;
};

}  // namespace stoker
