#include "gpu-worker/text/tokenizer_file.h"

#include <algorithm>
#include <initializer_list>
#include <unordered_map>
#include <unordered_set>

#include "gpu-worker/text/byte_alphabet.h"
#include "gpu-worker/text/json_value.h"

namespace stoker {
namespace {

using Kind = JsonValue::Kind;
using Vocabulary = std::unordered_map<std::string_view, std::uint32_t>;

tl::unexpected<Error> corrupt(const std::string& what) {
  return fail(Errc::corrupt, "tokenizer.json: " + what);
}
tl::unexpected<Error> missing(const std::string& what) {
  return fail(Errc::missing, "tokenizer.json: " + what);
}
tl::unexpected<Error> unsupported(const std::string& what) {
  return fail(Errc::unsupported, "tokenizer.json: " + what +
                                     "; only byte-level BPE as the Qwen2 family publishes it can be run");
}

std::string type_of(const JsonValue& value) {
  const JsonValue* type = value.find("type");
  return type != nullptr && type->is_string() ? type->text : "(no type)";
}

// Refuses keys outside `known`: an option nobody here has heard of may change the ids.
Result<void> only_keys(const JsonValue& object, const std::string& where,
                       std::initializer_list<std::string_view> known) {
  for (const std::string& key : object.keys) {
    if (std::find(known.begin(), known.end(), key) == known.end()) {
      return unsupported(where + " has the unknown option \"" + key + "\"");
    }
  }
  return {};
}

bool is_false_or_absent(const JsonValue* value) { return value == nullptr || value->is_bool(false); }
bool is_empty_or_absent(const JsonValue* value) {
  return value == nullptr || (value->is_string() && value->text.empty());
}

Result<bool> read_normalizer(const JsonValue* normalizer) {
  if (normalizer == nullptr) return false;
  if (type_of(*normalizer) != "NFC") return unsupported("normalizer " + type_of(*normalizer) + " is not NFC");
  STOKER_TRY_VOID(only_keys(*normalizer, "normalizer", {"type"}));
  return true;
}

Result<void> check_byte_level(const JsonValue& step) {
  STOKER_TRY_VOID(
      only_keys(step, "pre_tokenizer ByteLevel", {"type", "add_prefix_space", "trim_offsets", "use_regex"}));
  const JsonValue* prefix = step.find("add_prefix_space");
  if (prefix == nullptr || !prefix->is_bool(false))
    return unsupported("ByteLevel add_prefix_space is not false");
  const JsonValue* regex = step.find("use_regex");
  if (regex == nullptr || !regex->is_bool(false)) return unsupported("ByteLevel use_regex is not false");
  return {};
}

Result<std::string> read_split(const JsonValue& step) {
  STOKER_TRY_VOID(only_keys(step, "pre_tokenizer Split", {"type", "pattern", "behavior", "invert"}));
  const JsonValue* behavior = step.find("behavior");
  if (behavior == nullptr || behavior->text != "Isolated")
    return unsupported("Split behavior is not Isolated");
  const JsonValue* invert = step.find("invert");
  if (invert == nullptr || !invert->is_bool(false)) return unsupported("Split invert is not false");
  const JsonValue* pattern = step.find("pattern");
  const JsonValue* regex = pattern == nullptr ? nullptr : pattern->find("Regex");
  if (regex == nullptr || !regex->is_string() || pattern->keys.size() != 1) {
    return unsupported("Split pattern is not {\"Regex\": ...}");
  }
  return regex->text;
}

/// The pattern of [Split, ByteLevel].
Result<std::string> read_pre_tokenizer(const JsonValue* pre_tokenizer) {
  if (pre_tokenizer == nullptr) return missing("no pre_tokenizer");
  const JsonValue* steps = pre_tokenizer->find("pretokenizers");
  if (type_of(*pre_tokenizer) != "Sequence" || steps == nullptr || !steps->is_array()) {
    return unsupported("pre_tokenizer " + type_of(*pre_tokenizer) + " is not a Sequence");
  }
  STOKER_TRY_VOID(only_keys(*pre_tokenizer, "pre_tokenizer", {"type", "pretokenizers"}));
  const auto& list = steps->items;
  if (list.size() != 2 || type_of(list[0]) != "Split" || type_of(list[1]) != "ByteLevel") {
    std::string found;
    for (const JsonValue& step : list) found += " " + type_of(step);
    return unsupported("pre_tokenizer steps are" + found + ", not Split ByteLevel");
  }
  STOKER_TRY_VOID(check_byte_level(list[1]));
  return read_split(list[0]);
}

Result<void> check_top_level(const JsonValue& root) {
  STOKER_TRY_VOID(only_keys(root, "the file",
                            {"version", "truncation", "padding", "added_tokens", "normalizer",
                             "pre_tokenizer", "post_processor", "decoder", "model"}));
  if (root.find_set("truncation") != nullptr) return unsupported("truncation is set");
  if (root.find_set("padding") != nullptr) return unsupported("padding is set");
  const JsonValue* post = root.find_set("post_processor");
  if (post != nullptr && type_of(*post) != "ByteLevel") {
    return unsupported("post_processor " + type_of(*post) + " may add tokens");
  }
  const JsonValue* decoder = root.find_set("decoder");
  if (decoder == nullptr) return missing("no decoder");
  if (type_of(*decoder) != "ByteLevel")
    return unsupported("decoder " + type_of(*decoder) + " is not ByteLevel");
  return {};
}

Result<void> check_model(const JsonValue& model) {
  // Old files leave the type out; then the presence of merges makes it BPE.
  const bool named = model.find("type") != nullptr;
  if (named && type_of(model) != "BPE") return unsupported("model type " + type_of(model) + " is not BPE");
  STOKER_TRY_VOID(
      only_keys(model, "model",
                {"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
                 "fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges"}));
  if (model.find_set("dropout") != nullptr) return unsupported("model.dropout is set");
  if (!is_empty_or_absent(model.find_set("continuing_subword_prefix"))) {
    return unsupported("model.continuing_subword_prefix is set");
  }
  if (!is_empty_or_absent(model.find_set("end_of_word_suffix"))) {
    return unsupported("model.end_of_word_suffix is set");
  }
  if (!is_false_or_absent(model.find_set("byte_fallback"))) return unsupported("model.byte_fallback is set");
  if (!is_false_or_absent(model.find_set("ignore_merges"))) return unsupported("model.ignore_merges is set");
  const JsonValue* vocab = model.find("vocab");
  if (vocab == nullptr || !vocab->is_object()) return missing("no model.vocab");
  const JsonValue* merges = model.find("merges");
  if (merges == nullptr || !merges->is_array() || merges->items.empty()) {
    return missing("no model.merges; take the file of the published checkpoint, not vocab.json alone");
  }
  return {};
}

Result<Vocabulary> read_vocabulary(const JsonValue& vocab) {
  Vocabulary by_text;
  std::unordered_set<std::uint32_t> ids;
  for (std::size_t i = 0; i < vocab.keys.size(); ++i) {
    const std::string where = "model.vocab[\"" + vocab.keys[i] + "\"]";
    if (vocab.keys[i].empty()) return corrupt("model.vocab has an empty token");
    const auto id = vocab.items[i].as_u32();
    if (!id || *id > kTokenIdMax)
      return corrupt(where + " is no id from 0 to " + std::to_string(kTokenIdMax));
    if (!ids.insert(*id).second) return corrupt(where + ": id " + std::to_string(*id) + " is used twice");
    by_text.emplace(vocab.keys[i], *id);
  }
  return by_text;
}

/// Both spellings: "a b" (up to tokenizers 0.19) and ["a", "b"].
std::optional<std::pair<std::string_view, std::string_view>> merge_halves(const JsonValue& merge) {
  if (merge.is_array() && merge.items.size() == 2 && merge.items[0].is_string() &&
      merge.items[1].is_string()) {
    return std::pair<std::string_view, std::string_view>(merge.items[0].text, merge.items[1].text);
  }
  if (!merge.is_string()) return std::nullopt;
  const std::string_view text = merge.text;
  const auto space = text.find(' ');
  if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos)
    return std::nullopt;
  return std::pair(text.substr(0, space), text.substr(space + 1));
}

Result<std::vector<Bpe::Merge>> read_merges(const JsonValue& merges, const Vocabulary& vocabulary) {
  std::vector<Bpe::Merge> out;
  std::unordered_set<std::uint64_t> seen;
  std::string joined;
  for (std::size_t i = 0; i < merges.items.size(); ++i) {
    const std::string where = "model.merges[" + std::to_string(i) + "]";
    const auto halves = merge_halves(merges.items[i]);
    if (!halves) return corrupt(where + " is neither \"a b\" nor [\"a\", \"b\"]");
    joined.assign(halves->first).append(halves->second);
    const auto left = vocabulary.find(halves->first);
    const auto right = vocabulary.find(halves->second);
    const auto result = vocabulary.find(joined);
    for (const auto& [found, text] :
         {std::pair{left, halves->first}, {right, halves->second}, {result, std::string_view(joined)}}) {
      if (found == vocabulary.end()) {
        return corrupt(where + " needs the token \"" + std::string(text) +
                       "\", which model.vocab does not have");
      }
    }
    if (!seen.insert((std::uint64_t{left->second} << 32) | right->second).second) {
      return corrupt(where + " repeats an earlier merge");
    }
    out.push_back({left->second, right->second, result->second});
  }
  return out;
}

Result<TokenizerFile::Token> read_added_token(const JsonValue& entry, const std::string& where,
                                              const Vocabulary& vocabulary) {
  STOKER_TRY_VOID(
      only_keys(entry, where, {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"}));
  const JsonValue* id_value = entry.find("id");
  const auto id = id_value == nullptr ? std::nullopt : id_value->as_u32();
  if (!id || *id > kTokenIdMax)
    return corrupt(where + ".id is no id from 0 to " + std::to_string(kTokenIdMax));
  const JsonValue* content = entry.find("content");
  if (content == nullptr || !content->is_string() || content->text.empty()) {
    return corrupt(where + ".content is no text");
  }
  for (const char* option : {"single_word", "lstrip", "rstrip", "normalized"}) {
    if (!is_false_or_absent(entry.find(option))) {
      return unsupported(where + " (" + content->text + ") has " + option + " other than false");
    }
  }
  const auto in_vocabulary = vocabulary.find(content->text);
  if (in_vocabulary != vocabulary.end() && in_vocabulary->second != *id) {
    return corrupt(where + " (" + content->text + ") has id " + std::to_string(*id) +
                   " but model.vocab says " + std::to_string(in_vocabulary->second));
  }
  const JsonValue* special = entry.find("special");
  const bool is_special = special != nullptr && special->is_bool(true);
  return TokenizerFile::Token{.id = *id, .bytes = content->text, .added = true, .special = is_special};
}

Result<std::vector<TokenizerFile::Token>> read_added_tokens(const JsonValue* list,
                                                            const Vocabulary& vocabulary) {
  std::vector<TokenizerFile::Token> out;
  if (list == nullptr) return out;
  if (!list->is_array()) return corrupt("added_tokens is no array");
  if (list->items.size() > kAddedTokensMax) {
    return fail(Errc::corrupt, "tokenizer.json: " + std::to_string(list->items.size()) +
                                   " added_tokens, more than " + std::to_string(kAddedTokensMax));
  }
  std::unordered_set<std::string> contents;
  for (std::size_t i = 0; i < list->items.size(); ++i) {
    const std::string where = "added_tokens[" + std::to_string(i) + "]";
    STOKER_TRY(auto token, read_added_token(list->items[i], where, vocabulary));
    if (!contents.insert(token.bytes).second) return corrupt(where + " repeats \"" + token.bytes + "\"");
    out.push_back(std::move(token));
  }
  return out;
}

/// Vocabulary and added tokens in one list by id. An added token may also stand in the vocabulary.
Result<std::vector<TokenizerFile::Token>> merge_tokens(const Vocabulary& vocabulary,
                                                       std::vector<TokenizerFile::Token> added) {
  const ByteAlphabet alphabet;
  std::unordered_set<std::string_view> added_texts;
  for (const auto& token : added) added_texts.insert(token.bytes);
  std::vector<TokenizerFile::Token> out;
  for (const auto& [text, id] : vocabulary) {
    // A word outside the byte alphabet can not come out of the merges; it decodes to itself.
    if (!added_texts.contains(text)) {
      out.push_back({.id = id, .bytes = alphabet.bytes(text).value_or(std::string(text))});
    }
  }
  std::move(added.begin(), added.end(), std::back_inserter(out));
  std::sort(out.begin(), out.end(), [](const auto& a, const auto& b) { return a.id < b.id; });
  for (std::size_t i = 1; i < out.size(); ++i) {
    if (out[i].id == out[i - 1].id)
      return corrupt("id " + std::to_string(out[i].id) + " belongs to two tokens");
  }
  return out;
}

Result<std::array<std::uint32_t, 256>> byte_tokens(const Vocabulary& vocabulary) {
  const ByteAlphabet alphabet;
  std::array<std::uint32_t, 256> ids{};
  for (unsigned byte = 0; byte < 256; ++byte) {
    const auto found = vocabulary.find(alphabet.letter(static_cast<unsigned char>(byte)));
    if (found == vocabulary.end()) {
      return missing("model.vocab has no token for byte " + std::to_string(byte) +
                     "; text with it could not be encoded");
    }
    ids[byte] = found->second;
  }
  return ids;
}

}  // namespace

Result<TokenizerFile> parse_tokenizer_file(std::string_view json) {
  STOKER_TRY(const JsonValue root, parse_json(json, DuplicateKeys::refuse, "tokenizer.json"));
  if (!root.is_object()) return corrupt("not a JSON object");
  const JsonValue* model = root.find("model");
  if (model == nullptr || !model->is_object()) return missing("no model");
  STOKER_TRY_VOID(check_model(*model));
  STOKER_TRY_VOID(check_top_level(root));
  TokenizerFile file;
  STOKER_TRY(file.nfc, read_normalizer(root.find_set("normalizer")));
  STOKER_TRY(file.split_pattern, read_pre_tokenizer(root.find_set("pre_tokenizer")));
  STOKER_TRY(const Vocabulary vocabulary, read_vocabulary(*model->find("vocab")));
  STOKER_TRY(file.byte_ids, byte_tokens(vocabulary));
  STOKER_TRY(file.merges, read_merges(*model->find("merges"), vocabulary));
  STOKER_TRY(auto added, read_added_tokens(root.find_set("added_tokens"), vocabulary));
  STOKER_TRY(file.tokens, merge_tokens(vocabulary, std::move(added)));
  return file;
}

}  // namespace stoker
