#include "gpu-worker/cpu/thread_pool.h"

#include "shm/base/cpus.h"

namespace stoker {
namespace {

/// About 10 to 20 microseconds: longer than the gap between two loops of a layer, far shorter than a
/// scheduler tick, so that a waiting worker does not take a CPU from the loader.
constexpr int kSpins = 4000;

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// Returns when `value` is no longer `old`.
void wait_changed(const std::atomic<std::uint32_t>& value, std::uint32_t old) {
  for (int i = 0; i < kSpins; ++i) {
    if (value.load(std::memory_order_acquire) != old) return;
    relax();
  }
  value.wait(old, std::memory_order_acquire);
}

}  // namespace

ThreadPool::ThreadPool(unsigned threads) {
  if (threads == 0) threads = usable_cpus();
  workers_.reserve(threads - 1);
  for (unsigned i = 1; i < threads; ++i) workers_.emplace_back([this, i] { worker_loop(i); });
}

ThreadPool::~ThreadPool() {
  stop_.store(true, std::memory_order_relaxed);
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run_parallel(std::size_t count, std::size_t grain, Task task) {
  task_ = task;
  count_ = count;
  grain_ = grain;
  chunks_ = static_cast<std::uint32_t>((count + grain - 1) / grain);
  left_.store(chunks_, std::memory_order_relaxed);
  const std::uint32_t round = round_.load(std::memory_order_relaxed) + 1;
  open_.store(std::uint64_t{round} << 32 | chunks_, std::memory_order_release);
  round_.store(round, std::memory_order_release);
  round_.notify_all();
  work(0);
  for (std::uint32_t left = left_.load(std::memory_order_acquire); left != 0;
       left = left_.load(std::memory_order_acquire)) {
    wait_changed(left_, left);
  }
}

void ThreadPool::work(unsigned thread) {
  std::uint64_t open = open_.load(std::memory_order_acquire);
  while ((open & 0xFFFF'FFFFU) != 0) {
    if (!open_.compare_exchange_weak(open, open - 1, std::memory_order_acquire, std::memory_order_acquire)) {
      continue;
    }
    // The claim keeps this loop open (left_ != 0), so task_, count_ and grain_ belong to it.
    const std::size_t begin = (chunks_ - (open & 0xFFFF'FFFFU)) * grain_;
    task_.call(task_.context, begin, std::min(count_, begin + grain_), thread);
    if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1) left_.notify_all();
    open = open_.load(std::memory_order_acquire);
  }
}

void ThreadPool::worker_loop(unsigned thread) {
  std::uint32_t seen = 0;
  for (;;) {
    wait_changed(round_, seen);
    seen = round_.load(std::memory_order_acquire);
    if (stop_.load(std::memory_order_relaxed)) return;
    work(thread);
  }
}

}  // namespace stoker
