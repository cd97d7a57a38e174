// The emulation's half of the table that has no kernels. Checks what CUDA would refuse, or leave to chance.
//
//   STOKER_EMULATED_VRAM      bytes of device memory, default 64 GiB (only what is used is really taken)
//   STOKER_EMULATION_SEED     the order of everything that is not ordered, default 1; device.h tells of seeds
//   STOKER_EMULATION_TROUBLE  what does not work on this device, default nothing (trouble.h)
// All are read by open(), the last one by count() too.
#include <array>
#include <atomic>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <optional>
#include <string_view>

#include "gpu-worker/cuda/emulation/device.h"
#include "gpu-worker/cuda/emulation/emulation.h"
#include "gpu-worker/cuda/emulation/shared_memory.h"
#include "gpu-worker/cuda/module.h"
#include "shm/base/check.h"

namespace stoker::device {
namespace {

using emulation::Operation;
using emulation::Recording;
using EmulatedStream = emulation::Stream;
using EmulatedEvent = emulation::Event;

constexpr std::uint64_t kDefaultMemoryBytes = 64ULL << 30;

std::unique_ptr<emulation::Device> gpu;
std::uint64_t session = 0;  ///< counts open()
std::atomic<bool> busy{false};
thread_local std::uint64_t bound_session = 0;
thread_local std::array<char, 2048> status_text;
thread_local Fault status_fault = Fault::other;

Status say(const char* call, const std::string& text, Fault fault = Fault::other) {
  if (text.empty()) return nullptr;
  status_fault = fault;
  std::snprintf(status_text.data(), status_text.size(), "%s: %s", call, text.c_str());
  return status_text.data();
}

/// Tells of a second thread that calls in at the same time.
class Turn {
 public:
  Turn() : alone_(!busy.exchange(true)) {}
  ~Turn() {
    if (alone_) busy.store(false);
  }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;
  [[nodiscard]] bool alone() const { return alone_; }

