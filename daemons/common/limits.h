// Every limit on what comes over a socket, each with its reason. Checked in messages.cc before use.
#pragma once

#include <cstddef>
#include <cstdint>

namespace stoker::limits {

/// The longest prompt we can imagine (262,144 tokens of 4 bytes of text each, JSON-escaped) fits 8 times.
inline constexpr std::size_t kClientMessageBytes = 64U << 20;
/// To a client: one LogitsEvent of a 1,000,000-token vocabulary is 4 MB; a status reply is a few KB.
inline constexpr std::size_t kServerMessageBytes = 64U << 20;
/// Samples and hints carry at most a few hundred numbers.
inline constexpr std::size_t kSampleBytes = 1U << 20;
inline constexpr std::size_t kHintBytes = 1U << 20;

/// A UUID with a prefix; it is a key in maps and in log lines.
inline constexpr std::size_t kRequestIdBytes = 64;
/// What routers (ROUTER socket identities) can be at most in ZeroMQ.
inline constexpr std::size_t kRoutingIdBytes = 255;

/// A context of a million tokens; the model's own, smaller, context is checked by the scheduler.
inline constexpr int kTokenIds = 1 << 20;
/// Ids above any vocabulary; the worker compares with the model's own vocabulary as well.
inline constexpr std::uint32_t kTokenId = 1U << 24;
inline constexpr std::uint32_t kMaxTokens = 1U << 20;

/// OpenAI allows 4; people use a dozen. Each is scanned for at every token.
inline constexpr int kStops = 64;
inline constexpr std::size_t kStopBytes = 1024;
/// OpenAI's bound for top_logprobs.
inline constexpr std::uint32_t kLogprobs = 20;
/// Beyond it the distribution is flat or the arithmetic overflows.
inline constexpr float kTemperature = 100.0F;
inline constexpr float kRepetitionPenalty = 100.0F;

/// Logits of all positions are held in the send queue until the client has read them.
inline constexpr std::uint64_t kLogitsReplyBytes = 4ULL << 30;

/// Requests that the scheduler has not seen yet, in bytes: four of the largest message. Tokenising one takes
/// seconds and a step that waits for a lost loader far longer; meanwhile clients must not fill the memory.
inline constexpr std::size_t kWaitingRequestBytes = 256U << 20;
static_assert(kWaitingRequestBytes >= kClientMessageBytes);  // one that is allowed fits when nothing waits

/// LayerId and ExpertId are 16 bits wide.
inline constexpr std::uint32_t kLayers = 1U << 12;
inline constexpr std::uint32_t kExperts = 1U << 16;
/// All layers together; the predictor holds some 500 bytes for each (published models: at most 24,576).
inline constexpr std::uint64_t kExpertsOfModel = 1U << 18;
/// Experts chosen or guessed for one token in one layer (published models: at most 22).
inline constexpr int kExpertsPerSample = 256;
/// A step that waits for a loader to come back may take a day (worker.loader_wait), per layer.
inline constexpr float kStepMicroseconds = 1e15F;
/// One layer of the largest model, all of it.
inline constexpr int kHintsPerBatch = 1 << 12;

/// Messages waiting for one peer. Clients: a slow reader gets this many events of credit, then its request
/// is cancelled. Samples and hints are only useful fresh.
inline constexpr int kClientSendQueue = 20'000;
/// Clients that are still to hear of it, when they have room again: more than a machine's users start.
inline constexpr std::size_t kSlowClients = 1'000;
inline constexpr int kSampleQueue = 2'000;
inline constexpr int kHintQueue = 1'000;

/// sockaddr_un::sun_path minus the terminating NUL.
inline constexpr std::size_t kSocketPathBytes = 107;

}  // namespace stoker::limits
