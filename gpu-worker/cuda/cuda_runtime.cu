// The CUDA half of the table that has no kernels.
#include <cstdio>
#include <cstdlib>

#include "gpu-worker/cuda/kernel_language.h"
#include "gpu-worker/cuda/module.h"

static_assert(CUDART_VERSION >= 12000, "Stoker's CUDA module needs the CUDA Toolkit 12.0 or newer");

namespace stoker::device {
namespace {

// Handles are CUDA's own, under our names: no allocation, nothing to look up.
cudaStream_t native(Stream* s) { return reinterpret_cast<cudaStream_t>(s); }
cudaEvent_t native(Event* e) { return reinterpret_cast<cudaEvent_t>(e); }
cudaGraphExec_t native(Graph* g) { return reinterpret_cast<cudaGraphExec_t>(g); }

// Turing: the oldest GPUs that CUDA 13 compiles for.
constexpr int kLeastMajor = 7, kLeastMinor = 5;

thread_local char status_text[512];
thread_local Fault status_fault = Fault::other;
int opened_device = -1;

template <class... Arguments>
Status say(Fault fault, const char* format, Arguments... arguments) {
  status_fault = fault;
  std::snprintf(status_text, sizeof status_text, format, arguments...);
  return status_text;
}

Fault fault_of(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation:
      return Fault::memory;
    case cudaErrorInsufficientDriver:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorCompatNotSupportedOnDevice:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorUnsupportedPtxVersion:
      return Fault::unsupported;
    default:
      return Fault::other;
  }
}

/// For what cannot return a status. There is nothing to do about it, but it must not go unseen. An error that
/// has broken the context comes back from every call: hundreds of allocations that go say it once.
void complain(cudaError_t error, const char* attempt) {
  static cudaError_t told = cudaSuccess;
  const Status status = cuda_status(error, attempt);
  if (status != nullptr && error != told) std::fprintf(stderr, "stoker: CUDA: %s\n", status);
  if (status != nullptr) told = error;
}

/// Before the first call that initialises CUDA. By default a kernel is loaded at its first launch, which is
/// no thing to happen while a stream is captured.
void load_eagerly() { setenv("CUDA_MODULE_LOADING", "EAGER", 0); }

__global__ void probe() {}

/// Whether this file's code, and with it the module's, can run on the current device.
Status check_code(const cudaDeviceProp& properties) {
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, probe);
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorUnsupportedPtxVersion) {
    (void)cudaGetLastError();
    return say(
        Fault::unsupported,
        "%s (compute capability %d.%d): this libstoker-cuda.so has no code that it or its driver can run "
        "(%s). "
        "Update the driver, or build Stoker with -DSTOKER_CUDA_ARCHITECTURES=%d%d",
        properties.name, properties.major, properties.minor, cudaGetErrorName(error), properties.major,
        properties.minor);
  }
  return cuda_status(error, "loading the kernels");
}

void fill(Info* info, const cudaDeviceProp& properties) {
  std::snprintf(info->name, sizeof info->name, "%.127s", properties.name);
  info->major = static_cast<std::uint32_t>(properties.major);
  info->minor = static_cast<std::uint32_t>(properties.minor);
  info->multiprocessors = static_cast<std::uint32_t>(properties.multiProcessorCount);
}

Status fill_versions(Info* info) {
  int driver = 0, runtime = 0;
  if (Status s = cuda_status(cudaDriverGetVersion(&driver), "asking for the driver's version")) return s;
  if (Status s = cuda_status(cudaRuntimeGetVersion(&runtime), "asking for the runtime's version")) return s;
  info->driver = static_cast<std::uint32_t>(driver);
  info->runtime = static_cast<std::uint32_t>(runtime);
  return nullptr;
}

/// CUDA has one error for a driver that is too old and for none at all. Only the latter is a machine without
/// a GPU, which is nothing to warn of.
Status no_driver_for_us() {
  int driver = 0;
  const cudaError_t error = cudaDriverGetVersion(&driver);
  (void)cudaGetLastError();
  if (error != cudaSuccess || driver == 0)
    return say(Fault::no_driver, "there is no NVIDIA driver (libcuda.so.1) on this machine");
  return say(Fault::unsupported,
             "the NVIDIA driver supports CUDA %d.%d, this libstoker-cuda.so needs %d.%d: update the driver "
             "(nvidia-smi shows its version), or build Stoker with an older CUDA Toolkit",
             driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
}

}  // namespace

