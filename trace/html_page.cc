// The document around the drawings of a report.
#include "trace/html_charts.h"

namespace stoker::html {
namespace {

/// Series and heat colours differ in lightness too: a grey print and colour-blind eyes can tell them apart.
constexpr std::string_view kStyle = R"(
:root { color-scheme: light dark; --ink: #1c1e21; --dim: #6a7076; --rule: #d8dbde; --paper: #ffffff;
  --s0: #8a8f94; --s1: #d08700; --s2: #2a8f4e; --s3: #1760c9; --s4: #b3261e;
  --stall: #b3261e; --work: #1760c9; --mixer: #c9ced3; --heat: 23, 96, 201; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ea; --dim: #9aa0a6; --rule: #3a3e42;
  --paper: #16181a; --s0: #a9afb4; --s1: #f0b040; --s2: #5cc983; --s3: #6ea8ff; --s4: #ff8a80;
  --stall: #ff8a80; --work: #6ea8ff; --mixer: #4a4f54; --heat: 110, 168, 255; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1100px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.4em; } h2 { font-size: 1.1em; margin-top: 2em; }
p.note, figcaption, .dim { color: var(--dim); }
figure { margin: 1em 0; } svg { width: 100%; height: auto; display: block; overflow: visible; }
svg text { font: 12px system-ui, sans-serif; fill: var(--dim); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2em .8em; text-align: right; border-bottom: 1px solid var(--rule); }
th:first-child { text-align: left; }
.axis { stroke: var(--rule); stroke-width: 1; fill: none; }
.line { fill: none; stroke-width: 2; }
.s0 { stroke: var(--s0); } .s1 { stroke: var(--s1); } .s2 { stroke: var(--s2); }
.s3 { stroke: var(--s3); stroke-width: 3; } .s4 { stroke: var(--s4); stroke-dasharray: 5 3; }
svg .d0 { fill: var(--s0); } svg .d1 { fill: var(--s1); } svg .d2 { fill: var(--s2); }
svg .d3 { fill: var(--s3); } svg .d4 { fill: var(--s4); }
.bar, .work { fill: var(--work); } .stall { fill: var(--stall); } .mixer { fill: var(--mixer); }
.heat path { stroke-width: 1; fill: none; }
.h1 { stroke: rgba(var(--heat), .08); } .h2 { stroke: rgba(var(--heat), .16); }
.h3 { stroke: rgba(var(--heat), .26); } .h4 { stroke: rgba(var(--heat), .36); }
.h5 { stroke: rgba(var(--heat), .48); } .h6 { stroke: rgba(var(--heat), .6); }
.h7 { stroke: rgba(var(--heat), .74); } .h8 { stroke: rgba(var(--heat), .88); }
.h9 { stroke: rgba(var(--heat), 1); }
.key { display: inline-block; width: .8em; height: .8em; margin: 0 .3em 0 1em; }
)";

/// Length of the UTF-8 sequence that begins here, 0 if there is none that is allowed.
std::size_t sequence_length(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(0);
  if (first < 0x80) return first >= 0x20 || first == '\n' || first == '\t' ? 1 : 0;
  const std::size_t length = first >= 0xF0 && first <= 0xF4 ? 4 : first >= 0xE0 ? 3 : first >= 0xC2 ? 2 : 0;
  if (first > 0xF4 || length == 0 || text.size() < length) return 0;
  for (std::size_t i = 1; i < length; ++i)
    if ((byte(i) & 0xC0) != 0x80) return 0;
  // Overlong forms, surrogates, U+FFFE and U+FFFF, and what is beyond Unicode.
  if (first == 0xE0 && byte(1) < 0xA0) return 0;
  if (first == 0xED && byte(1) > 0x9F) return 0;
  if (first == 0xEF && byte(1) == 0xBF && byte(2) >= 0xBE) return 0;
  if ((first == 0xF0 && byte(1) < 0x90) || (first == 0xF4 && byte(1) > 0x8F)) return 0;
  return length;
}

}  // namespace

std::string escape(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const std::size_t length = sequence_length(text);
    const char c = text[0];
    if (length == 0) {
      out += '?';
    } else if (c == '&') {
      out += "&amp;";
    } else if (c == '<') {
      out += "&lt;";
    } else if (c == '>') {
      out += "&gt;";
    } else if (c == '"') {
      out += "&quot;";
    } else {
      out += text.substr(0, length);
    }
    text.remove_prefix(length == 0 ? 1 : length);
  }
  return out;
}

std::string page(const std::string& title, const std::string& body) {
  return "<!DOCTYPE html>\n<html xmlns=\"http://www.w3.org/1999/xhtml\" lang=\"en\"><head><meta "
         "charset=\"utf-8\"/><meta name=\"viewport\" content=\"width=device-width\"/><title>" +
         escape(title) + "</title><style>" + std::string(kStyle) + "</style></head>\n<body>\n<h1>" +
         escape(title) + "</h1>\n" + body + "</body></html>\n";
}

}  // namespace stoker::html
