// Which experts lie in device memory, and which one goes when another is to come: bookkeeping only. No
// device, no clock, no allocation after construction; the same code in the worker and in trace replay.
//
// Life of a slot (every slot belongs to one layer for good):
//   free -> filling    admit() names it for an expert; whoever was in it is gone from this moment
//   filling -> ready   filled(): the copy is complete, find() gives it
//   filling -> free    abandon(): the copy failed
//   ready -> filling   admit() takes it for another expert
//
// One event (one layer of one step) of the caller:
//   1. find() for every distinct expert of the event, before anything else;
//   2. for those it did not give: where wants(), admit() with the whole event, and start the copy;
//   3. filled() or abandon() for every slot admitted, in this event or in a later one.
// That a victim's slot may still be read by work that is queued is the caller's matter: it orders the copy
// behind that work with a device event.
//
// Policy (docs/vram-cache.md has the measurements):
//   admission  every expert that is copied anyway: the copy costs what it costs, staying costs nothing. Which
//              experts are copied and which are computed on the CPU is the caller's choice; last_gap() tells
//              who is likely to come again.
//   victim     of the layer's slots the one with the lowest score: uses (each worth .999 per step since,
//              shm/usage.h) over (age in steps + 1)^2; of equals the lowest slot. Never a member of the
//              event, never a slot that is filling. Where the text wanders this is as good as LRU, and better
//              where experts have favourites.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "shm/base/types.h"

namespace stoker {

struct VramCacheOptions {
  /// Not 0: while the layer has no free slot, only who was touched twice within so many steps is wanted. For
  /// callers that would copy for this cache alone.
  std::uint32_t second_touch_within = 0;
};

struct VramCacheCounters {
  std::uint64_t hits = 0, misses = 0;  ///< of find()
  std::uint64_t admissions = 0;        ///< copies begun
  std::uint64_t evictions = 0;         ///< of these: took the slot of another expert
  std::uint64_t abandoned = 0;         ///< of these: failed
};

/// For one thread.
class VramCache {
 public:
  /// `slots` are dealt out evenly: layer l owns slots [l * slots / layers, (l + 1) * slots / layers). With
  /// less slots than layers some layers have none.
  VramCache(std::uint32_t layers, std::uint32_t experts_per_layer, std::uint32_t slots,
            VramCacheOptions options = {});

  /// A decode step begins. Ages are counted in these.
  void begin_step();

  /// The slot that holds it, if its content is complete. Counts a use, resident or not, and a hit or miss;
  /// once per event and expert. Right until the next admit() or clear().
  std::optional<std::uint32_t> find(LayerId layer, ExpertId expert);
  /// The same without a trace: for prefill, which would otherwise look like a use of everything.
  [[nodiscard]] std::optional<std::uint32_t> peek(LayerId layer, ExpertId expert) const;

  /// Steps between its last two touches; kNone if there was but one. After find(): small is hot.
  [[nodiscard]] std::uint32_t last_gap(LayerId layer, ExpertId expert) const;
  /// Should it come in? After find(). False for who is here already or on its way.
  [[nodiscard]] bool wants(LayerId layer, ExpertId expert) const;
  /// The slot to copy it to. Nothing, and nothing has changed, if it has one already or no slot can go.
  std::optional<std::uint32_t> admit(LayerId layer, ExpertId expert, std::span<const ExpertId> event);
  /// `slot` is filling.
  void filled(std::uint32_t slot);
  void abandon(std::uint32_t slot);

  /// Empties it and forgets all uses; counters stay. No slot may be filling.
  void clear();

  [[nodiscard]] const VramCacheCounters& counters() const { return counters_; }
  [[nodiscard]] std::uint32_t slots() const { return static_cast<std::uint32_t>(slots_.size()); }
  [[nodiscard]] std::uint32_t resident() const { return resident_; }  ///< complete
  [[nodiscard]] std::uint32_t filling() const { return filling_; }

 private:
  struct Expert {
    std::uint64_t usage = 0;     ///< shm/usage.h, in our steps
    std::uint32_t before = 0;    ///< step of the last touch but one; 0: there was none
    std::uint32_t slot = kNone;  ///< filling or ready
  };
  struct Slot {
    std::uint32_t key = kNone;  ///< layer * experts + expert; kNone: free
    bool ready = false;
  };
  [[nodiscard]] std::uint32_t key_of(LayerId layer, ExpertId expert) const;
  [[nodiscard]] std::uint32_t first_slot(std::uint32_t layer) const;
  [[nodiscard]] std::uint32_t victim(LayerId layer, std::span<const ExpertId> event) const;
  [[nodiscard]] float score(std::uint32_t key) const;

  std::uint32_t layers_, experts_per_layer_;
  VramCacheOptions options_;
  std::vector<Expert> experts_;  ///< by key
  std::vector<Slot> slots_;
  std::vector<std::uint32_t> free_;  ///< by layer: how many slots hold nothing
  std::uint32_t step_ = 1;           ///< so that 0 means never
  std::uint32_t resident_ = 0, filling_ = 0;
  VramCacheCounters counters_;
};

}  // namespace stoker
