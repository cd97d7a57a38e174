#include "daemons/gateway/worker_link.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include "daemons/common/log.h"
#include "daemons/common/messages.h"
#include "daemons/common/zmq_socket.h"
#include "daemons/gateway/api_error.h"

namespace stoker::gateway {

using namespace std::chrono_literals;

namespace {

constexpr Duration kRetryEvery = 200ms;
constexpr Duration kStatusEvery = 2s, kStatusMax = 10s;

const std::string* id_of(const wire::ServerMessage& m) {
  switch (m.body_case()) {
    case wire::ServerMessage::kToken:
      return &m.token().id();
    case wire::ServerMessage::kProgress:
      return &m.progress().id();
    case wire::ServerMessage::kDone:
      return &m.done().id();
    case wire::ServerMessage::kError:
      return &m.error().id();
    case wire::ServerMessage::kTokens:
      return &m.tokens().id();
    default:
      return nullptr;  // nothing that we ask for
  }
}

}  // namespace

WorkerLink::WorkerLink(std::string run_dir, const Clock& clock, Deliver deliver)
    : run_dir_(std::move(run_dir)), clock_(clock), deliver_(std::move(deliver)) {}

WorkerLink::~WorkerLink() { stop(); }

void WorkerLink::stop() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  if (event_fd_.valid()) ::eventfd_write(event_fd_.get(), 1);
  if (thread_.joinable()) thread_.join();
}

Result<void> WorkerLink::start() {
  event_fd_ = UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!event_fd_.valid()) return fail(Errc::io, "cannot make an eventfd", errno);
  thread_ = std::thread([this] { run(); });
  return {};
}

void WorkerLink::wait_known(Duration most) {
  std::unique_lock lock(mutex_);
  known_changed_.wait_for(lock, most, [this] { return known_; });
}

void WorkerLink::set_known() {
  {
    const std::lock_guard lock(mutex_);
    known_ = true;
  }
  known_changed_.notify_all();
}

void WorkerLink::post(wire::ClientMessage message) {
  {
    const std::lock_guard lock(mutex_);
    queued_.push_back(std::move(message));
  }
  ::eventfd_write(event_fd_.get(), 1);
}

std::string WorkerLink::submit(wire::GenerateRequest request) {
  {
    const std::lock_guard lock(mutex_);
    request.set_id("http-" + std::to_string(::getpid()) + "-" + std::to_string(++last_id_));
  }
  std::string id = request.id();
  wire::ClientMessage message;
  *message.mutable_generate() = std::move(request);
  post(std::move(message));
  return id;
}

void WorkerLink::cancel(const std::string& id) {
  wire::ClientMessage message;
  message.mutable_cancel()->set_id(id);
  post(std::move(message));
}

std::shared_ptr<const std::string> WorkerLink::status() const {
  const std::lock_guard lock(mutex_);
  // The worker answers at once, also while it computes: one that does not is stopped, or hangs.
  return clock_.now() - status_at_ < kStatusMax ? status_ : nullptr;
}

bool WorkerLink::stopping() const {
  const std::lock_guard lock(mutex_);
  return stop_;
}

void WorkerLink::run() {
  bool told = false;
  while (!stopping()) {
    auto client = WorkerClient::connect(run_dir_, clock_);
    if (client) {
      told = false;
      serve(*client);
    } else {
      if (!std::exchange(told, true)) log_warn("no worker: " + client.error().text());
      set_known();
      wait_for_work();
    }
    {
      const std::lock_guard lock(mutex_);
      status_.reset();
    }
    end_all(kWorkerGone, "the worker is not running, or ended before it had answered; try again later");
  }
}

/// Between two attempts to connect; what is submitted meanwhile is answered at once.
void WorkerLink::wait_for_work() {
  std::array items{PollItem{.fd = event_fd_.get()}};
  static_cast<void>(wait_readable(items, kRetryEvery));
  eventfd_t count = 0;
  static_cast<void>(::eventfd_read(event_fd_.get(), &count));
}

/// Until the worker is gone or we are to stop.
void WorkerLink::serve(WorkerClient& client) {
  status_due_ = clock_.now();
  while (!stopping()) {
    if (const auto sent = send_queued(client); !sent) return log_warn(sent.error().text());
    const Duration wait_max = std::max(status_due_ - clock_.now(), Duration::zero());  // negative: for ever
    const auto message = client.receive(wait_max, event_fd_.get());
    eventfd_t count = 0;
    static_cast<void>(::eventfd_read(event_fd_.get(), &count));
    if (!message) return log_warn(message.error().text());
    if (*message) handle(**message);
  }
}

Result<void> WorkerLink::send_queued(WorkerClient& client) {
  std::vector<wire::ClientMessage> messages;
  {
    const std::lock_guard lock(mutex_);
    messages.swap(queued_);
  }
  // Before the first is sent: should that fail, all of them are to be answered.
  for (const wire::ClientMessage& message : messages)
    if (message.has_generate()) open_.insert(message.generate().id());
  for (const wire::ClientMessage& message : messages) {
    const auto sent = client.send(message);
    if (sent) continue;
    if (sent.error().code != Errc::too_large) return sent;
    handle(error_message(message.generate().id(), error_code::kInvalidRequest, sent.error().text()));
  }
  if (clock_.now() < status_due_) return {};
  status_due_ = clock_.now() + kStatusEvery;
  wire::ClientMessage status;
  status.mutable_status();
  return client.send(status);
}

void WorkerLink::handle(const wire::ServerMessage& message) {
  if (message.has_status()) {
    auto status = std::make_shared<const std::string>(message.status().json());
    {
      const std::lock_guard lock(mutex_);
      status_ = std::move(status);
      status_at_ = clock_.now();
    }
    return set_known();
  }
  const std::string* id = id_of(message);
  if (id == nullptr) return;
  // An error without id is about all requests of this connection.
  if (id->empty() && message.has_error())
    return end_all(message.error().code().c_str(), message.error().message());
  const bool over = message.has_done() || message.has_error() || message.has_tokens();
  if (!open_.contains(*id)) return;
  deliver_(*id, message);
  if (over) open_.erase(*id);
}

void WorkerLink::end_all(const char* code, const std::string& text) {
  std::set<std::string> ids = std::exchange(open_, {});
  {
    const std::lock_guard lock(mutex_);
    for (const wire::ClientMessage& message : queued_)
      if (message.has_generate()) ids.insert(message.generate().id());
    queued_.clear();
  }
  for (const std::string& id : ids) deliver_(id, error_message(id, code, text));
}

}  // namespace stoker::gateway
