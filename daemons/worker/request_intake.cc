#include "daemons/worker/request_intake.h"

#include <utility>

#include "daemons/common/messages.h"
#include "daemons/common/size.h"

namespace stoker {
namespace {

/// What a message holds in memory: ids take 4 bytes each there, often 1 or 2 on the wire.
std::size_t bytes_of(const wire::GenerateRequest& request) {
  const int ids = request.tokens().ids_size() + request.forced_size();
  return request.ByteSizeLong() + static_cast<std::size_t>(ids) * sizeof(std::uint32_t);
}

wire::ServerMessage tokens_of(const Request& request) {
  wire::ServerMessage message;
  message.mutable_tokens()->set_id(request.id);
  message.mutable_tokens()->mutable_tokens()->mutable_ids()->Assign(request.prompt.begin(),
                                                                    request.prompt.end());
  return message;
}

wire::ServerMessage cancelled(const std::string& id, Duration waited) {
  wire::ServerMessage message;
  message.mutable_done()->set_id(id);
  message.mutable_done()->set_finish_reason("cancelled");
  message.mutable_done()->mutable_stats()->set_queue_seconds(seconds(waited));
  return message;
}

}  // namespace

RequestIntake::RequestIntake(EngineLoop& engine, Builder build, const Clock& clock,
                             const IntakeLimits& limits)
    : engine_(engine), build_(std::move(build)), clock_(clock), limits_(limits) {}

RequestIntake::~RequestIntake() {
  stop();
  if (thread_.joinable()) thread_.join();
}

void RequestIntake::start() {
  thread_ = std::thread([this] { run(); });
}

void RequestIntake::submit(std::string client, wire::GenerateRequest request) {
  Ticket ticket{
      .client = std::move(client), .id = request.id(), .bytes = bytes_of(request), .arrived = clock_.now()};
  {
    const std::lock_guard lock(mutex_);
    if (stop_) return refuse(ticket, error_code::kShuttingDown, kStoppingText);
    if (const auto why = why_full(ticket.bytes)) return refuse(ticket, error_code::kQueueFull, *why);
    bytes_ += ticket.bytes;
    waiting_.push_back({std::move(ticket), std::move(request)});
  }
  wake_.notify_one();
}

/// Both numbers of the bound that another request would break; nothing when there is room.
std::optional<std::string> RequestIntake::why_full(std::size_t bytes) {
  const Backlog ahead = engine_.backlog();
  const std::size_t requests = waiting_.size() + (building_ ? 1 : 0) + ahead.requests;
  if (requests >= limits_.requests)
    return std::to_string(requests) + " requests wait already, at most " + std::to_string(limits_.requests) +
           " may; try again later";
  const std::size_t held = bytes_ + ahead.bytes;
  if (held + bytes > limits_.bytes)
    return "the requests that wait hold " + format_bytes(held) + " and this one " + format_bytes(bytes) +
           ", together at most " + format_bytes(limits_.bytes) + " may; try again later";
  return std::nullopt;
}

void RequestIntake::refuse(const Ticket& ticket, const char* code, const std::string& text) {
  ++refused_;
  engine_.answer(ticket.client, error_message(ticket.id, code, text));
}

/// Ends the waiting and the building of what matches. The caller holds mutex_ and answers.
std::vector<RequestIntake::Ticket> RequestIntake::take_out(const Matches& matches) {
  std::vector<Ticket> out;
  if (building_ && matches(*building_)) out.push_back(*std::exchange(building_, std::nullopt));
  std::erase_if(waiting_, [&](const Waiting& waiting) {
    if (!matches(waiting.ticket)) return false;
    out.push_back(waiting.ticket);
    return true;
  });
  for (const Ticket& ticket : out) bytes_ -= ticket.bytes;
  return out;
}

void RequestIntake::cancel(const std::string& client, const std::string& id) {
  const std::lock_guard lock(mutex_);
  for (const Ticket& ticket : take_out([&](const Ticket& t) { return t.client == client && t.id == id; })) {
    ++cancelled_;
    engine_.answer(client, cancelled(id, clock_.now() - ticket.arrived));
  }
  engine_.cancel(client, id);
}

void RequestIntake::drop_client(const std::string& client) {
  const std::lock_guard lock(mutex_);
  cancelled_ += take_out([&](const Ticket& t) { return t.client == client; }).size();
  engine_.drop_client(client);
}

void RequestIntake::stop() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    for (const Ticket& ticket : take_out([](const Ticket&) { return true; }))
      refuse(ticket, error_code::kShuttingDown, kStoppingText);
  }
  wake_.notify_one();
}

bool RequestIntake::finished() {
  const std::lock_guard lock(mutex_);
  return finished_;
}

void RequestIntake::add_to(SchedulerStatus& status) {
  const std::lock_guard lock(mutex_);
  status.queued +=
      static_cast<std::uint32_t>(waiting_.size() + (building_ ? 1 : 0) + engine_.backlog().requests);
  status.requests_refused += refused_;
  status.requests_cancelled += cancelled_;
}

void RequestIntake::run() {
  const NewSeed new_seed = [this] { return (std::uint64_t{random_()} << 32) | random_(); };
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return stop_ || !waiting_.empty(); });
    if (stop_) break;
    const Waiting next = std::move(waiting_.front());
    waiting_.pop_front();
    building_ = next.ticket;
    lock.unlock();
    auto built = build_(next.request, new_seed);
    lock.lock();
    if (!building_) continue;  // ended and answered meanwhile
    building_.reset();
    bytes_ -= next.ticket.bytes;
    if (built && next.request.tokenize()) {
      engine_.answer(next.ticket.client, tokens_of(*built));
    } else {
      hand_on(next.ticket, std::move(built));
    }
  }
  finished_ = true;
}

/// With mutex_ held: a cancel finds the request either here or in EngineLoop.
void RequestIntake::hand_on(const Ticket& ticket, tl::expected<Request, RequestProblem> built) {
  if (!built) return refuse(ticket, built.error().code, built.error().text);
  built->client = ticket.client;
  built->arrived = ticket.arrived;
  engine_.submit(*std::move(built));
}

}  // namespace stoker
