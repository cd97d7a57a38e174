#include "trace/foreign.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <map>
#include <optional>

namespace stoker {
namespace {

constexpr std::uint8_t kDiskTier = 3;
constexpr std::size_t kTokensMax = 1U << 24;
constexpr std::size_t kUsesMax = std::size_t{1} << 27;  // 1 GB in memory; 280,000 tokens of 48 x 10

Result<Trace> corrupt(const std::string& what) { return fail(Errc::corrupt, what); }

TraceToken blank(const TraceShape& shape, std::uint64_t step, std::uint32_t sequence) {
  TraceToken token = TraceToken::sized(shape);
  token.step = step;
  token.sequence = sequence;
  std::fill(token.tiers.begin(), token.tiers.end(), kDiskTier);
  return token;
}

// ---- MTRC1 ----

constexpr std::string_view kMtrcMagic = "MTRC1";

struct MtrcHeader {
  std::uint32_t layers, experts, top_k, tokens, segments;
};

Result<Trace> parse_mtrc(std::string_view bytes) {
  MtrcHeader h{};
  constexpr std::size_t kFixed = 8 + sizeof h;
  if (bytes.size() < kFixed) return corrupt("MTRC1: the header is cut short");
  std::memcpy(&h, bytes.data() + 8, sizeof h);
  if (h.layers == 0 || h.layers > 4096 || h.experts == 0 || h.experts >= kNoExpert || h.top_k == 0 ||
      h.top_k > 256 || h.tokens > kTokensMax || h.segments > h.tokens) {
    return corrupt("MTRC1: impossible shape");
  }
  const std::size_t per_token = std::size_t{h.layers} * h.top_k;
  const std::size_t want = kFixed + 4ULL * h.segments + 2ULL * h.tokens * per_token;
  if (bytes.size() != want)
    return corrupt("MTRC1: " + std::to_string(bytes.size()) + " bytes, the header says " +
                   std::to_string(want));
  std::vector<std::uint32_t> starts(h.segments);
  if (h.segments > 0) std::memcpy(starts.data(), bytes.data() + kFixed, 4ULL * h.segments);
  Trace trace;
  trace.shape = {
      .layers = h.layers, .experts = h.experts, .top_k = h.top_k, .candidates = 0, .expert_bytes = 0};
  const char* at = bytes.data() + kFixed + 4ULL * h.segments;
  for (std::uint32_t t = 0; t < h.tokens; ++t, at += 2 * per_token) {
    const auto segment = std::upper_bound(starts.begin(), starts.end(), t) - starts.begin();
    TraceToken token = blank(trace.shape, t, static_cast<std::uint32_t>(segment));
    std::memcpy(token.chosen.data(), at, 2 * per_token);
    for (const std::uint16_t expert : token.chosen)
      if (expert >= h.experts && expert != kNoExpert)
        return corrupt("MTRC1: token " + std::to_string(t) + ": expert " + std::to_string(expert));
    trace.tokens.push_back(std::move(token));
  }
  return trace;
}

// ---- CSV ----

std::vector<std::string_view> split(std::string_view line, char separator) {
  std::vector<std::string_view> fields;
  for (;;) {
    const std::size_t at = line.find(separator);
    fields.push_back(line.substr(0, at));
    if (at == std::string_view::npos) return fields;
    line.remove_prefix(at + 1);
  }
}

std::optional<std::uint32_t> number(std::string_view text) {
  std::uint32_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || text.empty()) return std::nullopt;
  return value;
}

class CsvTable {
 public:
  static std::optional<CsvTable> of(std::string_view header) {
    CsvTable table;
    table.names_ = split(header, ',');
    const bool events = table.column("requested_experts") && table.column("scheduler_step");
    const bool rows = table.column("step") && table.column("expert") && table.column("phase");
    if (!table.column("layer") || (!events && !rows)) return std::nullopt;
    table.one_row_per_expert_ = rows;
    return table;
  }

