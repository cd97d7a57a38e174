// The attach protocol's messages: plain structs over a Unix SEQPACKET socket (one message = one packet).
//
//   worker -> loader   AttachRequest   attach | reattach | detach
//   loader -> worker   AttachReply     to attach and reattach; an ok reply carries the doorbell eventfd
//
// AttachPrefix comes first in every message of every version, so that two builds that do not fit can
// still tell each other why. Everything received is hostile: parse_* checks size, magic, version and
// ranges before anybody looks at a field.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>

#include "shm/base/result.h"
#include "shm/base/types.h"
#include "shm/layout.h"

namespace stoker {

inline constexpr std::uint64_t kAttachMagic = 0x31484354'414B5453ULL;  // "STKATCH1", little endian
inline constexpr std::uint32_t kAttachVersion = 1;
inline constexpr std::size_t kAttachTextBytes = 256;
inline constexpr std::size_t kAttachNameBytes = 64;

/// Fixed for ever: the first bytes of every message.
struct AttachPrefix {
  std::uint64_t magic = kAttachMagic;
  std::uint32_t version = kAttachVersion;
  std::uint32_t kind = 0;  ///< AttachKind
  std::uint64_t layout_hash = kLayoutHash;
};

enum class AttachKind : std::uint32_t {
  attach = 1,    ///< give me a process index
  reattach = 2,  ///< I hold `index` already (the loader was restarted, or the connection was lost)
  detach = 3,    ///< take all I hold; no reply
  granted = 16,  ///< reply: attached
  refused = 17,  ///< reply: `status` and text say why
};

struct AttachRequest {
  AttachPrefix prefix;
  std::uint32_t index = kNone;  ///< reattach: the index held
  std::uint32_t reserved = 0;
};

struct AttachReply {
  AttachPrefix prefix;
  std::array<char, kAttachTextBytes> text{};  ///< refused: NUL-terminated. Same place in every version.
  std::uint32_t status = 0;                   ///< refused: an Errc
  std::uint32_t index = kNone;                ///< granted: the process index, < kProcessMax
  std::uint32_t epoch = 0;                    ///< of the loader
  std::uint32_t reserved = 0;
  std::uint64_t checkpoint_fingerprint = 0;
  std::array<char, kAttachNameBytes> pool_name{};     ///< for Pool::attach
  std::array<char, kAttachNameBytes> weights_name{};  ///< for WeightsSegment::attach
};

static_assert(std::is_trivially_copyable_v<AttachRequest> && sizeof(AttachRequest) == 32);
static_assert(std::is_trivially_copyable_v<AttachReply> && sizeof(AttachReply) == 432);
static_assert(offsetof(AttachReply, text) == sizeof(AttachPrefix));

/// A well-formed request of this version and layout; Errc::layout (both versions in the text) for another,
/// Errc::invalid for nonsense.
Result<AttachRequest> parse_attach_request(std::span<const std::byte> message);

/// What a worker goes on with.
struct AttachGrant {
  unsigned index = 0;  ///< process index = reader bit
  std::uint32_t epoch = 0;
  std::uint64_t checkpoint_fingerprint = 0;
  std::string pool_name;
  std::string weights_name;
};

/// A granted reply; a refused one becomes its error.
Result<AttachGrant> parse_attach_reply(std::span<const std::byte> message);

}  // namespace stoker
