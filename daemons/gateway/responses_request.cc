#include "daemons/gateway/responses_request.h"

#include <algorithm>

#include "daemons/gateway/openai_request.h"

namespace stoker::gateway {
namespace {

constexpr const char* kStateless = "nothing is stored here; send the whole conversation as input";

/// Text of a string, or of a list of parts.
std::string parts_text(Fields& fields, const Json& content, const std::string& where) {
  if (content.is_string()) return content;
  std::string text;
  if (!content.is_array()) {
    fields.problem(where, where + " must be text or a list of parts");
    return text;
  }
  for (std::size_t i = 0; i < content.size(); ++i) {
    const Json& part = content[i];
    const std::string type = part.is_object() ? string_in(part, "type") : "";
    const bool is_text = type == "input_text" || type == "output_text" || type == "text";
    if (!is_text || !part.value("text", Json()).is_string()) {
      fields.problem(where,
                     where + "[" + std::to_string(i) + "] is no part of text; this model reads text only");
      return text;
    }
    if (i > 0) text += '\n';
    text += string_in(part, "text");
  }
  return text;
}

/// Calls belong to the assistant's turn before them.
void add_call(Fields& fields, Json& turns, const Json& item, const std::string& where) {
  const std::string name = string_in(item, "name");
  if (name.empty()) return fields.problem(where, where + ".name is missing");
  if (turns.empty() || turns.back()["role"] != "assistant")
    turns.push_back({{"role", "assistant"}, {"content", ""}});
  Json& turn = turns.back();
  if (!turn.contains("tool_calls")) turn["tool_calls"] = Json::array();
  turn["tool_calls"].push_back(
      {{"id", string_in(item, "call_id")},
       {"type", "function"},
       {"function", {{"name", name}, {"arguments", item.value("arguments", Json(""))}}}});
}

void add_item(Fields& fields, Json& turns, const Json& item, const std::string& where) {
  if (!item.is_object()) return fields.problem(where, where + " must be an object");
  const std::string type = item.contains("type") ? string_in(item, "type") : "message";
  if (type == "message") {
    std::string role = string_in(item, "role");
    if (role == "developer") role = "system";
    if (role != "user" && role != "assistant" && role != "system")
      return fields.problem(where + ".role",
                            where + ".role must be \"user\", \"assistant\", \"system\" or \"developer\"");
    turns.push_back(
        {{"role", role}, {"content", parts_text(fields, item.value("content", Json()), where + ".content")}});
  } else if (type == "function_call") {
    add_call(fields, turns, item, where);
  } else if (type == "function_call_output") {
    turns.push_back(
        {{"role", "tool"}, {"content", parts_text(fields, item.value("output", Json()), where + ".output")}});
  } else if (type == "item_reference") {
    fields.problem(where, where + " refers to an earlier item: " + kStateless);
  } else if (type != "reasoning") {
    fields.problem(where, where + ": an item of type \"" + type + "\" cannot be read");
  }
}

/// In the form of chat completions, which has one object more.
void offer_tools(Fields& fields, Plan& plan, Json& offered) {
  const Json* tools = fields.find("tools");
  if (tools == nullptr) return;
  if (!tools->is_array()) return fields.problem("tools", "tools must be a list");
  for (std::size_t i = 0; i < tools->size(); ++i) {
    const Json& tool = (*tools)[i];
    const std::string where = "tools[" + std::to_string(i) + "]";
    if (!tool.is_object()) return fields.problem(where, where + " must be an object");
    if (string_in(tool, "type") != "function") continue;
    const std::string name = string_in(tool, "name");
    if (name.empty()) return fields.problem(where, where + ".name is missing");
    const Json parameters = tool.value("parameters", Json());
    Json function = {{"name", name}};
    if (const Json text = tool.value("description", Json()); !text.is_null()) function["description"] = text;
    if (!parameters.is_null()) function["parameters"] = parameters;
    offered.push_back({{"type", "function"}, {"function", function}});
    plan.tools.push_back({.name = name, .parameters = parameters});
  }
  plan.one_call = !fields.flag("parallel_tool_calls", true);
}

/// After offer_tools.
void choose_tool(Fields& fields, Plan& plan, Json& offered) {
  const Json* choice = fields.find("tool_choice");
  if (choice == nullptr || *choice == "auto") return;
  if (*choice == "none") {
    plan.tools.clear();
    offered.clear();
  } else if (*choice == "required") {
    if (plan.tools.empty()) return fields.problem("tool_choice", "tool_choice \"required\" needs tools");
    begin_with_call(plan, "");
  } else {
    const std::string name = choice->is_object() ? string_in(*choice, "name") : "";
    const auto is_it = [&](const Tool& tool) { return tool.name == name; };
    if (std::none_of(plan.tools.begin(), plan.tools.end(), is_it))
      return fields.problem("tool_choice",
                            "tool_choice must be \"none\", \"auto\", \"required\" or "
                            R"({"type": "function", "name": ...} of one of tools)");
    begin_with_call(plan, name);
  }
}

void read_input(Fields& fields, Json& turns) {
  if (const auto text = fields.string("instructions"); text && !text->empty())
    turns.push_back({{"role", "system"}, {"content", *text}});
  const Json* input = fields.find("input");
  if (input == nullptr) return fields.problem("input", "input is missing");
  if (input->is_string()) {
    turns.push_back({{"role", "user"}, {"content", *input}});
  } else if (input->is_array()) {
    for (std::size_t i = 0; i < input->size(); ++i)
      add_item(fields, turns, (*input)[i], "input[" + std::to_string(i) + "]");
  } else {
    fields.problem("input", "input must be text or a list of items");
  }
}

}  // namespace

Expected<Plan> responses_plan(const Json& body) {
  Fields fields(body);
  Plan plan;
  read_common(fields, plan);
  fields.cannot("previous_response_id", nullptr, kStateless);
  fields.cannot("conversation", nullptr, kStateless);
  fields.cannot("background", false, "send a stream instead");
  if (const Json* text = fields.find("text"); text != nullptr && text->is_object())
    if (const Json format = text->value("format", Json());
        format.is_object() && string_in(format, "type") != "text")
      fields.problem("text.format", "text.format must be text: answers are not constrained to a grammar");
  Json offered = Json::array();
  offer_tools(fields, plan, offered);
  choose_tool(fields, plan, offered);
  Json turns = Json::array();
  read_input(fields, turns);
  Json conversation = {{"messages", turns}};
  if (!offered.empty()) conversation["tools"] = offered;
  plan.request.set_conversation_json(to_text(conversation));
  if (fields.problem()) return refuse(*fields.problem());
  return plan;
}

}  // namespace stoker::gateway
