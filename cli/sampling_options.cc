#include "cli/sampling_options.h"

#include "daemons/common/limits.h"

namespace stoker::cli {

void SamplingOptions::apply_to(wire::GenerateRequest& request) const {
  wire::Sampling& sampling = *request.mutable_sampling();
  if (temperature) sampling.set_temperature(*temperature);
  if (top_k) sampling.set_top_k(*top_k);
  if (top_p) sampling.set_top_p(*top_p);
  if (min_p) sampling.set_min_p(*min_p);
  if (repetition_penalty) sampling.set_repetition_penalty(*repetition_penalty);
  if (seed) sampling.set_seed(*seed);
  request.set_max_tokens(max_tokens);
  for (const std::string& s : stop) request.add_stop(s);
  request.set_ignore_eos(ignore_eos);
  request.set_logprobs(logprobs);
}

void add_sampling_options(CLI::App& app, SamplingOptions& options) {
  const char* group = "Sampling";
  app.add_option("-n,--max-tokens", options.max_tokens,
                 "Longest answer in tokens (default: until the context is full)")
      ->check(CLI::Range(1U, limits::kMaxTokens))
      ->group(group);
  app.add_option("--temperature", options.temperature, "0 = always the likeliest token")
      ->check(CLI::Range(0.0F, limits::kTemperature))
      ->group(group);
  app.add_option("--top-k", options.top_k, "Only the K likeliest tokens (0 = off)")->group(group);
  app.add_option("--top-p", options.top_p, "Only the likeliest tokens that make up this share")
      ->check(CLI::Range(0.0F, 1.0F))
      ->group(group);
  app.add_option("--min-p", options.min_p, "Only tokens at least this likely, relative to the likeliest")
      ->check(CLI::Range(0.0F, 1.0F))
      ->group(group);
  app.add_option("--repetition-penalty", options.repetition_penalty,
                 "Above 1: seen tokens become less likely")
      ->check(CLI::Range(0.01F, limits::kRepetitionPenalty))
      ->group(group);
  app.add_option("--seed", options.seed, "Seed of the sampler (default: chosen and reported)")->group(group);
  app.add_option("--stop", options.stop, "End the answer before this text (may be repeated)")
      ->take_all()
      ->allow_extra_args(false)
      ->group(group);
  app.add_flag("--ignore-eos", options.ignore_eos, "Go on after the end-of-text token")->group(group);
}

}  // namespace stoker::cli
