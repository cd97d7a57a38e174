// Wire messages: bytes in, validated protobuf objects out. The only file that parses protobuf.
//
// Everything that arrives is hostile: sizes are checked before parsing, every field against limits.h
// after it. What passes here can be used without further range checks, except for those that need to
// know the model (vocabulary, context, layers).
#pragma once

#include <string>
#include <string_view>

#include "shm/base/result.h"
#include "stoker.pb.h"

namespace stoker {

/// Parses only; the id of an invalid request is needed to answer it.
Result<wire::ClientMessage> parse_client(std::string_view bytes);
/// Errc::invalid or too_large, naming the field and both numbers.
Result<void> validate(const wire::ClientMessage& message);
/// The request's id, "" when there is none or it is itself not acceptable.
std::string request_id(const wire::ClientMessage& message);

Result<wire::ServerMessage> decode_server(std::string_view bytes);
Result<wire::RoutingSample> decode_sample(std::string_view bytes);
Result<wire::HintBatch> decode_hints(std::string_view bytes);

std::string encode(const google::protobuf::MessageLite& message);

/// Stable error codes of ErrorEvent; docs/protocol.md explains each.
namespace error_code {
inline constexpr const char* kInvalidRequest = "invalid_request";
inline constexpr const char* kDuplicateId = "duplicate_id";
inline constexpr const char* kContext = "context_length_exceeded";
inline constexpr const char* kMemory = "memory_budget_exceeded";
inline constexpr const char* kQueueFull = "queue_full";
inline constexpr const char* kSlowClient = "slow_client";
inline constexpr const char* kNoTokenizer = "no_tokenizer";
inline constexpr const char* kNoTemplate = "no_chat_template";
inline constexpr const char* kExpertRead = "expert_read";
inline constexpr const char* kLoaderGone = "loader_gone";
inline constexpr const char* kDeviceLost = "device_lost";
inline constexpr const char* kShuttingDown = "shutting_down";
inline constexpr const char* kInternal = "internal";
}  // namespace error_code

wire::ServerMessage error_message(std::string_view id, const char* code, std::string_view text);

}  // namespace stoker
