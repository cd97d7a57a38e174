#include "daemons/common/messages.h"

#include <google/protobuf/stubs/logging.h>

#include <cmath>

#include "daemons/common/limits.h"
#include "shm/layout.h"

namespace stoker {
namespace {

tl::unexpected<Error> bad(const std::string& what) { return fail(Errc::invalid, what); }

tl::unexpected<Error> too_many(const std::string& field, std::uint64_t got, std::uint64_t most) {
  return fail(Errc::too_large, field + ": " + std::to_string(got) + ", at most " + std::to_string(most));
}

template <class Message>
Result<Message> parse(std::string_view bytes, std::size_t bytes_max, const char* what) {
  if (bytes.size() > bytes_max) return too_many(std::string(what) + " bytes", bytes.size(), bytes_max);
  // protobuf writes a line to stderr for every invalid UTF-8 field: a hostile client could flood the log.
  static const bool quiet = (google::protobuf::SetLogHandler(nullptr), true);
  static_cast<void>(quiet);
  Message message;
  // ParseFromArray takes an int; every limit above is far below its range.
  if (!message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())))
    return bad(std::string(what) + ": not a valid protobuf message of this version");
  return message;
}

/// Ids appear in log lines: printable ASCII only.
bool acceptable_id(const std::string& id) {
  if (id.empty() || id.size() > limits::kRequestIdBytes) return false;
  for (char c : id)
    if (c < ' ' || c > '~') return false;
  return true;
}

Result<void> check_id(const std::string& id) {
  if (acceptable_id(id)) return {};
  return bad("id: must be 1 to " + std::to_string(limits::kRequestIdBytes) + " printable ASCII characters");
}

template <class Ids>
Result<void> check_tokens(const char* field, const Ids& ids) {
  if (ids.size() > limits::kTokenIds)
    return too_many(field, static_cast<std::uint64_t>(ids.size()), limits::kTokenIds);
  for (std::uint32_t id : ids)
    if (id >= limits::kTokenId)
      return bad(std::string(field) + ": token id " + std::to_string(id) + " is impossible");
  return {};
}

Result<void> check_range(const char* field, float value, float least, float most) {
  if (value >= least && value <= most) return {};  // false for NaN
  return bad(std::string("sampling.") + field + ": " + std::to_string(value) + " is not between " +
             std::to_string(least) + " and " + std::to_string(most));
}

Result<void> check_sampling(const wire::Sampling& s) {
  if (s.has_temperature())
    STOKER_TRY_VOID(check_range("temperature", s.temperature(), 0, limits::kTemperature));
  if (s.has_top_p()) STOKER_TRY_VOID(check_range("top_p", s.top_p(), 0, 1));
  if (s.has_min_p()) STOKER_TRY_VOID(check_range("min_p", s.min_p(), 0, 1));
  if (s.has_repetition_penalty())
    STOKER_TRY_VOID(
        check_range("repetition_penalty", s.repetition_penalty(), 0.01F, limits::kRepetitionPenalty));
  return {};
}

Result<void> check_generate(const wire::GenerateRequest& request) {
  STOKER_TRY_VOID(check_id(request.id()));
  if (request.input_case() == wire::GenerateRequest::INPUT_NOT_SET)
    return bad("input: one of prompt, conversation_json or tokens is needed");
  if (request.has_tokens()) STOKER_TRY_VOID(check_tokens("tokens", request.tokens().ids()));
  STOKER_TRY_VOID(check_tokens("forced", request.forced()));
  if (request.max_tokens() > limits::kMaxTokens)
    return too_many("max_tokens", request.max_tokens(), limits::kMaxTokens);
  if (request.stop_size() > limits::kStops)
    return too_many("stop strings", static_cast<std::uint64_t>(request.stop_size()), limits::kStops);
  for (const std::string& stop : request.stop()) {
    if (stop.empty()) return bad("stop: an empty stop string would stop everything");
    if (stop.size() > limits::kStopBytes)
      return too_many("stop string bytes", stop.size(), limits::kStopBytes);
  }
  if (request.logprobs() > limits::kLogprobs)
    return too_many("logprobs", request.logprobs(), limits::kLogprobs);
  if (request.all_positions() && !request.logits()) return bad("all_positions: only together with logits");
  if (request.score() && (request.logits() || request.forced_size() > 0))
    return bad("score: not together with logits or forced");
  if (!request.answer_prefix().empty() && !request.has_conversation_json())
    return bad("answer_prefix: only together with conversation_json");
  if (request.tokenize() && (request.logits() || request.score() || request.forced_size() > 0))
    return bad("tokenize: not together with logits, score or forced");
  return check_sampling(request.sampling());
}

template <class Ids>
Result<void> check_experts(const char* field, const Ids& ids) {
  if (ids.size() > limits::kExpertsPerSample)
    return too_many(field, static_cast<std::uint64_t>(ids.size()), limits::kExpertsPerSample);
  for (std::uint32_t id : ids)
    if (id >= limits::kExperts)
      return bad(std::string(field) + ": expert " + std::to_string(id) + " is impossible");
  return {};
}

template <class Floats>
Result<void> check_finite(const char* field, const Floats& values) {
  for (float value : values)
    if (!std::isfinite(value)) return bad(std::string(field) + ": not a finite number");
  return {};
}

