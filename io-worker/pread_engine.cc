// PreadEngine: pread(2) on a few threads, for machines where io_uring is forbidden. Same contract.
//
// Life of a read: submit() puts it in `waiting_` -> a thread takes it, reads, puts the completion in
// `done_` -> reap() takes it. `done_event_` is readable exactly while `done_` is not empty (both change
// under the mutex), so the owner waits for it and for the doorbell in one poll.
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <csignal>
#include <mutex>
#include <system_error>
#include <thread>

#include "io-worker/engine_common.h"
#include "shm/base/check.h"

namespace stoker {
namespace {

constexpr unsigned kThreadsMax = 64;

/// First in, first out, room for a fixed number; never allocates after construction.
template <class T>
class BoundedQueue {
 public:
  explicit BoundedQueue(std::size_t capacity) : items_(capacity) {}
  [[nodiscard]] bool empty() const { return count_ == 0; }
  void clear() { count_ = 0; }
  void push(const T& item) {
    STOKER_CHECK(count_ < items_.size());
    items_[(first_ + count_++) % items_.size()] = item;
  }
  T pop() {
    STOKER_CHECK(count_ > 0);
    const T item = items_[first_];
    first_ = (first_ + 1) % items_.size();
    --count_;
    return item;
  }

 private:
  std::vector<T> items_;
  std::size_t first_ = 0;
  std::size_t count_ = 0;
};

/// Signals are the owner's business: threads made while this lives do not take any.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_;
};

class PreadEngine final : public IoEngine {
 public:
  PreadEngine(UniqueFd done_event, std::vector<EngineFileFacts> files, const EngineOptions& options)
      : done_event_(std::move(done_event)),
        files_(std::move(files)),
        capacity_(options.depth),
        doorbell_fd_(options.doorbell_fd),
        waiting_(options.depth),
        done_(options.depth) {}
  PreadEngine(const PreadEngine&) = delete;
  PreadEngine& operator=(const PreadEngine&) = delete;
  ~PreadEngine() override;

  Result<void> start(unsigned threads);
  std::size_t submit(std::span<const ReadOp> ops) override;
  std::size_t reap(std::span<Completion> out, Duration wait_max) override;
  [[nodiscard]] std::size_t in_flight() const noexcept override { return in_flight_; }
  [[nodiscard]] std::size_t capacity() const noexcept override { return capacity_; }
  [[nodiscard]] std::string describe() const override {
    return "pread (" + std::to_string(threads_.size()) + " threads)";
  }

 private:
  void serve();
  [[nodiscard]] std::int64_t read(const ReadOp& op) const;
  void put_done(const Completion& completion);
  std::size_t take_done(std::span<Completion> out);
  void wait(Duration wait_max);

  UniqueFd done_event_;
  const std::vector<EngineFileFacts> files_;
  const std::size_t capacity_;
  const int doorbell_fd_;
  std::size_t in_flight_ = 0;  ///< owner thread only

  std::mutex mutex_;  ///< guards the four below
  std::condition_variable work_;
  BoundedQueue<ReadOp> waiting_;
  BoundedQueue<Completion> done_;
  bool stopping_ = false;

  std::vector<std::thread> threads_;
};

Result<void> PreadEngine::start(unsigned threads) {
  const SignalsBlocked blocked;
  try {
    for (unsigned i = 0; i < threads; ++i) threads_.emplace_back([this] { serve(); });
  } catch (const std::system_error& error) {
    return fail(Errc::no_memory,
                "cannot start a reading thread (raise the limit on tasks: ulimit -u, or TasksMax=)",
                error.code().value());
  }
  return {};
}

/// Reads not begun are dropped; those begun are waited for.
PreadEngine::~PreadEngine() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    waiting_.clear();
  }
  work_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void PreadEngine::serve() {
  std::unique_lock lock(mutex_);
  for (;;) {
    work_.wait(lock, [this] { return stopping_ || !waiting_.empty(); });
    if (stopping_) return;
    const ReadOp op = waiting_.pop();
    lock.unlock();
    const Completion completion{.tag = op.tag, .result = read(op)};
    lock.lock();
    put_done(completion);
  }
}

std::int64_t PreadEngine::read(const ReadOp& op) const {
  if (const std::int64_t error = refusal(op, files_); error != 0) return error;
  const ssize_t result =
      ::pread(files_[op.file.value].fd, op.target, op.length, static_cast<off_t>(op.offset));
  return result >= 0 ? result : -static_cast<std::int64_t>(errno);
}

/// With the mutex held.
void PreadEngine::put_done(const Completion& completion) {
  if (done_.empty()) {
    const std::uint64_t one = 1;
    STOKER_CHECK(::write(done_event_.get(), &one, sizeof one) == sizeof one);
  }
  done_.push(completion);
}

std::size_t PreadEngine::submit(std::span<const ReadOp> ops) {
  const std::size_t taken = std::min(ops.size(), capacity_ - in_flight_);
  if (taken == 0) return 0;
  {
    const std::lock_guard lock(mutex_);
    for (const ReadOp& op : ops.first(taken)) waiting_.push(op);
  }
  in_flight_ += taken;
  if (taken == 1)
    work_.notify_one();
  else
    work_.notify_all();
  return taken;
}

std::size_t PreadEngine::reap(std::span<Completion> out, Duration wait_max) {
  if (out.empty()) return 0;
  if (const std::size_t count = take_done(out); count > 0) return count;
  wait(wait_max);
  return take_done(out);
}

std::size_t PreadEngine::take_done(std::span<Completion> out) {
  const std::lock_guard lock(mutex_);
  std::size_t count = 0;
  while (count < out.size() && !done_.empty()) out[count++] = done_.pop();
  if (count > 0 && done_.empty()) drain_doorbell(done_event_.get());
  in_flight_ -= count;
  return count;
}

/// A signal ends the wait (EINTR), as it does in the other engines.
void PreadEngine::wait(Duration wait_max) {
  const Duration limit = std::max(wait_max, Duration::zero());
  const auto whole = std::chrono::duration_cast<std::chrono::seconds>(limit);
  const timespec timeout{.tv_sec = whole.count(), .tv_nsec = (limit - whole).count()};
  pollfd fds[2] = {{.fd = done_event_.get(), .events = POLLIN, .revents = 0},
                   {.fd = doorbell_fd_, .events = POLLIN, .revents = 0}};  // poll skips fd -1
  const int ready = ::ppoll(fds, 2, &timeout, nullptr);
  STOKER_CHECK(ready >= 0 || errno == EINTR || errno == ENOMEM);
  if (ready > 0 && fds[1].revents != 0) {
    STOKER_CHECK((fds[1].revents & POLLNVAL) == 0);
    drain_doorbell(doorbell_fd_);
  }
}

}  // namespace

Result<std::unique_ptr<IoEngine>> make_pread_engine(const std::vector<EngineFile>& files,
                                                    const EngineOptions& options) {
  STOKER_TRY_VOID(check_options(options));
  if (options.pread_threads == 0 || options.pread_threads > kThreadsMax)
    return fail(Errc::invalid, "pread engine: " + std::to_string(options.pread_threads) +
                                   " threads is not in 1.." + std::to_string(kThreadsMax));
  UniqueFd done_event(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!done_event.valid()) return fail(Errc::io, "pread engine: eventfd", errno);
  auto engine = std::make_unique<PreadEngine>(std::move(done_event), facts_of(files), options);
  STOKER_TRY_VOID(engine->start(options.pread_threads));
  return engine;
}

}  // namespace stoker
