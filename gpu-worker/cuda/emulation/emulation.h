// CUDA's device language on the CPU, for tests: the part of it that our kernels use.
//
// A launch is a closure on a stream (runtime.cc). Its blocks run one after another in an order drawn from the
// seed; the threads of a block are fibers of one OS thread. A thread runs until it blocks in a barrier or an
// exchange among lanes (shuffle, ballot, __syncwarp); which one goes on is drawn too. So what CUDA leaves
// open comes out differently under each seed, and everything under one seed is repeatable.
//
// Stricter than hardware, where the programming guide calls something undefined:
//  - all threads that have not returned must reach the same __syncthreads, by source line;
//  - every lane named in a mask must exist and arrive at the same intrinsic, by source line, with that mask;
//  - a shuffle may only read lanes in the mask;
//  - static (STOKER_SHARED) and dynamic shared memory are at most 48 KiB together.
// What breaks a rule is told by the next synchronize, with the name of the kernel.
//
// Missing on purpose: rsqrtf, __expf and other approximations (bits differ between GPU and CPU), atomicAdd on
// floats (the order of a sum), __activemask, min and max of floats (use fminf, fmaxf).
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include "gpu-worker/cuda/device_api.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
// One block at a time per process: calls into a module come from one thread at a time (device_api.h).
#define __shared__ static

struct uint2 {
  unsigned x, y;
} __align__(8);
struct int2 {
  int x, y;
} __align__(8);
struct float2 {
  float x, y;
} __align__(8);
struct uint3 {
  unsigned x, y, z;
};
struct uint4 {
  unsigned x, y, z, w;
} __align__(16);
struct int4 {
  int x, y, z, w;
} __align__(16);
struct float4 {
  float x, y, z, w;
} __align__(16);

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// Where the running thread is; set whenever a fiber goes on. Hidden: no detour through the module's symbol
// table.
extern __attribute__((visibility("hidden"))) uint3 threadIdx, blockIdx;
extern __attribute__((visibility("hidden"))) dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace stoker::emulation {

class Random;

struct Site {  ///< a place in a kernel's source
  const char* file;
  int line;
};

enum class Exchange : std::uint8_t { shuffle, ballot, sync };

/// Blocks until all live threads of the block are here.
void barrier(Site site);

/// Blocks until all lanes of `mask` are here. shuffle: the bits that lane `source` brought; ballot: the lanes
/// that brought something else than 0.
unsigned exchange(Exchange kind, unsigned mask, unsigned bits, unsigned source, Site site);

/// Lane of the running thread in its warp.
unsigned lane();

/// The launch's dynamic shared memory.
void* dynamic_shared();

/// One declaration of shared memory; where it lies in the block that runs.
struct SharedVariable {
  std::uint64_t block = 0;  ///< serial number of the block that `offset` belongs to
  std::size_t offset = 0;
};
void* static_shared(SharedVariable& variable, std::size_t bytes, std::size_t alignment);

struct Launch {
  const char* kernel;
  dim3 grid, block;
  std::size_t shared_bytes;
};

/// Runs all blocks. thread: the kernel with its arguments, called once for each thread. What went wrong, or
/// nothing.
std::string run(const Launch& launch, const std::function<void()>& thread, Random& random);

/// Checks what a GPU would check at the launch, and puts it on the stream (runtime.cc).
device::Status enqueue(const Launch& launch, std::function<void()> thread, device::Stream* stream);

template <class... Parameters, class... Arguments>
device::Status launch(const char* kernel_name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                      std::size_t shared_bytes, device::Stream* stream, Arguments&&... arguments) {
  static_assert(((std::is_trivially_copyable_v<Parameters> && !std::is_reference_v<Parameters>)&&...),
                "CUDA copies a kernel's arguments byte by byte");
  static_assert((sizeof(Parameters) + ... + 0) <= 4096, "the limit of CUDA before 12.1");
  const std::tuple<Parameters...> values{static_cast<Parameters>(std::forward<Arguments>(arguments))...};
  return enqueue(
      {kernel_name, grid, block, shared_bytes}, [kernel, values] { std::apply(kernel, values); }, stream);
}

template <class To, class From>
To bit_copy(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <class T>
T shuffle(unsigned mask, T value, unsigned source, Site site) {
  static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned> || std::is_same_v<T, float>,
                "shuffles exist for int, unsigned and float");
  return bit_copy<T>(exchange(Exchange::shuffle, mask, bit_copy<unsigned>(value), source, site));
}

}  // namespace stoker::emulation

// The caller's place, as default arguments of an intrinsic.
#define STOKER_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(STOKER_SITE) { stoker::emulation::barrier({file, line}); }

inline void __syncwarp(unsigned mask = 0xFFFF'FFFFU, STOKER_SITE) {
  stoker::emulation::exchange(stoker::emulation::Exchange::sync, mask, 0, 0, {file, line});
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize, STOKER_SITE) {
  const unsigned segment = static_cast<unsigned>(width) - 1;
  const unsigned from = (stoker::emulation::lane() & ~segment) | (static_cast<unsigned>(source) & segment);
  return stoker::emulation::shuffle(mask, value, from, {file, line});
}

