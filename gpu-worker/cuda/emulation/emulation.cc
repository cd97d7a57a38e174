// The emulated multiprocessor: runs a grid, block after block, with one fiber per thread that blocks.
#include "gpu-worker/cuda/emulation/emulation.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdio>
#include <numeric>
#include <vector>

#include "gpu-worker/cuda/emulation/fiber.h"
#include "gpu-worker/cuda/emulation/random.h"
#include "gpu-worker/cuda/emulation/shared_memory.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace stoker::emulation {
namespace {

constexpr unsigned kLanes = 32, kThreadsMax = 1024, kNone = ~0U;

/// Unwinds a thread's stack after the block has failed.
struct Abandoned {};

/// Where a thread waits, and what it brought.
struct Thread {
  Fiber* fiber = nullptr;  ///< parked here; null: runs, has not begun, or has returned
  Site site{};
  Exchange kind{};
  unsigned mask = 0, bits = 0, source = 0, result = 0;
};

/// Bit i: lane i. A live lane is in one of ready, at_barrier and exchanging, or it is the one that runs.
struct Warp {
  unsigned live = 0;
  unsigned ready = 0;  ///< can go on, or begin
  unsigned at_barrier = 0;
  unsigned exchanging = 0;
  unsigned rotation = 0;  ///< the lane that is looked at first
  bool upwards = true;
};

/// All of 0 .. count-1, in strides from a random start.
class Order {
 public:
  Order(Random& random, std::uint32_t count) : count_(count), start_(random.below(count)) {
    if (count < 3) return;
    for (step_ = 1 + random.below(count - 1); std::gcd(step_, count_) != 1;) step_ = step_ % (count - 1) + 1;
  }
  [[nodiscard]] std::uint32_t at(std::uint32_t i) const {
    return static_cast<std::uint32_t>((start_ + std::uint64_t{step_} * i) % count_);
  }

