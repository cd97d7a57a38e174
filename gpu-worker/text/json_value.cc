#include "gpu-worker/text/json_value.h"

#include <charconv>
#include <nlohmann/json.hpp>
#include <unordered_map>

namespace stoker {
namespace {

class TreeBuilder final : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit TreeBuilder(DuplicateKeys duplicates) : duplicates_(duplicates) {}

  bool null() override { return add({}); }
  bool boolean(bool value) override { return add({.kind = JsonValue::Kind::boolean, .flag = value}); }
  bool number_integer(number_integer_t value) override { return add_integer(std::to_string(value)); }
  bool number_unsigned(number_unsigned_t value) override { return add_integer(std::to_string(value)); }
  bool number_float(number_float_t value, const string_t& digits) override {
    // nlohmann hands an integer beyond 64 bits over as a float; its digits are still the number.
    if (digits.find_first_not_of("-0123456789") == std::string::npos) return add_integer(digits);
    return add({.kind = JsonValue::Kind::real, .number = value});
  }
  bool string(string_t& value) override {
    return add({.kind = JsonValue::Kind::string, .text = std::move(value)});
  }
  bool binary(binary_t&) override { return refuse("binary value"); }
  bool start_object(std::size_t) override { return open(JsonValue::Kind::object); }
  bool start_array(std::size_t) override { return open(JsonValue::Kind::array); }
  bool key(string_t& value) override {
    open_.back().keys.push_back(std::move(value));
    return true;
  }
  bool end_object() override { return merge_duplicates(open_.back()) && close(); }
  bool end_array() override { return close(); }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::json::exception& e) override {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: ...": the part after the bracket.
    const std::string_view what = e.what();
    const auto bracket = what.find("] ");
    return refuse(std::string(bracket == std::string_view::npos ? what : what.substr(bracket + 2)) +
                  " (byte " + std::to_string(position) + ")");
  }

  JsonValue root;
  std::string error;

 private:
  bool refuse(std::string message) {
    error = std::move(message);
    return false;
  }
  bool add_integer(std::string digits) {
    return add({.kind = JsonValue::Kind::integer, .text = std::move(digits)});
  }
  bool add(JsonValue value) {
    if (open_.empty()) {
      root = std::move(value);
    } else {
      open_.back().items.push_back(std::move(value));
    }
    return true;
  }
  bool open(JsonValue::Kind kind) {
    if (open_.size() == kJsonDepthMax) {
      return refuse("nested deeper than " + std::to_string(kJsonDepthMax) + " levels");
    }
    open_.push_back({.kind = kind});
    return true;
  }
  bool close() {
    JsonValue done = std::move(open_.back());
    open_.pop_back();
    return add(std::move(done));
  }

  bool merge_duplicates(JsonValue& object) {
    std::unordered_map<std::string_view, std::size_t> first;
    std::vector<std::size_t> kept;
    for (std::size_t i = 0; i < object.keys.size(); ++i) {
      const auto [place, is_new] = first.try_emplace(object.keys[i], i);
      if (is_new) {
        kept.push_back(i);
      } else if (duplicates_ == DuplicateKeys::refuse) {
        return refuse("key \"" + object.keys[i] + "\" occurs twice in one object");
      } else {
        object.items[place->second] = std::move(object.items[i]);
      }
    }
    if (kept.size() == object.keys.size()) return true;
    for (std::size_t i = 0; i < kept.size(); ++i) {
      if (kept[i] == i) continue;
      object.keys[i] = std::move(object.keys[kept[i]]);
      object.items[i] = std::move(object.items[kept[i]]);
    }
    object.keys.resize(kept.size());
    object.items.resize(kept.size());
    return true;
  }

  DuplicateKeys duplicates_;
  std::vector<JsonValue> open_;
};

}  // namespace

const JsonValue* JsonValue::find(std::string_view key) const {
  for (std::size_t i = 0; i < keys.size(); ++i) {
    if (keys[i] == key) return &items[i];
  }
  return nullptr;
}

const JsonValue* JsonValue::find_set(std::string_view key) const {
  const JsonValue* value = find(key);
  return value != nullptr && value->is_null() ? nullptr : value;
}

std::optional<std::uint32_t> JsonValue::as_u32() const {
  if (kind != Kind::integer) return std::nullopt;
  std::uint32_t value = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (status != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

Result<JsonValue> parse_json(std::string_view text, DuplicateKeys duplicates, const std::string& name) {
  TreeBuilder builder(duplicates);
  try {
    // nlohmann reports through parse_error(); it throws only when memory runs out.
    if (nlohmann::json::sax_parse(text.begin(), text.end(), &builder)) return std::move(builder.root);
  } catch (const std::exception& e) {
    builder.error = e.what();
  }
  return fail(Errc::corrupt, name + ": " + builder.error);
}

}  // namespace stoker
