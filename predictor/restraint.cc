#include "predictor/restraint.h"

#include <algorithm>
#include <span>

namespace stoker {

namespace {
constexpr float kMarginStep = 0.05F, kMarginMax = 0.4F;
constexpr float kThresholdMin = 0.2F, kThresholdMax = 0.95F;

/// Mean without the slowest tenth: another process's burst is not the hints' doing. Sorts.
double usual(std::span<std::uint64_t> times) {
  std::sort(times.begin(), times.end());
  const std::size_t kept = times.size() - times.size() / 10;
  double sum = 0;
  for (const std::uint64_t t : times.first(kept)) sum += static_cast<double>(t);
  return kept == 0 ? 0 : sum / static_cast<double>(kept);
}
}  // namespace

void Restraint::on_step(std::uint32_t process, std::uint64_t step, const HintCounters& counters) {
  const bool backwards =
      counters.issued < now_.issued || counters.used < now_.used || counters.wasted < now_.wasted;
  now_ = counters;
  if (!started_ || backwards) {  // the first look, or a new pool
    started_ = true;
    last_.fill({});
    enter(state_);
  }
  measure(process, step, counters);
  ++steps_;
  ++steps_in_state_;
  if (options_.mode == HintMode::automatic) decide();
}

/// Only between two steps in a row: a prefill, or a pause between requests, says nothing about decoding.
void Restraint::measure(std::uint32_t process, std::uint64_t step, const HintCounters& counters) {
  Mark& last = last_[process % last_.size()];
  if (last.step + 1 == step && counters.now_ns > last.now_ns && counters.demand_busy_ns >= last.busy_ns) {
    window_ns_ += counters.now_ns - last.now_ns;
    window_busy_ns_ += counters.demand_busy_ns - last.busy_ns;
    busy_ = std::min(1.0, static_cast<double>(window_busy_ns_) / static_cast<double>(window_ns_));
    // The first steps of a block still find what the last one left.
    const std::size_t side = with_hints() ? 1 : 0;
    if (state_ == State::probing && steps_ % kBlock >= 2 && trial_count_[side] < kTrialSteps)
      trial_[side][trial_count_[side]++] = counters.now_ns - last.now_ns;
  }
  last = {step, counters.demand_busy_ns, counters.now_ns};
}

void Restraint::decide() {
  switch (state_) {
    case State::on:
      if (steps_ < options_.window_steps) return;
      judge_window();
      if (state_ == State::on && steps_in_state_ >= options_.prove_every) enter(State::probing);
      return;
    case State::probing:
      if (steps_ >= kTrialSteps) judge_trial();
      return;
    case State::retreated:
      if (steps_ < pause_) return;
      return too_busy() ? retreat() : enter(State::probing);
  }
}

void Restraint::judge_window() {
  const std::uint64_t issued = now_.issued - window_.issued;
  if (too_busy()) return retreat();
  if (issued >= options_.window_issued_min) {
    const std::uint64_t used = now_.used - window_.used, late = now_.late - std::min(now_.late, window_.late);
    useful_share_ = static_cast<double>(used + late) / static_cast<double>(issued);
    // A read that a demand joins has hidden something, a read that was ready all: half and one.
    if (used + late > 0)
      lead_ = static_cast<float>(1.0 - 0.5 * static_cast<double>(late) / static_cast<double>(used + late));
    if (useful_share_ < options_.retreat_below) return retreat();
    if (useful_share_ < options_.cautious_below) margin_ = std::min(margin_ + kMarginStep, kMarginMax);
    if (useful_share_ > options_.bold_above) margin_ = std::max(margin_ - kMarginStep, 0.0F);
  }
  open_window();
}

void Restraint::judge_trial() {
  const double with = usual(std::span(trial_[1]).first(trial_count_[1]));
  const double without = usual(std::span(trial_[0]).first(trial_count_[0]));
  gain_ = without > 0 ? 1 - with / without : 0;
  const bool slower = with > 0 && without > 0 && gain_ <= 0;
  const std::uint64_t issued = now_.issued - window_.issued;
  judge_window();
  if (state_ == State::retreated) return;
  const bool judged = issued >= options_.window_issued_min;
  if (judged && (slower || useful_share_ < options_.return_above)) return retreat();
  pause_ = 0;
  enter(State::on);
}

void Restraint::retreat() {
  pause_ = std::clamp(pause_ * 2, options_.pause_steps, options_.pause_steps_max);
  if (state_ != State::retreated) ++retreats_;
  enter(State::retreated);
}

void Restraint::enter(State state) {
  state_ = state;
  steps_in_state_ = 0;
  trial_count_ = {};
  open_window();
}

void Restraint::open_window() {
  window_ = now_;
  window_ns_ = window_busy_ns_ = 0;
  steps_ = 0;
}

float Restraint::threshold() const {
  const auto rho = static_cast<float>(busy_);
  return std::clamp((rho + options_.displaced) / (lead_ + rho) + margin_, kThresholdMin, kThresholdMax);
}

/// on, off, off, on: a machine that gets slower by the minute favours neither.
bool Restraint::with_hints() const { return ((steps_ / kBlock + 1) / 2) % 2 == 0; }

std::uint32_t Restraint::width() const {
  if (options_.mode == HintMode::on) return options_.width;
  if (options_.mode == HintMode::off || state_ == State::retreated) return 0;
  return state_ == State::on || with_hints() ? options_.width : 0;
}

const char* Restraint::state_name() const {
  if (options_.mode == HintMode::off) return "off";
  if (options_.mode == HintMode::on || state_ == State::on) return "on";
  return state_ == State::probing ? "probing" : "retreated";
}

}  // namespace stoker
