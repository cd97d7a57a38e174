// The worker's compute threads. One parallel loop at a time, started by one owner thread, which takes part.
// Wake-up is a short spin, then a futex (std::atomic::wait): decode runs hundreds of short loops per token.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

namespace stoker {

class ThreadPool {
 public:
  /// `threads` includes the caller; 0: one per CPU of the affinity mask.
  explicit ThreadPool(unsigned threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  [[nodiscard]] unsigned threads() const { return static_cast<unsigned>(workers_.size()) + 1; }

  /// Calls body(begin, end, thread) on disjoint ranges that cover [0, count), `grain` items at a time
  /// (the last range may be shorter). Which thread gets which range is not defined: bodies must not let
  /// it show in their results. Does not allocate. body must not throw.
  template <class Body>
  void run(std::size_t count, std::size_t grain, const Body& body) {
    if (count == 0) return;
    if (workers_.empty() || count <= grain) {
      body(std::size_t{0}, count, 0U);
      return;
    }
    run_parallel(count, grain,
                 {&body, [](const void* context, std::size_t begin, std::size_t end, unsigned thread) {
                    (*static_cast<const Body*>(context))(begin, end, thread);
                  }});
  }

 private:
  struct Task {
    const void* context = nullptr;
    void (*call)(const void*, std::size_t, std::size_t, unsigned) = nullptr;
  };
  void run_parallel(std::size_t count, std::size_t grain, Task task);
  void work(unsigned thread);
  void worker_loop(unsigned thread);

  std::vector<std::thread> workers_;
  Task task_;
  std::size_t count_ = 0, grain_ = 1;
  std::uint32_t chunks_ = 0;
  /// Loop number in the high half, unclaimed chunks of that loop in the low half. A claim is one
  /// compare-and-swap, so a worker that wakes late claims nothing of a loop that is over, and nobody
  /// waits for a worker that had no part in it.
  alignas(64) std::atomic<std::uint64_t> open_{0};
  alignas(64) std::atomic<std::uint32_t> left_{0};   ///< chunks not finished
  alignas(64) std::atomic<std::uint32_t> round_{0};  ///< changes with every loop; workers sleep on it
  std::atomic<bool> stop_{false};
};

}  // namespace stoker