Status cuda_status(cudaError_t error, const char* attempt) {
  if (error == cudaSuccess) return nullptr;
  // CUDA keeps the error for the next cudaGetLastError(), which is after a launch that has nothing to do with
  // it.
  (void)cudaGetLastError();
  return say(fault_of(error), "%s: %s (%s)", attempt, cudaGetErrorString(error), cudaGetErrorName(error));
}

namespace runtime {

const char kKind[] = "cuda";

Fault fault() { return status_fault; }

Status count(std::uint32_t* devices) {
  load_eagerly();
  *devices = 0;
  int found = 0;
  const cudaError_t error = cudaGetDeviceCount(&found);
  if (error == cudaErrorInsufficientDriver) return no_driver_for_us();
  if (error == cudaErrorNoDevice) {
    (void)cudaGetLastError();
    return nullptr;
  }
  if (Status s = cuda_status(error, "counting GPUs")) return s;
  *devices = static_cast<std::uint32_t>(found);
  return nullptr;
}

namespace {

/// What open() does when the device's context is there.
Status look_around(const cudaDeviceProp& properties, Info* info) {
  if (Status s = check_code(properties)) return s;
  fill(info, properties);
  if (Status s = fill_versions(info)) return s;
  return memory(&info->memory_free, &info->memory_total);
}

}  // namespace

Status open(std::uint32_t device, Info* info) {
  load_eagerly();
  const int id = static_cast<int>(device);
  cudaDeviceProp properties;
  if (Status s = cuda_status(cudaGetDeviceProperties(&properties, id), "asking about the GPU")) return s;
  if (properties.major * 10 + properties.minor < kLeastMajor * 10 + kLeastMinor) {
    return say(
        Fault::unsupported,
        "%s has compute capability %d.%d; Stoker needs %d.%d (GeForce RTX 20 or newer). Use the CPU backend",
        properties.name, properties.major, properties.minor, kLeastMajor, kLeastMinor);
  }
  // Who waits for an event spins. A blocking wait costs an interrupt and a wake-up, 30 microseconds and more,
  // and a decode step waits once per layer for the router's choice.
  if (Status s = cuda_status(cudaInitDevice(id, cudaDeviceScheduleSpin, cudaInitDeviceFlagsAreValid),
                             "initialising the GPU")) {
    return s;
  }
  if (Status s = cuda_status(cudaSetDevice(id), "selecting the GPU")) return s;
  const Status s = look_around(properties, info);
  if (s == nullptr) {
    opened_device = id;
  } else {
    // A worker that goes on without the GPU must not hold a context's few hundred megabytes of it.
    (void)cudaDeviceReset();
    (void)cudaGetLastError();
  }
  return s;
}

Status bind_thread() {
  if (opened_device < 0) return say(Fault::other, "binding a thread: no device is open");
  return cuda_status(cudaSetDevice(opened_device), "binding a thread to the GPU");
}

Status memory(std::uint64_t* free, std::uint64_t* total) {
  std::size_t free_bytes = 0, total_bytes = 0;
  if (Status s = cuda_status(cudaMemGetInfo(&free_bytes, &total_bytes), "asking for free memory")) return s;
  *free = free_bytes;
  *total = total_bytes;
  return nullptr;
}

void close() {
  if (opened_device < 0) return;
  complain(cudaDeviceReset(), "closing the GPU");
  opened_device = -1;
}

Status alloc(std::uint64_t bytes, void** out) {
  *out = nullptr;
  if (bytes == 0) return nullptr;
  const cudaError_t error = cudaMalloc(out, bytes);
  if (error != cudaErrorMemoryAllocation) return cuda_status(error, "allocating device memory");
  (void)cudaGetLastError();
  std::uint64_t free = 0, total = 0;
  if (Status s = memory(&free, &total)) return s;
  return say(Fault::memory, "out of device memory: %llu bytes asked for, %llu of %llu free",
             static_cast<unsigned long long>(bytes), static_cast<unsigned long long>(free),
             static_cast<unsigned long long>(total));
}

void free(void* p) { complain(cudaFree(p), "freeing device memory"); }

Status alloc_host(std::uint64_t bytes, void** out) {
  *out = nullptr;
  if (bytes == 0) return nullptr;
  return cuda_status(cudaHostAlloc(out, bytes, cudaHostAllocDefault), "allocating pinned memory");
}

void free_host(void* p) { complain(cudaFreeHost(p), "freeing pinned memory"); }

Status register_host(void* p, std::uint64_t bytes) {
  const cudaError_t error = cudaHostRegister(p, bytes, cudaHostRegisterDefault);
  if (error == cudaSuccess) return nullptr;
  (void)cudaGetLastError();
  return say(fault_of(error), "pinning %llu bytes of host memory: %s (%s)",
             static_cast<unsigned long long>(bytes), cudaGetErrorString(error), cudaGetErrorName(error));
}

void unregister_host(void* p) { complain(cudaHostUnregister(p), "unpinning host memory"); }

Status new_stream(bool urgent, Stream** out) {
  int least = 0, greatest = 0;
  if (Status s = cuda_status(cudaDeviceGetStreamPriorityRange(&least, &greatest), "asking for priorities"))
    return s;
  cudaStream_t stream = nullptr;
  // Non-blocking: nothing of ours is on the default stream, and nothing there shall wait for us.
  const cudaError_t error =
      cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, urgent ? greatest : least);
  *out = reinterpret_cast<Stream*>(stream);
  return cuda_status(error, "making a stream");
}

