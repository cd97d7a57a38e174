#include "daemons/loader/control.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <array>
#include <cerrno>

#include "daemons/common/limits.h"
#include "daemons/common/log.h"
#include "daemons/common/messages.h"

namespace stoker {
namespace {

void write_eventfd(int fd) {
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(fd, &one, sizeof one);  // full = already ringing
}

/// More than this without the loader taking them are stale anyway.
constexpr std::size_t kInboxMax = 4096;

}  // namespace

Result<std::unique_ptr<Control>> Control::start(StopSignals& signals, const ControlOptions& options) {
  STOKER_TRY(ZmqContext context, ZmqContext::make());
  const ZmqOptions socket{.receive_bytes_max = limits::kHintBytes,
                          .receive_queue = limits::kHintQueue,
                          .group_access = options.group_access};
  STOKER_TRY(ZmqSocket hints, ZmqSocket::bind(context, ZmqRole::pull, options.hints_path, socket));
  UniqueFd wake(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  UniqueFd edges(::epoll_create1(EPOLL_CLOEXEC));
  epoll_event event{};
  event.events = EPOLLIN | EPOLLET;
  if (!wake.valid() || !edges.valid() ||
      ::epoll_ctl(edges.get(), EPOLL_CTL_ADD, options.attach_fd, &event) != 0)
    return fail(Errc::io, "cannot watch the attach socket", errno);
  return std::unique_ptr<Control>(
      new Control(signals, options, std::move(context), std::move(hints), std::move(wake), std::move(edges)));
}

Control::Control(StopSignals& signals, const ControlOptions& options, ZmqContext context, ZmqSocket hints,
                 UniqueFd wake, UniqueFd attach_edges)
    : signals_(signals),
      options_(options),
      context_(std::move(context)),
      hints_(std::move(hints)),
      wake_(std::move(wake)),
      attach_edges_(std::move(attach_edges)),
      thread_([this] { run(); }) {}

Control::~Control() {
  quit_.store(true, std::memory_order_release);
  write_eventfd(wake_.get());
  thread_.join();
}

void Control::take_hints(std::vector<LoaderHint>& out) {
  out.clear();
  const std::lock_guard lock(mutex_);
  std::swap(out, inbox_);
}

void Control::ring() const { write_eventfd(options_.doorbell_fd); }

void Control::run() {
  while (!quit_.load(std::memory_order_acquire)) {
    std::array items{PollItem{.socket = &hints_}, PollItem{.fd = signals_.fd()}, PollItem{.fd = wake_.get()},
                     PollItem{.fd = attach_edges_.get()}};
    if (const auto waited = wait_readable(items, std::chrono::seconds(1)); !waited) {
      log_error("hints and stop signals are no longer heard: " + waited.error().text());
      return;
    }
    if (items[0].readable) receive_hints();
    if (items[1].readable && !stop_requested() && signals_.stop_requested()) {
      stop_requested_.store(true, std::memory_order_release);
      ring();
    }
    if (items[3].readable) {
      epoll_event event{};
      static_cast<void>(::epoll_wait(attach_edges_.get(), &event, 1, 0));
      ring();
    }
  }
}

void Control::receive_hints() {
  bool any = false;
  // Bounded, so that a flood of hints cannot keep signals waiting.
  for (int i = 0; i < limits::kHintQueue; ++i) {
    const auto message = hints_.receive();
    if (!message || !*message) break;
    const auto batch = decode_hints((*message)->back());
    if (!batch) {
      if (++malformed_ == 1) log_warn("ignoring malformed hints: " + batch.error().text());
      continue;
    }
    ++batches_;
    const std::lock_guard lock(mutex_);
    for (const wire::Hint& hint : batch->hints()) {
      if (hint.layer() >= options_.layers || hint.expert() >= options_.experts_per_layer) continue;
      if (inbox_.size() >= kInboxMax) break;
      inbox_.push_back({.expert = ExpertKey{hint.layer() * options_.experts_per_layer + hint.expert()},
                        .confidence = hint.confidence(),
                        .process = batch->process(),
                        .step = batch->step(),
                        .batch = batches_,
                        .batch_reads = batch->reads_max()});
      any = true;
    }
  }
  if (any) ring();
}

}  // namespace stoker
