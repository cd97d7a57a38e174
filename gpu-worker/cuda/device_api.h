// What the worker says to its device module: plain structs and a table of functions, no CUDA type in sight.
//
// The worker (C++20, no CUDA library) drives a model through this table. Two modules implement it, from the
// same kernel sources: libstoker-cuda.so for NVIDIA GPUs, and an emulation on the CPU for tests, whose
// streams run their operations late and in a seeded random order that only events constrain.
//
// Numerics: every kernel gives the bits of the CPU backend (gpu-worker/cpu/kernels.h): 16 virtual lanes,
// explicit fused multiply-add, fixed reduction tree, exactly dequantised weights. So it does not matter where
// an expert is computed, nor how many rows a step has.
//
// Functions return null, or what went wrong (text that is valid until the next call on this thread).
// Calls come from one thread at a time; a thread other than the one that opened calls bind_thread() first.
// Included by .cu files: C++17, includes nothing of ours.
#pragma once

#include <cstddef>
#include <cstdint>

namespace stoker::device {

inline constexpr std::uint32_t kAbi = 2;
inline constexpr char kEntryPoint[] = "stoker_device_api";

/// Positions per page of the KV cache; also the block in which attention sums (cpu/sequence.h kKvBlock).
inline constexpr std::uint32_t kPagePositions = 256;

struct Stream;
struct Event;
struct Graph;
using Status = const char*;  ///< null: done

/// What kind of failure it was, where that decides what to do about it.
enum class Fault : std::uint8_t {
  other,
  memory,       ///< there is not enough of it
  no_driver,    ///< and so no GPU
  unsupported,  ///< driver, GPU and module do not go together
};

struct Info {
  char name[128];
  std::uint32_t major, minor;  ///< compute capability
  std::uint32_t multiprocessors;
  std::uint32_t driver, runtime;  ///< 13000 = 13.0
  std::uint64_t memory_total, memory_free;
};

enum class Code : std::uint8_t { f8_e4m3, bf16, f16, f32 };

/// Scales of FP8 matrices are smaller: kernels multiply them by 2^120 (kernels/lanes.cuh). Published
/// checkpoints have less than 1.
inline constexpr float kScaleLimit = 128.0F;

/// What the kernels take at most; a model beyond it is refused when it is loaded. They follow from registers,
/// threads per block and the 48 KiB of shared memory that every card has.
inline constexpr std::uint32_t kHeadDimMax = 1024;  ///< attention heads, and value heads of DeltaNet
inline constexpr std::uint32_t kKeyDimMax = 4096;   ///< key heads of DeltaNet
inline constexpr std::uint32_t kConvTapsMax = 8;
inline constexpr std::uint32_t kHiddenMax = 12'284;   ///< rows that are normalised
inline constexpr std::uint32_t kExpertsMax = 12'280;  ///< per layer

/// A row-major weight matrix in device memory, 16-byte aligned. FP8: a tile of block_rows x block_cols shares
/// a scale below kScaleLimit, row-major [ceil(rows/block_rows), ceil(cols/block_cols)].
struct Matrix {
  const void* data;
  const float* scales;
  std::uint32_t rows, cols;
  std::uint32_t block_rows, block_cols;
  Code code;
};

/// One row of a step: a token of a segment. Tables of these lie in device memory, so that a captured graph
/// can be launched again with other contents.
struct Row {
  std::uint32_t segment, position;
};

/// State of the sequence of one segment. A page holds [attention layer][k, v][kv
/// head][kPagePositions][head_dim].
struct Segment {
  std::uint32_t first_row, rows;
  float* recurrent;     ///< [DeltaNet layer][value head][dk][dv]
  float* conv;          ///< [DeltaNet layer][taps - 1][channels], oldest first
  float* const* pages;  ///< page p: positions from p * kPagePositions on
};

struct StepTables {
  const Row* rows;          ///< [row_count], device memory
  const Segment* segments;  ///< [segment_count], device memory
  std::uint32_t row_count, segment_count;
};

/// y[i] = x[from ? from[i] : i] * 1/sqrt(mean(x^2) + eps) * w, rows of n floats.
struct RmsNorm {
  const float* x;
  const std::uint32_t* from;  ///< null or [rows]
  const float* w;             ///< 1 + weight for RMSNorm0 (model.md 3.2)
  float* y;
  std::uint32_t rows, n;
  float eps;
};

/// y[i][scatter ? scatter[r] : r] = (add ? y : 0) + sum_k W[r][k] x[i][k]
struct Matmul {
  Matrix w;
  const float* x;
  float* y;
  std::uint32_t x_stride, y_stride;  ///< floats from row to row
  const std::uint32_t* scatter;      ///< null or [w.rows]; device memory
  std::uint32_t rows;
  bool add;
};

/// Most products of one call of Api::matmuls.
inline constexpr std::uint32_t kMatmulsMax = 3;

/// g = silu(g) * u, n floats.
struct SiluMul {
  float* g;
  const float* u;
  std::uint64_t n;
};

/// Causal depthwise convolution and SiLU (model.md 3.4 step 3) over each segment; its state is updated.
struct Convolution {
  StepTables step;
  const float* in;  ///< [row][in_stride]; the first `channels` are q | k | v
  const float* w;   ///< [taps][channels], oldest tap first
  float* out;       ///< [row][channels]
  std::uint32_t in_stride, channels, taps;
  std::uint32_t layer;  ///< among the DeltaNet layers
};

/// l2norm of q and k, decay, the delta rule (model.md 3.4 steps 5-8, fused form) and the gated norm, token by
/// token with the state in fp32.
struct DeltaRule {
  StepTables step;
  const float* qkv;        ///< Convolution::out
  const float* ba;         ///< [row][b of all value heads | a of all value heads]
  const float* z;          ///< [row][z_stride], value_heads * dv used
  const float* neg_exp_a;  ///< [value_heads]
  const float* dt_bias;    ///< [value_heads]
  const float* norm;       ///< [dv], plain
  float* out;              ///< [row][value_heads * dv]
  std::uint32_t z_stride, key_heads, value_heads, dk, dv;
  float q_scale, l2_eps, norm_eps;
  std::uint32_t layer;  ///< among the DeltaNet layers
};

/// Norm and rotary embedding of q (in place) and k; k and v go to the pages (model.md 3.6 steps 2-4).
struct AttentionStore {
  StepTables step;
  float* q;              ///< [row][q_stride], heads * head_dim used
  const float* kv;       ///< [row][k of all kv heads | v of all kv heads]
  const float* cos_sin;  ///< [row][rotary / 2 cosines, then sines]
  const float* q_norm;   ///< [head_dim], 1 + w
  const float* k_norm;
  std::uint32_t q_stride, heads, kv_heads, head_dim, rotary;
  float eps;
  std::uint32_t layer, layers;  ///< among the attention layers
};

/// Softmax attention over the pages, times sigmoid(gate) (model.md 3.6 steps 5-6). Sums per page, then over
/// pages in order; see gpu-worker/cpu/gated_attention.cc.
struct Attention {
  StepTables step;
  const float* q;     ///< [row][q_stride]
  const float* gate;  ///< [row][q_stride], raw
  float* out;         ///< [row][heads * head_dim]
  std::uint32_t q_stride, heads, kv_heads, head_dim;
  float scale;
  std::uint32_t layer, layers;
  std::uint32_t longest;  ///< most positions that any row attends to; page counts come from it
  float* workspace;       ///< attention_workspace() floats at least
  std::uint64_t workspace_floats;
};

/// Softmax over all experts in place, then the k largest: by descending probability, equal ones by ascending
/// id. normalise: weights are divided by their sum.
struct TopK {
  float* p;  ///< [row][experts]: logits in, probabilities out
  std::uint32_t* ids;
  float* weights;  ///< [row][k]
  std::uint32_t rows, experts, k;
  bool normalise;
};

/// One expert and its (row, rank) pairs: pairs[first .. first + count).
struct Expert {
  const void* gate;  ///< [inner, hidden], 16-byte aligned
  const void* up;
  const void* down;     ///< [hidden, inner]
  const float* scales;  ///< FP8: gate tiles, up tiles, down tiles; below kScaleLimit
  std::uint32_t first, count;
};

/// out[pair] = down(silu(gate h[row]) * (up h[row])) for every pair of every expert; pair = row * k + rank.
struct Experts {
  const Expert* experts;       ///< [count], device memory
  const std::uint32_t* pairs;  ///< device memory
  std::uint32_t count;
  std::uint32_t most_pairs;  ///< largest Expert::count
  std::uint32_t k, hidden, inner;
  std::uint32_t block_rows, block_cols;
  Code code;
  const float* h;  ///< [row][hidden]
  float* gate;     ///< workspace, [end of pairs][inner]
  float* out;      ///< [row][k][hidden]
};

/// What one block of combine() sums, and has flags of its own for: blocks need not wait for one another, and
/// nobody has to clear anything.
inline constexpr std::uint32_t kCombineColumns = 256;
inline constexpr std::uint32_t combine_slots(std::uint32_t hidden) {
  return (hidden + kCombineColumns - 1) / kCombineColumns;
}

/// x += sum over ranks of weight * expert output, in rank order, then sigmoid(shared_gate) * shared.
struct Combine {
  float* x;          ///< [row][hidden]
  const float* out;  ///< Experts::out
  const float* weights;
  const float* shared;       ///< [row][hidden] or null
  const float* shared_gate;  ///< [row], raw
  /// [row][combine_slots(hidden)], a slot for every kCombineColumns columns: bit r (< 31) set when rank r's
  /// output is not finite in them; bit 31 any later one.
  std::uint32_t* not_finite;
  std::uint32_t rows, k, hidden;
};

/// flags[i] = 1 when row i holds NaN or infinity, else 0.
struct NotFinite {
  const float* x;
  std::uint32_t* flags;
  std::uint32_t rows, n;
};

struct Api {
  std::uint32_t abi, bytes;  ///< kAbi, sizeof(Api)
  const char* kind;          ///< "cuda" or "emulation"

