// Sequences on an emulated device that has room for their budget and nothing else.
#include "gpu-worker/cuda/sequence.h"

#include <catch2/catch.hpp>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "gpu-worker/cuda/device_module.h"

namespace stoker {
namespace {

/// Two layers of each kind, small.
ModelConfig small_config() {
  ModelConfig c;
  c.mixers = {MixerType::linear_attention, MixerType::full_attention, MixerType::linear_attention,
              MixerType::full_attention};
  c.linear_value_heads = 4;
  c.linear_key_heads = 2;
  c.linear_key_dim = c.linear_value_dim = 16;
  c.conv_kernel = 4;
  c.kv_heads = 1;
  c.head_dim = 16;
  return c;
}

/// An open device with `memory` bytes, and the memory of sequences of which `budget` bytes may be allocated.
class Device {
 public:
  Device(std::uint64_t memory, std::uint64_t budget) {
    ::setenv("STOKER_EMULATED_VRAM", std::to_string(memory).c_str(), 1);
    auto opened = DeviceModule::open("emulation");
    if (!opened) FAIL(opened.error().text());
    module_.emplace(std::move(*opened));
    device::Info info{};
    REQUIRE(api().open(0, &info) == nullptr);
    auto stream = make_stream(api(), false);
    REQUIRE(stream);
    stream_ = std::move(*stream);
    sequences_.emplace(api(), stream_.get(), small_config(), budget);
  }
  ~Device() {
    sequences_.reset();
    stream_ = {};
    api().close();
  }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  SequenceMemory& memory() { return *sequences_; }
  std::unique_ptr<CudaSequence> sequence(std::uint64_t length, bool marked) {
    auto made = std::make_unique<CudaSequence>(memory(), nullptr);
    made->set_length(static_cast<std::uint32_t>(length));
    if (auto grown = made->reserve(length); !grown) FAIL(grown.error().text());
    if (!marked) return made;
    if (auto mark = made->mark(); !mark) FAIL(mark.error().text());
    return made;
  }
  std::uint64_t used() {
    std::uint64_t free = 0, total = 0;
    REQUIRE(api().memory(&free, &total) == nullptr);
    return total - free;
  }

 private:
  [[nodiscard]] const device::Api& api() const { return module_->api(); }
  std::optional<DeviceModule> module_;
  DeviceStream stream_;
  std::optional<SequenceMemory> sequences_;
};

/// What a sequence of this length holds, with its mark.
std::uint64_t bytes_of(std::uint64_t length) {
  static const Result<DeviceModule> module = DeviceModule::open("emulation");
  if (!module) FAIL(module.error().text());
  const SequenceMemory sizes(module->api(), nullptr, small_config(), 0);
  return sizes.bytes_for(length) + sizes.state_bytes();
}

TEST_CASE("a long conversation, then many short ones with marks, then a long one: inside the budget") {
  const std::uint64_t length = 20 * device::kPagePositions;
  const std::uint64_t budget = bytes_of(length);
  const std::size_t many = budget / bytes_of(1);
  REQUIRE(many > 4);
  // Once with a device that is full at the budget, once with one that would give more.
  for (const std::uint64_t memory : {budget, 4 * budget}) {
    Device device(memory, budget);
    for (int round = 0; round < 3; ++round) {
      { const auto conversation = device.sequence(length, true); }
      CHECK(device.memory().allocated() <= budget);
      std::vector<std::unique_ptr<CudaSequence>> short_ones;
      for (std::size_t i = 0; i < many; ++i) {
        short_ones.push_back(device.sequence(1, true));
        CHECK(device.memory().allocated() <= budget);
      }
      CHECK(device.used() == device.memory().allocated());
    }
  }
}

TEST_CASE("a device that has less than the budget: what is free of the other kind is given back") {
  const std::uint64_t length = 8 * device::kPagePositions;
  const std::uint64_t memory = bytes_of(length);
  Device device(memory, 100 * memory);
  { const auto conversation = device.sequence(length, true); }
  std::vector<std::unique_ptr<CudaSequence>> short_ones;
  for (std::size_t i = 0; i < memory / bytes_of(1); ++i) short_ones.push_back(device.sequence(1, true));
  CudaSequence one_more(device.memory(), nullptr);
  const auto refused = one_more.reserve(length);
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == Errc::no_memory);
}

TEST_CASE("what is given back is used again, not allocated again") {
  Device device(1 << 24, 1 << 24);
  { const auto first = device.sequence(3 * device::kPagePositions, true); }
  const std::uint64_t allocated = device.memory().allocated();
  { const auto second = device.sequence(2 * device::kPagePositions, true); }
  CHECK(device.memory().allocated() == allocated);
}

TEST_CASE("a mark that is given back while it is copied makes room for pages") {
  const std::uint64_t page = bytes_of(2 * device::kPagePositions) - bytes_of(1);
  for (const char* seed : {"1", "2", "3", "4"}) {
    ::setenv("STOKER_EMULATION_SEED", seed, 1);
    const std::uint64_t memory = bytes_of(1) + page;  // less than three pages and two states
    Device device(memory, memory);
    const auto sequence = device.sequence(1, true);
    REQUIRE(sequence->rewind());
    sequence->unmark();
    REQUIRE(sequence->reserve(2 * device::kPagePositions));
    CHECK(device.used() <= memory);
  }
}

}  // namespace
}  // namespace stoker
