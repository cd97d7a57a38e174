#include "tests/unit/model/count_allocations.h"

#include <atomic>
#include <cstdlib>
#include <new>

namespace {

std::atomic<bool> g_counting{false};
std::atomic<std::uint64_t> g_count{0};

/// Null when there is no memory.
void* try_allocate(std::size_t size, std::size_t align) noexcept {
  if (g_counting.load(std::memory_order_relaxed)) g_count.fetch_add(1);
  // malloc itself stays as it is, so sanitizers still see every block.
  return align == 0 ? std::malloc(size == 0 ? 1 : size)
                    : std::aligned_alloc(align, (size + align - 1) / align * align);
}

void* allocate(std::size_t size, std::size_t align) {
  void* p = try_allocate(size, align);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}

}  // namespace

void* operator new(std::size_t size) { return allocate(size, 0); }
void* operator new[](std::size_t size) { return allocate(size, 0); }
void* operator new(std::size_t size, std::align_val_t align) {
  return allocate(size, static_cast<std::size_t>(align));
}
void* operator new[](std::size_t size, std::align_val_t align) {
  return allocate(size, static_cast<std::size_t>(align));
}
// Replaced too, although the defaults would call ours: a sanitizer's own would not.
void* operator new(std::size_t size, const std::nothrow_t&) noexcept { return try_allocate(size, 0); }
void* operator new[](std::size_t size, const std::nothrow_t&) noexcept { return try_allocate(size, 0); }
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }

namespace stoker::testing {

void start_counting_allocations() {
  g_count = 0;
  g_counting = true;
}

std::uint64_t stop_counting_allocations() {
  g_counting = false;
  return g_count;
}

}  // namespace stoker::testing
