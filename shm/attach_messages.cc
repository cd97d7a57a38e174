#include "shm/attach_messages.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "shm/base/hex.h"

namespace stoker {

namespace {

/// Text from the other side, for a log or a terminal: up to the first NUL, control characters replaced.
std::string printable(const char* text, std::size_t size) {
  std::string result(text, ::strnlen(text, size));
  for (char& c : result)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = '?';
  return result;
}

Result<AttachPrefix> parse_prefix(std::span<const std::byte> message, const char* who) {
  AttachPrefix prefix;
  if (message.size() < sizeof prefix)
    return fail(Errc::invalid, std::string(who) + " sent " + std::to_string(message.size()) +
                                   " bytes, which is no attach message");
  std::memcpy(&prefix, message.data(), sizeof prefix);
  if (prefix.magic != kAttachMagic)
    return fail(Errc::invalid,
                std::string(who) + " does not speak the attach protocol (magic " + hex(prefix.magic) + ")");
  return prefix;
}

bool same_build(const AttachPrefix& prefix) {
  return prefix.version == kAttachVersion && prefix.layout_hash == kLayoutHash;
}

std::string both_versions(const AttachPrefix& prefix, const char* other, const char* self) {
  return std::string(other) + " has attach version " + std::to_string(prefix.version) + ", pool layout " +
         hex(prefix.layout_hash) + "; " + self + " has attach version " + std::to_string(kAttachVersion) +
         ", pool layout " + hex(kLayoutHash) + ": run loader and worker of the same build";
}

bool is_name(const std::string& name) {
  return !name.empty() && std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '-' || c == '_';
  });
}

}  // namespace

Result<AttachRequest> parse_attach_request(std::span<const std::byte> message) {
  STOKER_TRY(const AttachPrefix prefix, parse_prefix(message, "client"));
  if (!same_build(prefix)) return fail(Errc::layout, both_versions(prefix, "the worker", "the loader"));
  AttachRequest request;
  if (message.size() != sizeof request)
    return fail(Errc::invalid, "attach request has " + std::to_string(message.size()) + " bytes, not " +
                                   std::to_string(sizeof request));
  std::memcpy(&request, message.data(), sizeof request);
  const auto kind = static_cast<AttachKind>(request.prefix.kind);
  if (kind != AttachKind::attach && kind != AttachKind::reattach && kind != AttachKind::detach)
    return fail(Errc::invalid, "attach request of unknown kind " + std::to_string(request.prefix.kind));
  if (kind == AttachKind::reattach && request.index >= kProcessMax)
    return fail(Errc::invalid, "reattach of process index " + std::to_string(request.index) + ", there are " +
                                   std::to_string(kProcessMax));
  return request;
}

Result<AttachGrant> parse_attach_reply(std::span<const std::byte> message) {
  STOKER_TRY(const AttachPrefix prefix, parse_prefix(message, "loader"));
  const bool refused = prefix.kind == static_cast<std::uint32_t>(AttachKind::refused);
  const std::size_t text_bytes = std::min(message.size() - sizeof prefix, kAttachTextBytes);
  const std::string text =
      printable(reinterpret_cast<const char*>(message.data()) + sizeof prefix, text_bytes);
  if (!same_build(prefix))
    return fail(Errc::layout, both_versions(prefix, "the loader", "the worker") +
                                  (refused && !text.empty() ? " (loader says: " + text + ")" : ""));
  AttachReply reply;
  if (message.size() != sizeof reply)
    return fail(Errc::invalid, "attach reply has " + std::to_string(message.size()) + " bytes, not " +
                                   std::to_string(sizeof reply));
  std::memcpy(&reply, message.data(), sizeof reply);
  if (refused) {
    const auto last = static_cast<std::uint32_t>(Errc::cancelled);
    const Errc code = reply.status <= last ? static_cast<Errc>(reply.status) : Errc::invalid;
    return fail(code, "loader refused: " + text);
  }
  if (reply.prefix.kind != static_cast<std::uint32_t>(AttachKind::granted))
    return fail(Errc::invalid, "attach reply of unknown kind " + std::to_string(reply.prefix.kind));
  if (reply.index >= kProcessMax)
    return fail(Errc::invalid, "loader gave process index " + std::to_string(reply.index) + ", there are " +
                                   std::to_string(kProcessMax));
  AttachGrant grant{
      .index = reply.index,
      .epoch = reply.epoch,
      .checkpoint_fingerprint = reply.checkpoint_fingerprint,
      .pool_name = std::string(reply.pool_name.data(), ::strnlen(reply.pool_name.data(), kAttachNameBytes)),
      .weights_name =
          std::string(reply.weights_name.data(), ::strnlen(reply.weights_name.data(), kAttachNameBytes))};
  if (!is_name(grant.pool_name) || !is_name(grant.weights_name))
    return fail(Errc::invalid, "loader gave a shared-memory name that is none");
  return grant;
}

}  // namespace stoker
