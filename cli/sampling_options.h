// Options of one request, shared by run and chat.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "stoker.pb.h"

namespace stoker::cli {

/// Absent values are the worker's business: it takes the checkpoint's generation_config.json.
struct SamplingOptions {
  std::optional<float> temperature, top_p, min_p, repetition_penalty;
  std::optional<std::uint32_t> top_k;
  std::optional<std::uint64_t> seed;
  std::uint32_t max_tokens = 0;
  std::vector<std::string> stop;
  bool ignore_eos = false;
  std::uint32_t logprobs = 0;

  void apply_to(wire::GenerateRequest& request) const;
};

void add_sampling_options(CLI::App& app, SamplingOptions& options);

}  // namespace stoker::cli
