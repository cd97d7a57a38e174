// What the golden tests share: fixtures that fail the Catch2 test with the error's text.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "tests/golden/golden_runner.h"

namespace stoker::golden {

/// Invariant 1 of design.md 9: of the largest |logit| of a position.
inline constexpr double kLogitsTolerance = 1e-3;

std::unique_ptr<GoldenRun> open_golden(const std::string& name);
std::unique_ptr<Model> open_model(const GoldenRun& run, Simd simd = Simd::automatic);
/// Logits [tokens, vocab] of one feed.
std::vector<float> logits_of(Model& model, MemorySource& source, const Feed& feed);
/// The same when the sequence is marked after `mark` tokens, goes astray twice and comes back to the mark
/// each time.
std::vector<float> logits_after_detours(Model& model, MemorySource& source,
                                        std::span<const std::uint32_t> tokens, std::size_t mark,
                                        std::size_t detour);
/// Every case of a golden, in every way of feeding it that the manifest lists; prints the worst difference.
void check_golden(const std::string& name);
/// The same with a model of the caller's, for the cases of these indices; empty: all.
void check_golden(GoldenRun& run, Model& model, const std::string& name,
                  std::span<const std::size_t> cases = {});
/// The longest case that is fed in more than one way.
const Case& longest_split_case(const Golden& golden);
bool same_bits(const std::vector<float>& a, const std::vector<float>& b);

}  // namespace stoker::golden
