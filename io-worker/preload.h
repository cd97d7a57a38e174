// Bringing back the experts of a warm manifest, in the background: what is read next, and how far it is.
//
// Order: the manifest goes from most to least valuable. It is cut into chunks; inside a chunk experts are
// read in the order they lie on disk. A request that comes in the middle finds the most valuable chunks
// there.
//
// The loader (Loader::start_preload) starts such a read only
//   - into a free slot: nothing is evicted for it;
//   - while no demand waits or is being read, and no hint waits;
//   - beside other preloads only when no demand came for kPreloadQuiet, and then so that one more expert
//     would fit into the bytes in flight, so that a demand starts at once. Otherwise one is read at a time.
// A demand for an expert that is being preloaded joins the read, as with hints.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "io-worker/warm_manifest.h"
#include "shm/base/clock.h"

namespace stoker {

inline constexpr Duration kPreloadQuiet = std::chrono::milliseconds(100);

class Preload {
 public:
  static constexpr std::size_t kChunk = 512;

  /// The first `slots` experts of the manifest: as many as there is room for.
  Preload(const WarmManifest& manifest, const ExpertPlan& plan, std::size_t slots);

  [[nodiscard]] std::size_t planned() const { return order_.size(); }
  [[nodiscard]] std::size_t restored() const { return restored_; }
  [[nodiscard]] std::size_t reading() const { return reading_; }
  /// Nothing is left to start.
  [[nodiscard]] bool all_started() const { return next_ == order_.size(); }
  /// Everything has landed, or will not be read.
  [[nodiscard]] bool finished() const { return all_started() && reading_ == 0; }

  // For the loader.
  [[nodiscard]] ExpertKey take_next() { return order_[next_++]; }
  void began() { ++reading_; }
  void ended(bool restored) {
    --reading_;
    restored_ += restored ? 1 : 0;
  }
  /// The pool is full: the rest is not worth an eviction.
  void give_up() { next_ = order_.size(); }

 private:
  std::vector<ExpertKey> order_;
  std::size_t next_ = 0, reading_ = 0, restored_ = 0;
};

}  // namespace stoker