void free_stream(Stream* s) {
  if (s != nullptr) complain(cudaStreamDestroy(native(s)), "freeing a stream");
}

Status synchronize(Stream* s) {
  return cuda_status(cudaStreamSynchronize(native(s)), "waiting for a stream");
}

Status new_event(bool timed, Event** out) {
  cudaEvent_t event = nullptr;
  const cudaError_t error =
      cudaEventCreateWithFlags(&event, timed ? cudaEventDefault : cudaEventDisableTiming);
  *out = reinterpret_cast<Event*>(event);
  return cuda_status(error, "making an event");
}

void free_event(Event* e) {
  if (e != nullptr) complain(cudaEventDestroy(native(e)), "freeing an event");
}

Status record(Event* e, Stream* s) {
  return cuda_status(cudaEventRecord(native(e), native(s)), "recording an event");
}

Status wait(Stream* s, Event* e) {
  return cuda_status(cudaStreamWaitEvent(native(s), native(e), 0), "making a stream wait for an event");
}

Status query(Event* e, bool* fired) {
  const cudaError_t error = cudaEventQuery(native(e));
  *fired = error == cudaSuccess;
  if (error != cudaErrorNotReady) return cuda_status(error, "asking for an event");
  (void)cudaGetLastError();
  return nullptr;
}

Status wait_host(Event* e) { return cuda_status(cudaEventSynchronize(native(e)), "waiting for an event"); }

Status elapsed(Event* from, Event* to, float* milliseconds) {
  return cuda_status(cudaEventElapsedTime(milliseconds, native(from), native(to)),
                     "taking the time between events");
}

Status begin_capture(Stream* s) {
  // Thread-local: other threads of the process (another session's worker) may allocate meanwhile.
  return cuda_status(cudaStreamBeginCapture(native(s), cudaStreamCaptureModeThreadLocal),
                     "beginning a capture");
}

Status end_capture(Stream* s, Graph** out) {
  *out = nullptr;
  cudaGraph_t graph = nullptr;
  if (Status status = cuda_status(cudaStreamEndCapture(native(s), &graph), "ending a capture")) return status;
  cudaGraphExec_t executable = nullptr;
  // cudaGraphInstantiate has other parameters in CUDA 11 and 12; this one is the same in all.
  const Status status =
      cuda_status(cudaGraphInstantiateWithFlags(&executable, graph, 0), "making a graph executable");
  const cudaError_t error = cudaGraphDestroy(graph);
  if (status != nullptr) return status;
  *out = reinterpret_cast<Graph*>(executable);
  return cuda_status(error, "freeing a captured graph");
}

Status launch(Graph* g, Stream* s) {
  return cuda_status(cudaGraphLaunch(native(g), native(s)), "launching a graph");
}

void free_graph(Graph* g) {
  if (g != nullptr) complain(cudaGraphExecDestroy(native(g)), "freeing a graph");
}

Status to_device(void* to, const void* from, std::uint64_t bytes, Stream* s) {
  return cuda_status(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, native(s)),
                     "copying to the GPU");
}

Status to_host(void* to, const void* from, std::uint64_t bytes, Stream* s) {
  return cuda_status(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, native(s)),
                     "copying from the GPU");
}

Status on_device(void* to, const void* from, std::uint64_t bytes, Stream* s) {
  return cuda_status(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, native(s)),
                     "copying on the GPU");
}

Status clear(void* p, std::uint64_t bytes, Stream* s) {
  return cuda_status(cudaMemsetAsync(p, 0, bytes, native(s)), "clearing device memory");
}

}  // namespace runtime
}  // namespace stoker::device
