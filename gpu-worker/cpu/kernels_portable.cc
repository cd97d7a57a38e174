// The kernels without SIMD: any CPU, and the yardstick of the others' bits.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "gpu-worker/cpu/kernels.h"

#define STOKER_PORTABLE 1
#define STOKER_TABLE_NAME "scalar"

namespace stoker::portable {
namespace {
#include "gpu-worker/cpu/vec-inl.h"
//
#include "gpu-worker/cpu/matmul-inl.h"
//
#include "gpu-worker/cpu/kernels-inl.h"
}  // namespace

const Kernels* kernel_table() { return table(); }

}  // namespace stoker::portable
