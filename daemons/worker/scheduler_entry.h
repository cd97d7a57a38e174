// One request of the scheduler, from the queue to its last event. For scheduler*.cc only.
#pragma once

#include "daemons/worker/scheduler.h"

namespace stoker {

struct Scheduler::Entry {
  Request request;
  std::uint32_t max_tokens = 0;  ///< 0 when nothing is generated
  std::uint64_t ticket = 0;      ///< order of arrival
  std::uint64_t reserved = 0;    ///< bytes, while active; without those of its mark
  std::uint64_t mark_bytes = 0;  ///< of the sequence's mark, 0 when there is none
  std::uint32_t mark_at = 0;     ///< prompt tokens before the mark that is wanted, 0: none
  std::uint32_t keep_at = 0;     ///< prompt tokens that are to be kept as a beginning, 0: none
  std::unique_ptr<Sequence> sequence;
  std::uint32_t sequence_id = 0;
  std::unique_ptr<Generation> generation;  ///< refers to `request`
  /// Of a request that gave way: all tokens but the last one, to be computed again.
  std::vector<std::uint32_t> again;
  std::uint32_t prompt_done = 0;  ///< of to_prefill()
  bool decoding = false;
  bool finished = false;  ///< to be erased after the step
  bool failed = false;    ///< its sequence is of no more use
  wire::Stats stats;
  Duration started{}, first_token{}, last_token{};

  [[nodiscard]] std::uint32_t prompt_size() const {
    return static_cast<std::uint32_t>(request.prompt.size());
  }
  [[nodiscard]] std::span<const std::uint32_t> to_prefill() const {
    return again.empty() ? request.prompt : again;
  }
};

}  // namespace stoker
