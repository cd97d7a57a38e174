#include "daemons/gateway/anthropic_request.h"

#include <algorithm>

#include "daemons/common/limits.h"
#include "daemons/gateway/openai_request.h"

namespace stoker::gateway {
namespace {

constexpr std::string_view kBilling = "x-anthropic-billing-header:";

/// Collects the parts of one message.
struct Parts {
  std::string text;
  Json calls = Json::array();
  Json results = Json::array();  ///< messages of role "tool"
};

void add_text(std::string& to, const std::string& text) {
  if (!to.empty() && !text.empty()) to += '\n';
  to += text;
}

/// Text of a string, or of a list of text blocks.
std::string plain_text(Fields& fields, const Json& content, const std::string& where) {
  if (content.is_string()) return content;
  std::string text;
  if (content.is_null()) return text;
  if (!content.is_array()) {
    fields.problem(where, where + " must be text or a list of blocks");
    return text;
  }
  for (std::size_t i = 0; i < content.size(); ++i) {
    const Json& block = content[i];
    if (!block.is_object() || string_in(block, "type") != "text" ||
        !block.value("text", Json()).is_string()) {
      fields.problem(where, where + "[" + std::to_string(i) +
                                "] is no block of type \"text\"; this model reads text only");
      return text;
    }
    add_text(text, block["text"]);
  }
  return text;
}

std::string system_text(Fields& fields) {
  const Json* system = fields.find("system");
  if (system == nullptr) return {};
  if (!system->is_array()) {
    std::string text = plain_text(fields, *system, "system");
    if (text.starts_with(kBilling)) text.erase(0, std::min(text.find('\n'), text.size() - 1) + 1);
    return text;
  }
  Json kept = Json::array();
  for (const Json& block : *system)
    if (!block.is_object() || !string_in(block, "text").starts_with(kBilling)) kept.push_back(block);
  return plain_text(fields, kept, "system");
}

void add_block(Fields& fields, Parts& parts, const Json& block, const std::string& where) {
  const std::string type = block.is_object() ? string_in(block, "type") : "";
  if (type == "text" && block.value("text", Json()).is_string()) {
    add_text(parts.text, block["text"]);
  } else if (type == "tool_use" && !string_in(block, "name").empty()) {
    parts.calls.push_back(
        {{"id", string_in(block, "id")},
         {"type", "function"},
         {"function",
          {{"name", string_in(block, "name")}, {"arguments", block.value("input", Json::object())}}}});
  } else if (type == "tool_result") {
    std::string text = plain_text(fields, block.value("content", Json()), where + ".content");
    if (block.value("is_error", Json()) == true) text = "Error: " + text;
    parts.results.push_back({{"role", "tool"}, {"content", text}});
  } else if (type != "thinking" && type != "redacted_thinking") {
    fields.problem(where, where + ": a block of type \"" + type +
                              "\" cannot be read; this model reads text, tool_use and tool_result");
  }
}

/// Appends what one message becomes: tool results are messages of their own, before the user's text.
void add_message(Fields& fields, Json& out, const Json& message, const std::string& where) {
  const std::string role = message.is_object() ? string_in(message, "role") : "";
  if (role != "user" && role != "assistant")
    return fields.problem(where + ".role", where + ".role must be \"user\" or \"assistant\"");
  Parts parts;
  const Json content = message.value("content", Json());
  if (content.is_array()) {
    for (std::size_t i = 0; i < content.size(); ++i)
      add_block(fields, parts, content[i], where + ".content[" + std::to_string(i) + "]");
  } else {
    parts.text = plain_text(fields, content, where + ".content");
  }
  for (const Json& result : parts.results) out.push_back(result);
  if (role == "user" && parts.text.empty() && !parts.results.empty()) return;
  Json turn = {{"role", role}, {"content", parts.text}};
  if (!parts.calls.empty()) turn["tool_calls"] = parts.calls;
  out.push_back(turn);
}

void read_tools(Fields& fields, Plan& plan, Json& conversation) {
  const Json* tools = fields.find("tools");
  if (tools == nullptr) return;
  if (!tools->is_array()) return fields.problem("tools", "tools must be a list");
  Json offered = Json::array();
  for (std::size_t i = 0; i < tools->size(); ++i) {
    const Json& tool = (*tools)[i];
    // Others ("web_search_20250305", ...) would run on Anthropic's servers; not all of them have names.
    if (const std::string type = tool.is_object() ? string_in(tool, "type") : "";
        !type.empty() && type != "custom")
      continue;
    const std::string name = tool.is_object() ? string_in(tool, "name") : "";
    if (name.empty()) {
      const std::string where = "tools[" + std::to_string(i) + "]";
      return fields.problem(where, where + R"( must be {"name": ..., "input_schema": ...})");
    }
    const Json schema = tool.value("input_schema", Json::object());
    Json function = {{"name", name}};
    // Templates would print a null.
    if (const Json text = tool.value("description", Json()); !text.is_null()) function["description"] = text;
    function["parameters"] = schema;
    offered.push_back({{"type", "function"}, {"function", function}});
    plan.tools.push_back({.name = name, .parameters = schema});
  }
  if (!offered.empty()) conversation["tools"] = offered;
}

/// After read_tools.
void read_tool_choice(Fields& fields, Plan& plan, Json& conversation) {
  const Json* choice = fields.find("tool_choice");
  if (choice == nullptr) return;
  const std::string type = choice->is_object() ? string_in(*choice, "type") : "";
  plan.one_call = choice->is_object() && choice->value("disable_parallel_tool_use", Json()) == true;
  if (type == "none") {
    plan.tools.clear();
    conversation.erase("tools");
  } else if (type == "any" && !plan.tools.empty()) {
    begin_with_call(plan, "");
  } else if (type == "tool") {
    const std::string name = string_in(*choice, "name");
    const auto is_it = [&](const Tool& tool) { return tool.name == name; };
    if (std::none_of(plan.tools.begin(), plan.tools.end(), is_it))
      return fields.problem("tool_choice", "tool_choice names \"" + name + "\", which is not in tools");
    begin_with_call(plan, name);
  } else if (type != "auto") {
    fields.problem("tool_choice",
                   "tool_choice.type must be \"auto\", \"any\" (with tools), \"tool\" or \"none\"");
  }
}

void read_messages(Fields& fields, Plan& plan) {
  Json turns = Json::array();
  if (const std::string system = system_text(fields); !system.empty())
    turns.push_back({{"role", "system"}, {"content", system}});
  const Json* messages = fields.find("messages");
  if (messages == nullptr || !messages->is_array() || messages->empty())
    return fields.problem("messages", "messages must be a list with at least one message");
  for (std::size_t i = 0; i < messages->size(); ++i)
    add_message(fields, turns, (*messages)[i], "messages[" + std::to_string(i) + "]");
  if (!turns.empty() && turns.back()["role"] == "assistant" && !turns.back().contains("tool_calls")) {
    plan.request.set_answer_prefix(turns.back()["content"].get<std::string>());
    turns.erase(turns.size() - 1);
  }
  Json conversation = {{"messages", turns}};
  read_tools(fields, plan, conversation);
  read_tool_choice(fields, plan, conversation);
  plan.request.set_conversation_json(to_text(conversation));
}

}  // namespace

Expected<Plan> messages_plan(const Json& body) {
  Fields fields(body);
  Plan plan;
  plan.model = fields.string("model").value_or("");
  plan.stream = fields.flag("stream", false);
  plan.call_id_prefix = "toolu_";
  const auto most = fields.integer("max_tokens", 1, UINT32_MAX);
  if (!most) fields.problem("max_tokens", "max_tokens is missing");
  plan.request.set_max_tokens(
      static_cast<std::uint32_t>(std::min<std::uint64_t>(most.value_or(1), limits::kMaxTokens)));
  plan.request.set_fit_context(true);
  wire::Sampling& sampling = *plan.request.mutable_sampling();
  if (const auto t = fields.number("temperature", 0, limits::kTemperature))
    sampling.set_temperature(static_cast<float>(*t));
  if (const auto p = fields.number("top_p", 0, 1)) sampling.set_top_p(static_cast<float>(*p));
  if (const auto k = fields.integer("top_k", 0, limits::kTokenId))
    sampling.set_top_k(static_cast<std::uint32_t>(*k));
  for (std::string& stop : fields.strings("stop_sequences")) plan.request.add_stop(std::move(stop));
  read_messages(fields, plan);
  if (fields.problem()) return refuse(*fields.problem());
  return plan;
}

Expected<Plan> count_tokens_plan(const Json& body) {
  Fields fields(body);
  Plan plan;
  plan.request.set_tokenize(true);
  read_messages(fields, plan);
  if (fields.problem()) return refuse(*fields.problem());
  return plan;
}

}  // namespace stoker::gateway
