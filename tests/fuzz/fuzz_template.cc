// A template (first part of the input) and a conversation to render with it (after the first zero byte).
// Without a zero byte the input is a conversation for a template that is accepted.
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <sstream>
#include <string>

#include "gpu-worker/text/chat_template.h"

namespace {

stoker::ChatTemplate load(const std::string& name) {
  std::ifstream in(std::string(STOKER_TEXT_DATA) + "/" + name);
  std::ostringstream text;
  text << in.rdbuf();
  return stoker::ChatTemplate::parse(text.str()).value();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const stoker::ChatTemplate newer = load("chat_template.jinja");
  static const stoker::ChatTemplate older = load("chat_template_older.jinja");
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const auto cut = input.find('\0');
  if (cut == std::string_view::npos) {
    (void)newer.render(input, true);
    (void)older.render(input, false);
    return 0;
  }
  const auto parsed = stoker::ChatTemplate::parse(input.substr(0, cut));
  if (parsed) (void)parsed->render(input.substr(cut + 1), true);
  return 0;
}
