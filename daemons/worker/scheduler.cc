// Steps of the model, and how requests end.
#include <algorithm>
#include <utility>

#include "daemons/common/messages.h"
#include "daemons/worker/scheduler_entry.h"
#include "shm/base/check.h"

namespace stoker {

namespace {

/// A segment fails by a read, for want of memory, or because the checkpoint is damaged.
const char* code_of(const Error& error) {
  if (error.code == Errc::io) return error_code::kExpertRead;
  return error.code == Errc::no_memory ? error_code::kMemory : error_code::kInternal;
}

void add_stall(wire::Stats& to, const StepStats& step) {
  to.set_stall_seconds(to.stall_seconds() + seconds(step.stall));
  to.set_stall_late_hint_seconds(to.stall_late_hint_seconds() + seconds(step.stall_late_hint));
}

}  // namespace

/// Counts expert uses per request during a decode step, and passes events on.
class Scheduler::Tally final : public RoutingObserver {
 public:
  explicit Tally(RoutingObserver* next) : next_(next) {}
  void members(std::span<Entry* const> members) { members_ = members; }

  void on_token(std::uint32_t sequence_id, std::uint32_t token) override {
    if (next_ != nullptr) next_->on_token(sequence_id, token);
  }
  void on_lookahead(const LookaheadEvent& event) override {
    if (next_ != nullptr) next_->on_lookahead(event);
  }
  void on_routing(const RoutingEvent& event) override {
    for (Entry* entry : members_)
      if (entry->sequence_id == event.sequence_id) count(entry->stats, event.tiers);
    if (next_ != nullptr) next_->on_routing(event);
  }
  [[nodiscard]] bool wants_timing() const override { return next_ != nullptr && next_->wants_timing(); }

