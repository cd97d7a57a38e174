#include "daemons/worker/engine_loop.h"

#include <sys/eventfd.h>

#include <cerrno>

#include "daemons/common/messages.h"

namespace stoker {

namespace {

wire::ServerMessage stopping(const std::string& id) {
  return error_message(id, error_code::kShuttingDown, kStoppingText);
}

std::size_t bytes_of(const Request& request) {
  std::size_t bytes =
      sizeof request + (request.prompt.size() + request.forced.size()) * sizeof(std::uint32_t);
  for (const std::string& stop : request.stop) bytes += stop.size();
  return bytes;
}

}  // namespace

EngineLoop::EngineLoop(Model& model, ExpertSource& source, const GenerationRules& rules,
                       RoutingObserver* observer, const Clock& clock, const SchedulerOptions& options)
    : scheduler_(model, source, rules, observer, *this, clock, options) {}

EngineLoop::~EngineLoop() {
  stop();
  if (thread_.joinable()) thread_.join();
}

Result<void> EngineLoop::start() {
  event_fd_ = UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!event_fd_.valid()) return fail(Errc::io, "cannot make an eventfd", errno);
  thread_ = std::thread([this] { run(); });
  return {};
}

void EngineLoop::submit(Request request) {
  {
    const std::lock_guard lock(mutex_);
    if (finished_) {
      outbox_.push_back({request.client, stopping(request.id)});
      return ring();
    }
    Live& live = live_[{request.client, request.id}];
    ++live.requests;
    live.cancelled = false;  // an earlier cancel was for those before this one
    ++backlog_.requests;
    backlog_.bytes += bytes_of(request);
    inbox_.push_back({.kind = Command::Kind::submit, .request = std::move(request), .client = {}, .id = {}});
  }
  wake_.notify_one();
}

void EngineLoop::cancel(std::string client, std::string id) {
  {
    const std::lock_guard lock(mutex_);
    const auto live = live_.find({client, id});
    if (live == live_.end() || std::exchange(live->second.cancelled, true)) return;
    inbox_.push_back(
        {.kind = Command::Kind::cancel, .request = {}, .client = std::move(client), .id = std::move(id)});
  }
  wake_.notify_one();
}

void EngineLoop::drop_client(std::string client) {
  {
    const std::lock_guard lock(mutex_);
    inbox_.push_back({.kind = Command::Kind::drop, .request = {}, .client = std::move(client), .id = {}});
  }
  wake_.notify_one();
}

Backlog EngineLoop::backlog() {
  const std::lock_guard lock(mutex_);
  Backlog now = backlog_;
  now.commands = inbox_.size();
  return now;
}

void EngineLoop::answer(std::string client, wire::ServerMessage message) {
  const std::lock_guard lock(mutex_);
  outbox_.push_back({std::move(client), std::move(message)});
  ring();
}

void EngineLoop::stop() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_one();
}

std::vector<Outgoing> EngineLoop::take_events() {
  std::uint64_t count = 0;
  [[maybe_unused]] const ssize_t got = ::read(event_fd_.get(), &count, sizeof count);
  const std::lock_guard lock(mutex_);
  return std::exchange(outbox_, {});
}

bool EngineLoop::finished() {
  const std::lock_guard lock(mutex_);
  return finished_;
}

std::optional<Error> EngineLoop::lost() {
  const std::lock_guard lock(mutex_);
  return lost_;
}

SchedulerStatus EngineLoop::status() {
  const std::lock_guard lock(mutex_);
  return status_;
}

/// EventSink: called by the scheduler on the engine thread.
void EngineLoop::send(const std::string& client, wire::ServerMessage message) {
  if (message.has_done()) ended(client, message.done().id());
  if (message.has_error()) ended(client, message.error().id());
  const std::lock_guard lock(mutex_);
  outbox_.push_back({client, std::move(message)});
}

/// One request has had its last event, or was dropped.
void EngineLoop::ended(const std::string& client, const std::string& id) {
  const std::lock_guard lock(mutex_);
  const auto live = live_.find({client, id});
  if (live != live_.end() && --live->second.requests == 0) live_.erase(live);
}

void EngineLoop::publish_status() {
  const SchedulerStatus status = scheduler_.status();
  bool news = false;
  {
    const std::lock_guard lock(mutex_);
    status_ = status;
    news = !outbox_.empty() || finished_;
  }
  if (news) ring();
}

void EngineLoop::ring() const {
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(event_fd_.get(), &one, sizeof one);
}

/// Call with mutex_ held.
void EngineLoop::take_inbox(std::vector<Command>& commands) {
  std::swap(commands, inbox_);
  backlog_ = {};
}

void EngineLoop::run() {
  std::vector<Command> commands;
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      // The rates of an idle worker fall too: look at the clock now and then.
      if (scheduler_.idle() && inbox_.empty() && !stop_) wake_.wait_for(lock, std::chrono::seconds(1));
      if (stop_) break;
      take_inbox(commands);
    }
    apply(commands);
    if (!scheduler_.step() && scheduler_.idle()) scheduler_.while_idle();
    if (const std::optional<Error> lost = scheduler_.lost()) {
      const std::lock_guard lock(mutex_);
      lost_ = lost;
      break;
    }
    publish_status();
  }
  end();
}

/// Answers everything that was submitted. What comes later is answered by submit() itself.
void EngineLoop::end() {
  std::vector<Command> commands;
  for (bool more = true; more;) {
    apply(commands);
    scheduler_.fail_all(error_code::kShuttingDown, kStoppingText);
    const std::lock_guard lock(mutex_);
    take_inbox(commands);
    more = !commands.empty();
    finished_ = !more;
  }
  publish_status();
}

void EngineLoop::apply(std::vector<Command>& commands) {
  for (Command& command : commands) {
    switch (command.kind) {
      case Command::Kind::submit:
        scheduler_.submit(std::move(command.request));
        break;
      case Command::Kind::cancel:
        scheduler_.cancel(command.client, command.id);
        break;
      case Command::Kind::drop:
        for (const std::string& id : scheduler_.drop_client(command.client)) ended(command.client, id);
        break;
    }
  }
  commands.clear();
}

}  // namespace stoker
