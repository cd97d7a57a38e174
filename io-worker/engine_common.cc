#include "io-worker/engine_common.h"

#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <limits>

namespace stoker {

std::vector<EngineFileFacts> facts_of(const std::vector<EngineFile>& files) {
  std::vector<EngineFileFacts> facts;
  facts.reserve(files.size());
  for (const EngineFile& file : files) facts.push_back({.fd = file.fd.get(), .direct = file.direct});
  return facts;
}

std::int64_t refusal(const ReadOp& op, std::span<const EngineFileFacts> files) noexcept {
  constexpr auto kOffsetMax = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  if (op.file.value >= files.size()) return -EBADF;
  if (op.length == 0 || op.target == nullptr || op.offset > kOffsetMax - op.length) return -EINVAL;
  if (!files[op.file.value].direct) return 0;
  const bool aligned = op.offset % kDirectAlign == 0 && op.length % kDirectAlign == 0 &&
                       reinterpret_cast<std::uintptr_t>(op.target) % kDirectAlign == 0;
  return aligned ? 0 : -EINVAL;
}

Result<void> check_options(const EngineOptions& options) {
  if (options.depth == 0 || options.depth > kEngineDepthMax)
    return fail(Errc::invalid, "I/O engine: depth " + std::to_string(options.depth) + " is not in 1.." +
                                   std::to_string(kEngineDepthMax));
  if (options.registered_granule == 0) return fail(Errc::invalid, "I/O engine: registered_granule is 0");
  return {};
}

bool drain_doorbell(int fd) noexcept {
  if (fd < 0) return false;
  // The eventfd may be a blocking one, so ask before reading; the engine is its only reader.
  pollfd ready{.fd = fd, .events = POLLIN, .revents = 0};
  if (::poll(&ready, 1, 0) <= 0 || (ready.revents & POLLIN) == 0) return false;
  std::uint64_t count = 0;
  return ::read(fd, &count, sizeof count) == sizeof count;
}

}  // namespace stoker