  Fault (*fault)();  ///< of the latest call of this thread that returned a text

  Status (*count)(std::uint32_t* devices);
  Status (*open)(std::uint32_t device, Info* info);  ///< once; the calling thread is bound
  Status (*bind_thread)();
  Status (*memory)(std::uint64_t* free, std::uint64_t* total);
  void (*close)();

  Status (*alloc)(std::uint64_t bytes, void** out);  ///< device memory, 256-byte aligned, not cleared
  void (*free)(void* p);
  Status (*alloc_host)(std::uint64_t bytes, void** out);  ///< pinned
  void (*free_host)(void* p);
  Status (*register_host)(void* p, std::uint64_t bytes);  ///< pins memory of others for direct copies
  void (*unregister_host)(void* p);

  Status (*new_stream)(bool urgent, Stream** out);
  void (*free_stream)(Stream* s);
  Status (*synchronize)(Stream* s);
  Status (*new_event)(bool timed, Event** out);
  void (*free_event)(Event* e);
  Status (*record)(Event* e, Stream* s);
  Status (*wait)(Stream* s, Event* e);                             ///< what follows on s runs after e
  Status (*query)(Event* e, bool* fired);                          ///< does not block
  Status (*wait_host)(Event* e);                                   ///< blocks the caller
  Status (*elapsed)(Event* from, Event* to, float* milliseconds);  ///< of timed events that fired

