// A forked process that does what the test tells it, byte by byte, and may be killed at any point.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <functional>

namespace stoker::test {

/// The child's ends of two pipes.
class Link {
 public:
  Link(int in, int out) : in_(in), out_(out) {}
  void say(char c) const { static_cast<void>(::write(out_, &c, 1) == 1); }
  /// Blocks for one byte; 0 when the other side is gone.
  [[nodiscard]] char hear() const {
    char c = 0;
    return ::read(in_, &c, 1) == 1 ? c : '\0';
  }

 private:
  int in_, out_;
};

class Child {
  static constexpr int kChildIn = 200, kChildOut = 201;  ///< beyond what a test has open

 public:
  /// `body` runs in the child; its result is the exit status. No test macro may be used in it.
  explicit Child(const std::function<int(const Link&)>& body) {
    int down[2], up[2];
    REQUIRE(::pipe2(down, O_CLOEXEC) == 0);
    REQUIRE(::pipe2(up, O_CLOEXEC) == 0);
    pid_ = ::fork();
    REQUIRE(pid_ >= 0);
    if (pid_ == 0) {
      // What the parent has open must end with the parent (fork copies what exec would close).
      ::dup2(down[0], kChildIn);
      ::dup2(up[1], kChildOut);
      ::close_range(3, kChildIn - 1, 0);
      ::close_range(kChildOut + 1, ~0U, 0);
      ::_exit(body(Link(kChildIn, kChildOut)));
    }
    ::close(down[0]);
    ::close(up[1]);
    to_ = down[1];
    from_ = up[0];
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  ~Child() {
    if (pid_ > 0) kill_now();
    ::close(to_);
    ::close(from_);
  }

  void say(char c) const { REQUIRE(::write(to_, &c, 1) == 1); }
  [[nodiscard]] char hear() const {
    char c = 0;
    return ::read(from_, &c, 1) == 1 ? c : '\0';
  }
  /// True when the child has said something.
  [[nodiscard]] bool spoke() const {
    pollfd p{.fd = from_, .events = POLLIN, .revents = 0};
    return ::poll(&p, 1, 0) == 1;
  }
  [[nodiscard]] pid_t pid() const { return pid_; }
  /// SIGKILL, and waits until the kernel has buried it.
  void kill_now() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }
  /// Exit status; -1 when it was killed.
  int join() {
    int status = 0;
    REQUIRE(::waitpid(pid_, &status, 0) == pid_);
    pid_ = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

 private:
  pid_t pid_ = 0;
  int to_ = -1, from_ = -1;
};

}  // namespace stoker::test