/// A source beyond the segment's end is the lane itself; one in an earlier segment is allowed.
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = warpSize, STOKER_SITE) {
  const unsigned lane = stoker::emulation::lane();
  const unsigned from = lane ^ static_cast<unsigned>(lane_mask);
  const unsigned last = lane | (static_cast<unsigned>(width) - 1);
  return stoker::emulation::shuffle(mask, value, from > last ? lane : from, {file, line});
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize, STOKER_SITE) {
  const unsigned lane = stoker::emulation::lane();
  const unsigned last = lane | (static_cast<unsigned>(width) - 1);
  return stoker::emulation::shuffle(mask, value, lane + delta > last ? lane : lane + delta, {file, line});
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize, STOKER_SITE) {
  const unsigned lane = stoker::emulation::lane();
  const unsigned first = lane & ~(static_cast<unsigned>(width) - 1);
  return stoker::emulation::shuffle(mask, value, lane < first + delta ? lane : lane - delta, {file, line});
}

inline unsigned __ballot_sync(unsigned mask, int predicate, STOKER_SITE) {
  return stoker::emulation::exchange(stoker::emulation::Exchange::ballot, mask, predicate != 0, 0,
                                     {file, line});
}

inline int __any_sync(unsigned mask, int predicate, STOKER_SITE) {
  return __ballot_sync(mask, predicate, file, line) != 0;
}

inline int __all_sync(unsigned mask, int predicate, STOKER_SITE) {
  return __ballot_sync(mask, predicate, file, line) == mask;
}

#undef STOKER_SITE

// Fibers do not interrupt one another: a plain read and write is atomic among them.
template <class T, class Combine>
T stoker_atomic(T* at, Combine combine) {
  const T old = *at;
  *at = combine(old);
  return old;
}
inline unsigned atomicAdd(unsigned* at, unsigned v) {
  return stoker_atomic(at, [v](unsigned old) { return old + v; });
}
inline int atomicAdd(int* at, int v) {
  return stoker_atomic(at, [v](int old) { return old + v; });
}
inline unsigned atomicOr(unsigned* at, unsigned v) {
  return stoker_atomic(at, [v](unsigned old) { return old | v; });
}
inline int atomicOr(int* at, int v) {
  return stoker_atomic(at, [v](int old) { return old | v; });
}
inline unsigned atomicMax(unsigned* at, unsigned v) {
  return stoker_atomic(at, [v](unsigned old) { return old > v ? old : v; });
}
inline int atomicMax(int* at, int v) {
  return stoker_atomic(at, [v](int old) { return old > v ? old : v; });
}
inline unsigned atomicMin(unsigned* at, unsigned v) {
  return stoker_atomic(at, [v](unsigned old) { return old < v ? old : v; });
}
inline int atomicMin(int* at, int v) {
  return stoker_atomic(at, [v](int old) { return old < v ? old : v; });
}
inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T>
T __ldg(const T* at) {
  return *at;
}

/// Byte i of the result is the byte of y:x that the i-th nibble of `selector` names (0 to 3: x, 4 to 7: y).
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const std::uint64_t bytes = std::uint64_t{y} << 32 | x;
  unsigned result = 0;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned byte = selector >> (4 * i) & 7;
    result |= static_cast<unsigned>(bytes >> (8 * byte) & 0xFF) << (8 * i);
  }
  return result;
}

inline unsigned __float_as_uint(float v) { return stoker::emulation::bit_copy<unsigned>(v); }
inline int __float_as_int(float v) { return stoker::emulation::bit_copy<int>(v); }
inline float __uint_as_float(unsigned v) { return stoker::emulation::bit_copy<float>(v); }
inline float __int_as_float(int v) { return stoker::emulation::bit_copy<float>(v); }

inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __clz(int v) { return v == 0 ? 32 : __builtin_clz(static_cast<unsigned>(v)); }

inline int min(int a, int b) { return b < a ? b : a; }
inline int max(int a, int b) { return a < b ? b : a; }
inline unsigned min(unsigned a, unsigned b) { return b < a ? b : a; }
inline unsigned max(unsigned a, unsigned b) { return a < b ? b : a; }
inline unsigned long min(unsigned long a, unsigned long b) { return b < a ? b : a; }
inline unsigned long max(unsigned long a, unsigned long b) { return a < b ? b : a; }

namespace stoker::device {

inline float half_to_float(std::uint16_t bits) {
  const unsigned sign = (bits & 0x8000U) << 16, exponent = bits >> 10 & 31U, mantissa = bits & 1023U;
  if (exponent == 31) return __uint_as_float(sign | 0x7F80'0000U | mantissa << 13);
  if (exponent != 0) return __uint_as_float(sign | (exponent + 112) << 23 | mantissa << 13);
  return std::copysign(static_cast<float>(mantissa) * 0x1p-24F, sign == 0 ? 1.0F : -1.0F);
}

}  // namespace stoker::device

#define STOKER_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ::stoker::emulation::launch(#kernel, kernel, grid, block, shared_bytes, stream, __VA_ARGS__)

#define STOKER_DYNAMIC_SHARED(type, name) \
  type* name = static_cast<type*>(::stoker::emulation::dynamic_shared())

#define STOKER_SHARED(type, name, ...)                                                                       \
  typedef type name##_in_shared_memory __VA_ARGS__;                                                          \
  static ::stoker::emulation::SharedVariable name##_variable;                                                \
  name##_in_shared_memory& name = *static_cast<name##_in_shared_memory*>(::stoker::emulation::static_shared( \
      name##_variable, sizeof(name##_in_shared_memory), alignof(name##_in_shared_memory)))
