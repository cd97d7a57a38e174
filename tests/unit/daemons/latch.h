// A door in the way of another thread, which the test opens.
#pragma once

#include <condition_variable>
#include <mutex>

namespace stoker::test {

class Latch {
 public:
  /// Waits until the door is open; it stays open.
  void pass() {
    std::unique_lock lock(mutex_);
    ++arrived_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return open_; });
  }
  void open() {
    const std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }
  /// Returns once somebody stands at the door, or has passed it.
  void wait_for_arrival() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return arrived_ > 0; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  unsigned arrived_ = 0;
  bool open_ = false;
};

}  // namespace stoker::test
