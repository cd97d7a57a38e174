// What a kernel file (kernels/*.cu) includes: CUDA under nvcc, its emulation on the CPU under g++.
//
// Beyond CUDA's own words (in the emulation: see emulation/emulation.h for the part that exists) there are:
//   STOKER_LAUNCH(kernel, grid, block, shared_bytes, stream, arguments...)   a Status. A template with
//   several
//       arguments goes into parentheses: STOKER_LAUNCH((attend<64, 4>), ...). Arguments are converted to the
//       kernel's parameter types and copied at once.
//   STOKER_DYNAMIC_SHARED(type, name)    type* name: the launch's shared_bytes, 16-byte aligned
//   STOKER_SHARED(type, name, [n][m])    __shared__ type name[n][m]. Better than plain __shared__: in the
//       emulation it is filled with NaN for each block, has red zones, and counts against the 48 KiB.
//   half_to_float(bits)                  exact value of an IEEE half
// Kernels go into an anonymous namespace.
#pragma once

#include <cstddef>
#include <cstdint>

#include "gpu-worker/cuda/device_api.h"

#if defined(__CUDACC__)

#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

namespace stoker::device {

/// Null for cudaSuccess, else "attempt: error text" (cuda_runtime.cu).
Status cuda_status(cudaError_t error, const char* attempt);

template <class... Parameters, class... Arguments>
Status launch(const char* kernel_name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
              std::size_t shared_bytes, Stream* stream, Arguments&&... arguments) {
  kernel<<<grid, block, shared_bytes, reinterpret_cast<cudaStream_t>(stream)>>>(
      static_cast<Parameters>(arguments)...);
  // Also takes an error off that an earlier call left, so that it is not blamed on a later one.
  return cuda_status(cudaGetLastError(), kernel_name);
}

__device__ __forceinline__ float half_to_float(std::uint16_t bits) {
  return __half2float(__ushort_as_half(bits));
}

}  // namespace stoker::device

#define STOKER_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ::stoker::device::launch(#kernel, kernel, grid, block, shared_bytes, stream, __VA_ARGS__)

// One name and type for all kernels: nvcc refuses the same extern array with two types in a file.
#define STOKER_DYNAMIC_SHARED(type, name)                                \
  extern __shared__ __align__(16) unsigned char stoker_dynamic_shared[]; \
  type* name = reinterpret_cast<type*>(stoker_dynamic_shared)

#define STOKER_SHARED(type, name, ...) __shared__ type name __VA_ARGS__

#else

#include "gpu-worker/cuda/emulation/emulation.h"

#endif
