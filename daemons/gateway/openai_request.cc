#include "daemons/gateway/openai_request.h"

#include <algorithm>

#include "daemons/common/limits.h"

namespace stoker::gateway {
namespace {

constexpr const char* kNoGrammar =
    "answers are not constrained to a grammar; say in the prompt what you want";

/// Several servers' "no bound", "off" or "any".
bool is_minus_one(const Json* value) {
  // Json compares 2^64 - 1 as if it were -1.
  return value != nullptr && value->is_number_integer() && !value->is_number_unsigned() && *value == -1;
}

void read_seed(Fields& fields, wire::Sampling& sampling) {
  const Json* seed = fields.find("seed");
  if (is_minus_one(seed)) return;  // llama.cpp's "any"
  if (seed != nullptr && seed->is_number_integer() && !seed->is_number_unsigned()) {
    sampling.set_seed(static_cast<std::uint64_t>(seed->get<std::int64_t>()));  // OpenAI's may be negative
  } else if (const auto value = fields.integer("seed", 0, UINT64_MAX)) {
    sampling.set_seed(*value);
  }
}

void read_sampling(Fields& fields, wire::Sampling& sampling) {
  if (const auto t = fields.number("temperature", 0, limits::kTemperature))
    sampling.set_temperature(static_cast<float>(*t));
  if (const auto p = fields.number("top_p", 0, 1)) sampling.set_top_p(static_cast<float>(*p));
  if (const auto p = fields.number("min_p", 0, 1)) sampling.set_min_p(static_cast<float>(*p));
  // vLLM's "off" is -1, llama.cpp's 0.
  if (is_minus_one(fields.find("top_k"))) {
    sampling.set_top_k(0);
  } else if (const auto value = fields.integer("top_k", 0, limits::kTokenId)) {
    sampling.set_top_k(static_cast<std::uint32_t>(*value));
  }
  for (const char* key : {"repetition_penalty", "repeat_penalty"})
    if (const auto r = fields.number(key, 0.01, limits::kRepetitionPenalty))
      sampling.set_repetition_penalty(static_cast<float>(*r));
  read_seed(fields, sampling);
  for (const char* key : {"presence_penalty", "frequency_penalty"})
    fields.cannot(key, 0, "use repetition_penalty");
}

Tool read_tool(Fields& fields, const Json& json, const std::string& where) {
  const bool is_function = json.is_object() && json.value("type", Json("function")) == "function";
  const Json function = is_function ? json.value("function", Json()) : Json();
  const Json name = function.is_object() ? function.value("name", Json()) : Json();
  if (!name.is_string()) {
    fields.problem(where, where + R"( must be {"type": "function", "function": {"name": ..., ...}})");
    return {};
  }
  return {.name = name, .parameters = function.value("parameters", Json())};
}

void read_tools(Fields& fields, Plan& plan) {
  const Json* tools = fields.find("tools");
  if (tools == nullptr) return;
  if (!tools->is_array()) return fields.problem("tools", "tools must be a list");
  for (std::size_t i = 0; i < tools->size(); ++i)
    plan.tools.push_back(read_tool(fields, (*tools)[i], "tools[" + std::to_string(i) + "]"));
  plan.one_call = !fields.flag("parallel_tool_calls", true);
}

bool offers(const Plan& plan, const std::string& name) {
  return std::any_of(plan.tools.begin(), plan.tools.end(), [&](const Tool& t) { return t.name == name; });
}

/// After read_tools.
void read_tool_choice(Fields& fields, Plan& plan) {
  const Json* choice = fields.find("tool_choice");
  if (choice == nullptr || *choice == "auto") return;
  if (*choice == "none") return plan.tools.clear();
  if (*choice == "required") {
    if (plan.tools.empty()) return fields.problem("tool_choice", "tool_choice \"required\" needs tools");
    return begin_with_call(plan, "");
  }
  Json name;
  if (choice->is_object() && choice->contains("function") && (*choice)["function"].is_object())
    name = (*choice)["function"].value("name", Json());
  if (!name.is_string())
    return fields.problem("tool_choice",
                          "tool_choice must be \"none\", \"auto\", \"required\" or "
                          R"({"type": "function", "function": {"name": ...}})");
  if (!offers(plan, name))
    return fields.problem("tool_choice", "tool_choice names " + to_text(name) + ", which is not in tools");
  begin_with_call(plan, name);
}

/// The messages as chat templates know them: today's "developer" is yesterday's "system".
Json template_messages(const Json& messages) {
  Json out = messages;
  if (!out.is_array()) return out;
  for (Json& message : out)
    if (message.is_object() && message.value("role", Json()) == "developer") message["role"] = "system";
  return out;
}

void read_conversation(Fields& fields, Plan& plan) {
  const Json* messages = fields.find("messages");
  if (messages == nullptr) return fields.problem("messages", "messages is missing");
  Json conversation = {{"messages", template_messages(*messages)}};
  if (const Json* tools = fields.find("tools"); tools != nullptr && !plan.tools.empty())
    conversation["tools"] = *tools;
  plan.request.set_conversation_json(to_text(conversation));
}

void read_token_ids(Fields& fields, const Json& prompt, wire::TokenIds& ids) {
  for (const Json& id : prompt) {
    if (!id.is_number_unsigned() || id.get<std::uint64_t>() >= limits::kTokenId)
      return fields.problem("prompt", "prompt must be text, or a list of token ids");
    ids.add_ids(id.get<std::uint32_t>());
  }
}

/// A user's turn that the model was trained to answer with what belongs between the two.
std::string fill_in_the_middle(const std::string& prefix, const std::string& suffix) {
  return to_text(
      {{"messages",
        {{{"role", "system"}, {"content", "You are a code completion assistant."}},
         {{"role", "user"},
          {"content", "<|fim_prefix|>" + prefix + "<|fim_suffix|>" + suffix + "<|fim_middle|>"}}}}});
}

void read_prompt(Fields& fields, Plan& plan) {
  const Json* prompt = fields.find("prompt");
  if (prompt == nullptr) return fields.problem("prompt", "prompt is missing");
  if (prompt->is_array() && prompt->size() == 1 && !prompt->front().is_number()) prompt = &prompt->front();
  const auto suffix = fields.string("suffix");
  if (prompt->is_string() && suffix && !suffix->empty()) {
    plan.request.set_conversation_json(fill_in_the_middle(*prompt, *suffix));
    // Ends of the middle that are no end of text.
    for (const char* stop : {"<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>",
                             "<|repo_name|>", "<|file_sep|>"})
      plan.request.add_stop(stop);
  } else if (suffix && !suffix->empty()) {
    fields.problem("suffix", "suffix needs a prompt that is text");
  } else if (prompt->is_string()) {
    plan.request.set_prompt(prompt->get<std::string>());
  } else if (prompt->is_array() && !prompt->empty() && !prompt->front().is_number()) {
    fields.problem("prompt", "one prompt per request: send " + std::to_string(prompt->size()) + " requests");
  } else if (prompt->is_array()) {
    read_token_ids(fields, *prompt, *plan.request.mutable_tokens());
  } else {
    fields.problem("prompt", "prompt must be text, or a list of token ids");
  }
}

Expected<Plan> checked(const Fields& fields, Plan plan) {
  if (fields.problem()) return refuse(*fields.problem());
  return plan;
}

}  // namespace

void read_common(Fields& fields, Plan& plan) {
  plan.model = fields.string("model").value_or("");
  plan.stream = fields.flag("stream", false);
  plan.progress_chunks = fields.flag("return_progress", false);
  if (const Json* options = fields.find("stream_options")) {
    Fields inner(*options);
    plan.usage_chunk = inner.flag("include_usage", false);
    if (inner.problem())
      fields.problem("stream_options", R"(stream_options must be {"include_usage": true or false})");
  }
  read_sampling(fields, *plan.request.mutable_sampling());
  for (std::string& stop : fields.strings("stop")) plan.request.add_stop(std::move(stop));
  for (const char* key : {"max_tokens", "max_completion_tokens", "max_output_tokens"}) {
    // llama.cpp's "no bound" is -1.
    if (is_minus_one(fields.find(key))) continue;
    if (const auto most = fields.integer(key, 1, UINT32_MAX))
      plan.request.set_max_tokens(
          static_cast<std::uint32_t>(std::min<std::uint64_t>(*most, limits::kMaxTokens)));
  }
  plan.request.set_fit_context(true);
  fields.cannot("n", 1, "one answer per request; send the request several times");
  fields.cannot("logit_bias", Json::object(), "no token can be favoured");
  for (const char* key : {"grammar", "json_schema", "guided_json", "guided_regex", "guided_choice",
                          "guided_grammar", "structured_outputs"})
    fields.cannot(key, nullptr, kNoGrammar);
}

void begin_with_call(Plan& plan, const std::string& function) {
  plan.answer_begins = "<tool_call>\n<function=" + (function.empty() ? "" : function + ">\n");
  plan.request.mutable_answer_prefix()->append(plan.answer_begins);
}

Expected<Plan> chat_plan(const Json& body) {
  Fields fields(body);
  Plan plan;
  read_common(fields, plan);
  read_tools(fields, plan);
  read_tool_choice(fields, plan);
  read_conversation(fields, plan);
  plan.logprobs = fields.flag("logprobs", false);
  plan.top_logprobs =
      static_cast<std::uint32_t>(fields.integer("top_logprobs", 0, limits::kLogprobs).value_or(0));
  if (plan.logprobs) plan.request.set_logprobs(std::max(plan.top_logprobs, 1U));
  fields.cannot("response_format", Json{{"type", "text"}}, kNoGrammar);
  for (const char* key : {"functions", "function_call"})
    fields.cannot(key, nullptr, "use tools and tool_choice");
  return checked(fields, std::move(plan));
}

Expected<Plan> completion_plan(const Json& body) {
  Fields fields(body);
  Plan plan;
  read_common(fields, plan);
  read_prompt(fields, plan);
  if (const auto top = fields.integer("logprobs", 0, limits::kLogprobs)) {
    plan.logprobs = true;
    plan.top_logprobs = static_cast<std::uint32_t>(*top);
    plan.request.set_logprobs(std::max(plan.top_logprobs, 1U));
  }
  fields.cannot("echo", false, "the prompt is not repeated");
  fields.cannot("best_of", 1, "one answer per request");
  return checked(fields, std::move(plan));
}

Expected<Plan> tokenize_plan(const Json& body) {
  Fields fields(body);
  Plan plan;
  plan.request.set_tokenize(true);
  if (fields.find("messages") != nullptr) {
    read_tools(fields, plan);
    read_conversation(fields, plan);
  } else {
    auto text = fields.string("content");
    if (!text) text = fields.string("prompt");
    if (!text) fields.problem("content", "content (text) or messages is missing");
    plan.request.set_prompt(text.value_or(""));
  }
  return checked(fields, std::move(plan));
}

}  // namespace stoker::gateway