 private:
  std::uint32_t count_, start_, step_ = 1;
};

const char* file_name(Site site) {
  const char* slash = std::strrchr(site.file, '/');
  return slash == nullptr ? site.file : slash + 1;
}

bool same(Site a, Site b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

std::string print(Site site) { return std::string(file_name(site)) + ":" + std::to_string(site.line); }

std::string print(uint3 place) {
  return "(" + std::to_string(place.x) + ", " + std::to_string(place.y) + ", " + std::to_string(place.z) +
         ")";
}

std::string hexadecimal(unsigned bits) {
  std::array<char, 16> text{};
  std::snprintf(text.data(), text.size(), "0x%08x", bits);
  return text.data();
}

const char* print(Exchange kind) {
  switch (kind) {
    case Exchange::shuffle:
      return "a shuffle";
    case Exchange::ballot:
      return "a ballot";
    case Exchange::sync:
      return "__syncwarp";
  }
  return "?";
}

/// Runs the threads of one block at a time. Control goes from fiber to fiber: whoever blocks or returns picks
/// the next one that is ready; when there is none, the stack that called run() goes on, and sees whether all
/// have returned. A thread that never blocks costs no switch: its fiber goes on with the next thread.
class Multiprocessor {
 public:
  Multiprocessor() : fibers_([this](Fiber& self) -> Fiber& { return run_threads(self); }) {}

  std::string run(const Launch& launch, const std::function<void()>& thread, Random& random);
  void barrier(Site site);
  unsigned exchange(Exchange kind, unsigned mask, unsigned bits, unsigned source, Site site);
  [[nodiscard]] unsigned lane() const { return current_ % kLanes; }
  void* dynamic_shared() { return shared_.dynamic(); }
  void* static_shared(SharedVariable& variable, std::size_t bytes, std::size_t alignment);

 private:
  void run_block(std::uint32_t block);
  void begin_block(std::uint32_t block);
  void abandon();
  Fiber& run_threads(Fiber& self);
  void enter(unsigned thread);
  void park();
  Fiber& fiber_of(unsigned thread);
  unsigned take_ready();
  void leave(unsigned thread);
  void begin_phase();
  void shake(Warp& warp);
  void release_barrier();
  bool is_complete(unsigned mask) const;
  void complete(Exchange kind, unsigned mask);
  [[nodiscard]] unsigned warp_begin() const { return current_ / kLanes * kLanes; }
  [[nodiscard]] std::string where() const;
  [[noreturn]] void fail(const std::string& text);
  [[nodiscard]] std::string describe_stuck() const;

  FiberPool fibers_;
  SharedMemory shared_;
  const Launch* launch_ = nullptr;
  const std::function<void()>* body_ = nullptr;
  Random* random_ = nullptr;
  std::string failure_;

  unsigned thread_count_ = 0, warp_count_ = 0;
  std::array<Thread, kThreadsMax> threads_;
  std::array<Warp, kThreadsMax / kLanes> warps_;
  unsigned current_ = 0;  ///< the thread that runs
  unsigned live_ = 0;     ///< threads that have not returned
  bool abandoning_ = false;

  unsigned at_barrier_ = 0;
  Site barrier_site_{};  ///< of the first that came

  // Warps run one after another between two barriers, from first_warp_ up or down.
  unsigned first_warp_ = 0, warp_position_ = 0;
  bool warps_upwards_ = true;
};

std::string Multiprocessor::run(const Launch& launch, const std::function<void()>& thread, Random& random) {
  launch_ = &launch;
  body_ = &thread;
  random_ = &random;
  failure_.clear();
  gridDim = launch.grid;
  blockDim = launch.block;
  thread_count_ = blockDim.x * blockDim.y * blockDim.z;
  warp_count_ = (thread_count_ + kLanes - 1) / kLanes;
  const std::uint32_t blocks = gridDim.x * gridDim.y * gridDim.z;
  const Order order(random, blocks);
  for (std::uint32_t i = 0; i < blocks && failure_.empty(); ++i) run_block(order.at(i));
  return failure_;
}

void Multiprocessor::run_block(std::uint32_t block) {
  begin_block(block);
  fibers_.switch_to(fiber_of(take_ready()));
  // Nobody is ready any more: all have returned, or the block is stuck or failed.
  if (failure_.empty() && live_ != 0) failure_ = describe_stuck();
  if (failure_.empty() && !shared_.intact()) {
    failure_ = where() + " wrote beyond the end of a variable in shared memory";
  }
  if (live_ != 0) abandon();
}

void Multiprocessor::begin_block(std::uint32_t block) {
  blockIdx = {block % gridDim.x, block / gridDim.x % gridDim.y, block / (gridDim.x * gridDim.y)};
  shared_.begin_block(launch_->shared_bytes);
  for (unsigned w = 0; w < warp_count_; ++w) {
    const unsigned lanes = std::min(kLanes, thread_count_ - w * kLanes);
    warps_[w] = {};
    warps_[w].live = warps_[w].ready = ~0U >> (kLanes - lanes);
    shake(warps_[w]);
  }
  live_ = thread_count_;
  at_barrier_ = 0;
  begin_phase();
}

void Multiprocessor::abandon() {
  abandoning_ = true;
  for (unsigned t = 0; t < thread_count_; ++t) {
    if (threads_[t].fiber != nullptr) fibers_.switch_to(fiber_of(t));
  }
  abandoning_ = false;
}

/// Begins with self.thread and goes on with threads that have not begun. Returns who is to run next.
Fiber& Multiprocessor::run_threads(Fiber& self) {
  for (unsigned thread = self.thread;;) {
    enter(thread);
    try {
      (*body_)();
    } catch (const Abandoned&) {
      return fibers_.main();
    }
    leave(thread);
    thread = take_ready();
    if (thread == kNone) return fibers_.main();
    if (threads_[thread].fiber != nullptr) return fiber_of(thread);
  }
}

void Multiprocessor::enter(unsigned thread) {
  current_ = thread;
  threadIdx = thread_count_ == blockDim.x ? uint3{thread, 0, 0}
                                          : uint3{thread % blockDim.x, thread / blockDim.x % blockDim.y,
                                                  thread / (blockDim.x * blockDim.y)};
}

/// Lets others run until this thread is taken again; it must be waiting for something, or ready.
void Multiprocessor::park() {
  const unsigned self = current_, next = take_ready();
  if (next == self) return;
  threads_[self].fiber = &fibers_.running();
  fibers_.switch_to(next == kNone ? fibers_.main() : fiber_of(next));
  if (abandoning_) throw Abandoned{};
  enter(self);
}

/// Where the thread goes on: where it is parked, or a fiber that is to begin it.
Fiber& Multiprocessor::fiber_of(unsigned thread) {
  if (threads_[thread].fiber != nullptr) return *std::exchange(threads_[thread].fiber, nullptr);
  Fiber& fiber = fibers_.take();
  fiber.thread = thread;
  return fiber;
}

unsigned Multiprocessor::take_ready() {
  for (unsigned tried = 0; tried < warp_count_; ++tried) {
    const unsigned w =
        (warps_upwards_ ? first_warp_ + warp_position_ : first_warp_ + warp_count_ - warp_position_) %
        warp_count_;
    Warp& warp = warps_[w];
    if (warp.ready != 0) {
      const unsigned rotated = std::rotr(warp.ready, static_cast<int>(warp.rotation));
      const int found = warp.upwards ? std::countr_zero(rotated) : 31 - std::countl_zero(rotated);
      const unsigned lane = (static_cast<unsigned>(found) + warp.rotation) % kLanes;
      warp.ready &= ~(1U << lane);
      return w * kLanes + lane;
    }
    warp_position_ = (warp_position_ + 1) % warp_count_;
  }
  return kNone;
}

void Multiprocessor::leave(unsigned thread) {
  warps_[thread / kLanes].live &= ~(1U << thread % kLanes);
  --live_;
  if (live_ != 0 && at_barrier_ == live_) release_barrier();
}

void Multiprocessor::begin_phase() {
  first_warp_ = random_->below(warp_count_);
  warps_upwards_ = random_->below(2) != 0;
  warp_position_ = 0;
}

void Multiprocessor::shake(Warp& warp) {
  const std::uint32_t drawn = random_->next();
  warp.rotation = drawn % kLanes;
  warp.upwards = (drawn & 0x100U) != 0;
}

void Multiprocessor::barrier(Site site) {
  if (at_barrier_ == 0) barrier_site_ = site;
  if (!same(site, barrier_site_)) {
    fail("is at " + print(site) + " while another is at the barrier of " + print(barrier_site_) +
         ": all threads of a block must reach the same __syncthreads");
  }
  threads_[current_].site = site;
  warps_[current_ / kLanes].at_barrier |= 1U << lane();
  if (++at_barrier_ == live_) release_barrier();
  park();
}

void Multiprocessor::release_barrier() {
  for (unsigned w = 0; w < warp_count_; ++w) {
    warps_[w].ready |= std::exchange(warps_[w].at_barrier, 0);
    shake(warps_[w]);
  }
  at_barrier_ = 0;
  begin_phase();
}

unsigned Multiprocessor::exchange(Exchange kind, unsigned mask, unsigned bits, unsigned source, Site site) {
  if ((mask >> lane() & 1) == 0) {
    fail("is not in the mask " + hexadecimal(mask) + " that it gives " + print(kind) + " at " + print(site));
  }
  Thread& self = threads_[current_];
  self.site = site;
  self.kind = kind;
  self.mask = mask;
  self.bits = bits;
  self.source = source;
  warps_[current_ / kLanes].exchanging |= 1U << lane();
  if (is_complete(mask)) complete(kind, mask);
  park();
  return self.result;
}

/// Whether all lanes of the mask are here with this mask.
bool Multiprocessor::is_complete(unsigned mask) const {
  if ((warps_[current_ / kLanes].exchanging & mask) != mask) return false;
  for (unsigned left = mask; left != 0; left &= left - 1) {
    if (threads_[warp_begin() + static_cast<unsigned>(std::countr_zero(left))].mask != mask) return false;
  }
  return true;
}

void Multiprocessor::complete(Exchange kind, unsigned mask) {
  const unsigned begin = warp_begin();
  const Site site = threads_[current_].site;
  unsigned voted = 0;
  for (unsigned left = mask; left != 0; left &= left - 1) {
    const unsigned lane = static_cast<unsigned>(std::countr_zero(left));
    const Thread& thread = threads_[begin + lane];
    if (thread.kind != kind || !same(thread.site, site)) {
      fail("is in " + std::string(print(kind)) + " at " + print(site) + " while lane " +
           std::to_string(lane) + " is in " + print(thread.kind) + " at " + print(thread.site) +
           ": all lanes of a mask must execute the same one");
    }
    if (thread.bits != 0) voted |= 1U << lane;
  }
  for (unsigned left = mask; left != 0; left &= left - 1) {
    const unsigned lane = static_cast<unsigned>(std::countr_zero(left));
    Thread& thread = threads_[begin + lane];
    if (kind != Exchange::shuffle) {
      thread.result = voted;
    } else if (thread.source >= kLanes || (mask >> thread.source & 1) == 0) {
      fail("sees lane " + std::to_string(lane) + " read lane " + std::to_string(thread.source) +
           ", which is not in the mask " + hexadecimal(mask) + " of the shuffle at " + print(site));
    } else {
      thread.result = threads_[begin + thread.source].bits;
    }
  }
  Warp& warp = warps_[current_ / kLanes];
  warp.exchanging &= ~mask;
  warp.ready |= mask;
  shake(warp);
  // Now and then another warp goes on here: warps meet elsewhere than at barriers, too.
  if (random_->below(4) == 0) warp_position_ = random_->below(warp_count_);
}

void* Multiprocessor::static_shared(SharedVariable& variable, std::size_t bytes, std::size_t alignment) {
  void* at = shared_.place(variable, bytes, alignment);
  if (at == nullptr) {
    fail("needs " + std::to_string(bytes) +
         " bytes of shared memory more than there are: static and dynamic together " +
         "are at most 48 KiB, in at most 32 variables (dynamic: " + std::to_string(launch_->shared_bytes) +
         ")");
  }
  return at;
}

std::string Multiprocessor::where() const {
  return "kernel " + std::string(launch_->kernel) + ", block " + print(blockIdx);
}

void Multiprocessor::fail(const std::string& text) {
  failure_ = where() + ", thread " + print(threadIdx) + " " + text;
  throw Abandoned{};
}

/// "kernel k, block (0, 0, 0) is stuck: 1 wait in __syncthreads at a.cu:7, 31 have returned. ..."
std::string Multiprocessor::describe_stuck() const {
  struct Group {
    std::string place;
    unsigned first, count;
  };
  std::vector<Group> groups;
  for (unsigned t = 0; t < thread_count_; ++t) {
    const Warp& warp = warps_[t / kLanes];
    const Thread& thread = threads_[t];
    std::string place = "have returned";
    if ((warp.at_barrier >> t % kLanes & 1) != 0) {
      place = "wait in __syncthreads at " + print(thread.site);
    } else if ((warp.exchanging >> t % kLanes & 1) != 0) {
      const unsigned missing = thread.mask & ~warp.exchanging;
      place = "wait in " + std::string(print(thread.kind)) + " at " + print(thread.site) + " with mask " +
              hexadecimal(thread.mask) +
              (missing == 0 ? "" : ", of which " + hexadecimal(missing) + " did not come");
    }
    const auto known =
        std::find_if(groups.begin(), groups.end(), [&](const Group& g) { return g.place == place; });
    if (known == groups.end()) {
      groups.push_back({place, t, 1});
    } else {
      ++known->count;
    }
  }
  std::string text = where() + " is stuck: ";
  for (const Group& group : groups) {
    text += std::to_string(group.count) + " threads (the first: " + std::to_string(group.first) + ") " +
            group.place + "; ";
  }
  return text +
         "all live threads must reach the same __syncthreads, and all lanes of a mask the same exchange";
}

Multiprocessor& multiprocessor() {
  static Multiprocessor only;
  return only;
}

}  // namespace

void barrier(Site site) { multiprocessor().barrier(site); }

unsigned exchange(Exchange kind, unsigned mask, unsigned bits, unsigned source, Site site) {
  return multiprocessor().exchange(kind, mask, bits, source, site);
}

unsigned lane() { return multiprocessor().lane(); }

void* dynamic_shared() { return multiprocessor().dynamic_shared(); }

void* static_shared(SharedVariable& variable, std::size_t bytes, std::size_t alignment) {
  return multiprocessor().static_shared(variable, bytes, alignment);
}

std::string run(const Launch& launch, const std::function<void()>& thread, Random& random) {
  return multiprocessor().run(launch, thread, random);
}

}  // namespace stoker::emulation
