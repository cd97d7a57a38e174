#include "cli/trace_recorder.h"

#include <algorithm>

#include "daemons/common/endpoints.h"
#include "daemons/common/limits.h"
#include "daemons/common/messages.h"

namespace stoker::cli {
namespace {

/// A sample per layer twice, of 48 layers, for 2,000 tokens that we did not look at yet.
constexpr int kReceiveQueue = 200'000;
/// Half a token of so many steps ago will not be completed.
constexpr std::uint64_t kStepsKept = 8;

}  // namespace

TraceAssembler::Part& TraceAssembler::part_of(const wire::RoutingSample& sample) {
  while (!parts_.empty() && parts_.begin()->first.first + kStepsKept < sample.step()) {
    parts_.erase(parts_.begin());
    ++incomplete_;
  }
  const auto [at, fresh] = parts_.try_emplace({sample.step(), sample.sequence()});
  if (fresh) {
    at->second.token = TraceToken::sized(shape_);
    at->second.token.step = sample.step();
    at->second.token.sequence = sample.sequence();
    at->second.token.token = sample.token();
  }
  return at->second;
}

const TraceToken* TraceAssembler::add(const wire::RoutingSample& sample) {
  const auto unknown = [this](std::uint32_t expert) { return expert >= shape_.experts; };
  if (std::any_of(sample.lookahead().begin(), sample.lookahead().end(), unknown) ||
      std::any_of(sample.chosen().begin(), sample.chosen().end(), unknown)) {
    return nullptr;  // of another model
  }
  if (sample.lookahead_size() > 0 && sample.lookahead_layer() < shape_.layers) {
    TraceToken& token = part_of(sample).token;
    const auto count =
        std::min<std::size_t>(shape_.candidates, static_cast<std::size_t>(sample.lookahead_size()));
    for (std::size_t i = 0; i < count; ++i)
      token.candidates[std::size_t{sample.lookahead_layer()} * shape_.candidates + i] =
          static_cast<std::uint16_t>(sample.lookahead(static_cast<int>(i)));
  }
  const auto chosen = static_cast<std::size_t>(sample.chosen_size());
  if (chosen != shape_.top_k || sample.layer() >= shape_.layers) return nullptr;
  Part& part = part_of(sample);
  for (std::size_t i = 0; i < chosen; ++i) {
    const std::size_t at = std::size_t{sample.layer()} * shape_.top_k + i;
    part.token.chosen[at] = static_cast<std::uint16_t>(sample.chosen(static_cast<int>(i)));
    part.token.weights[at] = sample.weights(static_cast<int>(i));
    part.token.tiers[at] = static_cast<std::uint8_t>(sample.tiers(static_cast<int>(i)));
  }
  if (sample.has_times()) {
    const wire::LayerTimes& times = sample.times();
    part.token.times.resize(shape_.layers);
    part.token.times[sample.layer()] = {times.demanded(), times.stalled(), times.landed(), times.done()};
  }
  if (++part.layers < shape_.layers) return nullptr;
  done_ = std::move(part.token);
  parts_.erase({sample.step(), sample.sequence()});
  return &done_;
}

void TraceAssembler::forget() {
  parts_.clear();
  incomplete_ = 0;
}

Result<TraceRecorder> TraceRecorder::connect(const std::string& run_dir, const TraceShape& shape) {
  STOKER_TRY(ZmqContext context, ZmqContext::make());
  const ZmqOptions options{.receive_bytes_max = limits::kSampleBytes, .receive_queue = kReceiveQueue};
  STOKER_TRY(ZmqSocket socket,
             ZmqSocket::connect(context, ZmqRole::sub, endpoint::samples(run_dir), options));
  return TraceRecorder(std::move(context), std::move(socket), shape);
}

Result<void> TraceRecorder::drain(TraceWriter* writer) {
  for (;;) {
    STOKER_TRY(const auto message, socket_.receive());
    if (!message) return {};
    STOKER_TRY(const wire::RoutingSample sample, decode_sample(message->back()));
    ++samples_;
    const TraceToken* token = assembler_.add(sample);
    if (token == nullptr) continue;
    ++tokens_;
    if (writer != nullptr) STOKER_TRY_VOID(writer->append(*token));
  }
}

void TraceRecorder::restart() {
  samples_ = tokens_ = 0;
  assembler_.forget();
}

}  // namespace stoker::cli
