#include "daemons/gateway/answer.h"

#include <algorithm>
#include <utility>

#include "daemons/gateway/tool_arguments.h"

namespace stoker::gateway {

Answer::Answer(std::vector<Tool> tools, bool one_call, std::function<std::string()> new_id,
               std::string begins)
    : tools_(std::move(tools)), one_call_(one_call), new_id_(std::move(new_id)), begins_(std::move(begins)) {
  std::set<std::string> names;
  for (const Tool& tool : tools_) names.insert(tool.name);
  if (!tools_.empty()) scanner_.emplace(names);
}

std::vector<AnswerEvent> Answer::push(std::string_view text) {
  if (text.empty()) return {};
  if (scanner_) return take(scanner_->push(std::exchange(begins_, {}).append(text)));
  return take({{.kind = ToolEvent::Kind::text, .text = std::string(text)}});
}

std::vector<AnswerEvent> Answer::finish() {
  if (!scanner_) return {};
  std::vector<ToolEvent> events = scanner_->push(std::exchange(begins_, {}));
  for (ToolEvent& event : scanner_->finish()) events.push_back(std::move(event));
  return take(std::move(events));
}

std::vector<AnswerEvent> Answer::take(std::vector<ToolEvent> events) {
  std::vector<AnswerEvent> out;
  for (ToolEvent& event : events) {
    if (complete()) break;
    switch (event.kind) {
      case ToolEvent::Kind::text:
        text_ += event.text;
        out.push_back({.kind = AnswerEvent::Kind::text, .text = std::move(event.text)});
        break;
      case ToolEvent::Kind::call:
        calls_.push_back({.id = new_id_(), .name = std::move(event.name), .arguments = {}});
        given_.clear();
        out.push_back({.kind = AnswerEvent::Kind::call, .call = calls_.size() - 1});
        break;
      case ToolEvent::Kind::parameter:
      case ToolEvent::Kind::end: {
        const bool end = event.kind == ToolEvent::Kind::end;
        std::string more = end ? (given_.empty() ? "{}" : "}") : parameter_text(event);
        calls_.back().arguments += more;
        if (!more.empty())
          out.push_back(
              {.kind = AnswerEvent::Kind::arguments, .call = calls_.size() - 1, .text = std::move(more)});
        if (!end) break;
        ++ended_calls_;
        out.push_back({.kind = AnswerEvent::Kind::end, .call = calls_.size() - 1});
        break;
      }
    }
  }
  return out;
}

/// More of the arguments' object. A parameter that comes twice counts once: the first has been sent.
std::string Answer::parameter_text(const ToolEvent& parameter) {
  if (!given_.insert(parameter.name).second) return {};
  return (given_.size() == 1 ? "{" : ", ") + to_text(Json(parameter.name)) + ": " +
         argument_json(parameter.text, schema_of(parameter.name));
}

const Json& Answer::schema_of(const std::string& parameter) const {
  static const Json nothing;
  const auto tool =
      std::find_if(tools_.begin(), tools_.end(), [&](const Tool& t) { return t.name == calls_.back().name; });
  if (tool == tools_.end() || !tool->parameters.is_object()) return nothing;
  const auto properties = tool->parameters.find("properties");
  if (properties == tool->parameters.end() || !properties->is_object()) return nothing;
  const auto schema = properties->find(parameter);
  return schema == properties->end() ? nothing : *schema;
}

}  // namespace stoker::gateway
