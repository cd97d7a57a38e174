#include "shm/payload.h"

#include <sys/statfs.h>
#include <unistd.h>

#include <fstream>
#include <optional>
#include <utility>
#include <vector>

#include "shm/base/types.h"
#include "shm/layout.h"

namespace stoker {

namespace {

/// Who decides about transparent huge pages for POSIX shared memory: the `huge=` option of the tmpfs on
/// /dev/shm (none = never), unless shmem_enabled says deny or force. The other words of shmem_enabled are for
/// memfd and System V memory only (Documentation/admin-guide/mm/transhuge.rst, "Hugepages in tmpfs/shmem").
std::string shmem_huge_policy() {
  std::ifstream enabled("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
  std::string word;
  while (enabled >> word)
    if (word == "[deny]" || word == "[force]") return word.substr(1, word.size() - 2);
  if (!enabled.is_open()) return "not in this kernel";
  std::ifstream mounts("/proc/mounts");
  std::string device, mount, type, options, rest, policy = "never";
  while (mounts >> device >> mount >> type >> options && std::getline(mounts, rest)) {
    if (mount != "/dev/shm") continue;
    const std::size_t at = options.find("huge=");  // a later line lies over an earlier one
    policy = at == std::string::npos ? "never" : options.substr(at + 5, options.find(',', at) - at - 5);
  }
  return policy;
}

std::uint64_t huge_page_number(const char* what) {
  std::ifstream file(std::string("/sys/kernel/mm/hugepages/hugepages-2048kB/") + what);
  std::uint64_t count = 0;
  file >> count;
  return count;
}

/// Where a huge page file may go: the given directory, or "<mount>/stoker" and "<mount>" of every mounted
/// hugetlbfs with 2 MiB pages, as far as it exists and can be written.
std::vector<std::string> hugetlbfs_directories(const std::string& given) {
  if (!given.empty()) return {given};
  std::vector<std::string> directories;
  std::ifstream mounts("/proc/mounts");
  std::string device, mount, type, options, rest;
  while (mounts >> device >> mount >> type >> options && std::getline(mounts, rest))
    if (type == "hugetlbfs" && options.find("pagesize=1024M") == std::string::npos)
      for (const std::string& directory : {mount + "/stoker", mount})
        if (::access(directory.c_str(), W_OK | X_OK) == 0) directories.push_back(directory);
  return directories;
}

/// First rung of the ladder. Nothing (and the reason appended to `why`) when there are not enough pages.
std::optional<Payload> create_on_hugetlbfs(const PoolSpec& spec, std::uint64_t bytes, std::string& why) {
  const std::uint64_t wanted = bytes / kHugePageBytes;
  const std::uint64_t free_pages = huge_page_number("free_hugepages");
  const std::uint64_t reserved = huge_page_number("resv_hugepages");
  const std::uint64_t usable = free_pages > reserved ? free_pages - reserved : 0;
  const std::vector<std::string> directories = hugetlbfs_directories(spec.hugetlbfs_dir);
  if (usable < wanted || directories.empty()) {
    why = std::to_string(usable) + " of " + std::to_string(wanted) + " reserved 2 MiB pages free" +
          (directories.empty() ? ", no writable hugetlbfs" : "");
    return std::nullopt;
  }
  for (const std::string& directory : directories) {
    struct statfs fs {};
    const std::string path = directory + "/" + payload_name(spec.name);
    if (path.size() >= kPayloadPathBytes || path.front() != '/') continue;
    if (::statfs(directory.c_str(), &fs) != 0 || static_cast<std::uint64_t>(fs.f_bsize) != kHugePageBytes) {
      why = directory + " is not a hugetlbfs with 2 MiB pages";
      continue;
    }
    ::unlink(path.c_str());  // a leftover of a loader that died while creating; the loader lock is held
    auto segment =
        Segment::create({.bytes = bytes, .group_access = spec.group_access, .hugetlbfs_path = path});
    if (segment)
      return Payload{*std::move(segment), path, "2 MiB pages (hugetlbfs " + directory + ")",
                     static_cast<std::uint32_t>(kHugePageBytes)};
    why = segment.error().text();
  }
  return std::nullopt;
}

}  // namespace

std::string payload_name(const std::string& pool) { return pool + ".payload"; }

std::string describe_pages(const Segment& payload, bool asked, const std::string& why,
                           std::uint32_t& page_bytes) {
  page_bytes = static_cast<std::uint32_t>(kPageBytes);
  if (!asked) return "4 KiB pages (huge pages are switched off in the configuration)";
  const std::string thp = shmem_huge_policy();
  const std::uint64_t huge = thp == "never" || thp == "deny" ? 0 : payload.huge_bytes();
  if (huge * 10 >= payload.bytes() * 9) {
    page_bytes = static_cast<std::uint32_t>(kHugePageBytes);
    return "2 MiB pages (transparent huge pages, /dev/shm huge=" + thp + ")";
  }
  const std::uint64_t wanted = payload.bytes() / kHugePageBytes;
  const std::string remedy =
      "; reads and memory are faster after `mount -o remount,huge=advise /dev/shm`, or after "
      "`sysctl vm.nr_hugepages=" +
      std::to_string(wanted) + "` with a hugetlbfs the user can write";
  const std::string cause = (why.empty() ? "" : why + "; ") + std::string("/dev/shm huge=") + thp;
  if (huge != 0)
    return bytes_text(huge) + " of " + bytes_text(payload.bytes()) +
           " in 2 MiB pages, the rest in 4 KiB pages (memory is fragmented; " + cause + ")" + remedy;
  return "4 KiB pages (" + cause + ")" + remedy;
}

Result<Payload> create_payload(const PoolSpec& spec, std::uint64_t bytes) {
  const bool huge = spec.huge_pages == HugePages::automatic;
  std::string why;
  if (huge)
    if (auto payload = create_on_hugetlbfs(spec, bytes, why)) return *std::move(payload);
  Segment::remove(payload_name(spec.name));
  STOKER_TRY(Segment segment, Segment::create({.name = payload_name(spec.name),
                                               .bytes = bytes,
                                               .group_access = spec.group_access,
                                               .advise_huge = huge}));
  std::uint32_t page_bytes = 0;
  std::string note = describe_pages(segment, huge, why, page_bytes);
  return Payload{std::move(segment), "", std::move(note), page_bytes};
}

}  // namespace stoker
