// One step of the model: a forward pass over a batch of segments. The file to read first.
//
// A segment is some tokens of one sequence: one token when decoding, a chunk when prefilling. All rows of
// all segments go through a layer together; each row's arithmetic is the same whatever else is in the
// step (fixed summation order per output element), so results do not depend on the batch, on the chunk
// size, on which experts were resident, or on the order in which reads finish.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/config.h"
#include "gpu-worker/expert_source.h"
#include "gpu-worker/weights.h"
#include "shm/base/clock.h"
#include "shm/base/result.h"

namespace stoker {

enum class Simd : std::uint8_t { automatic, scalar, avx2, avx512, avx512vbmi };

struct CpuOptions {
  unsigned threads = 0;  ///< 0: one per online CPU of the affinity mask
  Simd simd = Simd::automatic;
  std::uint32_t lookahead = 16;     ///< candidates of the next layer's router per row; 0 = off
  std::uint32_t step_tokens = 512;  ///< most tokens in one step; workspace grows with it (about 200 KB each)
};

/// State of one request: KV cache of the full-attention layers, conv and recurrent state of the others.
/// Grows as tokens are appended; memory_bytes() is what it holds now.
///
/// A recurrent state cannot be undone, only copied before. A sequence can remember one such place, its mark,
/// and go back to it; it then goes on with the bits of one that never went further. Between steps only.
class Sequence {
 public:
  virtual ~Sequence() = default;
  [[nodiscard]] virtual std::uint32_t length() const = 0;  ///< tokens processed so far
  [[nodiscard]] virtual std::uint64_t memory_bytes() const = 0;

  /// Remembers the present place, instead of an earlier one, with Model::mark_bytes() of memory. After an
  /// error there is no mark.
  virtual Result<void> mark() = 0;
  [[nodiscard]] virtual std::uint32_t marked() const = 0;  ///< length at the mark; 0: there is none
  /// Back to the mark, which stays; what later tokens held is freed. After an error the sequence must be
  /// dropped.
  virtual Result<void> rewind() = 0;
  virtual void unmark() = 0;  ///< frees its memory
  /// Another sequence at the present place, without a mark. Blocks of the KV cache are shared until one of
  /// the two writes there; memory_bytes() counts them for both. Errc::no_memory.
  [[nodiscard]] virtual Result<std::unique_ptr<Sequence>> fork() const = 0;
};

struct Segment {
  Sequence* sequence = nullptr;
  std::uint32_t sequence_id = 0;          ///< for routing samples
  std::span<const std::uint32_t> tokens;  ///< appended to the sequence; ids < vocab_size
  enum class Logits : std::uint8_t { none, last, all } logits = Logits::last;
};

struct SegmentResult {
  /// Set when this segment failed (an expert it needs could not be read). Its sequence must be dropped;
  /// other segments of the step are unharmed.
  std::optional<Error> error;
  /// Rows of vocab_size floats, per Segment::logits; valid until the next step.
  std::span<const float> logits;
};

struct StepStats {
  /// Expert uses by tier (distinct per layer).
  std::uint64_t vram = 0, pool = 0, hinted = 0, disk = 0, late_hint = 0;
  /// On a GPU, those that were not in VRAM, by lane: copied to it, or computed on the CPU.
  std::uint64_t copied = 0, on_cpu = 0;
  std::uint64_t copied_ahead = 0;  ///< to VRAM for a layer to come, on a guess
  Duration stall{};                ///< time in ExpertSource::next(wait=true)
  Duration stall_late_hint{};      ///< of that, what ended with an expert whose hint came too late
  Duration total{};
};

/// When one layer's experts were served; all but `stalled` since the step began. Taken only when an
/// observer wants it: two looks at the clock per layer, and one per wait.
struct LayerTiming {
  Duration demanded{};  ///< misses were with the loader
  Duration stalled{};   ///< time in ExpertSource::next(wait=true)
  Duration landed{};    ///< the last wait was over; = demanded if there was none
  Duration done{};      ///< outputs summed
};

/// What the router chose for one row in one layer; valid during the call only.
struct RoutingEvent {
  std::uint32_t layer = 0, sequence_id = 0, token = 0, position = 0;
  Access access = Access::decode;
  std::span<const ExpertId> chosen;  ///< by descending weight (rank order)
  std::span<const float> weights;
  std::span<const Tier> tiers;  ///< parallel to chosen
  LayerTiming timing;           ///< of the layer: the same for all rows of the step
};
struct LookaheadEvent {
  std::uint32_t layer = 0;  ///< the layer the candidates are for
  std::uint32_t sequence_id = 0, token = 0;
  std::span<const ExpertId> chosen;      ///< of layer - 1, which is being served; by descending weight
  std::span<const ExpertId> candidates;  ///< best first
  std::span<const float> scores;         ///< router probabilities
};

class RoutingObserver {
 public:
  virtual ~RoutingObserver() = default;
  /// Called once per row before a decode step runs.
  virtual void on_token(std::uint32_t /*sequence_id*/, std::uint32_t /*token*/) {}
  /// Called as soon as the candidates are known: before the layer's own misses are waited for.
  virtual void on_lookahead(const LookaheadEvent& event) = 0;
  /// Called once per row and layer, after the layer's experts have all been served.
  virtual void on_routing(const RoutingEvent& event) = 0;
  /// False: RoutingEvent::timing stays empty, and the clock is not looked at for it. Asked once per step.
  [[nodiscard]] virtual bool wants_timing() const { return false; }
};

/// Bytes per second that a GPU worker measured as it loaded; 0: not measured, or no GPU.
struct DeviceRates {
  double memory = 0;  ///< the device's own: read and written by copies within it
  double copies = 0;  ///< pinned host memory to device
  double cpu = 0;     ///< expert weights through the CPU lane
};

class Model {
 public:
  /// Binds the weights of `image` (which must outlive the model). Refuses NaN or infinite scales, wrong
  /// shapes and dtypes with the tensor's name.
  static Result<std::unique_ptr<Model>> load_cpu(const ModelConfig& config, const WeightsImage& image,
                                                 const CpuOptions& options, const Clock& clock);
  virtual ~Model() = default;
  [[nodiscard]] virtual const ModelConfig& config() const = 0;
  [[nodiscard]] virtual std::unique_ptr<Sequence> new_sequence() = 0;
  /// Bytes a sequence of `length` tokens will hold.
  [[nodiscard]] virtual std::uint64_t sequence_bytes(std::uint64_t length) const = 0;
  /// Bytes that Sequence::mark() takes on top.
  [[nodiscard]] virtual std::uint64_t mark_bytes() const = 0;
  /// Most tokens in one step (all segments together); workspace is sized for it.
  [[nodiscard]] virtual std::uint32_t step_tokens_max() const = 0;
  /// Runs one step. results.size() == segments.size(). `access` tells the pool whether to treat the
  /// experts as decode working set or as a prefill scan. observer may be null. An Error return means the
  /// whole step failed (expert source broken) and no sequence may be used any more; with Errc::device_lost
  /// every later step will.
  virtual Result<StepStats> step(std::span<const Segment> segments, Access access, ExpertSource& source,
                                 RoutingObserver* observer, std::span<SegmentResult> results) = 0;
  [[nodiscard]] virtual DeviceRates rates() const { return {}; }
  /// "cpu, avx512, 2 threads" for logs and status.
  [[nodiscard]] virtual std::string describe() const = 0;
};

}  // namespace stoker
