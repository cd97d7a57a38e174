#include "daemons/worker/server.h"

#include <array>

#include "daemons/common/limits.h"
#include "daemons/common/log.h"
#include "daemons/common/messages.h"

namespace stoker {
namespace {

/// How long a stop may wait for step and tokenising in progress (a step that waits for a lost loader takes
/// longer).
constexpr Duration kStopWait = std::chrono::seconds(5);

}  // namespace

Server::Server(ZmqSocket socket, EngineLoop& engine, RequestIntake& intake,
               std::function<std::string()> status, const Clock& clock)
    : socket_(std::move(socket)),
      engine_(engine),
      intake_(intake),
      status_(std::move(status)),
      clock_(clock) {}

Result<Server::End> Server::run(StopSignals& signals) {
  while (!signals.stop_requested()) {
    std::array items{PollItem{.socket = &socket_}, PollItem{.fd = engine_.event_fd()},
                     PollItem{.fd = signals.fd()}};
    STOKER_TRY_VOID(wait_readable(items, std::chrono::seconds(1)));
    tell_slow_clients();
    if (items[0].readable) {
      STOKER_TRY_VOID(receive());
    }
    if (items[1].readable) send_events();
    if (const std::optional<Error> lost = engine_.lost(); lost && engine_.finished()) {
      intake_.stop();
      send_events();
      return tl::unexpected<Error>(*lost);
    }
  }
  return finish();
}

Result<void> Server::receive() {
  // Bounded, so that a flood of requests cannot keep answers waiting; the largest takes as long to parse as a
  // hundred others.
  std::size_t bytes = 0;
  for (int i = 0; i < 100 && bytes < limits::kClientMessageBytes; ++i) {
    STOKER_TRY(const auto message, socket_.receive());
    if (!message) return {};
    for (const std::string& part : *message) bytes += part.size();
    // A DEALER sends [payload], a REQ would send ["", payload]; the last part counts.
    if (message->size() >= 2) handle(message->front(), message->back());
  }
  return {};
}

void Server::handle(const std::string& client, const std::string& bytes) {
  if (slow_.contains(client)) return;  // about to learn that all it has sent so far is over
  auto message = parse_client(bytes);
  if (!message) return send(client, error_message("", error_code::kInvalidRequest, message.error().text()));
  if (const auto valid = validate(*message); !valid)
    return send(client,
                error_message(request_id(*message), error_code::kInvalidRequest, valid.error().text()));
  switch (message->body_case()) {
    case wire::ClientMessage::kGenerate:
      return intake_.submit(client, std::move(*message->mutable_generate()));
    case wire::ClientMessage::kCancel:
      return intake_.cancel(client, message->cancel().id());
    case wire::ClientMessage::kStatus: {
      wire::ServerMessage reply;
      reply.mutable_status()->set_json(status_());
      return send(client, reply);
    }
    case wire::ClientMessage::BODY_NOT_SET:
      return;  // validate() refuses it
  }
}

void Server::send_events() {
  for (const Outgoing& event : engine_.take_events()) send(event.client, event.message);
}

void Server::send(const std::string& client, const wire::ServerMessage& message) {
  if (slow_.contains(client)) return;  // of requests that are dropped already
  const auto outcome = try_send(client, message);
  if (outcome == SendOutcome::sent) return;
  if (!outcome) {
    log_error("cannot answer a client: " + outcome.error().text());
  } else if (*outcome == SendOutcome::full) {
    log_warn("a client does not read its answers; its requests are cancelled");
    if (slow_.size() < limits::kSlowClients) slow_.insert(client);
  } else {
    log_debug("a client is gone; its requests are cancelled");
  }
  intake_.drop_client(client);
}

Result<SendOutcome> Server::try_send(const std::string& client, const wire::ServerMessage& message) {
  const std::string bytes = encode(message);
  const std::array<std::string_view, 2> parts{client, bytes};
  return socket_.send(parts);
}

void Server::tell_slow_clients() {
  if (slow_.empty()) return;
  const wire::ServerMessage message = error_message(
      "", error_code::kSlowClient,
      "more than " + std::to_string(limits::kClientSendQueue) +
          " answers waited for this client to read them (was it stopped?), so its requests were cancelled; "
          "send them again and read without long pauses");
  std::erase_if(slow_, [&](const std::string& client) {
    return try_send(client, message) != SendOutcome::full;  // told, or gone
  });
}

Server::End Server::finish() {
  log_info("stopping: ending requests");
  intake_.stop();  // first: what it holds must not reach a stopped engine
  engine_.stop();
  const auto finished = [this] { return engine_.finished() && intake_.finished(); };
  const Duration deadline = clock_.now() + kStopWait;
  while (!finished() && clock_.now() < deadline) {
    std::array items{PollItem{.fd = engine_.event_fd()}};
    static_cast<void>(wait_readable(items, std::chrono::milliseconds(100)));
    send_events();
  }
  send_events();
  tell_slow_clients();
  if (finished()) return End::complete;
  log_warn("the step or tokenising in progress does not end; leaving without it");
  return End::unfinished;
}

}  // namespace stoker