 private:
  static void count(wire::Stats& stats, std::span<const Tier> tiers) {
    for (const Tier tier : tiers) {
      if (tier == Tier::vram) {
        stats.set_experts_vram(stats.experts_vram() + 1);
      } else if (tier == Tier::pool) {
        stats.set_experts_pool(stats.experts_pool() + 1);
      } else if (tier == Tier::pool_hinted) {
        stats.set_experts_hinted(stats.experts_hinted() + 1);
      } else {
        stats.set_experts_disk(stats.experts_disk() + 1);
      }
    }
  }
  RoutingObserver* next_;
  std::span<Entry* const> members_;
};

Scheduler::Scheduler(Model& model, ExpertSource& source, const GenerationRules& rules,
                     RoutingObserver* observer, EventSink& sink, const Clock& clock,
                     const SchedulerOptions& options)
    : model_(model),
      source_(source),
      rules_(rules),
      sink_(sink),
      clock_(clock),
      options_(options),
      tally_(std::make_unique<Tally>(observer)),
      kept_(options.kept_sequences),
      last_progress_(clock.now()) {
  options_.chunk = std::min(options_.chunk, model.step_tokens_max());
  options_.max_sequences = std::min(options_.max_sequences, model.step_tokens_max());
  STOKER_CHECK(options_.chunk > 0 && options_.max_sequences > 0 && options_.context > 0);
}

Scheduler::~Scheduler() = default;

// ---- steps ----

bool Scheduler::step() {
  admit();
  Entry* next = oldest_prefilling();
  const bool decoding = any_decoding();
  if (next == nullptr && !decoding) return false;
  if (decoding && (decode_next_ || next == nullptr)) {
    decode();
    decode_next_ = false;
  } else {
    prefill(*next);
    decode_next_ = true;
  }
  erase_finished();
  report_progress();
  return true;
}

Scheduler::Entry* Scheduler::oldest_prefilling() {
  for (const auto& entry : active_)
    if (!entry->decoding && !entry->finished) return entry.get();
  return nullptr;
}

bool Scheduler::any_decoding() const {
  return std::any_of(active_.begin(), active_.end(),
                     [](const auto& e) { return e->decoding && !e->finished; });
}

/// A chunk streams nearly all experts through the pool once: the larger, the better, as long as nobody waits.
void Scheduler::prefill(Entry& entry) {
  const Request& request = entry.request;
  const std::span<const std::uint32_t> tokens = entry.to_prefill();
  const bool again = !entry.again.empty();
  const std::uint32_t chunk =
      any_decoding() ? std::min(options_.chunk, options_.chunk_beside) : options_.chunk;
  std::uint32_t end = std::min(static_cast<std::uint32_t>(tokens.size()), entry.prompt_done + chunk);
  if (request.prefill_split > entry.prompt_done) end = std::min(end, request.prefill_split);
  for (const std::uint32_t stop : {entry.mark_at, entry.keep_at})
    if (stop > entry.prompt_done) end = std::min(end, stop);
  const std::uint32_t rows = end - entry.prompt_done;
  const bool last = end == tokens.size();

  Segment segment;
  segment.sequence = entry.sequence.get();
  segment.sequence_id = entry.sequence_id;
  segment.tokens = tokens.subspan(entry.prompt_done, rows);
  segment.logits = last && !again ? Segment::Logits::last : Segment::Logits::none;
  if (request.all_positions || request.score) segment.logits = Segment::Logits::all;

  SegmentResult result;
  Entry* const member = &entry;
  const auto stats =
      model_.step(std::span(&segment, 1), Access::prefill, source_, nullptr, std::span(&result, 1));
  if (!stats) return step_failed(std::span(&member, 1), stats.error());
  count_step(*stats, true);
  prompt_rate_.add(clock_.now(), rows);
  totals_.prompt_tokens += rows;
  entry.stats.set_prefill_seconds(entry.stats.prefill_seconds() + seconds(stats->total));
  add_stall(entry.stats, *stats);
  entry.stats.set_experts_vram(entry.stats.experts_vram() + stats->vram);
  entry.stats.set_experts_pool(entry.stats.experts_pool() + stats->pool);
  entry.stats.set_experts_hinted(entry.stats.experts_hinted() + stats->hinted);
  entry.stats.set_experts_disk(entry.stats.experts_disk() + stats->disk + stats->late_hint);
  if (result.error) return fail(entry, code_of(*result.error), result.error->text());

  const std::uint32_t first = entry.prompt_done;
  entry.prompt_done = end;
  if (end == entry.mark_at) mark(entry);
  if (end == entry.keep_at) keep_beginning(entry);
  if (again) {
    entry.decoding = last;
    if (last) entry.again.clear();
    return;
  }
  if (request.all_positions) send_prompt_logits(entry, first, rows, result.logits);
  if (request.score) send_scores(entry, first, rows, result.logits);
  report_progress(entry, 0);
  if (last) prefill_done(entry, result.logits);
}

void Scheduler::prefill_done(Entry& entry, std::span<const float> logits) {
  if (entry.request.score) return finish(entry, "stop");
  if (entry.request.logits) {
    if (!entry.request.all_positions) send_prompt_logits(entry, entry.prompt_size() - 1, 1, logits);
    return finish(entry, "stop");
  }
  entry.decoding = true;
  accept(entry, logits);
}

void Scheduler::send_prompt_logits(Entry& entry, std::uint32_t first_position, std::uint32_t rows,
                                   std::span<const float> logits) {
  const std::size_t width = model_.config().vocab_size;
  STOKER_CHECK(logits.size() == rows * width);
  for (std::uint32_t row = 0; row < rows; ++row) {
    wire::ServerMessage message;
    message.mutable_logits()->set_id(entry.request.id);
    message.mutable_logits()->set_position(first_position + row);
    message.mutable_logits()->set_logits(logits_bytes(logits.subspan(row * width, width)));
    sink_.send(entry.request.client, std::move(message));
  }
}

/// The row at position p scores the token at p + 1; the last one has none to score.
void Scheduler::send_scores(Entry& entry, std::uint32_t first_position, std::uint32_t rows,
                            std::span<const float> logits) {
  const std::size_t width = model_.config().vocab_size;
  STOKER_CHECK(logits.size() == rows * width);
  wire::ServerMessage message;
  message.mutable_score()->set_id(entry.request.id);
  message.mutable_score()->set_first_position(first_position + 1);
  for (std::uint32_t row = 0; row < rows && first_position + row + 1 < entry.prompt_size(); ++row) {
    const std::uint32_t token = entry.request.prompt[first_position + row + 1];
    message.mutable_score()->add_logprobs(
        logprob_of(logits.subspan(row * width, width), rules_.token_limit, token).logprob);
  }
  if (message.score().logprobs_size() > 0) sink_.send(entry.request.client, std::move(message));
}

void Scheduler::decode() {
  make_room();
  std::vector<Entry*> members;
  for (const auto& entry : active_)
    if (entry->decoding && !entry->finished) members.push_back(entry.get());
  if (members.empty()) return;  // the only one gave way to prompts
  std::vector<std::uint32_t> tokens(members.size());
  std::vector<Segment> segments(members.size());
  for (std::size_t i = 0; i < members.size(); ++i) {
    tokens[i] = members[i]->generation->last_token();
    segments[i].sequence = members[i]->sequence.get();
    segments[i].sequence_id = members[i]->sequence_id;
    segments[i].tokens = std::span(tokens).subspan(i, 1);
    segments[i].logits = Segment::Logits::last;
  }
  std::vector<SegmentResult> results(members.size());
  tally_->members(members);
  const auto stats = model_.step(segments, Access::decode, source_, tally_.get(), results);
  tally_->members({});
  if (!stats) return step_failed(members, stats.error());
  count_step(*stats, false);
  for (std::size_t i = 0; i < members.size(); ++i) {
    Entry& entry = *members[i];
    add_stall(entry.stats, *stats);
    if (results[i].error) {
      fail(entry, code_of(*results[i].error), results[i].error->text());
    } else {
      accept(entry, results[i].logits);
    }
  }
}

void Scheduler::accept(Entry& entry, std::span<const float> logits) {
  wire::ServerMessage message;
  *message.mutable_token() = entry.generation->accept(logits);
  sink_.send(entry.request.client, std::move(message));
  const Duration now = clock_.now();
  if (entry.generation->generated() == 1) entry.first_token = now;
  entry.last_token = now;
  generated_rate_.add(now, 1);
  ++totals_.generated_tokens;
  if (entry.generation->finish_reason()) finish(entry, *entry.generation->finish_reason());
}

/// The model gave no result for the whole step: its sequences are lost. When the loader stayed away, the
/// queue is answered too, instead of letting each request wait as long again; when no step can succeed any
/// more, it is for whoever starts us to begin anew.
void Scheduler::step_failed(std::span<Entry* const> members, const Error& error) {
  if (error.code == Errc::layout || error.code == Errc::device_lost) lost_ = error;
  if (error.code == Errc::device_lost) return fail_all(error_code::kDeviceLost, error.text());
  if (error.code == Errc::peer_gone || error.code == Errc::layout)
    return fail_all(error_code::kLoaderGone, error.text());
  for (Entry* entry : members) fail(*entry, error_code::kInternal, error.text());
}

void Scheduler::count_step(const StepStats& stats, bool prefill) {
  ++(prefill ? totals_.prefill_steps : totals_.decode_steps);
  (prefill ? totals_.prefill_seconds : totals_.decode_seconds) += seconds(stats.total);
  totals_.stall_seconds += seconds(stats.stall);
  totals_.experts_vram += stats.vram;
  totals_.experts_pool += stats.pool;
  totals_.experts_hinted += stats.hinted;
  totals_.experts_disk += stats.disk;
  totals_.experts_late_hint += stats.late_hint;
  totals_.experts_copied += stats.copied;
  totals_.experts_on_cpu += stats.on_cpu;
  totals_.experts_copied_ahead += stats.copied_ahead;
}

// ---- endings ----

void Scheduler::finish(Entry& entry, const std::string& reason) {
  wire::ServerMessage message;
  wire::DoneEvent& done = *message.mutable_done();
  done.set_id(entry.request.id);
  done.set_finish_reason(reason);
  if (entry.generation) {
    done.set_text(entry.generation->flush());
    done.set_stop_string(entry.generation->stop_string());
    entry.stats.set_generated_tokens(entry.generation->generated());
    if (entry.generation->generated() > 0) {
      entry.stats.set_ttft_seconds(seconds(entry.first_token - entry.request.arrived));
      entry.stats.set_decode_seconds(seconds(entry.last_token - entry.first_token));
    }
  }
  *done.mutable_stats() = entry.stats;
  sink_.send(entry.request.client, std::move(message));
  ++(reason == "cancelled" ? totals_.requests_cancelled : totals_.requests_done);
  entry.finished = true;
}

void Scheduler::fail(Entry& entry, const char* code, const std::string& text) {
  sink_.send(entry.request.client, error_message(entry.request.id, code, text));
  ++totals_.requests_failed;
  entry.finished = entry.failed = true;
}

void Scheduler::cancel(const std::string& client, const std::string& id) {
  const auto matches = [&](const std::unique_ptr<Entry>& e) {
    return e->request.client == client && e->request.id == id;
  };
  if (const auto waiting = std::find_if(queue_.begin(), queue_.end(), matches); waiting != queue_.end()) {
    if (!(*waiting)->generation)
      (*waiting)->stats.set_queue_seconds(seconds(clock_.now() - (*waiting)->request.arrived));
    finish(**waiting, "cancelled");
    queue_.erase(waiting);
  }
  for (const auto& entry : active_)
    if (matches(entry)) finish(*entry, "cancelled");
  erase_finished();
}

std::vector<std::string> Scheduler::drop_client(const std::string& client) {
  std::vector<std::string> ids;
  const auto gone = [&](const std::unique_ptr<Entry>& entry) {
    if (entry->request.client != client) return false;
    ids.push_back(entry->request.id);
    return true;
  };
  std::erase_if(queue_, gone);
  for (const auto& entry : active_)
    if (gone(entry)) entry->finished = true;
  totals_.requests_cancelled += ids.size();
  erase_finished();
  return ids;
}

void Scheduler::fail_all(const char* code, const std::string& text) {
  for (const auto& entry : queue_) fail(*entry, code, text);
  queue_.clear();
  for (const auto& entry : active_)
    if (!entry->finished) fail(*entry, code, text);
  erase_finished();
}

void Scheduler::erase_finished() {
  std::erase_if(active_, [this](const std::unique_ptr<Entry>& entry) {
    if (!entry->finished) return false;
    leave(*entry);
    if (!entry->failed && !entry->request.no_reuse) keep(*entry);
    return true;
  });
}

void Scheduler::report_progress() {
  if (clock_.now() - last_progress_ < options_.progress_every) return;
  last_progress_ = clock_.now();
  // Whoever gave way has an answer on its screen.
  for (const auto& entry : active_)
    if (!entry->decoding && entry->again.empty()) report_progress(*entry, 0);
  for (std::size_t i = 0; i < queue_.size(); ++i)
    if (queue_[i]->again.empty()) report_progress(*queue_[i], static_cast<std::uint32_t>(i + 1));
}

/// `position` in the queue from 1, 0: not in it.
void Scheduler::report_progress(const Entry& entry, std::uint32_t position) {
  wire::ServerMessage message;
  message.mutable_progress()->set_id(entry.request.id);
  message.mutable_progress()->set_prompt_done(entry.prompt_done);
  message.mutable_progress()->set_prompt_total(entry.prompt_size());
  message.mutable_progress()->set_queue_position(position);
  sink_.send(entry.request.client, std::move(message));
}

SchedulerStatus Scheduler::status() {
  SchedulerStatus status = totals_;
  const Duration now = clock_.now();
  status.queued = static_cast<std::uint32_t>(queue_.size());
  status.reserved_bytes = reserved_;
  status.kept_bytes = kept_.bytes();
  status.kept_sequences = static_cast<std::uint32_t>(kept_.size());
  for (const auto& entry : active_) {
    ++(entry->decoding ? status.decoding : status.prefilling);
    status.sequence_bytes += entry->sequence->memory_bytes();
  }
  status.generated_per_second_1s = generated_rate_.per_second(now, 1);
  status.generated_per_second_60s = generated_rate_.per_second(now, 60);
  status.prompt_per_second_60s = prompt_rate_.per_second(now, 60);
  return status;
}

}  // namespace stoker
