// The payload object of a pool and the ladder of page sizes it is made on (design.md 4):
//   1. a file on a hugetlbfs, when enough reserved 2 MiB pages are free
//   2. a POSIX object with transparent huge pages, when /dev/shm allows them
//   3. a POSIX object with 4 KiB pages
// Only pool.cc uses this.
#pragma once

#include <cstdint>
#include <string>

#include "shm/base/result.h"
#include "shm/pool.h"
#include "shm/segment.h"

namespace stoker {

struct Payload {
  Segment segment;
  std::string path;          ///< of the hugetlbfs file, or ""
  std::string note;          ///< Pool::page_note()
  std::uint32_t page_bytes;  ///< PoolHeader::page_bytes
};

/// Name of a pool's payload: POSIX object, or file name on a hugetlbfs.
std::string payload_name(const std::string& pool);

/// Makes and populates `bytes` (a multiple of 2 MiB) on the highest rung that holds. A leftover of the same
/// name is replaced.
Result<Payload> create_payload(const PoolSpec& spec, std::uint64_t bytes);

/// What really backs a POSIX object's mapping: for 4 KiB pages cause and remedy. `asked` = huge pages were
/// wanted; `why` = why there is no hugetlbfs file, "" = unknown. Sets `page_bytes`.
std::string describe_pages(const Segment& payload, bool asked, const std::string& why,
                           std::uint32_t& page_bytes);

}  // namespace stoker
