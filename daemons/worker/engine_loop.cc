#include "daemons/worker/engine_loop.h"

#include <sys/eventfd.h>

#include <cerrno>

#include "daemons/common/messages.h"

namespace stoker {

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
  Command command;
  command.request = std::move(request);
  post(std::move(command));
}

void EngineLoop::cancel(std::string client, std::string id) {
  post({.kind = Command::Kind::cancel, .request = {}, .client = std::move(client), .id = std::move(id)});
}

void EngineLoop::drop_client(std::string client) {
  post({.kind = Command::Kind::drop, .request = {}, .client = std::move(client), .id = {}});
}

void EngineLoop::post(Command command) {
  {
    const std::lock_guard lock(mutex_);
    inbox_.push_back(std::move(command));
  }
  wake_.notify_one();
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
  const std::lock_guard lock(mutex_);
  outbox_.push_back({client, std::move(message)});
}

void EngineLoop::publish_status() {
  const SchedulerStatus status = scheduler_.status();
  bool news = false;
  {
    const std::lock_guard lock(mutex_);
    status_ = status;
    news = !outbox_.empty() || finished_;
  }
  const std::uint64_t one = 1;
  if (news) [[maybe_unused]]
    const ssize_t written = ::write(event_fd_.get(), &one, sizeof one);
}

void EngineLoop::run() {
  std::vector<Command> commands;
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      // The rates of an idle worker fall too: look at the clock now and then.
      if (scheduler_.idle() && inbox_.empty() && !stop_) wake_.wait_for(lock, std::chrono::seconds(1));
      std::swap(commands, inbox_);
      if (stop_) break;
    }
    apply(commands);
    if (!scheduler_.step() && scheduler_.idle()) scheduler_.while_idle();
    if (const std::optional<Error> lost = scheduler_.source_lost()) {
      const std::lock_guard lock(mutex_);
      lost_ = lost;
      break;
    }
    publish_status();
  }
  apply(commands);
  scheduler_.fail_all(error_code::kShuttingDown, "the worker is stopping; send the request again later");
  {
    const std::lock_guard lock(mutex_);
    finished_ = true;
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
        scheduler_.drop_client(command.client);
        break;
    }
  }
  commands.clear();
}

}  // namespace stoker
