// libFuzzer: attach requests and replies as they come from the other process.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>

#include "shm/attach_messages.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::span<const std::byte> message(reinterpret_cast<const std::byte*>(data), size);
  if (const auto request = stoker::parse_attach_request(message)) {
    const auto kind = static_cast<stoker::AttachKind>(request->prefix.kind);
    if (kind == stoker::AttachKind::reattach && request->index >= stoker::kProcessMax) std::abort();
  }
  if (const auto grant = stoker::parse_attach_reply(message)) {
    if (grant->index >= stoker::kProcessMax || grant->pool_name.empty() || grant->weights_name.empty())
      std::abort();
    if (grant->pool_name.find('/') != std::string::npos) std::abort();
  }
  return 0;
}
