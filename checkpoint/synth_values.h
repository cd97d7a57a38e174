// The values of synthetic tensors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "checkpoint/synth.h"
#include "checkpoint/synth_layout.h"
#include "checkpoint/synth_routing.h"

namespace stoker {

class SynthValues {
 public:
  explicit SynthValues(const SynthSpec& spec);

  /// Fills `out` with the bytes of elements [first, first + out.size() / dtype size) of the tensor. `first`
  /// must be a multiple of 8. Thread-safe.
  void fill(const SynthTensor& tensor, std::uint64_t first, std::span<std::byte> out) const;

  /// The same as numbers, for tensors that are neither FP8 nor scales.
  void fill_floats(const SynthTensor& tensor, std::uint64_t first, std::span<float> out) const;

 private:
  [[nodiscard]] double weight_std(const SynthTensor& tensor) const;
  void fill_codes(const SynthTensor& tensor, std::uint64_t first, std::span<std::byte> out) const;
  void fill_scales(const SynthTensor& tensor, std::uint64_t first, std::span<float> out) const;
  void fill_rows(const SynthTensor& tensor, std::uint64_t first, std::span<float> out) const;

  const SynthSpec& spec_;
  RoutingModel routing_;
  std::uint8_t codes_[256];  ///< E4M3 codes of the 256 quantiles of a normal distribution that ends at +-448
};

}  // namespace stoker
