// One named piece of shared memory and its mapping: a POSIX object, or a file on a hugetlbfs.
//
// The only file that uses Boost.Interprocess (shared_memory_object and mapped_region, nothing else of it:
// its mutexes do not survive a dead owner). Used by Pool and WeightsSegment.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "shm/base/result.h"

namespace stoker {

class Segment {
 public:
  struct Options {
    std::string name = {};            ///< POSIX object name without the slash; or see hugetlbfs_path
    std::uint64_t bytes = 0;          ///< multiple of 4096 (of 2 MiB on hugetlbfs)
    bool group_access = false;        ///< mode 0660 instead of 0600
    bool advise_huge = false;         ///< map 2 MiB-aligned and ask for transparent huge pages
    std::string hugetlbfs_path = {};  ///< not empty: the object is this file instead of `name`
  };

  /// Makes the object exclusively (Errc::busy when the name exists), maps it writable and populates every
  /// page, so that lack of memory is Errc::no_memory here and never a SIGBUS later. Nothing is left behind
  /// on an error.
  static Result<Segment> create(const Options& options);

  /// Maps an existing object as a whole. Refuses (Errc::invalid) one that another user owns (unless it is
  /// 0660 in a group of ours) or whose mode is neither 0600 nor 0660. Errc::missing when there is none,
  /// Errc::corrupt when it is empty. `options.bytes` and `group_access` are not looked at.
  static Result<Segment> open(const Options& options, bool writable);

  /// Removes a POSIX object's name; true when there was one.
  static bool remove(const std::string& name);

  Segment(Segment&&) noexcept;
  Segment& operator=(Segment&&) noexcept;
  ~Segment();

  [[nodiscard]] std::byte* data() const;
  [[nodiscard]] std::uint64_t bytes() const;
  [[nodiscard]] bool group_access() const;  ///< the object's mode is 0660
  /// Bytes of the mapping that are really in 2 MiB pages now (smaps; everything on a hugetlbfs).
  [[nodiscard]] std::uint64_t huge_bytes() const;
  /// Backs every page of the mapping with memory (content is kept). For adopted objects, which may have
  /// been left sparse.
  Result<void> populate();
  /// flock on the object: shared = "I use it"; exclusive, without waiting = "nobody else does".
  [[nodiscard]] bool lock_shared();
  [[nodiscard]] bool lock_exclusive();

 private:
  struct State;
  explicit Segment(std::unique_ptr<State> state);
  static Result<Segment> map(std::unique_ptr<State> state, bool writable, bool advise_huge);
  std::unique_ptr<State> state_;
};

/// "512.0 MiB", "24.0 GiB": for messages.
std::string bytes_text(std::uint64_t bytes);

}  // namespace stoker
