// Doctor's look at the GPU: driver, device module, card, and what copies to it reach.
#include <dlfcn.h>

#include <algorithm>
#include <cstring>
#include <fstream>

#include "cli/doctor.h"
#include "gpu-worker/cuda/device.h"
#include "gpu-worker/cuda/device_module.h"
#include "shm/base/clock.h"

namespace stoker::cli {
namespace {

using Level = Check::Level;

std::string driver_version() {
  std::ifstream file("/sys/module/nvidia/version");
  std::string line;
  std::getline(file, line);
  return line;
}

/// What experts travel at when they are not in VRAM.
void check_pinned_copies(Checks& checks, const device::Api& api) {
  constexpr std::uint64_t kBytes = 256ULL << 20;
  const auto copy = [&]() -> Result<double> {
    STOKER_TRY(const auto from, PinnedArray<std::byte>::make(api, kBytes));
    STOKER_TRY(const auto to, DeviceArray<std::byte>::make(api, kBytes));
    STOKER_TRY(const DeviceStream stream, make_stream(api, false));
    std::memset(from.data(), 0, kBytes);
    SteadyClock clock;
    double best = 0;
    // An idle card and its link begin at a fraction of their clocks.
    const Duration end = clock.now() + std::chrono::milliseconds(200);
    for (int round = 0; round < 3 || clock.now() < end; ++round) {
      const Duration start = clock.now();
      STOKER_DEVICE("copying", api.to_device(to.data(), from.data(), kBytes, stream.get()));
      STOKER_DEVICE("copying", api.synchronize(stream.get()));
      best = std::max(best, static_cast<double>(kBytes) / seconds(clock.now() - start));
    }
    return best;
  };
  const auto rate = copy();
  if (rate) {
    checks.push_back(
        {Level::ok, "GPU", "pinned copies", std::to_string(static_cast<int>(*rate / 1e9)) + " GB/s", ""});
  } else {
    checks.push_back({Level::warn, "GPU", "pinned copies", rate.error().text(), ""});
  }
}

/// The module and the first GPU through it. Missing is a warning only where a driver says that there is a
/// GPU.
void check_device_module(Checks& checks, bool driver) {
  const Level missing = driver ? Level::warn : Level::ok;
  const auto module = DeviceModule::open("cuda");
  if (!module) {
    checks.push_back({missing, "GPU", "module", module.error().text(),
                      driver ? "install or build libstoker-cuda.so" : ""});
    return;
  }
  const device::Api& api = module->api();
  std::uint32_t count = 0;
  const device::Status unusable = api.count(&count);
  // As in the worker: a driver that is too old, or does not work, is not a machine without a GPU.
  if (unusable != nullptr && api.fault() != device::Fault::no_driver) {
    checks.push_back({Level::warn, "GPU", "module", unusable,
                      "until then the CPU computes, and --device cuda ends with this error"});
    return;
  }
  if (unusable != nullptr || count == 0) {
    checks.push_back({missing, "GPU", "module",
                      unusable != nullptr ? unusable : "built, but there is no GPU: the CPU computes", ""});
    return;
  }
  device::Info info{};
  if (const device::Status bad = api.open(0, &info); bad != nullptr) {
    checks.push_back({Level::warn, "GPU", "device 0", bad, "give --device cpu, or repair the driver"});
    return;
  }
  const auto gib = [](std::uint64_t bytes) { return std::to_string(bytes >> 20) + " MiB"; };
  checks.push_back({Level::ok, "GPU", "device 0",
                    std::string(info.name) + ", compute capability " + std::to_string(info.major) + "." +
                        std::to_string(info.minor) + ", " + gib(info.memory_free) + " of " +
                        gib(info.memory_total) + " free, CUDA driver " + std::to_string(info.driver / 1000) +
                        "." + std::to_string(info.driver % 1000 / 10) + ", module " +
                        std::to_string(info.runtime / 1000) + "." + std::to_string(info.runtime % 1000 / 10),
                    ""});
  check_pinned_copies(checks, api);
  api.close();
}

}  // namespace

void check_gpu(Checks& checks) {
  void* cuda = ::dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
  void* nvml = ::dlopen("libnvidia-ml.so.1", RTLD_LAZY | RTLD_LOCAL);
  std::string devices;
  if (cuda != nullptr) {
    // CUDA driver API, stable since 2.0: int cuInit(unsigned), int cuDeviceGetCount(int*).
    const auto init = reinterpret_cast<int (*)(unsigned)>(::dlsym(cuda, "cuInit"));
    const auto count = reinterpret_cast<int (*)(int*)>(::dlsym(cuda, "cuDeviceGetCount"));
    int n = 0;
    if (init != nullptr && count != nullptr && init(0) == 0 && count(&n) == 0)
      devices = std::to_string(n) + " device(s), ";
  }
  const bool driver = cuda != nullptr || nvml != nullptr;
  const std::string value = driver ? devices + "NVIDIA driver " + driver_version() + " found"
                                   : "no NVIDIA driver (libcuda.so.1, libnvidia-ml.so.1)";
  checks.push_back({Level::ok, "GPU", "driver", value, ""});
  check_device_module(checks, driver);
  if (nvml != nullptr) ::dlclose(nvml);
  if (cuda != nullptr) ::dlclose(cuda);
}

}  // namespace stoker::cli
