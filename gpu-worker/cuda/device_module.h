// Opens a device module (device_api.h) by name. No CUDA here: a machine without a driver gets an error, not a
// program that cannot start.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

#include "gpu-worker/cuda/device_api.h"
#include "shm/base/result.h"

namespace stoker {

/// Lifecycle: open() loads the module and checks its table; api() is valid as long as the object lives.
/// Whoever opens the device closes it (Api::close) before. The module's code stays in the process: the driver
/// and the CUDA runtime keep addresses of it (exit handlers) that nobody can take back.
class DeviceModule {
 public:
  /// kind: "cuda" or "emulation", for libstoker-KIND.so beside the program, else in ../lib/stoker from there.
  /// A path that is given is the only one tried.
  static Result<DeviceModule> open(std::string_view kind, const std::filesystem::path& path = {});

  [[nodiscard]] const device::Api& api() const { return *api_; }
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  struct Close {
    void operator()(void* handle) const;
  };
  using Handle = std::unique_ptr<void, Close>;

  DeviceModule(Handle handle, const device::Api& api, std::filesystem::path path);

  Handle handle_;
  const device::Api* api_;
  std::filesystem::path path_;
};

/// Whether the table is one that this program can use: ABI, size, no null among the functions. Separate for
/// its test.
Result<void> check_table(const device::Api& api, const std::string& path);

}  // namespace stoker
