#include "gpu-worker/text/template_family.h"

#include <algorithm>
#include <array>
#include <set>
#include <vector>

#include "gpu-worker/text/jinja_source.h"

namespace stoker {
namespace {

using Kind = JinjaToken::Kind;
using Tokens = std::vector<JinjaToken>;

constexpr std::string_view kSystemHeader = "<|im_start|>system\n";

tl::unexpected<Error> other_family(const std::string& what) {
  return fail(
      Errc::unsupported,
      "the chat template is not of the Qwen3-Coder family: " + what +
          "; give the rendered prompt as raw text instead, or use the checkpoint's own chat_template.jinja");
}

// Everything a member of the family may refer to. A template that consults anything else (enable_thinking,
// reasoning_content, raise_exception, ...) renders something this code does not.
const std::set<std::string_view>& known_names() {
  static const std::set<std::string_view> names = {"if",
                                                   "elif",
                                                   "else",
                                                   "endif",
                                                   "for",
                                                   "endfor",
                                                   "in",
                                                   "set",
                                                   "macro",
                                                   "endmacro",
                                                   "is",
                                                   "not",
                                                   "and",
                                                   "or",
                                                   "defined",
                                                   "mapping",
                                                   "iterable",
                                                   "sequence",
                                                   "string",
                                                   "none",
                                                   "true",
                                                   "false",
                                                   "length",
                                                   "trim",
                                                   "tojson",
                                                   "safe",
                                                   "items",
                                                   "render_extra_keys",
                                                   "json_dict",
                                                   "json_key",
                                                   "handled_keys",
                                                   "messages",
                                                   "tools",
                                                   "add_generation_prompt",
                                                   "message",
                                                   "tool",
                                                   "tool_call",
                                                   "tool_calls",
                                                   "role",
                                                   "content",
                                                   "name",
                                                   "description",
                                                   "parameters",
                                                   "properties",
                                                   "type",
                                                   "function",
                                                   "arguments",
                                                   "system_message",
                                                   "loop_messages",
                                                   "param_name",
                                                   "param_fields",
                                                   "args_name",
                                                   "args_value",
                                                   "loop",
                                                   "previtem",
                                                   "nextitem",
                                                   "last",
                                                   "first"};
  return names;
}

// Every tag a member of the family writes; introduction and instruction block aside.
constexpr std::array<std::string_view, 24> kTags = {
    "<|im_start|>",    "<|im_end|>",       "<tools>",       "</tools>",       "<function>",   "</function>",
    "<name>",          "</name>",          "<description>", "</description>", "<parameters>", "</parameters>",
    "<parameter>",     "</parameter>",     "<type>",        "</type>",        "<tool_call>",  "</tool_call>",
    "<tool_response>", "</tool_response>", "<function=",    "<parameter=",    "</",           "<"};

Result<void> check_names(const Tokens& tokens) {
  for (const JinjaToken& token : tokens) {
    if (token.kind == Kind::name && !known_names().contains(token.text)) {
      return other_family("it uses \"" + token.text + "\"");
    }
  }
  return {};
}

/// A literal is known if it is nothing but tags, newlines and one word of the protocol.
bool is_known_literal(std::string text) {
  if (text.starts_with(kSystemHeader)) return true;  // its text is taken by take_default_system
  for (const std::string_view tag : kTags) {
    for (auto at = text.find(tag); at != std::string::npos; at = text.find(tag)) text.erase(at, tag.size());
  }
  std::erase(text, '\n');
  static constexpr std::array<std::string_view, 12> kWords = {"",       ">",    "role",        "content",
                                                              "system", "user", "assistant",   "tool",
                                                              "name",   "type", "description", "properties"};
  return std::find(kWords.begin(), kWords.end(), text) != kWords.end() || text == "parameters";
}

bool has_literal(const Tokens& tokens, std::string_view text) {
  return std::any_of(tokens.begin(), tokens.end(), [&](const JinjaToken& token) {
    return token.kind == Kind::literal && token.text == text;
  });
}

/// Does the code contain these words in a row? A word "'" stands for any literal.
bool has_code(const Tokens& tokens, const std::vector<std::string_view>& words) {
  const auto same = [](const JinjaToken& token, std::string_view word) {
    return token.kind == Kind::literal ? word == "'" : token.text == word;
  };
  return std::search(tokens.begin(), tokens.end(), words.begin(), words.end(), same) != tokens.end();
}

/// Which keys of a schema, of the parameters and of a function are not rendered by the general rule.
Result<void> check_handled_keys(const Tokens& tokens) {
  std::vector<std::string> lists;
  for (std::size_t i = 0; i + 2 < tokens.size(); ++i) {
    if (tokens[i].text != "handled_keys" || tokens[i + 1].text != "=" || tokens[i + 2].text != "[") continue;
    std::string list;
    for (i += 3; i < tokens.size() && tokens[i].text != "]"; ++i) {
      list += tokens[i].text;
      if (tokens[i].kind == Kind::literal) list += ' ';
    }
    lists.push_back(list);
  }
  const std::vector<std::string> expected = {"name ,type ,description ", "type ,properties ",
                                             "type ,name ,description ,parameters "};
  if (lists != expected) return other_family("its lists of handled_keys differ");
  return {};
}

Result<bool> detect_style(const Tokens& tokens) {
  const bool new_lines = has_literal(tokens, "<|im_start|>user") &&
                         has_literal(tokens, "\n<tool_response>\n") &&
                         has_literal(tokens, "\n</tool_response>");
  const bool old_lines = has_literal(tokens, "<|im_start|>user\n") &&
                         has_literal(tokens, "<tool_response>\n") &&
                         has_literal(tokens, "\n</tool_response>\n");
  if (new_lines == old_lines) return other_family("its lines around <tool_response> are of no known form");
  const bool new_scalars =
      has_code(tokens, {"json_dict", "[", "json_key", "]", "is", "string"}) &&
      has_code(tokens, {"if", "args_value", "is", "string", "else", "args_value", "|", "tojson"});
  const bool old_scalars =
      has_code(tokens,
               {"is", "mapping", "or", "(", "json_dict", "[", "json_key", "]", "is", "sequence", "and"}) &&
      has_code(tokens,
               {"if", "args_value", "is", "mapping", "or", "(", "args_value", "is", "sequence", "and"}) &&
      has_code(tokens, {"else", "args_value", "|", "string"});
  if (new_scalars == old_scalars)
    return other_family("its rule for values that are no text is of no known form");
  if (new_lines != new_scalars)
    return other_family("it mixes the lines of one member with the values of another");
  return old_lines;
}

Result<std::string> take_default_system(const Tokens& tokens) {
  std::string found;
  for (const JinjaToken& token : tokens) {
    if (token.kind != Kind::literal || !token.text.starts_with(kSystemHeader)) continue;
    if (token.text.size() == kSystemHeader.size()) continue;
    if (!found.empty()) return other_family("it has two default system texts");
    found = token.text.substr(kSystemHeader.size());
  }
  if (found.empty()) return other_family("it has no default system text for tools");
  return found;
}

/// The tools' introduction and the instruction block. Either may be written as several literals in a row.
Result<void> take_tool_texts(const Tokens& tokens, TemplateTexts& texts) {
  enum class Place { before, intro, tools, instructions, after } place = Place::before;
  for (const JinjaToken& token : tokens) {
    if (token.kind != Kind::literal) continue;
    const std::string& text = token.text;
    if (place == Place::before && text.starts_with("\n\n# Tools\n")) place = Place::intro;
    if (place == Place::intro) {
      texts.tools_intro += text;
      if (texts.tools_intro.ends_with("<tools>")) place = Place::tools;
    } else if (place == Place::tools && text.starts_with("\n</tools>")) {
      texts.instructions = text.substr(std::string_view("\n</tools>").size());
      place = Place::instructions;
    } else if (place == Place::instructions) {
      texts.instructions += text;
    }
    const bool free_text =
        place == Place::intro || place == Place::instructions || token.text.ends_with("<tools>");
    if (!free_text && !is_known_literal(text)) return other_family("it writes \"" + text + "\"");
    if (place == Place::instructions && texts.instructions.ends_with("</IMPORTANT>")) place = Place::after;
  }
  if (texts.tools_intro.empty()) return other_family("it has no \"# Tools\" part");
  if (place == Place::intro || place == Place::tools)
    return other_family("it has no <tools> ... </tools> part");
  if (place == Place::instructions)
    return other_family("its instruction block does not end with </IMPORTANT>");
  return {};
}

Result<void> check_required(const Tokens& tokens) {
  for (const std::string_view literal :
       {"<|im_start|>", "<|im_end|>\n", "<|im_start|>assistant\n", "\n<parameters>", "\n</parameters>",
        "\n<parameter>", "\n</parameter>", "\n</function>", "\n<tool_call>\n<function=", ">\n",
        "<parameter=", "\n</parameter>\n", "</function>\n</tool_call>"}) {
    if (!has_literal(tokens, literal)) {
      return other_family("it has no literal \"" + std::string(literal) + "\"");
    }
  }
  return {};
}

}  // namespace

Result<TemplateTexts> recognise_template(std::string_view jinja) {
  auto read = read_jinja(jinja);
  if (!read) return other_family("it has " + read.error().message);
  const Tokens& tokens = *read;
  STOKER_TRY_VOID(check_names(tokens));
  STOKER_TRY_VOID(check_handled_keys(tokens));
  STOKER_TRY_VOID(check_required(tokens));
  TemplateTexts texts;
  STOKER_TRY(texts.old_style, detect_style(tokens));
  STOKER_TRY(texts.default_system, take_default_system(tokens));
  STOKER_TRY_VOID(take_tool_texts(tokens, texts));
  return texts;
}

}  // namespace stoker
