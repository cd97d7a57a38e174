// What an API's request means: for the worker, and for how the answer is read and shown.
#pragma once

#include <string>
#include <vector>

#include "daemons/gateway/answer.h"
#include "stoker.pb.h"

namespace stoker::gateway {

struct Plan {
  wire::GenerateRequest request;  ///< without id
  std::vector<Tool> tools;        ///< whose calls are looked for in the answer
  std::string answer_begins{};    ///< the end of answer_prefix that is part of the answer: a call's beginning
  bool one_call = false;          ///< stop after the first call
  bool stream = false;
  bool usage_chunk = false;      ///< OpenAI's stream_options.include_usage
  bool progress_chunks = false;  ///< llama.cpp's return_progress
  bool logprobs = false;
  std::uint32_t top_logprobs = 0;
  std::string model;  ///< as the client called it
  const char* call_id_prefix = "call_";
};

}  // namespace stoker::gateway