  Status (*begin_capture)(Stream* s);
  Status (*end_capture)(Stream* s, Graph** out);
  Status (*launch)(Graph* g, Stream* s);
  void (*free_graph)(Graph* g);

  Status (*to_device)(void* to, const void* from, std::uint64_t bytes, Stream* s);
  Status (*to_host)(void* to, const void* from, std::uint64_t bytes, Stream* s);
  Status (*on_device)(void* to, const void* from, std::uint64_t bytes, Stream* s);
  Status (*clear)(void* p, std::uint64_t bytes, Stream* s);

  Status (*rms_norm)(const RmsNorm& a, Stream* s);
  Status (*matmul)(const Matmul& a, Stream* s);
  /// Products that need nothing of one another: where one launch can do them, small ones run beside the
  /// large.
  Status (*matmuls)(const Matmul* list, std::uint32_t count, Stream* s);
  Status (*silu_mul)(const SiluMul& a, Stream* s);
  Status (*convolution)(const Convolution& a, Stream* s);
  Status (*delta_rule)(const DeltaRule& a, Stream* s);
  Status (*attention_store)(const AttentionStore& a, Stream* s);
  Status (*attention)(const Attention& a, Stream* s);
  std::uint64_t (*attention_workspace)(std::uint32_t heads, std::uint32_t head_dim,
                                       std::uint32_t longest);  ///< floats, for one row at a time
  Status (*top_k)(const TopK& a, Stream* s);
  Status (*experts)(const Experts& a, Stream* s);
  Status (*combine)(const Combine& a, Stream* s);
  Status (*not_finite)(const NotFinite& a, Stream* s);
};

/// The module's one exported symbol, kEntryPoint. Null when it speaks another ABI.
using EntryPoint = const Api* (*)(std::uint32_t abi);

}  // namespace stoker::device
