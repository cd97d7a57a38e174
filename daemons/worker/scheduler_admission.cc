// Which requests are accepted, when they begin, and who gives way when memory runs out.
#include <algorithm>
#include <utility>

#include "daemons/common/limits.h"
#include "daemons/common/messages.h"
#include "daemons/common/size.h"
#include "daemons/worker/scheduler_entry.h"
#include "shm/base/check.h"

namespace stoker {

std::uint32_t longest_sequence(const Model& model, std::uint32_t context, std::uint64_t bytes) {
  if (model.sequence_bytes(context) <= bytes) return context;
  std::uint32_t fits = 0, beyond = context;
  while (beyond - fits > 1) {
    const std::uint32_t length = fits + (beyond - fits) / 2;
    (model.sequence_bytes(length) <= bytes ? fits : beyond) = length;
  }
  return fits;
}

/// Answer length of a request, given its prompt: what it asked for, or what the context leaves.
Result<std::uint32_t> Scheduler::resolve_max_tokens(const Request& request) const {
  const std::uint64_t prompt = request.prompt.size();
  const std::string context_text = " tokens, the context is " + std::to_string(options_.context) + " tokens";
  if (request.logits || request.score) {
    if (prompt <= options_.context) return 0;
    return stoker::fail(Errc::too_large, "the prompt is " + std::to_string(prompt) + context_text);
  }
  std::uint64_t answer = request.max_tokens;
  if (!request.forced.empty()) answer = request.forced.size();
  if ((answer == 0 || request.fit_context) && prompt < options_.context) {
    const std::uint64_t left = options_.context - prompt;
    answer = answer == 0 ? left : std::min(answer, left);
  }
  if (prompt + std::max<std::uint64_t>(answer, 1) > options_.context)
    return stoker::fail(Errc::too_large,
                        "the prompt is " + std::to_string(prompt) + " tokens and the answer up to " +
                            std::to_string(std::max<std::uint64_t>(answer, 1)) +
                            ": together more than the context of " + std::to_string(options_.context) +
                            " tokens; shorten the prompt, ask for fewer tokens, or start the worker "
                            "with a larger --context (and --sequence-memory)");
  return static_cast<std::uint32_t>(answer);
}

/// Code and text of why a request can never run; null when it can.
const char* Scheduler::refusal(const Request& request, std::string& text) const {
  if (request.prompt.empty()) {
    text = "the prompt has no tokens";
    return error_code::kInvalidRequest;
  }
  const std::uint32_t vocabulary = model_.config().vocab_size;
  for (const auto* ids : {&request.prompt, &request.forced}) {
    for (const std::uint32_t id : *ids) {
      if (id < vocabulary) continue;
      text = "token id " + std::to_string(id) + " is not in the vocabulary of " + std::to_string(vocabulary);
      return error_code::kInvalidRequest;
    }
  }
  if (!request.stop.empty() && rules_.tokenizer == nullptr) {
    text = "stop strings need a tokenizer, and this model directory has no tokenizer.json";
    return error_code::kNoTokenizer;
  }
  const auto max_tokens = resolve_max_tokens(request);
  if (!max_tokens) {
    text = max_tokens.error().message;
    return error_code::kContext;
  }
  const std::uint64_t rows = request.logits ? (request.all_positions ? request.prompt.size() : 1)
                                            : (request.raw_logits ? *max_tokens : 0);
  if (rows * vocabulary * sizeof(float) > limits::kLogitsReplyBytes) {
    text = "logits of " + std::to_string(rows) + " positions are " +
           format_bytes(rows * vocabulary * sizeof(float)) + ", at most " +
           format_bytes(limits::kLogitsReplyBytes);
    return error_code::kInvalidRequest;
  }
  const std::uint64_t bytes = model_.sequence_bytes(request.prompt.size() + *max_tokens);
  if (bytes > options_.sequence_memory) {
    text = "the request needs " + format_bytes(bytes) + " of sequence state, the budget is " +
           format_bytes(options_.sequence_memory) + " (--sequence-memory)";
    return error_code::kMemory;
  }
  if (queue_.size() >= options_.queue_max) {
    text = std::to_string(queue_.size()) + " requests wait already, at most " +
           std::to_string(options_.queue_max) + " may; try again later";
    return error_code::kQueueFull;
  }
  return nullptr;
}

void Scheduler::refuse(const Request& request, const char* code, const std::string& text) {
  ++totals_.requests_refused;
  sink_.send(request.client, error_message(request.id, code, text));
}

void Scheduler::submit(Request request) {
  const auto same = [&](const std::unique_ptr<Entry>& e) {
    return e->request.client == request.client && e->request.id == request.id;
  };
  if (std::any_of(queue_.begin(), queue_.end(), same) || std::any_of(active_.begin(), active_.end(), same))
    return refuse(request, error_code::kDuplicateId,
                  "a request with this id is still running on this connection");
  std::string text;
  if (const char* code = refusal(request, text); code != nullptr) return refuse(request, code, text);
  auto entry = std::make_unique<Entry>();
  entry->request = std::move(request);
  entry->max_tokens = *resolve_max_tokens(entry->request);
  entry->ticket = ++last_ticket_;
  queue_.push_back(std::move(entry));
  // Tells the client that nothing is wrong with it; the next event may be a chunk away.
  const bool waits = queue_.size() > 1 || active_.size() >= options_.max_sequences;
  report_progress(*queue_.back(), waits ? static_cast<std::uint32_t>(queue_.size()) : 0);
}

/// What a sequence of `length` tokens and the next few of its answer hold.
std::uint64_t Scheduler::bytes_to(const Entry& entry, std::uint64_t length) const {
  const std::uint64_t most = std::uint64_t{entry.prompt_size()} + entry.max_tokens;
  return model_.sequence_bytes(std::min(length + options_.reserve_ahead, most));
}

/// First come, first served: a large request at the front is not overtaken by small ones.
void Scheduler::admit() {
  while (!queue_.empty() && active_.size() < options_.max_sequences) {
    const std::uint64_t bytes = bytes_to(*queue_.front(), queue_.front()->to_prefill().size());
    while (reserved_ + bytes > options_.sequence_memory)
      if (!unmark_one()) return;
    std::unique_ptr<Entry> entry = std::move(queue_.front());
    queue_.pop_front();
    if (entry->again.empty()) start(*entry);
    give_sequence(*entry);
    reserve(*entry, bytes);
    count_mark(*entry);
    active_.push_back(std::move(entry));
  }
}

/// One that was kept and has the beginning of the prompt already, or a new one.
void Scheduler::give_sequence(Entry& entry) {
  const Request& request = entry.request;
  // These ask for something of every position, or for the computation itself.
  const bool whole = request.all_positions || request.score || request.no_reuse || request.prefill_split > 0;
  if (auto kept = whole ? std::nullopt : kept_.take(entry.to_prefill())) {
    entry.sequence = std::move(kept->sequence);
    entry.prompt_done = static_cast<std::uint32_t>(kept->tokens.size());
    totals_.cached_tokens += entry.prompt_done;
    if (entry.again.empty()) entry.stats.set_cached_tokens(entry.prompt_done);
  } else {
    entry.sequence = model_.new_sequence();
  }
  const std::uint32_t last = entry.prompt_size() - 1;
  const bool worth_it = last >= entry.prompt_done + options_.mark_from;
  const bool keeps = options_.kept_sequences > 0 && !whole && entry.again.empty();
  entry.mark_at = keeps && worth_it ? last : 0;
  const std::uint32_t beginning = request.beginning;
  const bool wanted = keeps && beginning >= options_.beginning_from && beginning > entry.prompt_done;
  entry.keep_at = wanted && kept_.seen(std::span(request.prompt).first(beginning)) ? beginning : 0;
}

/// The caller has seen that the budget allows it. Kept sequences are in nobody's way.
void Scheduler::reserve(Entry& entry, std::uint64_t bytes) {
  reserved_ += bytes - std::exchange(entry.reserved, bytes);
  kept_.shrink_to(options_.sequence_memory - reserved_);
}

/// Only where there is room for it: a mark is worth less than a request that runs.
void Scheduler::mark(Entry& entry) {
  const std::uint64_t with_it = reserved_ - entry.mark_bytes + model_.mark_bytes();
  if (with_it > options_.sequence_memory) return;
  kept_.shrink_to(options_.sequence_memory - with_it);
  static_cast<void>(entry.sequence->mark());  // or there is none, which is no error
  count_mark(entry);
}

/// For the conversations that begin as this one does, as far as nobody who runs needs the memory.
void Scheduler::keep_beginning(Entry& entry) {
  const std::uint64_t bytes = model_.sequence_bytes(entry.keep_at);
  if (reserved_ + bytes > options_.sequence_memory) return;
  kept_.shrink_to(options_.sequence_memory - reserved_ - bytes);
  auto fork = entry.sequence->fork();
  if (!fork) return;  // no memory, which is no error
  kept_.keep({.sequence = *std::move(fork),
              .tokens = {entry.request.prompt.begin(), entry.request.prompt.begin() + entry.keep_at},
              .bytes = bytes,
              .beginning = true});
}

/// Counts the memory of the mark that its sequence has, or gives it up where memory is short.
void Scheduler::count_mark(Entry& entry) {
  const std::uint64_t without_it = reserved_ - entry.mark_bytes;
  const bool room = without_it + model_.mark_bytes() <= options_.sequence_memory;
  if (!room) entry.sequence->unmark();
  entry.mark_bytes = entry.sequence->marked() > 0 ? model_.mark_bytes() : 0;
  reserved_ = without_it + entry.mark_bytes;
  kept_.shrink_to(options_.sequence_memory - reserved_);
}

/// Marks go before anybody waits or gives way.
bool Scheduler::unmark_one() {
  const auto marked =
      std::find_if(active_.begin(), active_.end(), [](const auto& e) { return e->mark_bytes > 0; });
  if (marked == active_.end()) return false;
  (*marked)->sequence->unmark();
  count_mark(**marked);
  return true;
}

/// Its memory is not promised to it any more.
void Scheduler::leave(Entry& entry) {
  reserved_ -= std::exchange(entry.reserved, 0) + std::exchange(entry.mark_bytes, 0);
}

/// After leave().
void Scheduler::keep(Entry& entry) {
  const std::uint32_t length = entry.sequence->length();
  const std::vector<std::uint32_t>& tokens =
      entry.generation ? entry.generation->history() : entry.request.prompt;
  STOKER_CHECK(length <= tokens.size());
  const std::uint64_t mark = entry.sequence->marked() > 0 ? model_.mark_bytes() : 0;
  kept_.keep({.sequence = std::move(entry.sequence),
              .tokens = {tokens.begin(), tokens.begin() + length},
              .bytes = model_.sequence_bytes(length) + mark});
  kept_.shrink_to(options_.sequence_memory - reserved_);
}

void Scheduler::start(Entry& entry) {
  entry.started = clock_.now();
  entry.sequence_id = ++last_sequence_id_;
  if (entry.max_tokens > 0)
    entry.generation = std::make_unique<Generation>(entry.request, rules_, entry.max_tokens);
  entry.stats.set_prompt_tokens(entry.prompt_size());
  entry.stats.set_queue_seconds(seconds(entry.started - entry.request.arrived));
  entry.stats.set_seed(entry.request.sampling.seed);
}

/// Reserves memory for the next token of every answer, if need be by sending the latest back to the queue.
void Scheduler::make_room() {
  std::vector<Entry*> growing;
  for (const auto& entry : active_)
    if (entry->decoding && model_.sequence_bytes(entry->generation->history().size()) > entry->reserved)
      growing.push_back(entry.get());
  std::sort(growing.begin(), growing.end(),
            [](const Entry* a, const Entry* b) { return a->ticket < b->ticket; });
  for (Entry* entry : growing) {
    // One that came later may have given way to an earlier one of this loop.
    while (entry->sequence != nullptr) {
      const std::uint64_t want = bytes_to(*entry, entry->generation->history().size());
      if (reserved_ - entry->reserved + want <= options_.sequence_memory) {
        reserve(*entry, want);
        break;
      }
      if (!unmark_one()) give_way(*last_decoding());
    }
  }
}

/// Prompts that are being computed end soon and then decode; they are left alone.
Scheduler::Entry* Scheduler::last_decoding() {
  Entry* last = nullptr;
  for (const auto& entry : active_)
    if (entry->decoding && (last == nullptr || entry->ticket > last->ticket)) last = entry.get();
  return last;
}

void Scheduler::give_way(Entry& entry) {
  const std::vector<std::uint32_t>& history = entry.generation->history();
  entry.again.assign(history.begin(), history.end() - 1);
  entry.prompt_done = 0;
  entry.decoding = false;
  leave(entry);
  entry.sequence.reset();
  ++totals_.requests_gave_way;
  const auto at =
      std::find_if(active_.begin(), active_.end(), [&](const auto& e) { return e.get() == &entry; });
  const auto behind =
      std::find_if(queue_.begin(), queue_.end(), [&](const auto& e) { return e->ticket > entry.ticket; });
  queue_.insert(behind, std::move(*at));
  active_.erase(at);
}

}  // namespace stoker
