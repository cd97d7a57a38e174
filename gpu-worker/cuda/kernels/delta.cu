// The gated DeltaNet mixer between its projections: convolution, delta rule and gated norm (model.md 3.4).
#include "gpu-worker/cuda/kernels/lanes.cuh"
#include "gpu-worker/cuda/module.h"
#include "gpu-worker/scalar_math.h"

namespace stoker::device {
namespace {

constexpr unsigned kConvThreads = 128;

/// A thread has one channel of one segment and walks its tokens with the last inputs in registers, the newest
/// at the end. They begin and end as the state, which no other thread touches.
__global__ void __launch_bounds__(kConvThreads) convolution(Convolution a) {
  const unsigned channel = blockIdx.x * kConvThreads + threadIdx.x;
  const Segment segment = a.step.segments[blockIdx.y];
  if (channel >= a.channels || segment.rows == 0) return;
  const unsigned unused = kConvTapsMax - a.taps;
  float* state = segment.conv + std::size_t{a.layer} * (a.taps - 1) * a.channels + channel;
  const float* in = a.in + std::size_t{segment.first_row} * a.in_stride + channel;
  float* out = a.out + std::size_t{segment.first_row} * a.channels + channel;
  float w[kConvTapsMax];
  float window[kConvTapsMax];
  window[0] = 0.0F;
  STOKER_UNROLL
  for (unsigned j = 0; j < kConvTapsMax; ++j) {
    w[j] = j >= unused ? a.w[std::size_t{j - unused} * a.channels + channel] : 0.0F;
    if (j > 0) window[j] = j > unused ? state[std::size_t{j - unused - 1} * a.channels] : 0.0F;
  }
  STOKER_UNROLL_BY(4)
  for (unsigned t = 0; t < segment.rows; ++t) {
    STOKER_UNROLL
    for (unsigned j = 0; j + 1 < kConvTapsMax; ++j) window[j] = window[j + 1];
    window[kConvTapsMax - 1] = __ldg(in + std::size_t{t} * a.in_stride);
    float acc = 0.0F;
    STOKER_UNROLL
    for (unsigned j = 0; j < kConvTapsMax; ++j) {
      if (j >= unused) acc = fmaf(w[j], window[j], acc);
    }
    out[std::size_t{t} * a.channels] = silu_lane(acc);
  }
  STOKER_UNROLL
  for (unsigned j = 1; j < kConvTapsMax; ++j) {
    if (j > unused) state[std::size_t{j - unused - 1} * a.channels] = window[j];
  }
}

constexpr unsigned kTokensMax = 16;  ///< tokens prepared together

/// Dynamic shared memory of delta_rule for `tokens` tokens at a time.
struct DeltaShared {
  float* q;  ///< [tokens][dk], normalised and scaled
  float* k;
  float* o;      ///< [tokens][dv]: v first, then the output
  float* kq;     ///< [tokens]
  float* decay;  ///< [tokens]
  float* beta;   ///< [tokens]
  float* r;      ///< [tokens], 1 / root mean square of the output
  __device__ DeltaShared(float* memory, unsigned tokens, unsigned dk, unsigned dv)
      : q(memory),
        k(q + tokens * dk),
        o(k + tokens * dk),
        kq(o + tokens * dv),
        decay(kq + tokens),
        beta(decay + tokens),
        r(beta + tokens) {}
};
constexpr std::size_t delta_shared_bytes(std::size_t tokens, std::size_t dk, std::size_t dv) {
  return tokens * (2 * dk + dv + 4) * sizeof(float);
}
static_assert(delta_shared_bytes(1, kKeyDimMax, kHeadDimMax) <= kSharedBytesMax, "the largest head fits");

/// A token's decay and beta, by a thread each: double precision is slow on most cards. The last warp and
/// another one do it, which have no token's q and k to prepare when there are few (decoding has one).
__device__ __forceinline__ void prepare_decay(const DeltaRule& a, unsigned first_row, unsigned tokens,
                                              unsigned head, const DeltaShared& shared) {
  const unsigned warp = threadIdx.x / 32;
  const unsigned last = blockDim.x / 32 - 1;
  const unsigned t = threadIdx.x % 32;
  if (t >= tokens) return;
  const float* ba = a.ba + std::size_t{first_row + t} * 2 * a.value_heads + head;
  if (warp == last) shared.decay[t] = delta_decay(a.neg_exp_a[head], ba[a.value_heads], a.dt_bias[head]);
  if (warp == last / 2) shared.beta[t] = sigmoid_exact(ba[0]);
}

/// Brings a token's v, and by a half-warp what its columns have in common: q, k and k . q.
__device__ __forceinline__ void prepare_tokens(const DeltaRule& a, unsigned first_row, unsigned tokens,
                                               unsigned head, const DeltaShared& shared) {
  const unsigned key_dim = a.key_heads * a.dk;
  const unsigned channels = 2 * key_dim + a.value_heads * a.dv;
  const unsigned key_head = head / (a.value_heads / a.key_heads);
  const float* v = a.qkv + std::size_t{first_row} * channels + 2 * key_dim + head * a.dv + threadIdx.x;
  // On its way while the rest is computed: decoding has no other.
  const float first_v = threadIdx.x < a.dv ? __ldg(v) : 0.0F;
  prepare_decay(a, first_row, tokens, head, shared);
  // Both half-warps of a warp go round equally often; beyond the end one redoes the last token's sums.
  for (unsigned base = threadIdx.x / 32 * 2; base < tokens; base += blockDim.x / 16) {
    const unsigned t = base + threadIdx.x / 16 % 2;
    const float* x = a.qkv + std::size_t{first_row + min(t, tokens - 1)} * channels + key_head * a.dk;
    // As dot() of q with itself, and of k, but all reads are sent before the first sum is made.
    float qq = 0.0F;
    float kk = 0.0F;
    for (unsigned i = lane16(), end = 0; end < a.dk; end += 16, i += 16) {
      const float q = i < a.dk ? __ldg(x + i) : 0.0F;
      const float k = i < a.dk ? __ldg(x + key_dim + i) : 0.0F;
      qq = fmaf(q, q, qq);
      kk = fmaf(k, k, kk);
    }
    const float q_norm = 1.0F / sqrtf(lane_sum(qq) + a.l2_eps);
    const float k_norm = 1.0F / sqrtf(lane_sum(kk) + a.l2_eps);
    float acc = 0.0F;
    for (unsigned i = lane16(), end = 0; end < a.dk; end += 16, i += 16) {
      const float q = i < a.dk ? __ldg(x + i) * q_norm * a.q_scale : 0.0F;
      const float k = i < a.dk ? __ldg(x + key_dim + i) * k_norm * 1.0F : 0.0F;
      acc = fmaf(k, q, acc);
      if (t >= tokens || i >= a.dk) continue;
      shared.q[t * a.dk + i] = q;
      shared.k[t * a.dk + i] = k;
    }
    const float kq = lane_sum(acc);
    if (t < tokens && lane16() == 0) shared.kq[t] = kq;
  }
  if (threadIdx.x >= a.dv) return;
  shared.o[threadIdx.x] = first_v;
  for (unsigned t = 1; t < tokens; ++t)
    shared.o[t * a.dv + threadIdx.x] = __ldg(v + std::size_t{t} * channels);
}

/// The gated norm of the tokens' outputs: a half-warp sums a token, then a thread has a column.
__device__ __forceinline__ void finish_tokens(const DeltaRule& a, unsigned first_row, unsigned tokens,
                                              unsigned head, const DeltaShared& shared) {
  const unsigned j = threadIdx.x;
  const float* z = a.z + std::size_t{first_row} * a.z_stride + head * a.dv + j;
  float* out = a.out + (std::size_t{first_row} * a.value_heads + head) * a.dv + j;
  const float norm = j < a.dv ? __ldg(a.norm + j) : 0.0F;
  float next = j < a.dv ? __ldg(z) : 0.0F;
  for (unsigned base = threadIdx.x / 32 * 2; base < tokens; base += blockDim.x / 16) {
    const unsigned t = base + threadIdx.x / 16 % 2;
    const float* o = shared.o + min(t, tokens - 1) * a.dv;
    const float mean = dot(o, o, a.dv) / static_cast<float>(a.dv);
    if (t < tokens && lane16() == 0) shared.r[t] = 1.0F / sqrtf(mean + a.norm_eps);
  }
  __syncthreads();
  if (j >= a.dv) return;
  for (unsigned t = 0; t < tokens; ++t) {
    const float gate = next;
    if (t + 1 < tokens) next = __ldg(z + std::size_t{t + 1} * a.z_stride);
    out[std::size_t{t} * a.value_heads * a.dv] =
        shared.o[t * a.dv + j] * shared.r[t] * norm * silu_lane(gate);
  }
}

/// One token of one column of the state, operation by operation delta_columns of cpu/kernels-inl.h. The
/// column is in registers. Whole warps: the barrier keeps the compiler from reading all of k and q ahead, for
/// which there are no registers left.
template <unsigned kKeys>
__device__ __forceinline__ float delta_column(float (&s)[kKeys], const float* q, const float* k, float v,
                                              float decay, float beta, float kq) {
  const auto* q4 = reinterpret_cast<const float4*>(q);
  const auto* k4 = reinterpret_cast<const float4*>(k);
  float sk = 0.0F;
  float sq = 0.0F;
  const auto read = [&](float state, float ki, float qi) {
    sk = fmaf(state, ki, sk);
    sq = fmaf(state, qi, sq);
  };
  STOKER_UNROLL
  for (unsigned i = 0; i < kKeys / 4; ++i) {
    if (i % 8 == 0) __syncwarp();
    const float4 ks = k4[i];
    const float4 qs = q4[i];
    read(s[4 * i], ks.x, qs.x);
    read(s[4 * i + 1], ks.y, qs.y);
    read(s[4 * i + 2], ks.z, qs.z);
    read(s[4 * i + 3], ks.w, qs.w);
  }
  const float d = beta * (v - decay * sk);
  STOKER_UNROLL
  for (unsigned i = 0; i < kKeys / 4; ++i) {
    const float4 ks = k4[i];
    s[4 * i] = fmaf(ks.x, d, decay * s[4 * i]);
    s[4 * i + 1] = fmaf(ks.y, d, decay * s[4 * i + 1]);
    s[4 * i + 2] = fmaf(ks.z, d, decay * s[4 * i + 2]);
    s[4 * i + 3] = fmaf(ks.w, d, decay * s[4 * i + 3]);
  }
  return fmaf(d, kq, decay * sq);
}
/// The same for a column in memory, its elements `stride` apart.
__device__ __forceinline__ float delta_column(float* s, unsigned stride, unsigned dk, const float* q,
                                              const float* k, float v, float decay, float beta, float kq) {
  float sk = 0.0F;
  float sq = 0.0F;
  for (unsigned i = 0; i < dk; ++i) {
    sk = fmaf(s[std::size_t{i} * stride], k[i], sk);
    sq = fmaf(s[std::size_t{i} * stride], q[i], sq);
  }
  const float d = beta * (v - decay * sk);
  for (unsigned i = 0; i < dk; ++i)
    s[std::size_t{i} * stride] = fmaf(k[i], d, decay * s[std::size_t{i} * stride]);
  return fmaf(d, kq, decay * sq);
}

/// A block per segment and value head, a thread per column of its state, a round per `most` tokens.
/// kKeys: dk, when the state fits into registers, else 0. kColumns: dv, when it is the usual one, else 0:
/// constant distances, and no test, in the reads and writes of the state, which are most of a decode step.
template <unsigned kKeys, unsigned kColumns>
__global__ void __launch_bounds__(kKeys > 0 ? 256 : 1024, 1) delta_rule(DeltaRule a, unsigned most) {
  STOKER_DYNAMIC_SHARED(float, memory);
  // From here on they are constants.
  if constexpr (kKeys > 0) a.dk = kKeys;
  if constexpr (kColumns > 0) a.dv = kColumns;
  const DeltaShared shared(memory, most, a.dk, a.dv);
  const Segment segment = a.step.segments[blockIdx.y];
  if (segment.rows == 0) return;
  const unsigned head = blockIdx.x;
  const unsigned column = threadIdx.x;
  const bool alive = kColumns > 0 || column < a.dv;
  float* state = segment.recurrent + (std::size_t{a.layer} * a.value_heads + head) * a.dk * a.dv + column;
  float s[kKeys > 0 ? kKeys : 4];
  if constexpr (kKeys > 0) {
    STOKER_UNROLL
    for (unsigned i = 0; i < kKeys; ++i) s[i] = alive ? state[std::size_t{i} * a.dv] : 0.0F;
  }
  for (unsigned first = 0; first < segment.rows; first += most) {
    const unsigned tokens = min(most, segment.rows - first);
    prepare_tokens(a, segment.first_row + first, tokens, head, shared);
    __syncthreads();
    STOKER_UNROLL_BY(1)
    for (unsigned t = 0; t < tokens; ++t) {
      const float* q = shared.q + t * a.dk;
      const float* k = shared.k + t * a.dk;
      float* o = shared.o + t * a.dv + column;
      if constexpr (kKeys > 0) {
        const float out =
            delta_column(s, q, k, alive ? *o : 0.0F, shared.decay[t], shared.beta[t], shared.kq[t]);
        if (alive) *o = out;
      } else if (alive) {
        *o = delta_column(state, a.dv, a.dk, q, k, *o, shared.decay[t], shared.beta[t], shared.kq[t]);
      }
    }
    __syncthreads();
    finish_tokens(a, segment.first_row + first, tokens, head, shared);
    __syncthreads();
  }
  if constexpr (kKeys > 0) {
    STOKER_UNROLL
    for (unsigned i = 0; i < kKeys; ++i) {
      if (alive) state[std::size_t{i} * a.dv] = s[i];
    }
  }
}

}  // namespace

Status launch_convolution(const Convolution& a, Stream* s) {
  if (a.step.segment_count == 0 || a.step.row_count == 0 || a.channels == 0) return nullptr;
  if (a.taps == 0 || a.taps > kConvTapsMax) return "convolution: 1 to 8 taps only";
  if (a.step.segment_count > 65'535) return "convolution: more than 65535 segments";
  const dim3 grid((a.channels + kConvThreads - 1) / kConvThreads, a.step.segment_count);
  return STOKER_LAUNCH(convolution, grid, kConvThreads, 0, s, a);
}

Status launch_delta_rule(const DeltaRule& a, Stream* s) {
  if (a.step.segment_count == 0 || a.step.row_count == 0) return nullptr;
  if (a.key_heads == 0 || a.value_heads % a.key_heads != 0)
    return "delta_rule: the value heads must be a multiple of the key heads";
  if (a.dk == 0 || a.dv == 0 || a.dv > kHeadDimMax || a.dk > kKeyDimMax)
    return "delta_rule: value heads of 1 to 1024, key heads of 1 to 4096 dimensions only";
  if (a.step.segment_count > 65'535) return "delta_rule: more than 65535 segments";
  unsigned tokens = min(kTokensMax, a.step.row_count);
  while (tokens > 1 && delta_shared_bytes(tokens, a.dk, a.dv) > kSharedBytesMax) tokens /= 2;
  const std::size_t bytes = delta_shared_bytes(tokens, a.dk, a.dv);
  const dim3 grid(a.value_heads, a.step.segment_count);
  const unsigned threads = (a.dv + 31) / 32 * 32;
  if (a.dk == 128 && a.dv == 128)
    return STOKER_LAUNCH((delta_rule<128, 128>), grid, threads, bytes, s, a, tokens);
  if (a.dk == 128 && threads <= 256)
    return STOKER_LAUNCH((delta_rule<128, 0>), grid, threads, bytes, s, a, tokens);
  return STOKER_LAUNCH((delta_rule<0, 0>), grid, threads, bytes, s, a, tokens);
}

}  // namespace stoker::device