Result<void> check_layer(const char* field, std::uint32_t layer) {
  if (layer < limits::kLayers) return {};
  return too_many(field, layer, limits::kLayers - 1);
}

Result<void> check_process(std::uint32_t process) {
  if (process < kProcessMax) return {};
  return too_many("process", process, kProcessMax - 1);
}

/// Tables are made to this shape: it must be sane, and everything must lie within it.
Result<void> check_shape(const wire::RoutingSample& sample) {
  STOKER_TRY_VOID(check_process(sample.process()));
  if (sample.layers() > limits::kLayers) return too_many("layers", sample.layers(), limits::kLayers);
  if (sample.experts() > limits::kExperts) return too_many("experts", sample.experts(), limits::kExperts);
  if (std::uint64_t{sample.layers()} * sample.experts() > limits::kExpertsOfModel)
    return too_many("layers * experts", std::uint64_t{sample.layers()} * sample.experts(),
                    limits::kExpertsOfModel);
  if (sample.layer() >= sample.layers() || sample.lookahead_layer() >= sample.layers())
    return bad("routing sample: a layer that the model does not have");
  for (const auto* ids : {&sample.chosen(), &sample.lookahead(), &sample.routed()})
    for (const std::uint32_t id : *ids)
      if (id >= sample.experts()) return bad("routing sample: an expert that the model does not have");
  return {};
}

constexpr std::uint32_t kTierMax = 4;  // gpu-worker/expert_source.h, Tier

}  // namespace

Result<wire::ClientMessage> parse_client(std::string_view bytes) {
  return parse<wire::ClientMessage>(bytes, limits::kClientMessageBytes, "client message");
}

Result<void> validate(const wire::ClientMessage& message) {
  switch (message.body_case()) {
    case wire::ClientMessage::kGenerate:
      return check_generate(message.generate());
    case wire::ClientMessage::kCancel:
      return check_id(message.cancel().id());
    case wire::ClientMessage::kStatus:
      return {};
    case wire::ClientMessage::BODY_NOT_SET:
      break;
  }
  return bad("client message: empty, or a kind that this version does not know");
}

std::string request_id(const wire::ClientMessage& message) {
  std::string id;
  if (message.has_generate()) id = message.generate().id();
  if (message.has_cancel()) id = message.cancel().id();
  return acceptable_id(id) ? id : std::string();
}

Result<wire::ServerMessage> decode_server(std::string_view bytes) {
  return parse<wire::ServerMessage>(bytes, limits::kServerMessageBytes, "server message");
}

Result<wire::RoutingSample> decode_sample(std::string_view bytes) {
  STOKER_TRY(wire::RoutingSample sample,
             parse<wire::RoutingSample>(bytes, limits::kSampleBytes, "routing sample"));
  STOKER_TRY_VOID(check_layer("layer", sample.layer()));
  STOKER_TRY_VOID(check_layer("lookahead_layer", sample.lookahead_layer()));
  STOKER_TRY_VOID(check_experts("chosen", sample.chosen()));
  STOKER_TRY_VOID(check_experts("lookahead", sample.lookahead()));
  STOKER_TRY_VOID(check_experts("routed", sample.routed()));
  STOKER_TRY_VOID(check_shape(sample));
  STOKER_TRY_VOID(check_finite("weights", sample.weights()));
  STOKER_TRY_VOID(check_finite("lookahead_scores", sample.lookahead_scores()));
  if (sample.weights_size() != sample.chosen_size() || sample.tiers_size() != sample.chosen_size())
    return bad("routing sample: chosen, weights and tiers differ in length");
  if (sample.lookahead_scores_size() != sample.lookahead_size())
    return bad("routing sample: lookahead and its scores differ in length");
  for (std::uint32_t tier : sample.tiers())
    if (tier > kTierMax) return bad("tiers: " + std::to_string(tier) + " is not a tier");
  const wire::LayerTimes& times = sample.times();
  for (const float time : {times.demanded(), times.stalled(), times.landed(), times.done()})
    if (!(time >= 0 && time < limits::kStepMicroseconds)) return bad("times: not a duration of a step");
  return sample;
}

Result<wire::HintBatch> decode_hints(std::string_view bytes) {
  STOKER_TRY(wire::HintBatch batch, parse<wire::HintBatch>(bytes, limits::kHintBytes, "hint batch"));
  if (batch.hints_size() > limits::kHintsPerBatch)
    return too_many("hints", static_cast<std::uint64_t>(batch.hints_size()), limits::kHintsPerBatch);
  STOKER_TRY_VOID(check_process(batch.process()));
  for (const wire::Hint& hint : batch.hints()) {
    STOKER_TRY_VOID(check_layer("hint.layer", hint.layer()));
    if (hint.expert() >= limits::kExperts)
      return bad("hint.expert: " + std::to_string(hint.expert()) + " is impossible");
    if (!(hint.confidence() >= 0 && hint.confidence() <= 1))
      return bad("hint.confidence: not between 0 and 1");
  }
  return batch;
}

std::string encode(const google::protobuf::MessageLite& message) { return message.SerializeAsString(); }

wire::ServerMessage error_message(std::string_view id, const char* code, std::string_view text) {
  wire::ServerMessage message;
  message.mutable_error()->set_id(std::string(id));
  message.mutable_error()->set_code(code);
  message.mutable_error()->set_message(std::string(text));
  return message;
}

}  // namespace stoker
