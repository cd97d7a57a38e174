#include "trace/replay.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <memory>
#include <span>
#include <tuple>
#include <utility>

#include "io-worker/residency.h"
#include "shm/usage.h"
#include "trace/events.h"

namespace stoker {
namespace {

constexpr std::array<std::pair<std::string_view, ReplayPolicy>, 5> kNames = {
    {{"lru", ReplayPolicy::lru},
     {"lfu-decay", ReplayPolicy::lfu_decay},
     {"lfru", ReplayPolicy::lfru},
     {"stoker", ReplayPolicy::stoker},
     {"belady", ReplayPolicy::belady}}};
constexpr double kDecay = 0.98;
constexpr std::uint32_t kNever = std::numeric_limits<std::uint32_t>::max();

/// For every use, in order, the index of the event that uses the same expert next.
std::vector<std::vector<std::uint32_t>> next_uses(const std::vector<TraceEvent>& events,
                                                  std::size_t experts) {
  std::vector<std::vector<std::uint32_t>> next(events.size());
  std::vector<std::uint32_t> upcoming(experts, kNever);
  for (std::size_t i = events.size(); i-- > 0;) {
    for (const std::uint32_t key : events[i].keys)
      next[i].push_back(std::exchange(upcoming[key], static_cast<std::uint32_t>(i)));
  }
  return next;
}

struct Expert {
  bool resident = false, seen = false;
  std::uint64_t usage = 0;  ///< packed, shm/usage.h
  double decayed = 0;       ///< uses, each worth kDecay per step since
  std::uint32_t uses = 0;
  std::uint32_t last_event = 0, last_step = 0, filled_step = 0;
  std::uint32_t next_use = kNever;  ///< event index
};

class Cache {
 public:
  Cache(const Trace& trace, const ReplayOptions& options)
      : shape_(trace.shape),
        options_(options),
        per_layer_(options.per_layer && options.policy != ReplayPolicy::stoker),
        capacity_(per_layer_ ? options.slots / shape_.layers : options.slots),
        experts_(std::size_t{shape_.layers} * shape_.experts),
        resident_(per_layer_ ? shape_.layers : 1),
        per_layer_count_(shape_.layers),
        residency_(shape_.layers, shape_.experts, options.slots) {
    result_.misses_per_layer.resize(shape_.layers);
  }

  void use(const TraceEvent& event, std::uint32_t index, const std::vector<std::uint32_t>& next) {
    std::vector<std::uint32_t> missing;
    for (std::size_t i = 0; i < event.keys.size(); ++i) {
      Expert& expert = experts_[event.keys[i]];
      count(expert, event);
      if (!expert.resident) missing.push_back(event.keys[i]);
      expert.seen = true;
      expert.usage = touch(expert.usage, event.step);
      expert.decayed = expert.decayed * std::pow(kDecay, event.step - expert.last_step) + 1;
      ++expert.uses;
      expert.last_event = index;
      expert.last_step = event.step;
      expert.next_use = next[i];
    }
    for (const std::uint32_t key : missing) insert(key, event.step);
    shrink(event, index);
  }
  [[nodiscard]] ReplayResult take() { return std::move(result_); }

 private:
  void count(const Expert& expert, const TraceEvent& event) {
    if (event.first_token < options_.skip) return;
    if (expert.resident) {
      ++result_.hits;
      return;
    }
    ++result_.misses;
    ++result_.misses_per_layer[event.layer];
    if (!expert.seen) ++result_.compulsory;
  }
  [[nodiscard]] std::vector<std::uint32_t>& group_of(std::uint32_t key) {
    return resident_[per_layer_ ? key / shape_.experts : 0];
  }
  void insert(std::uint32_t key, std::uint32_t step) {
    experts_[key].resident = true;
    experts_[key].filled_step = step;
    ++per_layer_count_[key / shape_.experts];
    group_of(key).push_back(key);
  }

  /// Down to capacity again: who is above it goes, the event's own experts last of all.
  void shrink(const TraceEvent& event, std::uint32_t index) {
    std::vector<std::uint32_t>& group = group_of(event.keys.front());
    if (group.size() <= capacity_) return;
    const std::size_t excess = group.size() - capacity_;
    const std::vector<std::uint32_t> victims = options_.policy == ReplayPolicy::stoker
                                                   ? loaders_choice(group, event, index, excess)
                                                   : lowest(group, event, index, excess);
    for (const std::uint32_t key : victims) {
      experts_[key].resident = false;
      --per_layer_count_[key / shape_.experts];
    }
    std::erase_if(group, [this](std::uint32_t key) { return !experts_[key].resident; });
  }

