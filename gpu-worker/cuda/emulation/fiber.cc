#include "gpu-worker/cuda/emulation/fiber.h"

// The lower half of Boost.Context. Its class `fiber` unwinds the stacks of fibers that have not ended, behind
// the sanitizers' back; ours never end.
#include <boost/context/detail/fcontext.hpp>
#include <boost/context/protected_fixedsize_stack.hpp>

#if defined(__SANITIZE_ADDRESS__)
#define STOKER_ASAN 1
#elif defined(__SANITIZE_THREAD__)
#define STOKER_TSAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define STOKER_ASAN 1
#elif __has_feature(thread_sanitizer)
#define STOKER_TSAN 1
#endif
#endif

#if defined(STOKER_ASAN)
#include <sanitizer/common_interface_defs.h>
#elif defined(STOKER_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

namespace stoker::emulation {
namespace {

using boost::context::detail::transfer_t;

// A kernel's frame is small. Sanitizers put red zones around each variable; their frames take several times
// more.
#if defined(STOKER_ASAN) || defined(STOKER_TSAN)
constexpr std::size_t kStackBytes = 256 << 10;
#else
constexpr std::size_t kStackBytes = 64 << 10;
#endif

#if defined(STOKER_ASAN)
void make_shadow(Fiber&) {}
void before_switch(Fiber& from, Fiber& to, const Fiber&) {
  __sanitizer_start_switch_fiber(&from.fake_stack, to.stack, to.stack_bytes);
}
void after_switch(Fiber& to, Fiber& from) {
  __sanitizer_finish_switch_fiber(to.fake_stack, &from.stack, &from.stack_bytes);
}
#elif defined(STOKER_TSAN)
void make_shadow(Fiber& fiber) { fiber.shadow = __tsan_create_fiber(0); }
void before_switch(Fiber& from, Fiber& to, const Fiber& main) {
  if (&from == &main) from.shadow = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(to.shadow, 0);
}
void after_switch(Fiber&, Fiber&) {}
#else
void make_shadow(Fiber&) {}
void before_switch(Fiber&, Fiber&, const Fiber&) {}
void after_switch(Fiber&, Fiber&) {}
#endif

}  // namespace

/// Owns the stack. The page below it is protected: a kernel that needs more faults instead of writing
/// elsewhere.
struct FiberPool::Pooled : Fiber {
  boost::context::protected_fixedsize_stack allocator{kStackBytes};
  boost::context::stack_context memory = allocator.allocate();

  explicit Pooled(void (*entry)(transfer_t)) {
    context = boost::context::detail::make_fcontext(memory.sp, memory.size, entry);
    stack = static_cast<const std::byte*>(memory.sp) - memory.size;
    stack_bytes = memory.size;
    make_shadow(*this);
  }
  ~Pooled() {
#if defined(STOKER_TSAN)
    __tsan_destroy_fiber(shadow);
#endif
    allocator.deallocate(memory);
  }
  Pooled(const Pooled&) = delete;
  Pooled& operator=(const Pooled&) = delete;
};

struct Entry {
  [[noreturn]] static void enter(transfer_t from) {
    FiberPool& pool = *static_cast<FiberPool*>(from.data);
    pool.arrive(from.fctx);
    Fiber& self = *pool.running_;
    for (;;) {
      Fiber& next = pool.task_(self);
      pool.idle_.push_back(&self);
      pool.switch_to(next);
    }
  }
};

FiberPool::FiberPool(Task task) : task_(std::move(task)) {}

FiberPool::~FiberPool() = default;

Fiber& FiberPool::take() {
  if (idle_.empty()) {
    fibers_.push_back(std::make_unique<Pooled>(&Entry::enter));
    return *fibers_.back();
  }
  Fiber& fiber = *idle_.back();
  idle_.pop_back();
  return fiber;
}

void FiberPool::switch_to(Fiber& to) {
  leaving_ = running_;
  running_ = &to;
  before_switch(*leaving_, to, main_);
  arrive(boost::context::detail::jump_fcontext(to.context, this).fctx);
}

void FiberPool::arrive(void* left) {
  after_switch(*running_, *leaving_);
  leaving_->context = left;
}

}  // namespace stoker::emulation
