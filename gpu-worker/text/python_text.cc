#include "gpu-worker/text/python_text.h"

#include <utf8proc.h>

#include <array>
#include <charconv>
#include <cmath>

#include "gpu-worker/text/utf8.h"

namespace stoker {
namespace {

using Kind = JsonValue::Kind;

void append_hex(std::string& out, char32_t value, int digits) {
  for (int shift = 4 * (digits - 1); shift >= 0; shift -= 4)
    out += "0123456789abcdef"[(value >> shift) & 0xF];
}

// float.__repr__: the shortest digits that read back the same; plain from 1e-4 up to 1e16, else exponent.
void append_real(std::string& out, double value) {
  std::array<char, 40> buffer{};
  const auto written =
      std::to_chars(buffer.data(), buffer.data() + buffer.size(), value, std::chars_format::scientific);
  std::string_view text(buffer.data(), static_cast<std::size_t>(written.ptr - buffer.data()));
  if (text.front() == '-') {
    out += '-';
    text.remove_prefix(1);
  }
  const auto e = text.find('e');
  int exponent = 0;  // from_chars reads no plus sign
  const char* digits_begin = text.data() + e + (text[e + 1] == '+' ? 2 : 1);
  std::from_chars(digits_begin, text.data() + text.size(), exponent);
  if (exponent < -4 || exponent >= 16) {
    out += text.substr(0, e);
    out += exponent < 0 ? "e-" : "e+";
    if (std::abs(exponent) < 10) out += '0';
    out += std::to_string(std::abs(exponent));
    return;
  }
  std::string digits(1, text[0]);
  if (e > 2) digits += text.substr(2, e - 2);
  if (exponent < 0) {
    out += "0." + std::string(static_cast<std::size_t>(-exponent - 1), '0') + digits;
    return;
  }
  const auto whole = static_cast<std::size_t>(exponent) + 1;
  if (digits.size() <= whole) {
    out += digits + std::string(whole - digits.size(), '0') + ".0";
  } else {
    out += digits.substr(0, whole) + "." + digits.substr(whole);
  }
}

void append_json_string(std::string& out, std::string_view text) {
  out += '"';
  for (const char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\b':
        out += "\\b";
        break;
      case '\f':
        out += "\\f";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          out += "\\u";
          append_hex(out, static_cast<unsigned char>(c), 4);
        } else {
          out += c;
        }
    }
  }
  out += '"';
}

bool is_printable(char32_t c) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
      return false;
    case UTF8PROC_CATEGORY_ZS:
      return c == ' ';
    default:
      return true;
  }
}

void append_repr_string(std::string& out, std::string_view text) {
  const bool has_single = text.find('\'') != std::string_view::npos;
  const char quote = has_single && text.find('"') == std::string_view::npos ? '"' : '\'';
  out += quote;
  std::size_t position = 0;
  while (position < text.size()) {
    const std::size_t begin = position;
    const char32_t c = next_code_point(text, position);
    if (c == static_cast<unsigned char>(quote) || c == '\\') {
      out += '\\';
      out += static_cast<char>(c);
    } else if (c == '\n' || c == '\r' || c == '\t') {
      out += c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t";
    } else if (is_printable(c)) {
      out += text.substr(begin, position - begin);
    } else {
      out += c < 0x100 ? "\\x" : c < 0x10000 ? "\\u" : "\\U";
      append_hex(out, c, c < 0x100 ? 2 : c < 0x10000 ? 4 : 8);
    }
  }
  out += quote;
}

// JSON and repr() differ only in these.
struct Spelling {
  const char* none;
  const char* yes;
  const char* no;
  void (*string)(std::string&, std::string_view);
};
constexpr Spelling kJson{"null", "true", "false", append_json_string};
constexpr Spelling kRepr{"None", "True", "False", append_repr_string};

// Recursion is bounded by kJsonDepthMax.
void append(std::string& out, const JsonValue& value, const Spelling& spelling) {
  switch (value.kind) {
    case Kind::null:
      out += spelling.none;
      return;
    case Kind::boolean:
      out += value.flag ? spelling.yes : spelling.no;
      return;
    case Kind::integer:
      out += value.text;
      return;
    case Kind::real:
      append_real(out, value.number);
      return;
    case Kind::string:
      spelling.string(out, value.text);
      return;
    case Kind::array:
    case Kind::object:
      break;
  }
  const bool object = value.is_object();
  out += object ? '{' : '[';
  for (std::size_t i = 0; i < value.items.size(); ++i) {
    if (i > 0) out += ", ";
    if (object) {
      spelling.string(out, value.keys[i]);
      out += ": ";
    }
    append(out, value.items[i], spelling);
  }
  out += object ? '}' : ']';
}

bool is_blank(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

}  // namespace

void append_python_json(std::string& out, const JsonValue& value) { append(out, value, kJson); }

void append_python_str(std::string& out, const JsonValue& value) {
  if (value.is_string()) {
    out += value.text;
  } else {
    append(out, value, kRepr);
  }
}

std::string_view python_strip(std::string_view text) {
  std::size_t begin = std::string_view::npos;
  std::size_t end = 0;
  std::size_t position = 0;
  while (position < text.size()) {
    const std::size_t here = position;
    if (is_blank(next_code_point(text, position))) continue;
    if (begin == std::string_view::npos) begin = here;
    end = position;
  }
  return begin == std::string_view::npos ? std::string_view() : text.substr(begin, end - begin);
}

}  // namespace stoker
