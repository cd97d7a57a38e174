#include "tests/golden/golden_runner.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <utility>

#include "checkpoint/checkpoint.h"
#include "shm/base/check.h"
#include "tests/golden/golden_checkpoint.h"

namespace stoker::golden {
namespace {

/// A directory that goes away with its owner.
class TemporaryDirectory {
 public:
  static Result<TemporaryDirectory> make() {
    std::string path = (std::filesystem::temp_directory_path() / "stoker-golden-XXXXXX").string();
    if (::mkdtemp(path.data()) == nullptr) return fail(Errc::io, "cannot make " + path, errno);
    return TemporaryDirectory(std::move(path));
  }
  TemporaryDirectory(TemporaryDirectory&& other) noexcept : path_(std::exchange(other.path_, {})) {}
  TemporaryDirectory& operator=(TemporaryDirectory&&) = delete;
  ~TemporaryDirectory() {
    std::error_code ignored;
    if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
  }
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  explicit TemporaryDirectory(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

/// Where a feed stands.
struct Cursor {
  std::unique_ptr<Sequence> sequence;
  std::size_t piece = 0, in_piece = 0, done = 0;

  /// The next tokens to feed: the rest of the piece, at most `max`.
  std::span<const std::uint32_t> take(const Feed& feed, std::size_t max) {
    if (piece == feed.split.size()) return {};
    const std::size_t n = std::min<std::size_t>(feed.split[piece] - in_piece, max);
    const auto tokens = feed.tokens.subspan(done, n);
    in_piece += n;
    done += n;
    if (in_piece == feed.split[piece]) {
      ++piece;
      in_piece = 0;
    }
    return tokens;
  }
};

std::uint32_t argmax(std::span<const float> row) {
  return static_cast<std::uint32_t>(std::max_element(row.begin(), row.end()) - row.begin());
}

double log_sum_exp(std::span<const float> row) {
  const double top = *std::max_element(row.begin(), row.end());
  double sum = 0;
  for (float v : row) sum += std::exp(static_cast<double>(v) - top);
  return top + std::log(sum);
}

}  // namespace

Result<std::unique_ptr<GoldenRun>> GoldenRun::make(const std::string& data_directory,
                                                   const std::string& name) {
  STOKER_TRY(Golden golden, read_golden(data_directory, name));
  STOKER_TRY(const TemporaryDirectory directory, TemporaryDirectory::make());
  STOKER_TRY_VOID(write_checkpoint(golden, directory.path(), ""));
  std::unique_ptr<GoldenRun> run(new GoldenRun(std::move(golden)));
  STOKER_TRY_VOID(run->read(directory.path()));
  return run;
}

Result<void> GoldenRun::read(const std::string& directory) {
  STOKER_TRY(const Checkpoint checkpoint, Checkpoint::open(directory));
  STOKER_TRY(const ExpertPlan experts, ExpertPlan::make(checkpoint));
  STOKER_TRY(const WeightsPlan plan, WeightsPlan::make(checkpoint, experts));
  STOKER_TRY(image_, build_image(checkpoint, plan));
  STOKER_TRY(weights_, WeightsImage::parse(image_.span()));
  STOKER_TRY(source_, MemorySource::make(checkpoint, experts, *weights_));
  return {};
}

Result<std::unique_ptr<Model>> GoldenRun::load_model(Simd simd, const ModelConfig& config) const {
  CpuOptions options;
  options.simd = simd;
  return Model::load_cpu(config, *weights_, options, clock_);
}

std::span<float> GoldenRun::expert_scales(std::uint32_t layer) {
  const TensorInfo* scales = weights_->find("stoker.layers." + std::to_string(layer) + ".expert_scales");
  STOKER_CHECK(scales != nullptr);
  const auto offset = weights_->data(*scales) - image_.data();
  return {reinterpret_cast<float*>(image_.data() + offset), scales->elements()};
}

Result<std::unique_ptr<CudaModel>> GoldenRun::load_cuda(CudaOptions options,
                                                        const ModelConfig& config) const {
  options.pool = source_->memory();
  options.pool_slot_bytes = source_->slot_bytes();
  return CudaModel::load(config, *weights_, options, clock_);
}

Result<std::vector<std::vector<float>>> run(Model& model, ExpertSource& source, std::span<const Feed> feeds) {
  std::vector<Cursor> cursors(feeds.size());
  for (Cursor& cursor : cursors) cursor.sequence = model.new_sequence();
  std::vector<std::vector<float>> logits(feeds.size());
  const std::size_t share = std::max<std::size_t>(1, model.step_tokens_max() / feeds.size());
  for (;;) {
    std::vector<Segment> segments;
    std::vector<std::size_t> owner;
    for (std::size_t i = 0; i < feeds.size(); ++i) {
      const auto tokens = cursors[i].take(feeds[i], share);
      if (tokens.empty()) continue;
      segments.push_back(
          {cursors[i].sequence.get(), static_cast<std::uint32_t>(i), tokens, Segment::Logits::all});
      owner.push_back(i);
    }
    if (segments.empty()) return logits;
    std::vector<SegmentResult> results(segments.size());
    const bool decoding =
        std::all_of(segments.begin(), segments.end(), [](const Segment& s) { return s.tokens.size() == 1; });
    const Access access = decoding ? Access::decode : Access::prefill;
    STOKER_TRY([[maybe_unused]] const auto stats, model.step(segments, access, source, nullptr, results));
    for (std::size_t s = 0; s < segments.size(); ++s) {
      if (results[s].error) return fail(*results[s].error, "segment");
      auto& out = logits[owner[s]];
      out.insert(out.end(), results[s].logits.begin(), results[s].logits.end());
    }
  }
}

Result<std::vector<std::uint32_t>> greedy(Model& model, ExpertSource& source,
                                          std::span<const std::uint32_t> prompt, std::size_t count) {
  const std::unique_ptr<Sequence> sequence = model.new_sequence();
  std::vector<std::uint32_t> feed(prompt.begin(), prompt.end()), out;
  while (out.size() < count) {
    const Segment segment{sequence.get(), 0, feed, Segment::Logits::last};
    SegmentResult result;
    const Access access = feed.size() == 1 ? Access::decode : Access::prefill;
    STOKER_TRY([[maybe_unused]] const auto stats,
               model.step(std::span(&segment, 1), access, source, nullptr, std::span(&result, 1)));
    if (result.error) return fail(*result.error, "greedy");
    feed = {argmax(result.logits)};
    out.push_back(feed[0]);
  }
  return out;
}

Difference compare(const Golden& golden, const Case& item, std::span<const float> logits) {
  const std::uint32_t vocab = golden.config.vocab_size;
  Difference worst;
  const auto see = [&](double got, double want, double largest, std::size_t position) {
    const double relative = std::fabs(got - want) / largest;
    if (relative <= worst.relative) return;  // a NaN is not <=, and stays the worst
    worst.relative = relative;
    worst.position = position;
  };
  for (std::size_t p = 0; p < item.positions.size(); ++p) {
    const PositionRecord& want = item.positions[p];
    const auto row = logits.subspan(p * vocab, vocab);
    for (std::size_t j = 0; j < kProbes; ++j)
      see(row[probe_id(p, j, vocab)], want.probes[j], want.largest, p);
    see(row[want.argmax], *std::max_element(row.begin(), row.end()), want.largest, p);
    see(log_sum_exp(row), want.log_sum_exp, want.largest, p);
    if (argmax(row) != want.argmax && want.margin > 2e-3F && worst.argmax.empty())
      worst.argmax = "position " + std::to_string(p) + ": " + std::to_string(argmax(row)) + " instead of " +
                     std::to_string(want.argmax);
  }
  const std::size_t last = item.positions.size() - 1;
  for (std::uint32_t v = 0; v < vocab; ++v)
    see(logits[last * vocab + v], item.last_logits[v], item.positions[last].largest, last);
  return worst;
}

}  // namespace stoker::golden
