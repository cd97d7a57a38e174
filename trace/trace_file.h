// Routing traces: what the router chose, token by token, for tools that replay or describe it.
//
// File, little endian: char[8] "STRACE2\n"; u32 layers, experts, top_k, candidates; u64 expert_bytes; then
// one record of fixed size per decoded token, in the order of decoding:
//   u64 step; u32 sequence, token; u16 chosen[layers][top_k]; f32 weights[layers][top_k];
//   u8 tiers[layers][top_k]; u16 candidates[layers][candidates];
//   f32 times[layers][4]: demanded, stalled, landed, done (struct LayerTimes); all 0 = not known
// "STRACE1\n", which is still read, has no times.
#pragma once

#include <cstdint>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "shm/base/result.h"

namespace stoker {

struct TraceShape {
  std::uint32_t layers = 0, experts = 0;
  std::uint32_t top_k = 0;         ///< experts per token and layer
  std::uint32_t candidates = 0;    ///< look-ahead candidates per token and layer; 0: none were recorded
  std::uint64_t expert_bytes = 0;  ///< of one expert's weights, for tools that count bytes
  bool operator==(const TraceShape&) const = default;
};

/// Absent candidate (all of layer 0: nothing looks ahead to it).
inline constexpr std::uint16_t kNoExpert = 0xFFFF;

/// When one layer's experts were served, in microseconds; all but `stalled` since the token's step began.
struct LayerTimes {
  float demanded = 0;  ///< misses were with the loader
  float stalled = 0;   ///< waited for weights
  float landed = 0;    ///< the last wait was over; = demanded if there was none
  float done = 0;      ///< the layer's output was there
  bool operator==(const LayerTimes&) const = default;
};

/// One token's way through the model. Vectors are [layers][top_k], by descending weight, or
/// [layers][candidates], best first.
struct TraceToken {
  std::uint64_t step = 0;      ///< tokens with the same step were computed together
  std::uint32_t sequence = 0;  ///< which request; counts up, never reused in a file
  std::uint32_t token = 0;     ///< id of the token that was fed
  std::vector<std::uint16_t> chosen;
  std::vector<float> weights;
  std::vector<std::uint8_t> tiers;  ///< Tier of gpu-worker/expert_source.h: 0 vram .. 4 disk, late hint
  std::vector<std::uint16_t> candidates;
  std::vector<LayerTimes> times;  ///< by layer; empty: the file has none

  static TraceToken sized(const TraceShape& shape);
};

struct Trace {
  TraceShape shape;
  std::vector<TraceToken> tokens;
  bool tiers_known = false;         ///< false for other projects' traces
  std::uint64_t bytes_ignored = 0;  ///< of a last record that was not written to its end
};

class TraceWriter {
 public:
  /// Replaces the file. Errors name path and errno.
  static Result<TraceWriter> create(const std::string& path, const TraceShape& shape);
  Result<void> append(const TraceToken& token);
  Result<void> close();

 private:
  TraceWriter(std::string path, TraceShape shape) : path_(std::move(path)), shape_(shape) {}
  std::string path_;
  TraceShape shape_;
  std::ofstream file_;
  std::string record_;
  std::vector<LayerTimes> times_;  ///< reused
};

/// Errc::corrupt names what is wrong and where; every id is below shape.experts afterwards.
Result<Trace> parse_trace(std::string_view bytes);
Result<Trace> read_trace(const std::string& path);
/// All of a file; errors name the path.
Result<std::string> read_trace_bytes(const std::string& path);

}  // namespace stoker
