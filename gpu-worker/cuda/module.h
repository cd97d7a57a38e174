// Inside a device module: what kernels/*.cu and the runtime half define, and module.cc puts into the table.
// Included by .cu files: C++17.
#pragma once

#include <cstdint>

#include "gpu-worker/cuda/device_api.h"

namespace stoker::device {

// Defined by kernels/*.cu: each enqueues its kernels on the stream and returns. Zero rows are no error.
Status launch_rms_norm(const RmsNorm& a, Stream* s);
Status launch_matmul(const Matmul& a, Stream* s);
Status launch_matmuls(const Matmul* list, std::uint32_t count, Stream* s);
Status launch_silu_mul(const SiluMul& a, Stream* s);
Status launch_convolution(const Convolution& a, Stream* s);
Status launch_delta_rule(const DeltaRule& a, Stream* s);
Status launch_attention_store(const AttentionStore& a, Stream* s);
Status launch_attention(const Attention& a, Stream* s);
std::uint64_t attention_workspace(std::uint32_t heads, std::uint32_t head_dim, std::uint32_t longest);
Status launch_top_k(const TopK& a, Stream* s);
Status launch_experts(const Experts& a, Stream* s);
Status launch_combine(const Combine& a, Stream* s);
Status launch_not_finite(const NotFinite& a, Stream* s);

/// The half without kernels, under the names of the table: cuda_runtime.cu, or emulation/runtime.cc.
namespace runtime {

extern const char kKind[];

Fault fault();

Status count(std::uint32_t* devices);
Status open(std::uint32_t device, Info* info);
Status bind_thread();
Status memory(std::uint64_t* free, std::uint64_t* total);
void close();

Status alloc(std::uint64_t bytes, void** out);
void free(void* p);
Status alloc_host(std::uint64_t bytes, void** out);
void free_host(void* p);
Status register_host(void* p, std::uint64_t bytes);
void unregister_host(void* p);

Status new_stream(bool urgent, Stream** out);
void free_stream(Stream* s);
Status synchronize(Stream* s);
Status new_event(bool timed, Event** out);
void free_event(Event* e);
Status record(Event* e, Stream* s);
Status wait(Stream* s, Event* e);
Status query(Event* e, bool* fired);
Status wait_host(Event* e);
Status elapsed(Event* from, Event* to, float* milliseconds);

Status begin_capture(Stream* s);
Status end_capture(Stream* s, Graph** out);
Status launch(Graph* g, Stream* s);
void free_graph(Graph* g);

Status to_device(void* to, const void* from, std::uint64_t bytes, Stream* s);
Status to_host(void* to, const void* from, std::uint64_t bytes, Stream* s);
Status on_device(void* to, const void* from, std::uint64_t bytes, Stream* s);
Status clear(void* p, std::uint64_t bytes, Stream* s);

}  // namespace runtime
}  // namespace stoker::device
