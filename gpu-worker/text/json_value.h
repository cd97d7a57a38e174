// A JSON tree that keeps what the text pipeline needs and nlohmann's own tree loses: the order of keys, the
// digits of integers beyond 64 bits, and knowledge of duplicate keys.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "shm/base/result.h"

namespace stoker {

struct JsonValue {
  enum class Kind : std::uint8_t { null, boolean, integer, real, string, array, object };
  Kind kind = Kind::null;
  bool flag = false;                ///< boolean
  double number = 0;                ///< real
  std::string text{};               ///< string, or the decimal digits of an integer
  std::vector<JsonValue> items{};   ///< elements of an array, values of an object
  std::vector<std::string> keys{};  ///< object: same length and order as items

  [[nodiscard]] bool is(Kind k) const { return kind == k; }
  [[nodiscard]] bool is_null() const { return kind == Kind::null; }
  [[nodiscard]] bool is_string() const { return kind == Kind::string; }
  [[nodiscard]] bool is_array() const { return kind == Kind::array; }
  [[nodiscard]] bool is_object() const { return kind == Kind::object; }
  [[nodiscard]] bool is_bool(bool value) const { return kind == Kind::boolean && flag == value; }
  /// Member of an object; nullptr if absent or if this is no object.
  [[nodiscard]] const JsonValue* find(std::string_view key) const;
  /// As find, but a null counts as absent.
  [[nodiscard]] const JsonValue* find_set(std::string_view key) const;
  /// Value of a non-negative integer that fits 32 bits.
  [[nodiscard]] std::optional<std::uint32_t> as_u32() const;
};

/// What to do with a key that occurs twice in one object.
enum class DuplicateKeys : std::uint8_t {
  refuse,     ///< Errc::corrupt
  last_wins,  ///< Python's json module: the last value, at the place of the first
};

/// Strict JSON (RFC 8259) in valid UTF-8, at most kJsonDepthMax levels deep. Errors are Errc::corrupt, begin
/// with `name` and give the byte offset.
inline constexpr std::size_t kJsonDepthMax = 100;
[[nodiscard]] Result<JsonValue> parse_json(std::string_view text, DuplicateKeys duplicates,
                                           const std::string& name);

}  // namespace stoker
