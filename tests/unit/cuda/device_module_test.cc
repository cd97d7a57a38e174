// Opening device modules: what is wrong with one is said, with the remedy.
#include "gpu-worker/cuda/device_module.h"

#include <dlfcn.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cstdlib>
#include <fstream>

namespace stoker {
namespace {

bool says(const Error& error, const std::string& part) {
  INFO(error.text());
  return error.text().find(part) != std::string::npos;
}

TEST_CASE("the emulation opens from beside the program, and has the whole table") {
  const auto opened = DeviceModule::open("emulation");
  if (!opened) FAIL(opened.error().text());
  CHECK(opened->api().kind == std::string("emulation"));
  CHECK(opened->path().filename() == "libstoker-emulation.so");
  std::uint32_t devices = 0;
  REQUIRE(opened->api().count(&devices) == nullptr);
  CHECK(devices == 1);
  // By path, while the other is open.
  const auto again = DeviceModule::open("emulation", opened->path());
  REQUIRE(again);
  CHECK(&again->api() == &opened->api());
}

TEST_CASE("the CUDA module, where it is built, loads on a machine without a driver") {
  const auto opened = DeviceModule::open("cuda");
  if (!opened) {
    CHECK(says(opened.error(), "libstoker-cuda.so"));
    CHECK(says(opened.error(), "CPU backend"));
    return;
  }
  CHECK(opened->api().kind == std::string("cuda"));
  std::uint32_t devices = 77;
  const char* status = opened->api().count(&devices);
  CHECK((status != nullptr || devices != 77));
  void* driver = ::dlopen("libcuda.so.1", RTLD_LAZY);
  if (driver != nullptr) return;
  INFO(status);
  CHECK(status != nullptr);
  CHECK(opened->api().fault() == device::Fault::no_driver);
}

TEST_CASE("a module that is missing, or is none, is named with the remedy") {
  const auto missing = DeviceModule::open("cuda", "/nowhere/libstoker-cuda.so");
  REQUIRE_FALSE(missing);
  CHECK(missing.error().code == Errc::missing);
  CHECK(says(missing.error(), "/nowhere/libstoker-cuda.so: install the package stoker-cuda"));

  const auto unknown = DeviceModule::open("abacus");
  REQUIRE_FALSE(unknown);
  CHECK(says(unknown.error(), "libstoker-abacus.so"));
  CHECK(says(unknown.error(), "/lib/stoker/"));

  const std::string file = "/tmp/stoker-device-module-test-" + std::to_string(::getpid());
  std::ofstream(file) << "not a library";
  const auto broken = DeviceModule::open("cuda", file);
  ::unlink(file.c_str());
  REQUIRE_FALSE(broken);
  CHECK(broken.error().code == Errc::unsupported);
  CHECK(says(broken.error(), "cannot load " + file));

  const auto other = DeviceModule::open("cuda", "/lib/x86_64-linux-gnu/libm.so.6");
  REQUIRE_FALSE(other);
  CHECK(says(other.error(), "libm.so.6"));
}

TEST_CASE("a table of another version, or with a hole, is refused") {
  const auto opened = DeviceModule::open("emulation");
  REQUIRE(opened);
  device::Api table = opened->api();
  CHECK(check_table(table, "m.so"));
  table.bytes -= 8;
  CHECK(says(check_table(table, "m.so").error(), "another version"));
  table = opened->api();
  table.abi += 1;
  CHECK(says(check_table(table, "m.so").error(), "ABI " + std::to_string(device::kAbi + 1)));
  table = opened->api();
  table.not_finite = nullptr;
  CHECK(says(check_table(table, "m.so").error(), "m.so is not complete: entry "));
}

}  // namespace
}  // namespace stoker