 private:
  bool alone_;
};

/// Calls body(device) for the rules that all calls share; body returns a text, empty when all went well.
template <class Body>
Status on_gpu(const char* call, const Body& body) {
  const Turn turn;
  if (!turn.alone()) return say(call, "two threads call the device module at once");
  if (gpu == nullptr) return say(call, "no device is open");
  if (bound_session != session) return say(call, "this thread has not called bind_thread()");
  if (!gpu->failure().empty()) return say(call, gpu->failure());
  return say(call, body(*gpu));
}

/// The same for calls that cannot return a status: what went wrong is told by the next one that can.
template <class Body>
void on_gpu_later(const char* call, const Body& body) {
  std::string text;
  const Status status = on_gpu(call, [&](emulation::Device& d) { return text = body(d); });
  if (!text.empty()) {
    gpu->set_failure(std::string(call) + ": " + text);
  } else if (status != nullptr && (gpu == nullptr || gpu->failure().empty())) {
    std::fprintf(stderr, "stoker emulation: %s\n", status);
  }
}

/// For calls about a stream. `s` may be null or stale.
template <class Body>
Status on_stream(const char* call, Stream* s, const Body& body) {
  return on_gpu(call, [&](emulation::Device& d) -> std::string {
    EmulatedStream* stream = d.find(s);
    return stream == nullptr ? "this is not a stream, or it has been freed" : body(d, *stream);
  });
}

template <class Body>
Status on_event(const char* call, Event* e, const Body& body) {
  return on_gpu(call, [&](emulation::Device& d) -> std::string {
    EmulatedEvent* event = d.find_event(e);
    return event == nullptr ? "this is not an event, or it has been freed" : body(d, *event);
  });
}

constexpr char kNotInCapture[] = "not possible while a stream is being captured";

/// Value of the environment variable; nothing when it is not a number.
std::optional<std::uint64_t> number_from(const char* variable, std::uint64_t otherwise) {
  const char* text = std::getenv(variable);
  if (text == nullptr) return otherwise;
  std::uint64_t value = 0;
  const char* end = text + std::strlen(text);
  const auto [stop, error] = std::from_chars(text, end, value);
  if (error != std::errc() || stop != end) return std::nullopt;
  return value;
}

std::optional<emulation::Trouble> trouble_from_environment() {
  const char* text = std::getenv("STOKER_EMULATION_TROUBLE");
  return emulation::Trouble::parse(text == nullptr ? "" : text);
}

std::string check_size(const emulation::Launch& launch) {
  const dim3 g = launch.grid, b = launch.block;
  const auto print = [](dim3 d) {
    return std::to_string(d.x) + " x " + std::to_string(d.y) + " x " + std::to_string(d.z);
  };
  const std::uint64_t threads = std::uint64_t{b.x} * b.y * b.z;
  if (threads == 0 || b.x > 1024 || b.y > 1024 || b.z > 64 || threads > 1024) {
    return "a block of " + print(b) + " threads; 1 to 1024 are possible";
  }
  if (g.x == 0 || g.y == 0 || g.z == 0 || g.x > 0x7FFF'FFFF || g.y > 65535 || g.z > 65535) {
    return "a grid of " + print(g) + " blocks; 1 to 2147483647 x 65535 x 65535 are possible";
  }
  if (std::uint64_t{g.x} * g.y > 0xFFFF'FFFF / g.z)
    return "a grid of " + print(g) + " blocks is too much to emulate";
  if (launch.shared_bytes > emulation::kSharedBytesMax) {
    return std::to_string(launch.shared_bytes) +
           " bytes of dynamic shared memory; at most 48 KiB are possible";
  }
  return {};
}

std::string check_host(const emulation::Device& d, const void* p) {
  if (p == nullptr) return "the host pointer is null";
  return d.memory.owns(p) ? "the host pointer points to device memory" : "";
}

std::string check_device(const emulation::Device& d, const void* p, std::uint64_t bytes) {
  if (d.memory.holds(p, bytes)) return {};
  std::array<char, 64> at{};
  std::snprintf(at.data(), at.size(), "%p", p);
  return std::to_string(bytes) + " bytes at " + at.data() + " are not within one allocation of device memory";
}

/// CUDA refuses a copy that begins in one registered range and ends outside of it.
constexpr char kPartlyPinned[] =
    "the host memory is only in part in one pinned range; CUDA refuses that: split the copy";

std::string copy(void* to, const void* from, std::uint64_t bytes) {
  std::memcpy(to, from, bytes);
  return {};
}

Operation host_copy(const char* what, void* to, const void* from, const void* host, std::uint64_t bytes) {
  return {.what = what,
          .run = [to, from, bytes] { return copy(to, from, bytes); },
          .after = nullptr,
          .host = static_cast<const std::byte*>(host),
          .host_bytes = bytes};
}

}  // namespace

namespace runtime {

const char kKind[] = "emulation";

Fault fault() { return status_fault; }

Status count(std::uint32_t* devices) {
  *devices = 0;
  auto trouble = trouble_from_environment();
  if (trouble && trouble->strikes("no-driver")) return say("count", "there is no driver", Fault::no_driver);
  if (trouble && trouble->strikes("driver"))
    return say("count", "the driver supports CUDA 12.2, this module needs 13.0: update it",
               Fault::unsupported);
  *devices = 1;
  return nullptr;
}

Status open(std::uint32_t device, Info* info) {
  const Turn turn;
  if (!turn.alone()) return say("open", "two threads call the device module at once");
  if (gpu != nullptr) return say("open", "a device is open already");
  if (device != 0) return say("open", "there is only device 0");
  const auto total = number_from("STOKER_EMULATED_VRAM", kDefaultMemoryBytes);
  const auto seed = number_from("STOKER_EMULATION_SEED", 1);
  if (!total || !seed)
    return say("open", "STOKER_EMULATED_VRAM and STOKER_EMULATION_SEED must be whole numbers");
  const auto trouble = trouble_from_environment();
  if (!trouble) return say("open", "STOKER_EMULATION_TROUBLE is none that emulation/trouble.h knows");
  auto opened = std::make_unique<emulation::Device>(*seed);
  opened->trouble = *trouble;
  if (std::string text = opened->memory.reserve(*total); !text.empty()) return say("open", text);
  gpu = std::move(opened);
  bound_session = ++session;
  // The least that cuda_runtime.cu accepts.
  *info = {"emulated GPU", 7, 5, 1, 0, 0, *total, *total};
  return nullptr;
}

Status bind_thread() {
  bound_session = session;
  return on_gpu("bind_thread", [](emulation::Device&) { return std::string(); });
}

Status memory(std::uint64_t* free, std::uint64_t* total) {
  return on_gpu("memory", [&](emulation::Device& d) {
    *total = d.memory.total_bytes();
    *free = *total - d.memory.used_bytes();
    return std::string();
  });
}

void close() {
  const Turn turn;
  if (gpu == nullptr) return;
  const std::string damage = gpu->memory.check();
  if (!damage.empty()) std::fprintf(stderr, "stoker emulation: close: %s\n", damage.c_str());
  STOKER_CHECK(damage.empty());
  gpu = nullptr;
}

Status alloc(std::uint64_t bytes, void** out) {
  *out = nullptr;
  bool full = false;
  const Status status = on_gpu("alloc", [&](emulation::Device& d) -> std::string {
    if (d.capturing()) return kNotInCapture;
    if (bytes == 0) return {};
    std::string text = d.memory.alloc(bytes, out);
    full = !text.empty();
    return text;
  });
  if (full) status_fault = Fault::memory;
  return status;
}

void free(void* p) {
  if (p == nullptr) return;
  // cudaFree waits for the device, too: users rely on it.
  on_gpu_later("free", [&](emulation::Device& d) -> std::string {
    if (d.capturing()) return kNotInCapture;
    if (std::string text = d.drain(); !text.empty()) return text;
    return d.memory.free(p);
  });
}

Status alloc_host(std::uint64_t bytes, void** out) {
  *out = nullptr;
  return on_gpu("alloc_host", [&](emulation::Device& d) -> std::string {
    if (d.capturing()) return kNotInCapture;
    if (bytes == 0) return {};
    constexpr std::align_val_t kPage{4096};
    void* p = ::operator new(bytes, kPage, std::nothrow);
    if (p == nullptr) return "out of host memory for " + std::to_string(bytes) + " bytes";
    std::memset(p, 0xFF, bytes);
    *out = p;
    return d.pin(static_cast<std::byte*>(p), bytes, {p, [](void* q) { ::operator delete(q, kPage); }});
  });
}

void free_host(void* p) {
  if (p == nullptr) return;
  on_gpu_later("free_host", [&](emulation::Device& d) { return d.unpin(p); });
}

Status register_host(void* p, std::uint64_t bytes) {
  return on_gpu("register_host", [&](emulation::Device& d) -> std::string {
    if (d.capturing()) return kNotInCapture;
    if (d.trouble.strikes("pin")) return "this memory cannot be pinned (STOKER_EMULATION_TROUBLE)";
    return d.pin(static_cast<std::byte*>(p), bytes, nullptr);
  });
}

void unregister_host(void* p) {
  on_gpu_later("unregister_host", [&](emulation::Device& d) { return d.unpin(p); });
}

Status new_stream(bool, Stream** out) {
  return on_gpu("new_stream", [&](emulation::Device& d) {
    *out = reinterpret_cast<Stream*>(&d.new_stream());
    return std::string();
  });
}

void free_stream(Stream* s) {
  if (s == nullptr) return;
  on_gpu_later("free_stream", [&](emulation::Device& d) -> std::string {
    EmulatedStream* stream = d.find(s);
    if (stream == nullptr) return "this is not a stream, or it has been freed";
    d.free(*stream);
    return {};
  });
}

Status synchronize(Stream* s) {
  return on_stream("synchronize", s, [](emulation::Device& d, EmulatedStream& stream) -> std::string {
    if (d.capturing()) return kNotInCapture;
    return d.advance([&] { return stream.queue.empty(); });
  });
}

Status new_event(bool timed, Event** out) {
  return on_gpu("new_event", [&](emulation::Device& d) {
    *out = reinterpret_cast<Event*>(&d.new_event(timed));
    return std::string();
  });
}

void free_event(Event* e) {
  if (e == nullptr) return;
  on_gpu_later("free_event", [&](emulation::Device& d) -> std::string {
    EmulatedEvent* event = d.find_event(e);
    if (event == nullptr) return "this is not an event, or it has been freed";
    d.free(*event);
    return {};
  });
}

constexpr char kEventInCapture[] =
    "events in a captured stream are not supported (a graph here is one chain of operations): record and "
    "wait outside";

Status record(Event* e, Stream* s) {
  return on_stream("record", s, [&](emulation::Device& d, EmulatedStream& stream) -> std::string {
    EmulatedEvent* event = d.find_event(e);
    if (event == nullptr) return "this is not an event, or it has been freed";
    if (stream.capture != nullptr) return kEventInCapture;
    d.record(*event, stream);
    return {};
  });
}

Status wait(Stream* s, Event* e) {
  return on_stream("wait", s, [&](emulation::Device& d, EmulatedStream& stream) -> std::string {
    EmulatedEvent* event = d.find_event(e);
    if (event == nullptr) return "this is not an event, or it has been freed";
    if (stream.capture != nullptr) return kEventInCapture;
    if (event->latest != nullptr) d.enqueue(stream, {.what = "wait", .run = {}, .after = event->latest});
    return {};
  });
}

Status query(Event* e, bool* fired) {
  return on_event("query", e, [&](emulation::Device& d, EmulatedEvent& event) {
    d.advance_a_little();
    *fired = event.latest == nullptr || event.latest->done;
    return d.failure();
  });
}

Status wait_host(Event* e) {
  return on_event("wait_host", e, [](emulation::Device& d, EmulatedEvent& event) -> std::string {
    if (d.capturing()) return kNotInCapture;
    return d.advance([&] { return event.latest == nullptr || event.latest->done; });
  });
}

Status elapsed(Event* from, Event* to, float* milliseconds) {
  return on_event("elapsed", from, [&](emulation::Device& d, EmulatedEvent& first) -> std::string {
    EmulatedEvent* second = d.find_event(to);
    if (second == nullptr) return "this is not an event, or it has been freed";
    if (!first.timed || !second->timed) return "both events must be made with timed = true";
    for (const EmulatedEvent* event : {&first, second}) {
      if (event->latest == nullptr || !event->latest->done)
        return "an event has not fired: wait for both first";
    }
    // Virtual time: an operation takes a microsecond.
    const auto operations =
        static_cast<std::int64_t>(second->latest->time) - static_cast<std::int64_t>(first.latest->time);
    *milliseconds = static_cast<float>(operations) * 1e-3F;
    return {};
  });
}

Status begin_capture(Stream* s) {
  return on_stream("begin_capture", s, [](emulation::Device&, EmulatedStream& stream) -> std::string {
    if (stream.capture != nullptr) return "this stream is being captured already";
    stream.capture = std::make_unique<Recording>();
    return {};
  });
}

Status end_capture(Stream* s, Graph** out) {
  return on_stream("end_capture", s, [&](emulation::Device& d, EmulatedStream& stream) -> std::string {
    if (stream.capture == nullptr) return "this stream is not being captured";
    const auto recording = std::move(stream.capture);
    if (d.trouble.strikes("capture")) return "out of device memory for a graph (STOKER_EMULATION_TROUBLE)";
    *out = reinterpret_cast<Graph*>(&d.new_graph(std::move(*recording)));
    return {};
  });
}

Status launch(Graph* g, Stream* s) {
  return on_stream("launch", s, [&](emulation::Device& d, EmulatedStream& stream) -> std::string {
    const emulation::Graph* graph = d.find_graph(g);
    if (graph == nullptr) return "this is not a graph, or it has been freed";
    if (stream.capture != nullptr) return "a graph cannot be launched into a stream that is being captured";
    if (d.trouble.strikes("launch")) return "out of device memory for a graph (STOKER_EMULATION_TROUBLE)";
    for (const Operation& operation : *graph->operations) d.enqueue(stream, operation);
    return {};
  });
}

void free_graph(Graph* g) {
  if (g == nullptr) return;
  on_gpu_later("free_graph", [&](emulation::Device& d) -> std::string {
    emulation::Graph* graph = d.find_graph(g);
    if (graph == nullptr) return "this is not a graph, or it has been freed";
    d.free(*graph);
    return {};
  });
}

Status to_device(void* to, const void* from, std::uint64_t bytes, Stream* s) {
  return on_stream("to_device", s, [&](emulation::Device& d, EmulatedStream& stream) -> std::string {
    if (bytes == 0) return {};
    if (std::string text = check_device(d, to, bytes); !text.empty()) return text;
    if (std::string text = check_host(d, from); !text.empty()) return text;
    switch (d.pinning(from, bytes)) {
      case emulation::Device::Pinning::part:
        return kPartlyPinned;
      case emulation::Device::Pinning::whole:
        d.enqueue(stream, host_copy("to_device", to, from, from, bytes));
        return {};
      case emulation::Device::Pinning::none:
        break;
    }
    if (stream.capture != nullptr) return "a captured copy needs pinned memory (alloc_host)";
    if (d.trouble.strikes("pageable")) {
      d.enqueue(stream, host_copy("to_device", to, from, from, bytes));
      return {};
    }
    // CUDA stages pageable memory: the source is read now, the device's memory is written in the stream's
    // order.
    const auto* begin = static_cast<const std::byte*>(from);
    const auto staged = std::make_shared<const std::vector<std::byte>>(begin, begin + bytes);
    d.enqueue(stream, {.what = "to_device",
                       .run = [to, staged] { return copy(to, staged->data(), staged->size()); },
                       .after = nullptr});
    return {};
  });
}

Status to_host(void* to, const void* from, std::uint64_t bytes, Stream* s) {
  return on_stream("to_host", s, [&](emulation::Device& d, EmulatedStream& stream) -> std::string {
    if (bytes == 0) return {};
    if (std::string text = check_device(d, from, bytes); !text.empty()) return text;
    if (std::string text = check_host(d, to); !text.empty()) return text;
    const auto pinning = d.pinning(to, bytes);
    if (pinning == emulation::Device::Pinning::part) return kPartlyPinned;
    const bool pageable = pinning == emulation::Device::Pinning::none;
    if (pageable && stream.capture != nullptr) return "a captured copy needs pinned memory (alloc_host)";
    d.enqueue(stream, host_copy("to_host", to, from, to, bytes));
    // CUDA returns from a copy to pageable memory when it is done.
    return pageable ? d.advance([&] { return stream.queue.empty(); }) : "";
  });
}

Status on_device(void* to, const void* from, std::uint64_t bytes, Stream* s) {
  return on_stream("on_device", s, [&](emulation::Device& d, EmulatedStream& stream) -> std::string {
    if (bytes == 0) return {};
    for (const void* p : {static_cast<const void*>(to), from}) {
      if (std::string text = check_device(d, p, bytes); !text.empty()) return text;
    }
    const auto *a = static_cast<const std::byte*>(to), *b = static_cast<const std::byte*>(from);
    if (a < b + bytes && b < a + bytes) return "source and destination overlap";
    d.enqueue(
        stream,
        {.what = "on_device", .run = [to, from, bytes] { return copy(to, from, bytes); }, .after = nullptr});
    return {};
  });
}

Status clear(void* p, std::uint64_t bytes, Stream* s) {
  return on_stream("clear", s, [&](emulation::Device& d, EmulatedStream& stream) -> std::string {
    if (bytes == 0) return {};
    if (std::string text = check_device(d, p, bytes); !text.empty()) return text;
    const auto run = [p, bytes] {
      std::memset(p, 0, bytes);
      return std::string();
    };
    d.enqueue(stream, {.what = "clear", .run = run, .after = nullptr});
    return {};
  });
}

}  // namespace runtime
}  // namespace stoker::device

stoker::device::Status stoker::emulation::enqueue(const Launch& launch, std::function<void()> thread,
                                                  device::Stream* stream) {
  return device::on_stream(launch.kernel, stream, [&](Device& d, Stream& s) -> std::string {
    if (std::string text = device::check_size(launch); !text.empty()) return text;
    const auto run = [&d, launch, thread = std::move(thread)]() -> std::string {
      if (d.trouble.strikes("kernel")) return "an illegal address was used (STOKER_EMULATION_TROUBLE)";
      return emulation::run(launch, thread, d.random());
    };
    d.enqueue(s, {.what = launch.kernel, .run = run, .after = nullptr});
    return {};
  });
}
