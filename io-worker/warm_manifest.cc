#include "io-worker/warm_manifest.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <tuple>

#include "io-worker/residency.h"
#include "shm/base/unique_fd.h"
#include "shm/usage.h"

namespace stoker {
namespace {

static_assert(std::endian::native == std::endian::little, "fields are copied as they lie in memory");

constexpr std::string_view kMagic = "STKWARM1";
constexpr std::size_t kHeaderBytes = 8 + 8 + 4 + 4 + 8, kEntryBytes = 12, kTrailerBytes = 8;
constexpr std::uint32_t kAgeMax = 0x7FFF'FFFF;  // beyond it usage_age() would call it the future

template <class T>
void put(std::string& out, const T& value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

template <class T>
T take(std::string_view& from) {
  T value{};
  std::memcpy(&value, from.data(), sizeof value);
  from.remove_prefix(sizeof value);
  return value;
}

tl::unexpected<Error> damaged(const std::string& what) { return fail(Errc::corrupt, what); }

Result<WarmManifest> parse_entries(std::string_view bytes, std::uint64_t count, const WarmShape& shape) {
  WarmManifest manifest;
  manifest.reserve(count);
  std::vector<bool> seen(shape.expert_count());
  for (std::uint64_t i = 0; i < count; ++i) {
    const auto key = take<std::uint32_t>(bytes);
    const auto frequency = take<float>(bytes);
    const auto age = take<std::uint32_t>(bytes);
    const auto bad = [&](const std::string& what) {
      return damaged("entry " + std::to_string(i) + ": " + what);
    };
    if (key >= shape.expert_count()) return bad("there is no expert " + std::to_string(key));
    if (seen[key]) return bad("expert " + std::to_string(key) + " is named twice");
    if (unpack_usage(pack_usage({frequency, 0})).frequency != frequency || age > kAgeMax)
      return bad("impossible history");
    seen[key] = true;
    manifest.push_back({.expert = ExpertKey{key}, .frequency = frequency, .age = age});
  }
  return manifest;
}

/// Every directory on the way to `path`'s last part that is not there yet.
Result<void> make_parents(const std::string& path) {
  for (std::size_t at = path.find('/', 1); at != std::string::npos; at = path.find('/', at + 1)) {
    const std::string directory = path.substr(0, at);
    if (::mkdir(directory.c_str(), 0700) != 0 && errno != EEXIST) {
      struct stat status {};
      const int error = errno;  // a directory that we may not write in, but that is there, is no obstacle
      if (::stat(directory.c_str(), &status) != 0) return fail(Errc::io, "cannot make " + directory, error);
    }
  }
  return {};
}

bool write_all(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    bytes.remove_prefix(static_cast<std::size_t>(n));
  }
  return true;
}

/// The rename itself is durable only when the directory is.
void sync_directory_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  const std::string directory =
      slash == std::string::npos ? "." : path.substr(0, std::max<std::size_t>(slash, 1));
  const UniqueFd fd(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (fd.valid()) ::fsync(fd.get());
}

}  // namespace

std::string encode_warm_manifest(const WarmManifest& manifest, const WarmShape& shape) {
  std::string out(kMagic);
  out.reserve(kHeaderBytes + kEntryBytes * manifest.size() + kTrailerBytes);
  put(out, shape.fingerprint);
  put(out, shape.layers);
  put(out, shape.experts_per_layer);
  put(out, std::uint64_t{manifest.size()});
  for (const WarmExpert& e : manifest) {
    put(out, e.expert.value);
    put(out, e.frequency);
    put(out, e.age);
  }
  put(out, std::uint64_t{XXH3_64bits(out.data(), out.size())});
  return out;
}

Result<WarmManifest> parse_warm_manifest(std::string_view bytes, const WarmShape& shape) {
  if (bytes.size() < kHeaderBytes + kTrailerBytes || !bytes.starts_with(kMagic))
    return damaged("it does not begin with STKWARM1 and a header");
  std::string_view trailer = bytes.substr(bytes.size() - kTrailerBytes);
  if (take<std::uint64_t>(trailer) != XXH3_64bits(bytes.data(), bytes.size() - kTrailerBytes))
    return damaged("its checksum does not fit: torn or altered");
  std::string_view rest = bytes.substr(kMagic.size());
  const auto fingerprint = take<std::uint64_t>(rest);
  const auto layers = take<std::uint32_t>(rest);
  const auto experts_per_layer = take<std::uint32_t>(rest);
  const auto count = take<std::uint64_t>(rest);
  if (fingerprint != shape.fingerprint || layers != shape.layers ||
      experts_per_layer != shape.experts_per_layer)
    return fail(Errc::invalid, "it belongs to another checkpoint, or the model's files changed since");
  if (count > shape.expert_count() || rest.size() != count * kEntryBytes + kTrailerBytes)
    return damaged("it names " + std::to_string(count) + " experts in " + std::to_string(bytes.size()) +
                   " bytes");
  return parse_entries(rest, count, shape);
}

Result<WarmManifest> read_warm_manifest(const std::string& path, const WarmShape& shape) {
  // Not blocking: the path may be a FIFO.
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (!fd.valid()) return fail(errno == ENOENT ? Errc::missing : Errc::io, "cannot open it", errno);
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) return fail(Errc::io, "cannot look at it", errno);
  if (!S_ISREG(status.st_mode)) return fail(Errc::invalid, "it is not a regular file");
  const std::uint64_t most = kHeaderBytes + kTrailerBytes + std::uint64_t{shape.expert_count()} * kEntryBytes;
  if (static_cast<std::uint64_t>(status.st_size) > most)
    return damaged("it has " + std::to_string(status.st_size) + " bytes; this model's has at most " +
                   std::to_string(most));
  std::string bytes(static_cast<std::size_t>(status.st_size), '\0');
  std::size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t n = ::read(fd.get(), bytes.data() + done, bytes.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail(Errc::io, "cannot read it", errno);
    if (n == 0) break;
    done += static_cast<std::size_t>(n);
  }
  bytes.resize(done);
  return parse_warm_manifest(bytes, shape);
}

