#include "daemons/worker/request_builder.h"

#include <algorithm>
#include <filesystem>
#include <span>
#include <string_view>

#include "daemons/common/messages.h"

namespace stoker {
namespace {

constexpr std::string_view kSystem = "system";

using Built = tl::expected<Request, RequestProblem>;

tl::unexpected<RequestProblem> problem(const char* code, std::string text) {
  return tl::unexpected<RequestProblem>({code, std::move(text)});
}

/// Request over generation_config.json over greedy. A checkpoint that says do_sample samples.
SamplingParams sampling_of(const GenerationConfig& defaults, const wire::Sampling& wire) {
  const bool samples = defaults.do_sample.value_or(defaults.temperature.has_value());
  SamplingParams params;
  params.temperature = samples ? defaults.temperature.value_or(1.0F) : 0.0F;
  params.top_k = defaults.top_k.value_or(0);
  params.top_p = defaults.top_p.value_or(1.0F);
  params.min_p = defaults.min_p.value_or(0.0F);
  params.repetition_penalty = defaults.repetition_penalty.value_or(1.0F);
  if (wire.has_temperature()) params.temperature = wire.temperature();
  if (wire.has_top_k()) params.top_k = wire.top_k();
  if (wire.has_top_p()) params.top_p = wire.top_p();
  if (wire.has_min_p()) params.min_p = wire.min_p();
  if (wire.has_repetition_penalty()) params.repetition_penalty = wire.repetition_penalty();
  return params;
}

/// Where the first message ends, if it is the system's: conversations have it in common, with the tools in
/// it.
std::uint32_t beginning_of(const TextTools& tools, const wire::GenerateRequest& wire,
                           std::span<const std::uint32_t> prompt) {
  if (wire.input_case() != wire::GenerateRequest::kConversationJson || prompt.size() < 2) return 0;
  const auto opener = tools.tokenizer->find("<|im_start|>");
  if (!opener || prompt[0] != *opener) return 0;
  std::string role;
  for (std::size_t i = 1; i < prompt.size() && role.size() < kSystem.size(); ++i)
    role += tools.tokenizer->token_bytes(prompt[i]);
  const auto next = std::find(prompt.begin() + 1, prompt.end(), *opener);
  if (!role.starts_with(kSystem) || next == prompt.end()) return 0;
  return static_cast<std::uint32_t>(next - prompt.begin());
}

tl::expected<std::vector<std::uint32_t>, RequestProblem> prompt_of(const TextTools& tools,
                                                                   const wire::GenerateRequest& wire) {
  if (wire.has_tokens())
    return std::vector<std::uint32_t>(wire.tokens().ids().begin(), wire.tokens().ids().end());
  if (!tools.tokenizer)
    return problem(error_code::kNoTokenizer,
                   "text needs a tokenizer: " + tools.tokenizer_problem +
                       "; send token ids, or add tokenizer.json to the model directory");
  std::string text = wire.prompt();
  if (wire.input_case() == wire::GenerateRequest::kConversationJson) {
    if (!tools.chat_template)
      return problem(error_code::kNoTemplate, "a conversation needs a chat template: " +
                                                  tools.template_problem + "; send a prompt instead");
    auto rendered = tools.chat_template->render(wire.conversation_json(), true);
    if (!rendered) return problem(error_code::kInvalidRequest, rendered.error().text());
    text = *std::move(rendered) + wire.answer_prefix();
  }
  auto ids = tools.tokenizer->encode(text, AddedTokens::match);
  if (!ids) return problem(error_code::kInvalidRequest, ids.error().text());
  return *std::move(ids);
}

}  // namespace

Result<TextTools> TextTools::load(const std::string& model_dir, const GenerationConfig& defaults) {
  TextTools tools;
  tools.defaults = defaults;
  const std::string path = model_dir + "/tokenizer.json";
  std::error_code error;
  if (std::filesystem::exists(path, error)) {
    STOKER_TRY(tools.tokenizer, Tokenizer::load(path));
  } else {
    tools.tokenizer_problem = "there is no " + path;
  }
  if (auto chat = ChatTemplate::load(model_dir)) {
    tools.chat_template = *std::move(chat);
  } else {
    tools.template_problem = chat.error().text();
  }
  return tools;
}

Built build_request(const TextTools& tools, const wire::GenerateRequest& wire,
                    const std::function<std::uint64_t()>& new_seed) {
  auto prompt = prompt_of(tools, wire);
  if (!prompt) return tl::unexpected<RequestProblem>(std::move(prompt).error());
  if (wire.prefill_split() > 0 && wire.prefill_split() >= prompt->size())
    return problem(error_code::kInvalidRequest, "prefill_split is " + std::to_string(wire.prefill_split()) +
                                                    ", the prompt has only " +
                                                    std::to_string(prompt->size()) + " tokens");
  Request request;
  request.id = wire.id();
  request.prompt = *std::move(prompt);
  request.beginning = beginning_of(tools, wire, request.prompt);
  request.max_tokens = wire.max_tokens();
  request.sampling = sampling_of(tools.defaults, wire.sampling());
  request.sampling.seed = wire.sampling().has_seed() ? wire.sampling().seed() : new_seed();
  request.stop.assign(wire.stop().begin(), wire.stop().end());
  request.ignore_eos = wire.ignore_eos();
  request.logprobs = wire.logprobs();
  request.logits = wire.logits();
  request.all_positions = wire.all_positions();
  request.score = wire.score();
  request.forced.assign(wire.forced().begin(), wire.forced().end());
  request.raw_logits = wire.raw_logits_of_steps();
  request.prefill_split = wire.prefill_split();
  request.no_reuse = wire.no_reuse();
  request.fit_context = wire.fit_context();
  return request;
}

}  // namespace stoker
