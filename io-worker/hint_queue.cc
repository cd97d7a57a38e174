#include "io-worker/hint_queue.h"

#include <algorithm>

namespace stoker {

HintQueue::HintQueue(const HintQueueOptions& options) : options_(options) {
  hints_.set_capacity(std::max(1U, options.capacity));
}

std::uint32_t HintQueue::layer_of(const LoaderHint& hint) const {
  return hint.expert.value / options_.experts_per_layer;
}

std::uint64_t HintQueue::deadline_of(const LoaderHint& hint) const {
  return progress_of(hint.step, layer_of(hint));
}

void HintQueue::push(const LoaderHint& hint) {
  if (hint.process >= kProcessMax || layer_of(hint) >= options_.layers) {
    ++dropped_;
    return;
  }
  if (hints_.full()) ++dropped_;
  hints_.push_back(hint);
}

bool HintQueue::affordable(const LoaderHint& hint) const {
  const Spent& batch = batches_[hint.batch % kBatches];
  if ((batch.step == hint.batch ? batch.reads : 0) >= hint.batch_reads) return false;
  const Spent& step = steps_[hint.process];
  if (options_.step_reads == 0 || step.step != hint.step) return true;
  return step.reads * options_.layers < options_.step_reads * (layer_of(hint) + 1);
}

std::optional<LoaderHint> HintQueue::take(const Progress& progress) {
  const auto useless = std::remove_if(hints_.begin(), hints_.end(), [&](const LoaderHint& hint) {
    return deadline_of(hint) <= progress[hint.process] || !affordable(hint);
  });
  dropped_ += static_cast<std::uint64_t>(hints_.end() - useless);
  hints_.erase(useless, hints_.end());
  if (hints_.empty()) return std::nullopt;
  const auto next = std::min_element(hints_.begin(), hints_.end(), [&](const auto& a, const auto& b) {
    return deadline_of(a) - progress[a.process] < deadline_of(b) - progress[b.process];
  });
  const LoaderHint hint = *next;
  hints_.erase(next);
  return hint;
}

void HintQueue::issued(const LoaderHint& hint) {
  Spent& batch = batches_[hint.batch % kBatches];
  if (batch.step != hint.batch) batch = {hint.batch, 0};
  ++batch.reads;
  Spent& step = steps_[hint.process];
  if (step.step != hint.step) step = {hint.step, 0};
  ++step.reads;
}

}  // namespace stoker
