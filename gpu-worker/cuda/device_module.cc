#include "gpu-worker/cuda/device_module.h"

#include <dlfcn.h>

#include <cstdint>
#include <cstring>
#include <system_error>
#include <vector>

namespace stoker {
namespace {

/// What to do about a module that is not there, or does not load.
std::string remedy(std::string_view kind) {
  if (kind == "cuda") {
    return "install the package stoker-cuda, or build with the CUDA Toolkit and -DSTOKER_CUDA=ON; without "
           "it, use "
           "the CPU backend";
  }
  return "it is built with the tests (-DSTOKER_TESTS=ON)";
}

Result<std::filesystem::path> find(std::string_view kind, const std::filesystem::path& path) {
  std::error_code error;
  if (!path.empty()) {
    if (std::filesystem::exists(path, error)) return std::filesystem::absolute(path);
    return fail(Errc::missing, "no device module at " + path.string() + ": " + remedy(kind));
  }
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) return fail(Errc::io, "cannot find out where this program lies (/proc/self/exe)", error.value());
  const std::filesystem::path name = "libstoker-" + std::string(kind) + ".so";
  const std::filesystem::path beside = program.parent_path() / name;
  const std::filesystem::path installed = (program.parent_path() / "../lib/stoker" / name).lexically_normal();
  for (const std::filesystem::path& candidate : {beside, installed}) {
    if (std::filesystem::exists(candidate, error)) return candidate;
  }
  return fail(Errc::missing,
              "found neither " + beside.string() + " nor " + installed.string() + ": " + remedy(kind));
}

Error load_error(const std::string& path, std::string_view kind) {
  const char* text = ::dlerror();
  return {Errc::unsupported, 0,
          "cannot load " + path + " (" + (text == nullptr ? "no reason given" : text) + "): " + remedy(kind)};
}

}  // namespace

void DeviceModule::Close::operator()(void* handle) const { ::dlclose(handle); }

DeviceModule::DeviceModule(Handle handle, const device::Api& api, std::filesystem::path path)
    : handle_(std::move(handle)), api_(&api), path_(std::move(path)) {}

Result<DeviceModule> DeviceModule::open(std::string_view kind, const std::filesystem::path& path) {
  STOKER_TRY(std::filesystem::path found, find(kind, path));
  Handle handle(::dlopen(found.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE));
  if (handle == nullptr) return tl::unexpected<Error>(load_error(found.string(), kind));
  const auto entry = reinterpret_cast<device::EntryPoint>(::dlsym(handle.get(), device::kEntryPoint));
  if (entry == nullptr) {
    return fail(Errc::unsupported, found.string() + " is not a device module of Stoker: it has no function " +
                                       device::kEntryPoint);
  }
  const device::Api* api = entry(device::kAbi);
  if (api == nullptr) {
    return fail(Errc::unsupported, found.string() +
                                       " was made by another version of Stoker (this program speaks ABI " +
                                       std::to_string(device::kAbi) + "): " + remedy(kind));
  }
  STOKER_TRY_VOID(check_table(*api, found.string()));
  return DeviceModule(std::move(handle), *api, std::move(found));
}

Result<void> check_table(const device::Api& api, const std::string& path) {
  if (api.abi != device::kAbi || api.bytes != sizeof(device::Api)) {
    return fail(Errc::unsupported,
                path + " was made by another version of Stoker: ABI " + std::to_string(api.abi) +
                    " with a table of " + std::to_string(api.bytes) + " bytes, not " +
                    std::to_string(device::kAbi) + " with " + std::to_string(sizeof(device::Api)) +
                    ". Install or build both from the same version");
  }
  // All that follows abi and bytes are pointers.
  constexpr std::size_t kFirst = offsetof(device::Api, kind);
  static_assert((sizeof(device::Api) - kFirst) % sizeof(void*) == 0);
  std::vector<std::uintptr_t> pointers((sizeof(device::Api) - kFirst) / sizeof(void*));
  std::memcpy(pointers.data(), reinterpret_cast<const std::byte*>(&api) + kFirst,
              sizeof(device::Api) - kFirst);
  for (std::size_t i = 0; i < pointers.size(); ++i) {
    if (pointers[i] == 0) {
      return fail(Errc::unsupported, path + " is not complete: entry " + std::to_string(i) +
                                         " of its table is null. Build it again from this version's sources");
    }
  }
  return {};
}

}  // namespace stoker