  /// False: not a row of numbers.
  bool add(std::string_view line) {
    const auto fields = split(line, ',');
    if (fields.size() != names_.size()) return false;
    const auto field = [&](std::string_view name) { return number(fields[*column(name)]); };
    const auto layer = field("layer");
    const auto step = field(one_row_per_expert_ ? "step" : "scheduler_step");
    if (!layer || !step || *layer > 4095 || *step > kTokensMax) return false;
    if (one_row_per_expert_) {
      const auto phase = field("phase");
      if (!phase) return false;
      if (*phase != 1) return true;
      const auto expert = field("expert");
      return expert && put(*step, *layer, *expert);
    }
    for (const std::string_view text : split(fields[*column("requested_experts")], ' ')) {
      const auto expert = number(text);
      if (!expert || !put(*step, *layer, *expert)) return false;
    }
    return true;
  }

  [[nodiscard]] Result<Trace> trace() const {
    Trace trace;
    trace.shape = {.layers = 1, .experts = 1, .top_k = 1, .candidates = 0, .expert_bytes = 0};
    for (const auto& [at, experts] : events_) {
      trace.shape.layers = std::max(trace.shape.layers, at.second + 1);
      trace.shape.top_k = std::max(trace.shape.top_k, static_cast<std::uint32_t>(experts.size()));
      for (const std::uint16_t expert : experts)
        trace.shape.experts = std::max(trace.shape.experts, expert + 1U);
    }
    // Every token has all layers: a few odd rows must not fill memory.
    std::size_t steps = 0;
    for (auto at = events_.begin(); at != events_.end(); ++steps)
      at = events_.lower_bound({at->first.first + 1, 0});
    if (steps * trace.shape.layers * trace.shape.top_k > kUsesMax) {
      return corrupt(std::to_string(steps) + " steps of " + std::to_string(trace.shape.layers) +
                     " layers with up to " + std::to_string(trace.shape.top_k) +
                     " experts are more than fit in memory");
    }
    for (const auto& [at, experts] : events_) {
      if (trace.tokens.empty() || trace.tokens.back().step != at.first)
        trace.tokens.push_back(blank(trace.shape, at.first, 0));
      std::copy(experts.begin(), experts.end(),
                trace.tokens.back().chosen.begin() + std::ptrdiff_t{at.second} * trace.shape.top_k);
    }
    return trace;
  }

 private:
  [[nodiscard]] std::optional<std::size_t> column(std::string_view name) const {
    const auto at = std::find(names_.begin(), names_.end(), name);
    if (at == names_.end()) return std::nullopt;
    return static_cast<std::size_t>(at - names_.begin());
  }
  bool put(std::uint32_t step, std::uint32_t layer, std::uint32_t expert) {
    auto& experts = events_[{step, layer}];
    if (expert >= kNoExpert || experts.size() >= 256) return false;
    experts.push_back(static_cast<std::uint16_t>(expert));
    return true;
  }
  std::vector<std::string_view> names_;
  bool one_row_per_expert_ = false;
  std::map<std::pair<std::uint32_t, std::uint32_t>, std::vector<std::uint16_t>> events_;
};

Result<Trace> parse_csv(std::string_view bytes) {
  std::optional<CsvTable> table;
  std::size_t number_of_line = 0;
  for (std::string_view line : split(bytes, '\n')) {
    ++number_of_line;
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty() || line.starts_with('#')) continue;
    if (!table) {
      table = CsvTable::of(line);
      if (!table) break;
    } else if (!table->add(line)) {
      return corrupt("line " + std::to_string(number_of_line) + ": not a row of a routing trace");
    }
  }
  if (!table) return corrupt("neither STRACE, MTRC1 nor a CSV with columns that are known (trace/foreign.h)");
  return table->trace();
}

}  // namespace

Result<Trace> parse_any_trace(std::string_view bytes) {
  if (bytes.starts_with("STRACE1\n") || bytes.starts_with("STRACE2\n")) return parse_trace(bytes);
  if (bytes.starts_with(kMtrcMagic)) return parse_mtrc(bytes);
  return parse_csv(bytes);
}

Result<Trace> read_any_trace(const std::string& path) {
  STOKER_TRY(const std::string bytes, read_trace_bytes(path));
  auto trace = parse_any_trace(bytes);
  if (!trace) return fail(trace.error().code, path + ": " + trace.error().message);
  return trace;
}

}  // namespace stoker
