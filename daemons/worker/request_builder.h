// From a validated wire::GenerateRequest to a tokenised Request: template, tokenizer, sampling defaults.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "checkpoint/config.h"
#include "daemons/worker/generation.h"
#include "gpu-worker/text/chat_template.h"
#include "gpu-worker/text/tokenizer.h"
#include "shm/base/result.h"
#include "stoker.pb.h"

namespace stoker {

/// What the model directory offers besides weights; an absent part only refuses the requests that need it.
struct TextTools {
  std::optional<Tokenizer> tokenizer;
  std::string tokenizer_problem;  ///< why it is absent
  std::optional<ChatTemplate> chat_template;
  std::string template_problem;
  GenerationConfig defaults;

  /// Loads what `model_dir` has. A tokenizer.json that is there but cannot be used is an error.
  static Result<TextTools> load(const std::string& model_dir, const GenerationConfig& defaults);
};

/// A refusal, ready for an ErrorEvent.
struct RequestProblem {
  const char* code = nullptr;
  std::string text;
};

/// The request, or the reason it cannot be. `new_seed` is asked when the client gave none.
tl::expected<Request, RequestProblem> build_request(const TextTools& tools, const wire::GenerateRequest& wire,
                                                    const std::function<std::uint64_t()>& new_seed);

}  // namespace stoker
