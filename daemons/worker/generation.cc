#include "daemons/worker/generation.h"

#include <algorithm>
#include <bit>

#include "shm/base/check.h"

namespace stoker {

std::string logits_bytes(std::span<const float> logits) {
  static_assert(std::endian::native == std::endian::little, "the wire format is little-endian");
  return {reinterpret_cast<const char*>(logits.data()), logits.size_bytes()};
}

Generation::Generation(const Request& request, const GenerationRules& rules, std::uint32_t max_tokens)
    : request_(request),
      rules_(rules),
      max_tokens_(max_tokens),
      sampler_(request.sampling, rules.token_limit),
      stops_(request.stop),
      history_(request.prompt) {
  STOKER_CHECK(max_tokens > 0);
  if (rules.tokenizer != nullptr) decoder_.emplace(*rules.tokenizer, true);
  history_.reserve(history_.size() + std::min<std::size_t>(max_tokens, 4096));
}

wire::TokenEvent Generation::accept(std::span<const float> logits) {
  STOKER_CHECK(!finish_reason_);
  const bool forced = !request_.forced.empty();
  const std::uint32_t token = forced ? request_.forced[generated_] : sampler_.sample(logits, history_);
  history_.push_back(token);
  ++generated_;

  wire::TokenEvent event;
  event.set_id(request_.id);
  event.set_token(token);
  if (request_.logprobs > 0) add_logprobs(event, logits, token);
  if (request_.raw_logits) event.set_logits(logits_bytes(logits));

  const bool eos = !forced && !request_.ignore_eos &&
                   std::find(rules_.eos.begin(), rules_.eos.end(), token) != rules_.eos.end();
  // The end-of-text token itself is never shown, whether or not the tokenizer calls it special.
  if (decoder_ && !eos) {
    const StopScanner::Step step = stops_.push(decoder_->push(token));
    event.set_text(step.text);
    hit_stop_string_ = step.stopped;
  }
  if (eos || hit_stop_string_) {
    finish_reason_ = "stop";
  } else if (generated_ >= max_tokens_) {
    finish_reason_ = "length";
  }
  return event;
}

std::string Generation::flush() {
  if (!decoder_ || hit_stop_string_) return {};
  StopScanner::Step step = stops_.push(decoder_->flush());
  if (!step.stopped) step.text += stops_.flush();
  return std::move(step.text);
}

void Generation::add_logprobs(wire::TokenEvent& event, std::span<const float> logits,
                              std::uint32_t token) const {
  const auto fill = [this](wire::TokenLogprob& out, const TokenLogprob& value) {
    out.set_id(value.id);
    out.set_logprob(value.logprob);
    if (rules_.tokenizer != nullptr) out.set_text(std::string(rules_.tokenizer->token_bytes(value.id)));
  };
  fill(*event.mutable_logprob(), logprob_of(logits, rules_.token_limit, token));
  for (const TokenLogprob& value : top_logprobs(logits, rules_.token_limit, request_.logprobs))
    fill(*event.add_top(), value);
}

}  // namespace stoker
