// The device half of the emulation: threads, barriers, shuffles, shared memory. Streams and memory:
// runtime_test.cc.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <numeric>
#include <set>
#include <vector>

#include "gpu-worker/cuda/kernel_language.h"
#include "tests/unit/cuda/emulated_gpu.h"

namespace stoker::device {
namespace {

constexpr unsigned kSeeds = 30;

__global__ void write_places(uint3* thread, uint3* block) {
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
  const unsigned in_block = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const unsigned in_grid = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  thread[in_grid * threads + in_block] = threadIdx;
  block[in_grid * threads + in_block] = blockIdx;
}

TEST_CASE("every thread of every block runs once, and knows where it is") {
  EmulatedGpu gpu;
  Stream* s = gpu.stream();
  const dim3 grid(3, 2, 2), block(5, 4, 3);
  const unsigned threads = 60, blocks = 12;
  uint3* thread = gpu.alloc<uint3>(threads * blocks);
  uint3* in_grid = gpu.alloc<uint3>(threads * blocks);
  REQUIRE(text(STOKER_LAUNCH(write_places, grid, block, 0, s, thread, in_grid)) == "");
  const auto threads_seen = gpu.read(thread, threads * blocks, s),
             blocks_seen = gpu.read(in_grid, threads * blocks, s);
  for (unsigned i = 0; i < threads * blocks; ++i) {
    const uint3 t = threads_seen[i], b = blocks_seen[i];
    REQUIRE((t.z * 4 + t.y) * 5 + t.x == i % threads);
    REQUIRE((b.z * 2 + b.y) * 3 + b.x == i / threads);
  }
}

__global__ void write_order(unsigned* next, unsigned* order) { order[atomicAdd(next, 1U)] = blockIdx.x; }

std::vector<unsigned> block_order(unsigned seed, unsigned blocks) {
  EmulatedGpu gpu(seed);
  Stream* s = gpu.stream();
  unsigned *next = gpu.alloc<unsigned>(1), *order = gpu.alloc<unsigned>(blocks);
  REQUIRE(text(runtime::clear(next, sizeof *next, s)) == "");
  REQUIRE(text(STOKER_LAUNCH(write_order, blocks, 1, 0, s, next, order)) == "");
  return gpu.read(order, blocks, s);
}

TEST_CASE("blocks run in an order of the seed") {
  std::set<std::vector<unsigned>> orders;
  for (unsigned seed = 1; seed <= kSeeds; ++seed) {
    std::vector<unsigned> order = block_order(seed, 24);
    REQUIRE(order == block_order(seed, 24));
    orders.insert(order);
    std::sort(order.begin(), order.end());
    for (unsigned i = 0; i < 24; ++i) REQUIRE(order[i] == i);
  }
  CHECK(orders.size() > kSeeds / 2);
}

/// Turns each block's part around. Without the barrier a thread may read what another has not written.
template <bool kBarrier>
__global__ void turn_around(const unsigned* in, unsigned* out) {
  STOKER_DYNAMIC_SHARED(unsigned, staged);
  const unsigned first = blockIdx.x * blockDim.x;
  staged[threadIdx.x] = in[first + threadIdx.x];
  if (kBarrier) __syncthreads();
  out[first + threadIdx.x] = staged[blockDim.x - 1 - threadIdx.x];
}

template <bool kBarrier>
bool turns_around(unsigned seed, unsigned blocks, unsigned threads) {
  EmulatedGpu gpu(seed);
  Stream* s = gpu.stream();
  const unsigned count = blocks * threads;
  std::vector<unsigned> values(count);
  std::iota(values.begin(), values.end(), 7U);
  unsigned *in = gpu.alloc<unsigned>(count), *out = gpu.alloc<unsigned>(count);
  REQUIRE(text(runtime::to_device(in, values.data(), count * sizeof(unsigned), s)) == "");
  REQUIRE(text(STOKER_LAUNCH(turn_around<kBarrier>, blocks, threads, threads * sizeof(unsigned), s, in,
                             out)) == "");
  for (unsigned b = 0; b < blocks; ++b)
    std::reverse(values.data() + b * threads, values.data() + (b + 1) * threads);
  return gpu.read(out, count, s) == values;
}

TEST_CASE("a barrier orders a block; a missing one shows") {
  unsigned wrong = 0;
  for (unsigned seed = 1; seed <= kSeeds; ++seed) {
    REQUIRE(turns_around<true>(seed, 3, 192));
    REQUIRE(turns_around<true>(seed, 2, 1024));
    REQUIRE(turns_around<true>(seed, 5, 40));
    wrong += !turns_around<false>(seed, 3, 192);
  }
  CHECK(wrong > kSeeds / 2);
}

/// The second phase reads what the first wrote, and its barrier keeps the next round from writing too early.
template <bool kSecondBarrier>
__global__ void rotate_often(unsigned* values, unsigned rounds) {
  STOKER_SHARED(unsigned, ring, [96]);
  ring[threadIdx.x] = values[threadIdx.x];
  __syncthreads();
  for (unsigned i = 0; i < rounds; ++i) {
    const unsigned next = ring[(threadIdx.x + 1) % 96];
    if (kSecondBarrier) __syncthreads();
    ring[threadIdx.x] = next;
    __syncthreads();
  }
  values[threadIdx.x] = ring[threadIdx.x];
}

template <bool kSecondBarrier>
bool rotates(unsigned seed) {
  EmulatedGpu gpu(seed);
  Stream* s = gpu.stream();
  std::vector<unsigned> values(96);
  std::iota(values.begin(), values.end(), 0U);
  unsigned* p = gpu.alloc<unsigned>(96);
  REQUIRE(text(runtime::to_device(p, values.data(), 96 * sizeof(unsigned), s)) == "");
  REQUIRE(text(STOKER_LAUNCH(rotate_often<kSecondBarrier>, 1, 96, 0, s, p, 5U)) == "");
  std::rotate(values.begin(), values.begin() + 5, values.end());
  return gpu.read(p, 96, s) == values;
}

TEST_CASE("both barriers of a loop are needed") {
  unsigned wrong = 0;
  for (unsigned seed = 1; seed <= kSeeds; ++seed) {
    REQUIRE(rotates<true>(seed));
    wrong += !rotates<false>(seed);
  }
  CHECK(wrong > kSeeds / 2);
}

template <bool kSync>
__global__ void lane_to_lane(unsigned* out) {
  STOKER_SHARED(unsigned, values, [32]);
  values[threadIdx.x] = threadIdx.x;
  if (kSync) __syncwarp();
  out[threadIdx.x] = values[threadIdx.x ^ 1];
}

template <bool kSync>
bool lanes_see_each_other(unsigned seed) {
  EmulatedGpu gpu(seed);
  Stream* s = gpu.stream();
  unsigned* out = gpu.alloc<unsigned>(32);
  REQUIRE(text(STOKER_LAUNCH(lane_to_lane<kSync>, 1, 32, 0, s, out)) == "");
  const auto seen = gpu.read(out, 32, s);
  for (unsigned i = 0; i < 32; ++i) {
    if (seen[i] != (i ^ 1)) return false;
  }
  return true;
}

TEST_CASE("lanes are not in step: a missing __syncwarp shows") {
  unsigned wrong = 0;
  for (unsigned seed = 1; seed <= kSeeds; ++seed) {
    REQUIRE(lanes_see_each_other<true>(seed));
    wrong += !lanes_see_each_other<false>(seed);
  }
  CHECK(wrong > 0);
}

struct Shuffled {
  float sum;  ///< over the warp, by xor
  int down, up, down_8, up_8, xor_8, from_3, from_3_of_8;
  unsigned even;  ///< ballot
  int any, all, half_sum;
};

__global__ void shuffle_all(Shuffled* out) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  float sum = static_cast<float>(lane);
  for (int mask = 16; mask > 0; mask /= 2) sum += __shfl_xor_sync(0xFFFFFFFFU, sum, mask);
  Shuffled r{};
  r.sum = sum;
  r.down = __shfl_down_sync(0xFFFFFFFFU, lane, 3);
  r.up = __shfl_up_sync(0xFFFFFFFFU, lane, 3);
  r.down_8 = __shfl_down_sync(0xFFFFFFFFU, lane, 3, 8);
  r.up_8 = __shfl_up_sync(0xFFFFFFFFU, lane, 3, 8);
  r.xor_8 = __shfl_xor_sync(0xFFFFFFFFU, lane, 8, 8);
  r.from_3 = __shfl_sync(0xFFFFFFFFU, lane, 3);
  r.from_3_of_8 = __shfl_sync(0xFFFFFFFFU, lane, 3, 8);
  r.even = __ballot_sync(0xFFFFFFFFU, lane % 2 == 0);
  r.any = __any_sync(0xFFFFFFFFU, lane == 31);
  r.all = __all_sync(0xFFFFFFFFU, lane < 31);
  // The halves of a warp go separate ways.
  int half = lane;
  if (lane < 16) {
    for (int mask = 8; mask > 0; mask /= 2) half += __shfl_xor_sync(0x0000FFFFU, half, mask);
  } else {
    for (int mask = 8; mask > 0; mask /= 2) half += __shfl_xor_sync(0xFFFF0000U, half, mask);
  }
  r.half_sum = half;
  out[blockIdx.x * blockDim.x + threadIdx.x] = r;
}

TEST_CASE("shuffles and ballots give what CUDA's do") {
  for (unsigned seed = 1; seed <= kSeeds; ++seed) {
    EmulatedGpu gpu(seed);
    Stream* s = gpu.stream();
    Shuffled* out = gpu.alloc<Shuffled>(2 * 96);
    REQUIRE(text(STOKER_LAUNCH(shuffle_all, 2, 96, 0, s, out)) == "");
    const auto results = gpu.read(out, 2 * 96, s);
    for (std::size_t i = 0; i < results.size(); ++i) {
      const Shuffled& r = results[i];
      const int lane = static_cast<int>(i % 32), in_8 = lane % 8;
      REQUIRE(r.sum == 496.0F);
      REQUIRE(r.down == (lane + 3 < 32 ? lane + 3 : lane));
      REQUIRE(r.up == (lane >= 3 ? lane - 3 : lane));
      REQUIRE(r.down_8 == (in_8 + 3 < 8 ? lane + 3 : lane));
      REQUIRE(r.up_8 == (in_8 >= 3 ? lane - 3 : lane));
      // A later group is out of reach, an earlier one is not.
      REQUIRE(r.xor_8 == ((lane ^ 8) > lane ? lane : lane ^ 8));
      REQUIRE(r.from_3 == 3);
      REQUIRE(r.from_3_of_8 == lane / 8 * 8 + 3);
      REQUIRE(r.even == 0x55555555U);
      REQUIRE(r.any == 1);
      REQUIRE(r.all == 0);
      REQUIRE(r.half_sum == (lane < 16 ? 120 : 376));
    }
  }
}

/// What a kernel with these arguments is blamed for; it must be blamed by name.
template <class Kernel, class... Arguments>
std::string blame(const char* name, Kernel kernel, unsigned threads, std::size_t shared_bytes,
                  Arguments... arguments) {
  EmulatedGpu gpu;
  Stream* s = gpu.stream();
  REQUIRE(text(emulation::launch(name, kernel, 2, threads, shared_bytes, s, arguments...)) == "");
  const std::string status = text(runtime::synchronize(s));
  REQUIRE(says(status, name));
  // Final, as on a GPU.
  REQUIRE(text(runtime::synchronize(s)) == status);
  REQUIRE(text(emulation::launch(name, kernel, 2, threads, shared_bytes, s, arguments...)) != "");
  return status;
}

__global__ void return_before_barrier(int) {
  if (threadIdx.x >= 32) return;
  __syncthreads();
}

__global__ void different_barriers(int) {
  if (threadIdx.x % 2 == 0) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void barrier_and_shuffle(int) {
  if (threadIdx.x < 8) {
    __syncthreads();
  } else {
    __syncwarp();
  }
}

TEST_CASE("a barrier that not all live threads reach is reported") {
  {
    EmulatedGpu gpu;
    Stream* s = gpu.stream();
    REQUIRE(text(STOKER_LAUNCH(return_before_barrier, 2, 64, 0, s, 0)) == "");
    REQUIRE(text(runtime::synchronize(s)) == "");
  }
  CHECK(says(blame("different_barriers", different_barriers, 64, 0, 0), "the same __syncthreads"));
  const std::string stuck = blame("barrier_and_shuffle", barrier_and_shuffle, 64, 0, 0);
  CHECK(says(stuck, "is stuck: 8 threads (the first: 0) wait in __syncthreads at emulation_test.cc"));
  CHECK(says(stuck, "0x000000ff did not come"));
}

__global__ void lane_leaves_before_shuffle(unsigned* out) {
  if (threadIdx.x == 5) return;
  out[threadIdx.x] = __shfl_xor_sync(0xFFFFFFFFU, threadIdx.x, 1);
}

__global__ void read_lane_outside_mask(unsigned* out) {
  if (threadIdx.x < 8) out[threadIdx.x] = __shfl_sync(0xFFU, threadIdx.x, 9);
}

__global__ void call_without_being_in_mask(unsigned* out) {
  if (__ballot_sync(0xFFU, 1) == 0) *out = 1;
}

__global__ void different_shuffles(unsigned* out) {
  if (threadIdx.x < 16) {
    out[threadIdx.x] = __shfl_xor_sync(0xFFFFFFFFU, threadIdx.x, 1);
  } else {
    out[threadIdx.x] = __shfl_xor_sync(0xFFFFFFFFU, threadIdx.x, 1);
  }
}

TEST_CASE("a shuffle among lanes that never come is reported") {
  unsigned* nowhere = nullptr;
  CHECK(says(blame("lane_leaves_before_shuffle", lane_leaves_before_shuffle, 32, 0, nowhere),
             "0x00000020 did not come"));
  CHECK(says(blame("lane_leaves_before_shuffle", lane_leaves_before_shuffle, 16, 0, nowhere),
             "0xffff0020 did not come"));
  CHECK(says(blame("read_lane_outside_mask", read_lane_outside_mask, 32, 0, nowhere),
             "read lane 9, which is not in the mask"));
  CHECK(says(blame("call_without_being_in_mask", call_without_being_in_mask, 32, 0, nowhere),
             "is not in the mask 0x000000ff"));
  CHECK(says(blame("different_shuffles", different_shuffles, 32, 0, nowhere), "must execute the same one"));
}

__global__ void use_16_kib(float* out) {
  STOKER_SHARED(float, large, [64][64]);
  STOKER_DYNAMIC_SHARED(float, rest);
  large[threadIdx.x][0] = 1;
  rest[threadIdx.x] = 2;
  __syncthreads();
  if (out != nullptr) out[threadIdx.x] = large[threadIdx.x][0] + rest[threadIdx.x];
}

TEST_CASE("shared memory is at most 48 KiB, static and dynamic together") {
  EmulatedGpu gpu;
  Stream* s = gpu.stream();
  float* out = gpu.alloc<float>(64);
  CHECK(says(text(STOKER_LAUNCH(use_16_kib, 1, 64, (48 << 10) + 1, s, out)), "at most 48 KiB"));
  REQUIRE(text(STOKER_LAUNCH(use_16_kib, 1, 64, 32 << 10, s, out)) == "");
  CHECK(gpu.read(out, 64, s) == std::vector<float>(64, 3.0F));
  REQUIRE(text(STOKER_LAUNCH(use_16_kib, 1, 64, (32 << 10) + 4, s, out)) == "");
  CHECK(says(text(runtime::synchronize(s)), "static and dynamic together are at most 48 KiB"));
}

__global__ void write_beyond_dynamic(int) {
  STOKER_DYNAMIC_SHARED(float, values);
  values[threadIdx.x] = 1;
}

__global__ void write_before_static(int) {
  STOKER_SHARED(float, values, [32]);
  float* first = &values[0];
  first[static_cast<int>(threadIdx.x) - 1] = 1;
}

TEST_CASE("writing beyond shared memory is reported") {
  CHECK(
      says(blame("write_beyond_dynamic", write_beyond_dynamic, 32, 31 * sizeof(float), 0), "beyond the end"));
  CHECK(says(blame("write_beyond_dynamic", write_beyond_dynamic, 1, 0, 0), "beyond the end"));
  CHECK(says(blame("write_before_static", write_before_static, 32, 0, 0), "beyond the end"));
}

__global__ void read_unwritten(float* out) {
  STOKER_DYNAMIC_SHARED(float, values);
  STOKER_SHARED(float, one);
  out[2 * blockIdx.x] = values[0];
  out[2 * blockIdx.x + 1] = one;
  values[0] = one = 1;
}

TEST_CASE("shared memory begins as NaN in each block") {
  EmulatedGpu gpu;
  Stream* s = gpu.stream();
  float* out = gpu.alloc<float>(6);
  REQUIRE(text(runtime::clear(out, 6 * sizeof(float), s)) == "");
  REQUIRE(text(STOKER_LAUNCH(read_unwritten, 3, 1, 16, s, out)) == "");
  for (const float v : gpu.read(out, 6, s)) CHECK(std::isnan(v));
}

__global__ void nothing(int) {}

TEST_CASE("a launch that no GPU takes is refused at once") {
  EmulatedGpu gpu;
  Stream* s = gpu.stream();
  CHECK(says(text(STOKER_LAUNCH(nothing, 0, 32, 0, s, 0)), "nothing: a grid of 0 x 1 x 1"));
  CHECK(says(text(STOKER_LAUNCH(nothing, 1, 1025, 0, s, 0)), "a block of 1025 x 1 x 1"));
  CHECK(says(text(STOKER_LAUNCH(nothing, 1, dim3(1, 1, 65), 0, s, 0)), "a block of 1 x 1 x 65"));
  CHECK(says(text(STOKER_LAUNCH(nothing, dim3(1, 65536), 1, 0, s, 0)), "a grid of 1 x 65536 x 1"));
  CHECK(text(runtime::synchronize(s)) == "");
}

TEST_CASE("bits and integers") {
  CHECK(__byte_perm(0x33221100U, 0x77665544U, 0x7054) == 0x77005544U);
  CHECK(__float_as_uint(1.0F) == 0x3F800000U);
  CHECK(__int_as_float(0x40000000) == 2.0F);
  CHECK(__popc(0xF0F0U) == 8);
  CHECK(__ffs(0) == 0);
  CHECK(__ffs(8) == 4);
  CHECK(__clz(0) == 32);
  CHECK(__clz(1) == 31);
  CHECK(half_to_float(0x3C00) == 1.0F);
  CHECK(half_to_float(0xC500) == -5.0F);
  CHECK(half_to_float(0x0001) == 0x1p-24F);
  CHECK(half_to_float(0x83FF) == -1023 * 0x1p-24F);
  CHECK(half_to_float(0x7BFF) == 65504.0F);
  CHECK(half_to_float(0xFC00) == -INFINITY);
  CHECK(std::isnan(half_to_float(0x7E00)));
  CHECK(std::signbit(half_to_float(0x8000)));
}

}  // namespace
}  // namespace stoker::device
