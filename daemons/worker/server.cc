#include "daemons/worker/server.h"

#include <array>
#include <cstdlib>

#include "daemons/common/log.h"
#include "daemons/common/messages.h"

namespace stoker {
namespace {

/// How long a stop may wait for the step in progress (a step that waits for a lost loader takes longer).
constexpr Duration kStopWait = std::chrono::seconds(5);

}  // namespace

Server::Server(ZmqSocket socket, EngineLoop& engine, const TextTools& tools,
               std::function<std::string()> status, const Clock& clock)
    : socket_(std::move(socket)), engine_(engine), tools_(tools), status_(std::move(status)), clock_(clock) {}

Result<void> Server::run(StopSignals& signals) {
  while (!signals.stop_requested()) {
    std::array items{PollItem{.socket = &socket_}, PollItem{.fd = engine_.event_fd()},
                     PollItem{.fd = signals.fd()}};
    STOKER_TRY_VOID(wait_readable(items, std::chrono::seconds(1)));
    if (items[0].readable) STOKER_TRY_VOID(receive());
    if (items[1].readable) send_events();
    if (const std::optional<Error> lost = engine_.lost(); lost && engine_.finished()) {
      send_events();
      return tl::unexpected<Error>(*lost);
    }
  }
  finish();
  return {};
}

Result<void> Server::receive() {
  // Bounded, so that a flood of requests cannot keep answers waiting.
  for (int i = 0; i < 100; ++i) {
    STOKER_TRY(const auto message, socket_.receive());
    if (!message) return {};
    // A DEALER sends [payload], a REQ would send ["", payload]; the last part counts.
    if (message->size() >= 2) handle(message->front(), message->back());
  }
  return {};
}

void Server::handle(const std::string& client, const std::string& bytes) {
  const auto message = parse_client(bytes);
  if (!message) return send(client, error_message("", error_code::kInvalidRequest, message.error().text()));
  if (const auto valid = validate(*message); !valid)
    return send(client,
                error_message(request_id(*message), error_code::kInvalidRequest, valid.error().text()));
  switch (message->body_case()) {
    case wire::ClientMessage::kGenerate:
      return generate(client, message->generate());
    case wire::ClientMessage::kCancel:
      return engine_.cancel(client, message->cancel().id());
    case wire::ClientMessage::kStatus: {
      wire::ServerMessage reply;
      reply.mutable_status()->set_json(status_());
      return send(client, reply);
    }
    case wire::ClientMessage::BODY_NOT_SET:
      return;  // validate() refuses it
  }
}

void Server::generate(const std::string& client, const wire::GenerateRequest& wire) {
  const Duration arrived = clock_.now();
  const auto new_seed = [this] { return (std::uint64_t{random_()} << 32) | random_(); };
  auto request = build_request(tools_, wire, new_seed);
  if (!request) return send(client, error_message(wire.id(), request.error().code, request.error().text));
  request->client = client;
  request->arrived = arrived;
  engine_.submit(*std::move(request));
}

void Server::send_events() {
  for (const Outgoing& event : engine_.take_events()) send(event.client, event.message);
}

void Server::send(const std::string& client, const wire::ServerMessage& message) {
  const std::string bytes = encode(message);
  const std::array<std::string_view, 2> parts{client, bytes};
  const auto outcome = socket_.send(parts);
  if (outcome == SendOutcome::sent) return;
  if (!outcome) {
    log_error("cannot answer a client: " + outcome.error().text());
  } else if (*outcome == SendOutcome::full) {
    log_warn("a client does not read its answers; its requests are cancelled");
  } else {
    log_debug("a client is gone; its requests are cancelled");
  }
  engine_.drop_client(client);
}

void Server::finish() {
  log_info("stopping: ending requests");
  engine_.stop();
  const Duration deadline = clock_.now() + kStopWait;
  while (!engine_.finished() && clock_.now() < deadline) {
    std::array items{PollItem{.fd = engine_.event_fd()}};
    static_cast<void>(wait_readable(items, std::chrono::milliseconds(100)));
    send_events();
  }
  send_events();
  if (engine_.finished()) return;
  // The step waits for a loader that is gone. Leases and shared memory survive a kill, so this is safe too.
  log_warn("the step in progress does not end; leaving without it");
  std::_Exit(0);
}

}  // namespace stoker
