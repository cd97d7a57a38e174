// The host half of the emulation: streams, events, copies, memory, graphs. Kernels: emulation_test.cc.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <thread>
#include <vector>

#include "gpu-worker/cuda/kernel_language.h"
#include "tests/unit/cuda/emulated_gpu.h"

namespace stoker::device {
namespace {

constexpr std::uint64_t kLate = 1, kEager = 4;
constexpr unsigned kSeeds = 30;

__global__ void add(unsigned* p, unsigned value) { p[threadIdx.x] += value; }
__global__ void multiply(unsigned* p, unsigned factor) { p[threadIdx.x] *= factor; }
__global__ void write_at(float* p, int index) { p[index] = 1; }

TEST_CASE("a stream keeps its order, late and eager") {
  for (unsigned seed = 1; seed <= kSeeds; ++seed) {
    EmulatedGpu gpu(seed);
    Stream* s = gpu.stream();
    unsigned* p = gpu.alloc<unsigned>(8);
    REQUIRE(text(runtime::clear(p, 8 * sizeof *p, s)) == "");
    REQUIRE(text(STOKER_LAUNCH(add, 1, 8, 0, s, p, 3U)) == "");
    REQUIRE(text(STOKER_LAUNCH(multiply, 1, 8, 0, s, p, 5U)) == "");
    REQUIRE(text(STOKER_LAUNCH(add, 1, 8, 0, s, p, 1U)) == "");
    REQUIRE(gpu.read(p, 8, s) == std::vector<unsigned>(8, 16));
  }
}

/// (0 + 3) * 5 on two streams; 0 * 5 + 3 when the second does not wait for the first.
unsigned on_two_streams(unsigned seed, bool with_event) {
  EmulatedGpu gpu(seed);
  Stream *first = gpu.stream(), *second = gpu.stream();
  Event* added = gpu.event();
  unsigned* p = gpu.alloc<unsigned>(1);
  REQUIRE(text(runtime::clear(p, sizeof *p, first)) == "");
  REQUIRE(text(runtime::synchronize(first)) == "");
  REQUIRE(text(STOKER_LAUNCH(add, 1, 1, 0, first, p, 3U)) == "");
  REQUIRE(text(runtime::record(added, first)) == "");
  if (with_event) REQUIRE(text(runtime::wait(second, added)) == "");
  REQUIRE(text(STOKER_LAUNCH(multiply, 1, 1, 0, second, p, 5U)) == "");
  REQUIRE(text(runtime::synchronize(second)) == "");
  REQUIRE(text(runtime::synchronize(first)) == "");
  return gpu.read(p, 1, first)[0];
}

TEST_CASE("only events order streams") {
  unsigned wrong = 0;
  for (unsigned seed = 1; seed <= kSeeds; ++seed) {
    REQUIRE(on_two_streams(seed, true) == 15);
    wrong += on_two_streams(seed, false) != 15;
  }
  CHECK(wrong > kSeeds / 6);
  CHECK(wrong < kSeeds);
}

TEST_CASE("a wait is for the latest record before it") {
  for (unsigned seed = 1; seed <= kSeeds; ++seed) {
    EmulatedGpu gpu(seed);
    Stream *first = gpu.stream(), *second = gpu.stream();
    Event* e = gpu.event();
    unsigned* p = gpu.alloc<unsigned>(1);
    REQUIRE(text(runtime::clear(p, sizeof *p, first)) == "");
    REQUIRE(text(runtime::record(e, first)) == "");
    REQUIRE(text(STOKER_LAUNCH(add, 1, 1, 0, first, p, 2U)) == "");
    REQUIRE(text(runtime::record(e, first)) == "");
    REQUIRE(text(runtime::wait(second, e)) == "");
    // Not the one that comes now, which would be a deadlock.
    REQUIRE(text(STOKER_LAUNCH(multiply, 1, 1, 0, second, p, 7U)) == "");
    REQUIRE(text(runtime::record(e, second)) == "");
    REQUIRE(text(runtime::wait(first, e)) == "");
    REQUIRE(text(STOKER_LAUNCH(add, 1, 1, 0, first, p, 1U)) == "");
    REQUIRE(gpu.read(p, 1, first)[0] == 15);
  }
}

TEST_CASE("events: never recorded, asked for, waited for, timed") {
  EmulatedGpu gpu;
  Stream* s = gpu.stream();
  Event *e = gpu.event(), *begin = gpu.event(true), *end = gpu.event(true);
  unsigned* p = gpu.alloc<unsigned>(1);
  bool fired = false;
  REQUIRE(text(runtime::wait_host(e)) == "");
  REQUIRE(text(runtime::wait(s, e)) == "");
  REQUIRE(text(runtime::query(e, &fired)) == "");
  CHECK(fired);
  REQUIRE(text(runtime::record(begin, s)) == "");
  for (unsigned i = 0; i < 10; ++i) REQUIRE(text(STOKER_LAUNCH(add, 1, 1, 0, s, p, 1U)) == "");
  REQUIRE(text(runtime::record(end, s)) == "");
  REQUIRE(text(runtime::record(e, s)) == "");
  float milliseconds = 0;
  CHECK(says(text(runtime::elapsed(begin, end, &milliseconds)), "has not fired"));
  unsigned asked = 0;
  for (fired = false; !fired && asked < 1000; ++asked) REQUIRE(text(runtime::query(e, &fired)) == "");
  CHECK(fired);
  CHECK(asked > 1);
  REQUIRE(text(runtime::elapsed(begin, end, &milliseconds)) == "");
  CHECK(milliseconds == Approx(0.011));
  CHECK(says(text(runtime::elapsed(begin, e, &milliseconds)), "timed"));
  runtime::free_event(e);
  CHECK(says(text(runtime::record(e, s)), "not an event"));
}

/// What arrives when the source changes after the copy was enqueued.
unsigned arrives(std::uint64_t seed, bool pinned) {
  EmulatedGpu gpu(seed);
  Stream* s = gpu.stream();
  unsigned* p = gpu.alloc<unsigned>(1);
  unsigned pageable = 0;
  unsigned* source = pinned ? gpu.alloc_host<unsigned>(1) : &pageable;
  *source = 1;
  REQUIRE(text(runtime::to_device(p, source, sizeof *p, s)) == "");
  *source = 2;
  return gpu.read(p, 1, s)[0];
}

TEST_CASE("copies from pinned memory are late: a source that is used again too early shows") {
  CHECK(arrives(kLate, true) == 2);
  CHECK(arrives(kEager, true) == 1);
  CHECK(arrives(kLate, false) == 1);
  CHECK(arrives(kEager, false) == 1);
}

TEST_CASE("copies from pageable memory keep the stream's order") {
  EmulatedGpu gpu;
  Stream* s = gpu.stream();
  unsigned *p = gpu.alloc<unsigned>(1), *q = gpu.alloc<unsigned>(1);
  unsigned value = 1;
  REQUIRE(text(runtime::to_device(p, &value, sizeof value, s)) == "");
  REQUIRE(text(runtime::on_device(q, p, sizeof value, s)) == "");
  value = 2;
  REQUIRE(text(runtime::to_device(p, &value, sizeof value, s)) == "");
  CHECK(gpu.read(q, 1, s)[0] == 1);
  CHECK(gpu.read(p, 1, s)[0] == 2);
}

TEST_CASE("copies to pinned memory are late too") {
  EmulatedGpu gpu;
  Stream* s = gpu.stream();
  unsigned* p = gpu.alloc<unsigned>(1);
  unsigned* arrived = gpu.alloc_host<unsigned>(1);
  CHECK(*arrived == 0xFFFFFFFFU);
  REQUIRE(text(runtime::clear(p, sizeof *p, s)) == "");
  REQUIRE(text(runtime::to_host(arrived, p, sizeof *p, s)) == "");
  CHECK(*arrived == 0xFFFFFFFFU);
  REQUIRE(text(runtime::synchronize(s)) == "");
  CHECK(*arrived == 0);
}

TEST_CASE("pinned memory: whole ranges only, and not freed under a copy") {
  EmulatedGpu gpu;
  Stream* s = gpu.stream();
  std::byte* p = gpu.alloc<std::byte>(300);
  std::vector<std::byte> host(300, std::byte{7});
  REQUIRE(text(runtime::register_host(host.data(), 100)) == "");
  REQUIRE(text(runtime::register_host(host.data() + 100, 100)) == "");
  CHECK(says(text(runtime::register_host(host.data() + 50, 100)), "registered already"));
  CHECK(says(text(runtime::register_host(p, 100)), "device memory"));
  REQUIRE(text(runtime::to_device(p, host.data() + 100, 100, s)) == "");
  CHECK(says(text(runtime::to_device(p, host.data() + 50, 100, s)), "only in part in one pinned range"));
  CHECK(says(text(runtime::to_host(host.data() + 150, p, 100, s)), "only in part in one pinned range"));
  REQUIRE(text(runtime::synchronize(s)) == "");
  runtime::unregister_host(host.data() + 100);
  REQUIRE(text(runtime::synchronize(s)) == "");
  REQUIRE(text(runtime::to_device(p, host.data(), 100, s)) == "");
  runtime::unregister_host(host.data());
  CHECK(says(text(runtime::synchronize(s)), "unregister_host: to_device on stream 1 has not run yet"));
}

TEST_CASE("device memory: aligned, NaN, limited, told apart from host memory") {
  EmulatedGpu gpu(1, 1 << 20);
  Stream* s = gpu.stream();
  CHECK(gpu.info.memory_total == 1 << 20);
  float* a = gpu.alloc<float>(3);
  auto* b = gpu.alloc<std::byte>(1);
  CHECK(reinterpret_cast<std::uintptr_t>(a) % 256 == 0);
  CHECK(reinterpret_cast<std::uintptr_t>(b) % 256 == 0);
  for (const float v : gpu.read(a, 3, s)) CHECK(std::isnan(v));
  std::uint64_t free = 0, total = 0;
  REQUIRE(text(runtime::memory(&free, &total)) == "");
  CHECK(free == total - 13);
  void* large = a;
  const std::string refused = text(runtime::alloc(1 << 20, &large));
  CHECK(says(refused, "alloc: out of device memory: 1048576 bytes asked for, 13 of 1048576 in use"));
  CHECK(large == nullptr);
  CHECK(runtime::fault() == Fault::memory);
  CHECK(says(text(runtime::clear(nullptr, 1, s)), "not within one allocation"));
  CHECK(runtime::fault() == Fault::other);
  runtime::free(a);
  runtime::free(b);
  REQUIRE(text(runtime::alloc(1 << 20, &large)) == "");

  float host[4] = {};
  CHECK(says(text(runtime::to_device(large, b, 1, s)), "host pointer points to device memory"));
  CHECK(says(text(runtime::to_device(host, host, 1, s)), "not within one allocation"));
  CHECK(says(text(runtime::to_host(host, large, (1 << 20) + 1, s)), "not within one allocation"));
  CHECK(says(text(runtime::clear(nullptr, 1, s)), "not within one allocation"));
  auto* bytes = static_cast<std::byte*>(large);
  CHECK(says(text(runtime::on_device(bytes, bytes + 8, 9, s)), "overlap"));
  REQUIRE(text(runtime::on_device(bytes, bytes + 8, 8, s)) == "");
  REQUIRE(text(runtime::synchronize(s)) == "");
}

#if !defined(__SANITIZE_ADDRESS__)  // which stops the kernel itself
TEST_CASE("a write beyond an allocation is reported when it is freed") {
  for (const int index : {-1, 10}) {
    EmulatedGpu gpu;
    Stream* s = gpu.stream();
    float* p = gpu.alloc<float>(10);
    REQUIRE(text(STOKER_LAUNCH(write_at, 1, 1, 0, s, p, index)) == "");
    runtime::free(p);
    const std::string status = text(runtime::synchronize(s));
    CHECK(says(status, index < 0 ? "before the beginning of an allocation of 40 bytes"
                                 : "behind the end of an allocation"));
  }
}
#endif

/// Runs in a child, which must not survive it.
template <class Body>
bool dies(const Body& body) {
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    (void)!::freopen("/dev/null", "w", stderr);
    for (const int signal : {SIGSEGV, SIGABRT}) ::signal(signal, SIG_DFL);
    body();
    ::_exit(0);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  return !WIFEXITED(status) || WEXITSTATUS(status) != 0;
}

TEST_CASE("the host cannot touch device memory") {
  EmulatedGpu gpu;
  float* p = gpu.alloc<float>(1);
  CHECK(dies([&] { *p = 1; }));
  CHECK_FALSE(dies([] {}));
}

TEST_CASE("a write beyond an allocation ends the process when the device is closed") {
  EmulatedGpu gpu;
  Stream* s = gpu.stream();
  float* p = gpu.alloc<float>(10);
  CHECK(dies([&] {
    if (STOKER_LAUNCH(write_at, 1, 1, 0, s, p, 10) != nullptr || runtime::synchronize(s) != nullptr)
      ::_exit(0);
    runtime::close();
  }));
}

TEST_CASE("freeing twice, or what is not memory, is reported") {
  EmulatedGpu gpu;
  Stream* s = gpu.stream();
  runtime::free(nullptr);
  float* p = gpu.alloc<float>(1);
  runtime::free(p);
  REQUIRE(text(runtime::synchronize(s)) == "");
  runtime::free(p);
  CHECK(says(text(runtime::synchronize(s)), "free: free of memory that alloc() did not give"));
}

TEST_CASE("a captured graph can be launched again, and reads its memory at that time") {
  for (unsigned seed = 1; seed <= kSeeds; ++seed) {
    EmulatedGpu gpu(seed);
    Stream *s = gpu.stream(), *other = gpu.stream();
    unsigned *p = gpu.alloc<unsigned>(2), *input = gpu.alloc_host<unsigned>(1);
    REQUIRE(text(runtime::clear(p, 2 * sizeof *p, s)) == "");
    *input = 5;
    REQUIRE(text(runtime::begin_capture(s)) == "");
    REQUIRE(text(runtime::to_device(p, input, sizeof *p, s)) == "");
    REQUIRE(text(STOKER_LAUNCH(multiply, 1, 1, 0, s, p, 10U)) == "");
    REQUIRE(text(STOKER_LAUNCH(add, 1, 1, 0, s, p + 1, 1U)) == "");
    Graph* graph = nullptr;
    REQUIRE(text(runtime::end_capture(s, &graph)) == "");
    CHECK(gpu.read(p, 2, s) == std::vector<unsigned>{0, 0});
    for (unsigned i = 1; i <= 3; ++i) {
      *input = i;
      Stream* on = i == 2 ? other : s;
      REQUIRE(text(runtime::launch(graph, on)) == "");
      CHECK(gpu.read(p, 2, on) == std::vector<unsigned>{10 * i, i});
    }
    REQUIRE(text(runtime::launch(graph, s)) == "");
    runtime::free_graph(graph);
    CHECK(gpu.read(p, 2, s) == std::vector<unsigned>{30, 4});
    CHECK(says(text(runtime::launch(graph, s)), "not a graph"));
  }
}

TEST_CASE("what cannot be captured is refused") {
  EmulatedGpu gpu;
  Stream* s = gpu.stream();
  Event* e = gpu.event();
  unsigned* p = gpu.alloc<unsigned>(1);
  REQUIRE(text(runtime::begin_capture(s)) == "");
  unsigned pageable = 1;
  void* out = nullptr;
  CHECK(says(text(runtime::begin_capture(s)), "captured already"));
  CHECK(says(text(runtime::record(e, s)), "not supported"));
  CHECK(says(text(runtime::wait(s, e)), "not supported"));
  CHECK(says(text(runtime::synchronize(s)), "being captured"));
  CHECK(says(text(runtime::alloc(1, &out)), "being captured"));
  CHECK(says(text(runtime::to_device(p, &pageable, sizeof *p, s)), "needs pinned memory"));
  CHECK(says(text(runtime::to_host(&pageable, p, sizeof *p, s)), "needs pinned memory"));
  Graph *graph = nullptr, *again = nullptr;
  REQUIRE(text(runtime::end_capture(s, &graph)) == "");
  CHECK(says(text(runtime::end_capture(s, &again)), "not being captured"));
  REQUIRE(text(runtime::launch(graph, s)) == "");
  REQUIRE(text(runtime::synchronize(s)) == "");
}

TEST_CASE("a stream that is freed still does its work") {
  EmulatedGpu gpu;
  Stream *s = gpu.stream(), *other = gpu.stream();
  Event* e = gpu.event();
  unsigned* p = gpu.alloc<unsigned>(1);
  REQUIRE(text(runtime::clear(p, sizeof *p, s)) == "");
  REQUIRE(text(runtime::record(e, s)) == "");
  runtime::free_stream(s);
  CHECK(says(text(runtime::synchronize(s)), "not a stream"));
  REQUIRE(text(runtime::wait(other, e)) == "");
  CHECK(gpu.read(p, 1, other)[0] == 0);
}

TEST_CASE("threads must be bound; a device is opened once") {
  {
    EmulatedGpu gpu;
    Info info{};
    CHECK(says(text(runtime::open(0, &info)), "open already"));
    std::thread([] {
      std::uint64_t free = 0, total = 0;
      CHECK(says(text(runtime::memory(&free, &total)), "bind_thread"));
      CHECK(text(runtime::bind_thread()) == "");
      CHECK(text(runtime::memory(&free, &total)) == "");
    }).join();
  }
  std::uint64_t free = 0, total = 0;
  CHECK(says(text(runtime::memory(&free, &total)), "no device is open"));
  Info info{};
  CHECK(says(text(runtime::open(1, &info)), "only device 0"));
  ::setenv("STOKER_EMULATION_SEED", "first", 1);
  CHECK(says(text(runtime::open(0, &info)), "whole numbers"));
}

TEST_CASE("trouble: a kernel that fails leaves a device that fails") {
  const EmulatedTrouble trouble("kernel:2");
  EmulatedGpu gpu;
  Stream *s = gpu.stream(), *other = gpu.stream();
  unsigned* p = gpu.alloc<unsigned>(1);
  REQUIRE(text(STOKER_LAUNCH(add, 1, 1, 0, s, p, 1U)) == "");
  REQUIRE(text(runtime::synchronize(s)) == "");
  REQUIRE(text(STOKER_LAUNCH(add, 1, 1, 0, s, p, 1U)) == "");
  CHECK(says(text(runtime::synchronize(s)), "add on stream 1: an illegal address"));
  for (int i = 0; i < 2; ++i) CHECK(says(text(runtime::synchronize(other)), "an illegal address"));
  void* out = nullptr;
  CHECK(says(text(runtime::alloc(1, &out)), "an illegal address"));
  CHECK(runtime::fault() == Fault::other);
}

TEST_CASE("trouble that is not known is refused") {
  for (const char* text_of_it : {"bad-weather", "kernel:", "kernel:x"}) {
    const EmulatedTrouble trouble(text_of_it);
    ::setenv("STOKER_EMULATION_SEED", "1", 1);
    Info info{};
    CHECK(says(text(runtime::open(0, &info)), "STOKER_EMULATION_TROUBLE"));
  }
}

}  // namespace
}  // namespace stoker::device
