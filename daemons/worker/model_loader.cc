#include "daemons/worker/model_loader.h"

#include <algorithm>

#include "daemons/common/log.h"
#include "daemons/common/size.h"
#include "gpu-worker/cuda/model.h"

namespace stoker {
namespace {

CpuOptions cpu_options(const Config& config) {
  static constexpr std::pair<const char*, Simd> kSimd[] = {{"auto", Simd::automatic},
                                                           {"scalar", Simd::scalar},
                                                           {"avx2", Simd::avx2},
                                                           {"avx512", Simd::avx512},
                                                           {"avx512vbmi", Simd::avx512vbmi}};
  CpuOptions options;
  options.threads = config.threads;
  for (const auto& [name, simd] : kSimd)
    if (config.simd == name) options.simd = simd;
  options.step_tokens = std::max(config.chunk, config.max_sequences);
  if (!config.samples) options.lookahead = 0;
  return options;
}

Result<LoadedModel> load_cuda(const Config& config, const ModelConfig& model, const WeightsImage& image,
                              Pool& pool, const Clock& clock) {
  CudaOptions options;
  options.kind = config.device == "auto" ? "cuda" : config.device;
  options.cpu = cpu_options(config);
  options.device = config.gpu;
  options.vram = config.vram.bytes;
  options.vram_percent = config.vram.percent;
  options.sequence_memory = config.sequence_memory.bytes;
  options.sequence_percent = config.sequence_memory.percent;
  options.step_tokens = options.cpu.step_tokens;
  options.context = std::min(config.context, model.max_position_embeddings);
  options.sequences = config.max_sequences;
  options.lookahead = options.cpu.lookahead;
  options.lane = config.expert_lane == "gpu"   ? Lane::gpu
                 : config.expert_lane == "cpu" ? Lane::cpu
                                               : Lane::automatic;
  options.copy_ahead = config.copy_ahead;
  options.pool = pool.payload();
  options.pool_slot_bytes = pool.slot_bytes();
  options.warn = [](const std::string& text) { log_warn(text); };
  STOKER_TRY(std::unique_ptr<CudaModel> loaded, CudaModel::load(model, image, options, clock));
  const std::uint64_t sequences = loaded->sequence_memory();
  return LoadedModel{std::move(loaded), sequences};
}

}  // namespace

Result<LoadedModel> load_model(const Config& config, const ModelConfig& model, const WeightsImage& image,
                               Pool& pool, const Clock& clock) {
  if (config.device != "cpu") {
    auto loaded = load_cuda(config, model, image, pool, clock);
    if (!loaded && config.device != "auto") {
      Error error = std::move(loaded).error();
      if (error.code == Errc::missing) error.code = Errc::io;  // a device, not a file of the model
      return tl::unexpected<Error>(std::move(error));
    }
    if (loaded) return loaded;
    // That there is none is no reason for a warning; that one does not work is.
    const std::string text = "no GPU is used (" + loaded.error().text() + "); computing on the CPU";
    loaded.error().code == Errc::missing ? log_info(text) : log_warn(text);
  }
  STOKER_TRY(auto loaded, Model::load_cpu(model, image, cpu_options(config), clock));
  return LoadedModel{std::move(loaded), config.sequence_memory.of(machine_memory())};
}

}  // namespace stoker
