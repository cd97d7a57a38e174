#include "cli/generate.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <utility>

#include "daemons/common/messages.h"

namespace stoker::cli {

using namespace std::chrono_literals;

namespace {

constexpr Duration kCancelWait = 2s;  ///< for the worker to confirm a cancel
constexpr Duration kPollMax = 60s;

/// The state of one request: events in, at most one reason to cancel.
class Exchange {
 public:
  Exchange(WorkerClient& client, const wire::GenerateRequest& request, const GenerateHooks& hooks,
           const Clock& clock)
      : client_(client), id_(request.id()), hooks_(hooks), clock_(clock) {}

  Result<void> cancel(GenerateOutcome::End why, int signal) {
    outcome_.end = why;
    outcome_.signal = signal;
    give_up_at_ = clock_.now() + kCancelWait;
    wire::ClientMessage message;
    message.mutable_cancel()->set_id(id_);
    return client_.send(message);
  }
  [[nodiscard]] bool cancelling() const { return give_up_at_.has_value(); }
  [[nodiscard]] bool gave_up() const { return give_up_at_ && clock_.now() >= *give_up_at_; }
  [[nodiscard]] Duration wait_max(std::optional<Duration> deadline) const {
    const auto until = give_up_at_ ? give_up_at_ : deadline;
    return until ? std::clamp<Duration>(*until - clock_.now(), 0ns, kPollMax) : kPollMax;
  }

  /// True when the request is over.
  Result<bool> handle(const wire::ServerMessage& message) {
    if (message.has_done() && message.done().id() == id_) {
      outcome_.done = message.done();
      return true;
    }
    if (is_stale(message)) return false;
    if (message.has_error()) {
      if (cancelling()) return true;
      return fail(errc_of(message.error().code()), message.error().message() + " (request " + id_ + ")");
    }
    if (cancelling()) return false;
    bool go_on = true;
    if (message.has_token() && hooks_.on_token) go_on = hooks_.on_token(message.token());
    if (message.has_progress() && hooks_.on_progress) hooks_.on_progress(message.progress());
    if (message.has_logits() && hooks_.on_logits) go_on = hooks_.on_logits(message.logits());
    if (message.has_score() && hooks_.on_score) go_on = hooks_.on_score(message.score());
    if (!go_on) STOKER_TRY_VOID(cancel(GenerateOutcome::End::stopped_by_hook, 0));
    return false;
  }
  [[nodiscard]] GenerateOutcome take() { return std::move(outcome_); }

 private:
  /// Of an earlier request of ours that was cancelled. An error without id is about all of this connection.
  [[nodiscard]] bool is_stale(const wire::ServerMessage& m) const {
    if (m.has_error()) return !m.error().id().empty() && m.error().id() != id_;
    return (m.has_token() && m.token().id() != id_) || (m.has_progress() && m.progress().id() != id_) ||
           (m.has_logits() && m.logits().id() != id_) || (m.has_score() && m.score().id() != id_) ||
           (m.has_done() && m.done().id() != id_);
  }

  WorkerClient& client_;
  std::string id_;
  const GenerateHooks& hooks_;
  const Clock& clock_;
  GenerateOutcome outcome_;
  std::optional<Duration> give_up_at_;
};

}  // namespace

std::string next_request_id(unsigned n) {
  return "cli-" + std::to_string(::getpid()) + "-" + std::to_string(n);
}

Errc errc_of(std::string_view code) {
  static constexpr std::array<std::pair<std::string_view, Errc>, 11> kNames = {{
      {error_code::kInvalidRequest, Errc::invalid},
      {error_code::kContext, Errc::too_large},
      {error_code::kMemory, Errc::no_memory},
      {error_code::kQueueFull, Errc::busy},
      {error_code::kSlowClient, Errc::busy},
      {error_code::kNoTokenizer, Errc::missing},
      {error_code::kNoTemplate, Errc::missing},
      {error_code::kExpertRead, Errc::io},
      {error_code::kLoaderGone, Errc::peer_gone},
      {error_code::kDeviceLost, Errc::device_lost},
      {error_code::kShuttingDown, Errc::peer_gone},
  }};
  for (const auto& [name, errc] : kNames) {
    if (name == code) return errc;
  }
  return Errc::io;
}

Result<GenerateOutcome> generate(WorkerClient& client, const wire::GenerateRequest& request,
                                 const GenerateHooks& hooks, Interrupts& interrupts,
                                 std::optional<Duration> deadline, const Clock& clock) {
  Exchange exchange(client, request, hooks, clock);
  wire::ClientMessage message;
  *message.mutable_generate() = request;
  STOKER_TRY_VOID(client.send(message));
  for (;;) {
    STOKER_TRY(const auto event, client.receive(exchange.wait_max(deadline), interrupts.fd()));
    if (event) {
      STOKER_TRY(const bool over, exchange.handle(*event));
      if (over) return exchange.take();
    }
    if (const int signal = interrupts.take(); signal != 0) {
      if (exchange.cancelling()) return exchange.take();
      STOKER_TRY_VOID(exchange.cancel(GenerateOutcome::End::signalled, signal));
    }
    if (exchange.gave_up()) return exchange.take();
    if (!exchange.cancelling() && deadline && clock.now() >= *deadline) {
      STOKER_TRY_VOID(exchange.cancel(GenerateOutcome::End::timed_out, 0));
    }
  }
}

}  // namespace stoker::cli