Result<void> write_warm_manifest(const std::string& path, std::string_view bytes) {
  STOKER_TRY_VOID(make_parents(path));
  std::string partial = path + ".XXXXXX";  // two loaders of one model may write at the same time
  const auto failed = [&](const char* what) {
    const int error = errno;
    ::unlink(partial.c_str());
    return fail(Errc::io, std::string("cannot ") + what + " " + path, error);
  };
  const UniqueFd fd(::mkostemp(partial.data(), O_CLOEXEC));
  if (!fd.valid()) return fail(Errc::io, "cannot write " + path, errno);
  if (!write_all(fd.get(), bytes) || ::fsync(fd.get()) != 0) return failed("write");
  if (std::rename(partial.c_str(), path.c_str()) != 0) return failed("replace");
  sync_directory_of(path);
  return {};
}

WarmManifest collect_warm(const Pool& pool, const WarmShape& shape) {
  const Residency policy(shape.layers, shape.experts_per_layer, pool.slot_count());
  const auto step = static_cast<std::uint32_t>(pool.header().step.load(std::memory_order_relaxed));
  std::vector<bool> resident(shape.expert_count());
  for (const SlotControl& slot : pool.slots()) {
    if (unpack(slot.word.load(std::memory_order_acquire)).state != SlotState::ready) continue;
    const std::uint32_t key = slot.expert.load(std::memory_order_relaxed);
    const auto origin = static_cast<SlotOrigin>(slot.origin.load(std::memory_order_relaxed));
    if (key < resident.size() && origin != SlotOrigin::hint_unused) resident[key] = true;
  }
  struct Ranked {
    bool resident;
    float score;
    WarmExpert expert;
  };
  std::vector<Ranked> ranked;
  const auto experts = pool.experts();
  for (std::uint32_t key = 0; key < shape.expert_count() && key < experts.size(); ++key) {
    const std::uint64_t bits = experts[key].usage.load(std::memory_order_relaxed);
    const Usage usage = unpack_usage(bits);
    if (!resident[key] && usage.frequency <= 0) continue;
    const std::uint32_t age = usage.frequency > 0 ? usage_age(usage.step, step) : 0;
    ranked.push_back({resident[key], policy.score(bits, step), {ExpertKey{key}, usage.frequency, age}});
  }
  std::sort(ranked.begin(), ranked.end(), [](const Ranked& a, const Ranked& b) {
    return std::tuple(!a.resident, -a.score, a.expert.expert) <
           std::tuple(!b.resident, -b.score, b.expert.expert);
  });
  WarmManifest manifest;
  manifest.reserve(ranked.size());
  for (const Ranked& r : ranked) manifest.push_back(r.expert);
  return manifest;
}

void restore_usage(Pool& pool, const WarmManifest& manifest) {
  const auto step = static_cast<std::uint32_t>(pool.header().step.load(std::memory_order_relaxed));
  const auto experts = pool.experts();
  for (const WarmExpert& e : manifest) {
    if (e.expert.value >= experts.size() || e.frequency <= 0) continue;
    std::uint64_t never = 0;
    // The counter may go below zero: ages are differences that wrap with it.
    experts[e.expert.value].usage.compare_exchange_strong(
        never, pack_usage({.frequency = e.frequency, .step = step - e.age}), std::memory_order_relaxed);
  }
}

}  // namespace stoker
