// Golden weights from a name and an integer recipe: the C++ half of tools/oracle/generator.py, where the
// recipe is written down. Everything here is exact, so both halves give the same bytes on any machine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace stoker::golden {

inline constexpr std::uint64_t kTile = 128;  ///< scale tiles are kTile x kTile (model.md 4.1)

std::uint32_t fnv1a32(std::span<const std::byte> data);
std::uint32_t fnv1a32(std::string_view text);

/// Fills `out` with uniform doubles in (-0.5, 0.5), one generator step per element (model.md A8). Begin with
/// state = fnv1a32(name); go on with the state that is returned.
std::uint32_t fill_uniform(std::uint32_t state, std::span<double> out);

/// Which distributions tensors have: model.md's T0, model.md 9.1, or 9.1 with small embeddings.
enum class Rules : std::uint8_t { appendix_a, tiny, tied };

/// True for the matrices that the published FP8 checkpoint stores as FP8 (model.md 1.2).
bool is_fp8_module(std::string_view name);

/// The fp32 values of a tensor, row-major, before rounding to a storage type.
std::vector<float> make_tensor(const std::string& name, const std::vector<std::uint64_t>& shape,
                               const std::string& salt, Rules rules);

/// Round to nearest even; no NaN handling, weights have none.
std::uint16_t to_bf16(float value);
float from_bf16(std::uint16_t bits);
/// E4M3FN code, round to nearest even, saturating at +-448.
std::uint8_t to_e4m3(float value);
float from_e4m3(std::uint8_t code);

/// A matrix quantised by model.md 4.4: one scale per tile, partial tiles at the right and lower edge.
struct Quantised {
  std::vector<std::uint8_t> codes;  ///< [rows, cols]
  std::vector<float> scales;        ///< [ceil(rows / kTile), ceil(cols / kTile)]
};
/// `bf16_scales`: scales are rounded to bf16 before they are used.
Quantised quantise(std::span<const float> weights, std::uint64_t rows, std::uint64_t cols, bool bf16_scales);

}  // namespace stoker::golden
