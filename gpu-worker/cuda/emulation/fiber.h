// Fibers of the emulation: Boost.Context's, kept for the next block, and known to the sanitizers.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <vector>

namespace stoker::emulation {

/// A stack and where on it to go on.
struct Fiber {
  void* context = nullptr;  ///< valid while it does not run
  unsigned thread = 0;      ///< what the pool's task is to begin with
  // For the sanitizers.
  const void* stack = nullptr;
  std::size_t stack_bytes = 0;
  void* fake_stack = nullptr;
  void* shadow = nullptr;
};

/// Lifecycle of a fiber:
///  1. take() makes it, or finds it idle.
///  2. switch_to() it: it calls the task. Inside, others may be switched to, and back.
///  3. The task returns: the fiber is idle again, and the fiber that the task named goes on.
/// They never end; when the pool dies all are idle, and only their stacks are given back. One OS thread at a
/// time uses a pool, and a fiber that is not idle stays on it.
class FiberPool {
 public:
  using Task = std::function<Fiber&(Fiber& self)>;

  explicit FiberPool(Task task);
  ~FiberPool();
  FiberPool(const FiberPool&) = delete;
  FiberPool& operator=(const FiberPool&) = delete;

  /// The caller's stack, outside all fibers of the pool.
  [[nodiscard]] Fiber& main() { return main_; }
  [[nodiscard]] Fiber& running() { return *running_; }

  Fiber& take();

  /// Returns when somebody switches back.
  void switch_to(Fiber& to);

 private:
  struct Pooled;
  friend struct Entry;
  void arrive(void* left);

  Task task_;
  Fiber main_;
  Fiber* running_ = &main_;
  Fiber* leaving_ = nullptr;  ///< who called switch_to last
  std::vector<std::unique_ptr<Pooled>> fibers_;
  std::vector<Fiber*> idle_;  ///< last in, first out: its stack is still in the cache
};

}  // namespace stoker::emulation
