// One request to a worker, start to end, with its events, the user's Ctrl-C and a deadline.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "cli/interrupts.h"
#include "daemons/common/worker_client.h"
#include "shm/base/clock.h"
#include "shm/base/result.h"
#include "stoker.pb.h"

namespace stoker::cli {

struct GenerateHooks {
  /// Returning false cancels the request (stdout has gone).
  std::function<bool(const wire::TokenEvent&)> on_token;
  std::function<void(const wire::ProgressEvent&)> on_progress;
  std::function<bool(const wire::LogitsEvent&)> on_logits;
  std::function<bool(const wire::ScoreEvent&)> on_score;
};

struct GenerateOutcome {
  enum class End { done, signalled, timed_out, stopped_by_hook } end = End::done;
  int signal = 0;                       ///< end == signalled
  std::optional<wire::DoneEvent> done;  ///< absent when the worker did not confirm a cancel in time
};

/// Sends `request` and handles its events until it is over. Errors of the worker come back with its code
/// and the request's id in the text. `deadline` is on `clock`.
Result<GenerateOutcome> generate(WorkerClient& client, const wire::GenerateRequest& request,
                                 const GenerateHooks& hooks, Interrupts& interrupts,
                                 std::optional<Duration> deadline, const Clock& clock);

/// Unique enough for one connection and for log lines: "cli-<pid>-<n>".
std::string next_request_id(unsigned n);

/// The kind of failure behind an ErrorEvent's code (daemons/common/messages.h), for the exit code.
Errc errc_of(std::string_view code);

}  // namespace stoker::cli
