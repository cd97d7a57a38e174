// One request's way from logits to text: sampling, stop conditions, UTF-8 assembly, statistics.
// Knows nothing about other requests, sockets or the model.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "gpu-worker/sampler.h"
#include "gpu-worker/text/tokenizer.h"
#include "shm/base/clock.h"
#include "stoker.pb.h"

namespace stoker {

/// A validated, tokenised request (RequestIntake makes it from a wire::GenerateRequest).
struct Request {
  std::string client;  ///< ZeroMQ routing id; opaque
  std::string id;      ///< unique per client
  std::vector<std::uint32_t> prompt;
  std::uint32_t max_tokens = 0;  ///< 0: until the context is full
  bool fit_context = false;      ///< max_tokens gives way to the context instead of being refused
  SamplingParams sampling;
  std::vector<std::string> stop;
  bool ignore_eos = false;
  std::uint32_t logprobs = 0;
  bool logits = false;  ///< no generation: logits of the last (or every) prompt position
  bool all_positions = false;
  bool score = false;                 ///< no generation: log-probability of every prompt token but the first
  std::vector<std::uint32_t> forced;  ///< these ids instead of sampled ones; ends with the last of them
  bool raw_logits = false;
  std::uint32_t prefill_split = 0;
  std::uint32_t beginning =
      0;                  ///< prompt tokens that other conversations may have in common: system and tools
  bool no_reuse = false;  ///< compute all of the prompt, whatever was kept, and keep nothing
  Duration arrived{};
};

/// What a Generation needs to know about the model.
struct GenerationRules {
  const Tokenizer* tokenizer = nullptr;  ///< null: ids only, no text
  std::uint32_t token_limit = 0;         ///< ids at or above it are never drawn
  std::vector<std::uint32_t> eos;
};

class Generation {
 public:
  /// `request` must outlive the generation; `max_tokens` is resolved: at least 1.
  Generation(const Request& request, const GenerationRules& rules, std::uint32_t max_tokens);

  /// Draws (or is forced to) the next token from the logits of the last position. Returns the event for
  /// the client; afterwards finish_reason() may be set.
  wire::TokenEvent accept(std::span<const float> logits);

  /// "stop" or "length" once the request is complete.
  [[nodiscard]] const std::optional<std::string>& finish_reason() const { return finish_reason_; }
  /// Text held back that turned out not to belong to a stop string; call once, at the end.
  std::string flush();
  /// The stop string that ended the answer; empty if none did.
  [[nodiscard]] const std::string& stop_string() const { return stops_.found(); }
  /// The prompt's ids and those of the answer so far.
  [[nodiscard]] const std::vector<std::uint32_t>& history() const { return history_; }
  /// The token to feed next.
  [[nodiscard]] std::uint32_t last_token() const { return history_.back(); }
  [[nodiscard]] std::uint32_t generated() const { return generated_; }

 private:
  void add_logprobs(wire::TokenEvent& event, std::span<const float> logits, std::uint32_t token) const;

  const Request& request_;
  const GenerationRules& rules_;
  std::uint32_t max_tokens_;
  Sampler sampler_;
  std::optional<StreamDecoder> decoder_;
  StopScanner stops_;
  std::vector<std::uint32_t> history_;  ///< prompt and generated ids
  std::uint32_t generated_ = 0;
  bool hit_stop_string_ = false;
  std::optional<std::string> finish_reason_;
};

/// Logits as the wire has them: little-endian fp32.
std::string logits_bytes(std::span<const float> logits);

}  // namespace stoker