  /// Higher is kept longer.
  [[nodiscard]] double rank(const Expert& e, const TraceEvent& event, std::uint32_t index) const {
    switch (options_.policy) {
      case ReplayPolicy::lru:
        return e.last_event;
      case ReplayPolicy::lfu_decay:
        return e.decayed * std::pow(kDecay, event.step - e.last_step);
      case ReplayPolicy::lfru:
        return static_cast<double>(e.uses) / (event.step - e.last_step + 1.0);
      case ReplayPolicy::belady:
        return e.next_use == kNever ? 0.0 : 1.0 / (e.next_use - index);
      case ReplayPolicy::stoker:
        break;
    }
    return 0;
  }

  std::vector<std::uint32_t> lowest(const std::vector<std::uint32_t>& group, const TraceEvent& event,
                                    std::uint32_t index, std::size_t count) const {
    struct Ranked {
      bool in_event;
      double rank;
      std::uint32_t last_event, key;
      bool operator<(const Ranked& other) const {
        return std::tie(in_event, rank, last_event, key) <
               std::tie(other.in_event, other.rank, other.last_event, other.key);
      }
    };
    std::vector<Ranked> ranked;
    ranked.reserve(group.size());
    for (const std::uint32_t key : group) {
      const Expert& e = experts_[key];
      // Belady may drop what was just used; causal policies would never want to.
      const bool in_event = options_.policy != ReplayPolicy::belady && e.last_event == index && e.seen;
      ranked.push_back({in_event, rank(e, event, index), e.last_event, key});
    }
    std::nth_element(ranked.begin(), ranked.begin() + static_cast<std::ptrdiff_t>(count) - 1, ranked.end());
    std::vector<std::uint32_t> keys;
    for (std::size_t i = 0; i < count; ++i) keys.push_back(ranked[i].key);
    return keys;
  }

  /// As the loader does: victims come in batches from one scan of the pool, and who has been used since the
  /// scan is spared.
  std::vector<std::uint32_t> loaders_choice(const std::vector<std::uint32_t>& group, const TraceEvent& event,
                                            std::uint32_t index, std::size_t count) {
    std::vector<std::uint32_t> keys;
    for (int scan = 0; scan < 2 && keys.size() < count; ++scan) {
      while (!victims_.empty() && keys.size() < count) {
        const auto [key, usage] = victims_.back();
        victims_.pop_back();
        if (experts_[key].resident && experts_[key].usage == usage) keys.push_back(key);
      }
      if (keys.size() < count && scan == 0) scan_pool(group, event, index, keys, count);
    }
    // One layer needs more than there are slots: the rest passes through.
    for (std::size_t i = group.size(); keys.size() < count && i-- > 0;)
      if (std::find(keys.begin(), keys.end(), group[i]) == keys.end()) keys.push_back(group[i]);
    return keys;
  }

  /// The daemon's own code; slot numbers are places in `group`.
  void scan_pool(const std::vector<std::uint32_t>& group, const TraceEvent& event, std::uint32_t index,
                 const std::vector<std::uint32_t>& taken, std::size_t count) {
    slots_.clear();
    for (std::uint32_t i = 0; i < group.size(); ++i) {
      const Expert& e = experts_[group[i]];
      if (e.last_event == index && e.seen) continue;  // leased
      if (std::find(taken.begin(), taken.end(), group[i]) != taken.end()) continue;
      slots_.push_back({.slot = SlotId{i},
                        .expert = ExpertKey{group[i]},
                        .origin = SlotOrigin::demand,
                        .usage = e.usage,
                        .filled_step = e.filled_step});
    }
    std::vector<SlotId> chosen;
    residency_.choose(slots_, per_layer_count_, event.step, event.layer,
                      std::max(count - taken.size(), Residency::scan_batch(options_.slots)), chosen);
    for (std::size_t i = chosen.size(); i-- > 0;) {
      const std::uint32_t key = group[chosen[i].value];
      victims_.emplace_back(key, experts_[key].usage);
    }
  }

  TraceShape shape_;
  ReplayOptions options_;
  bool per_layer_;
  std::size_t capacity_;
  std::vector<Expert> experts_;                       ///< by key
  std::vector<std::vector<std::uint32_t>> resident_;  ///< keys, by layer or all together
  std::vector<std::uint32_t> per_layer_count_;
  Residency residency_;
  std::vector<ResidentSlot> slots_;
  std::vector<std::pair<std::uint32_t, std::uint64_t>> victims_;  ///< key, usage when chosen; next one last
  ReplayResult result_;
};

}  // namespace

std::optional<ReplayPolicy> parse_policy(std::string_view name) {
  for (const auto& [known, policy] : kNames)
    if (known == name) return policy;
  return std::nullopt;
}

ReplayResult replay(const Trace& trace, const ReplayOptions& options) {
  const std::vector<TraceEvent> events = events_of(trace);
  const auto next = next_uses(events, std::size_t{trace.shape.layers} * trace.shape.experts);
  Cache cache(trace, options);
  for (std::size_t i = 0; i < events.size(); ++i)
    cache.use(events[i], static_cast<std::uint32_t>(i), next[i]);
  return cache.take();
}

}  // namespace stoker
