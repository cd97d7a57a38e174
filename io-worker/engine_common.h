// What every IoEngine needs: the checks that make all of them refuse the same reads, and the doorbell.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "io-worker/engine.h"

namespace stoker {

/// What an engine keeps of an EngineFile.
struct EngineFileFacts {
  int fd = -1;
  bool direct = false;
};

std::vector<EngineFileFacts> facts_of(const std::vector<EngineFile>& files);

/// 0 when the read may go to the kernel, else the -errno it completes with (see ReadOp).
[[nodiscard]] std::int64_t refusal(const ReadOp& op, std::span<const EngineFileFacts> files) noexcept;

/// Errc::invalid when the options make no sense.
Result<void> check_options(const EngineOptions& options);

/// Resets an eventfd to 0 without ever blocking. True if it was ringing.
bool drain_doorbell(int fd) noexcept;

}  // namespace stoker
