// Lets a script compare this library with Hugging Face tokenizers and with Jinja2: one JSON request per line
// on stdin, one JSON answer per line on stdout. Used by tools/text/check_tokenizer.py and check_template.py.
#include <cstdio>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>

#include "gpu-worker/text/chat_template.h"
#include "gpu-worker/text/nfc.h"
#include "gpu-worker/text/split_regex.h"
#include "gpu-worker/text/tokenizer.h"

namespace stoker {
namespace {

using nlohmann::json;

struct Driver {
  std::optional<Tokenizer> tokenizer;
  std::optional<SplitRegex> regex;
  std::optional<ChatTemplate> chat;
};

json failure(const Error& error) { return {{"error", error.text()}, {"code", static_cast<int>(error.code)}}; }

// Bytes that need not be UTF-8 travel as hexadecimal digits.
std::string from_hex(const std::string& digits) {
  std::string out;
  for (std::size_t i = 0; i + 1 < digits.size(); i += 2) {
    out.push_back(static_cast<char>(std::stoi(digits.substr(i, 2), nullptr, 16)));
  }
  return out;
}

std::string to_hex(std::string_view bytes) {
  std::string out;
  for (const char c : bytes) {
    const auto byte = static_cast<unsigned char>(c);
    out += "0123456789abcdef"[byte >> 4];
    out += "0123456789abcdef"[byte & 15];
  }
  return out;
}

json encode(const Driver& driver, const json& request) {
  const std::string text =
      request.contains("hex") ? from_hex(request["hex"]) : request["text"].get<std::string>();
  const auto added = request.value("added", true) ? AddedTokens::match : AddedTokens::ignore;
  const auto ids = driver.tokenizer->encode(text, added);
  if (!ids) return failure(ids.error());
  return {{"ids", *ids}};
}

json decode(const Driver& driver, const json& request) {
  const auto ids = request["ids"].get<std::vector<std::uint32_t>>();
  const bool skip_special = request.value("skip", false);
  const auto bytes = driver.tokenizer->decode(ids, skip_special);
  if (!bytes) return failure(bytes.error());
  StreamDecoder stream(*driver.tokenizer, skip_special);
  std::string streamed;
  for (const std::uint32_t id : ids) streamed += stream.push(id);
  streamed += stream.flush();
  return {{"hex", to_hex(*bytes)}, {"stream", streamed}};
}

json pieces(const Driver& driver, const json& request) {
  const auto text = request["text"].get<std::string>();
  const auto normal = to_nfc(text);
  if (!normal) return failure(normal.error());
  std::vector<SplitRegex::Piece> found;
  if (auto status = driver.regex->split(*normal, found); !status) return failure(status.error());
  json list = json::array();
  for (const auto& piece : found) list.push_back(normal->substr(piece.begin, piece.end - piece.begin));
  return {{"pieces", list}};
}

json render(const Driver& driver, const json& request) {
  const auto text = driver.chat->render(request["conversation"].get<std::string>(), request["generate"]);
  if (!text) return failure(text.error());
  return {{"text", *text}};
}

json answer(const Driver& driver, const json& request) {
  const auto op = request["op"].get<std::string>();
  if (op == "encode") return encode(driver, request);
  if (op == "decode") return decode(driver, request);
  if (op == "pieces") return pieces(driver, request);
  if (op == "render") return render(driver, request);
  return {{"error", "unknown op " + op}};
}

std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

int run(int argc, char** argv) {
  Driver driver;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string option = argv[i];
    const std::string path = argv[i + 1];
    if (option == "--tokenizer") {
      auto tokenizer = Tokenizer::load(path);
      if (!tokenizer) return std::fprintf(stderr, "%s\n", tokenizer.error().text().c_str()), 1;
      driver.tokenizer = std::move(*tokenizer);
      const json file = json::parse(read_file(path));
      auto regex = SplitRegex::compile(
          file["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"].get<std::string>());
      if (!regex) return std::fprintf(stderr, "%s\n", regex.error().text().c_str()), 1;
      driver.regex = std::move(*regex);
    } else if (option == "--template") {
      auto chat = ChatTemplate::parse(read_file(path));
      if (!chat) return std::fprintf(stderr, "%s\n", chat.error().text().c_str()), 1;
      driver.chat = std::move(*chat);
    } else {
      return std::fprintf(stderr, "usage: text_driver [--tokenizer FILE] [--template FILE]\n"), 2;
    }
  }
  std::string line;
  while (std::getline(std::cin, line)) std::cout << answer(driver, json::parse(line)).dump() << '\n';
  return 0;
}

}  // namespace
}  // namespace stoker

int main(int argc, char** argv) {
  try {
    return stoker::run(argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "text_driver: %s\n", e.what());
    return 1;
  }
}
