// The table of a device module and its one exported symbol. The same for CUDA and for the emulation.
#include "gpu-worker/cuda/module.h"

namespace stoker::device {
namespace {

constexpr Api kApi{
    .abi = kAbi,
    .bytes = sizeof(Api),
    .kind = runtime::kKind,

    .fault = runtime::fault,

    .count = runtime::count,
    .open = runtime::open,
    .bind_thread = runtime::bind_thread,
    .memory = runtime::memory,
    .close = runtime::close,

    .alloc = runtime::alloc,
    .free = runtime::free,
    .alloc_host = runtime::alloc_host,
    .free_host = runtime::free_host,
    .register_host = runtime::register_host,
    .unregister_host = runtime::unregister_host,

    .new_stream = runtime::new_stream,
    .free_stream = runtime::free_stream,
    .synchronize = runtime::synchronize,
    .new_event = runtime::new_event,
    .free_event = runtime::free_event,
    .record = runtime::record,
    .wait = runtime::wait,
    .query = runtime::query,
    .wait_host = runtime::wait_host,
    .elapsed = runtime::elapsed,

    .begin_capture = runtime::begin_capture,
    .end_capture = runtime::end_capture,
    .launch = runtime::launch,
    .free_graph = runtime::free_graph,

    .to_device = runtime::to_device,
    .to_host = runtime::to_host,
    .on_device = runtime::on_device,
    .clear = runtime::clear,

    .rms_norm = launch_rms_norm,
    .matmul = launch_matmul,
    .matmuls = launch_matmuls,
    .silu_mul = launch_silu_mul,
    .convolution = launch_convolution,
    .delta_rule = launch_delta_rule,
    .attention_store = launch_attention_store,
    .attention = launch_attention,
    .attention_workspace = attention_workspace,
    .top_k = launch_top_k,
    .experts = launch_experts,
    .combine = launch_combine,
    .not_finite = launch_not_finite,
};

}  // namespace
}  // namespace stoker::device

extern "C" __attribute__((visibility("default"))) const stoker::device::Api* stoker_device_api(
    std::uint32_t abi) {
  return abi == stoker::device::kAbi ? &stoker::device::kApi : nullptr;
}
