#include "cli/bench_report.h"

#include <algorithm>
#include <functional>
#include <map>

#include "cli/statistics.h"
#include "daemons/common/size.h"

namespace stoker::cli {

using Json = nlohmann::ordered_json;

namespace {

using Figure = std::function<double(const BenchSample&)>;

Json spread_json(const std::vector<BenchSample>& samples, const Figure& figure, bool all = false) {
  std::vector<double> values;
  for (const BenchSample& sample : samples) values.push_back(figure(sample));
  const Spread s = spread_of(values);
  Json out{{"mean", s.mean}, {"stddev", s.stddev}, {"median", s.median}, {"min", s.min}, {"max", s.max}};
  if (all) out["samples"] = values;
  return out;
}

double real(std::uint64_t n) { return static_cast<double>(n); }

Json tiers_json(const std::vector<BenchSample>& samples, const ModelCosts& costs) {
  const auto per_token = [&](auto bytes) {
    return spread_json(samples, [bytes](const BenchSample& s) { return s.per_token(real(bytes(s))); });
  };
  return {{"disk", per_token([](const BenchSample& s) { return s.read_bytes; })},
          {"disk_wasted", per_token([](const BenchSample& s) { return s.wasted_bytes; })},
          {"vram", per_token([&](const BenchSample& s) { return s.uses_vram * costs.expert_bytes; })},
          {"pool", per_token([&](const BenchSample& s) { return s.uses_pool * costs.expert_bytes; })},
          {"pool_prefetched",
           per_token([&](const BenchSample& s) { return s.uses_prefetched * costs.expert_bytes; })},
          {"pcie", per_token([&](const BenchSample& s) { return copied_bytes(s, costs); })},
          {"cpu_lane", per_token([&](const BenchSample& s) { return s.uses_on_cpu * costs.expert_bytes; })},
          {"memory", per_token([&](const BenchSample& s) { return device_bytes(s, costs); })}};
}

Json hits_json(const std::vector<BenchSample>& samples) {
  const auto share = [&](std::uint64_t BenchSample::*part) {
    return spread_json(samples, [part](const BenchSample& s) { return s.share_of_uses(s.*part); });
  };
  return {{"vram", share(&BenchSample::uses_vram)},
          {"pool", share(&BenchSample::uses_pool)},
          {"pool_prefetched", share(&BenchSample::uses_prefetched)},
          {"disk_late_hint", share(&BenchSample::uses_late_hint)},
          {"disk", share(&BenchSample::uses_disk)}};
}

/// The resource that limits most of the samples.
std::string most_often(const std::vector<BenchSample>& samples, const ModelCosts& costs) {
  std::map<std::string, int> count;
  for (const BenchSample& s : samples) ++count[limit_of(s, costs).by()];
  return std::max_element(count.begin(), count.end(),
                          [](const auto& a, const auto& b) { return a.second < b.second; })
      ->first;
}

/// Shares of the time, so 100 is as fast as the resource allows.
Json limit_json(const std::vector<BenchSample>& samples, const ModelCosts& costs) {
  const auto percent = [&](auto seconds) {
    return spread_json(samples, [&, seconds](const BenchSample& s) {
      return 100 * seconds(limit_of(s, costs)) / s.seconds;
    });
  };
  return {{"by", most_often(samples, costs)},
          {"percent", percent([](const BenchLimit& l) { return l.seconds(); })},
          {"percent_of_disk", percent([](const BenchLimit& l) { return l.disk_seconds; })},
          {"percent_of_memory", percent([](const BenchLimit& l) { return l.memory_seconds; })},
          {"percent_of_pcie", percent([](const BenchLimit& l) { return l.copy_seconds; })},
          {"percent_of_cpu_lane", percent([](const BenchLimit& l) { return l.cpu_lane_seconds; })}};
}

}  // namespace

Json bench_row(const Json& head, const BenchTest& test, std::uint32_t warm_up,
               const std::vector<BenchSample>& samples, const ModelCosts& costs) {
  const auto spread = [&](const Figure& figure) { return spread_json(samples, figure); };
  Json row = head;
  row["test"] = test.name();
  row["pool_state"] = test.warm ? "warm" : "cold";
  row["tokens"] = test.tokens;
  row["warm_up_tokens"] = test.warm ? warm_up : 0;
  row["repetitions"] = samples.size();
  row["tokens_per_second"] = spread_json(
      samples, [](const BenchSample& s) { return real(s.tokens) / s.seconds; }, true);
  row["limit"] = limit_json(samples, costs);
  row["bytes_per_token"] = tiers_json(samples, costs);
  row["hit_rate"] = hits_json(samples);
  row["stall_seconds_per_token"] = {
      {"demand", spread([](const BenchSample& s) { return s.per_token(s.stall_demand_seconds); })},
      {"late_hint", spread([](const BenchSample& s) { return s.per_token(s.stall_late_hint_seconds); })}};
  row["disk_bytes_per_second"] = spread([](const BenchSample& s) { return real(s.read_bytes) / s.seconds; });
  row["disk_busy_share"] = spread([](const BenchSample& s) { return s.disk_busy_seconds / s.seconds; });
  row["memory_bytes_per_second"] =
      spread([&](const BenchSample& s) { return real(device_bytes(s, costs)) / s.seconds; });
  row["raw_disk_bytes_per_second"] = spread([](const BenchSample& s) { return s.raw_disk_bandwidth; });
  row["raw_memory_bytes_per_second"] = spread([](const BenchSample& s) { return s.raw_memory_bandwidth; });
  row["raw_pcie_bytes_per_second"] = spread([](const BenchSample& s) { return s.raw_copy_bandwidth; });
  row["raw_cpu_lane_bytes_per_second"] =
      spread([](const BenchSample& s) { return s.raw_cpu_lane_bandwidth; });
  row["hints_per_token"] = {
      {"issued", spread([](const BenchSample& s) { return s.per_token(real(s.hints_issued)); })},
      {"wasted", spread([](const BenchSample& s) { return s.per_token(real(s.hints_wasted)); })}};
  row["peak_bytes"] = spread([](const BenchSample& s) { return real(s.peak_bytes); });
  return row;
}

Result<BenchFormat> parse_bench_format(const std::string& name) {
  if (name == "md") return BenchFormat::md;
  if (name == "csv") return BenchFormat::csv;
  if (name == "json") return BenchFormat::json;
  if (name == "jsonl") return BenchFormat::jsonl;
  return fail(Errc::invalid, name + " is not one of md, csv, json, jsonl");
}

namespace {

// ---- md ----

double mean(const Json& spread) { return spread.at("mean").get<double>(); }

std::string plus_minus(const Json& spread, const char* format) {
  return number_text(format, mean(spread)) + " ± " + number_text(format, spread.at("stddev").get<double>());
}

std::string gib(double bytes) { return number_text("%.2f", bytes / (1 << 30)); }

std::vector<std::pair<std::string, std::string>> md_cells(const Json& r) {
  const Json &bytes = r.at("bytes_per_token"), &hits = r.at("hit_rate"), &limit = r.at("limit");
  const Json& stall = r.at("stall_seconds_per_token");
  const auto giga = [&](const char* name) { return number_text("%.2f", mean(r.at(name)) / 1e9); };
  const auto percent = [&](const char* name) { return number_text("%.1f", 100 * mean(hits.at(name))); };
  std::vector<std::pair<std::string, std::string>> cells{
      {"test", r.at("test").get<std::string>()},
      {"pool", r.at("pool_state").get<std::string>()},
      {"t/s", plus_minus(r.at("tokens_per_second"), "%.2f")},
      {"% of limit", plus_minus(limit.at("percent"), "%.0f") + " " + limit.at("by").get<std::string>()},
      {"MB/t disk", number_text("%.1f", mean(bytes.at("disk")) / 1e6)},
      {"MB/t memory", number_text("%.0f", mean(bytes.at("memory")) / 1e6)},
      {"disk GB/s", giga("disk_bytes_per_second") + " of " + giga("raw_disk_bytes_per_second")},
      {"disk busy %", number_text("%.0f", 100 * mean(r.at("disk_busy_share")))},
      {"memory GB/s", giga("memory_bytes_per_second") + " of " + giga("raw_memory_bytes_per_second")},
      {"stall ms/t: demand", number_text("%.1f", 1e3 * mean(stall.at("demand")))},
      {"late hint", number_text("%.1f", 1e3 * mean(stall.at("late_hint")))},
      {"hits %: vram", percent("vram")},
      {"pool", percent("pool")},
      {"prefetched", percent("pool_prefetched")},
      {"late", percent("disk_late_hint")},
      {"disk", percent("disk")},
      {"peak GiB",
       gib(r.at("peak_bytes").at("max").get<double>()) + " of " + gib(r.at("budget_bytes").get<double>())}};
  if (mean(r.at("raw_pcie_bytes_per_second")) > 0) {
    cells.emplace_back("MB/t PCIe", number_text("%.0f", mean(bytes.at("pcie")) / 1e6) + " at " +
                                        giga("raw_pcie_bytes_per_second") + " GB/s");
    cells.emplace_back("MB/t CPU lane", number_text("%.0f", mean(bytes.at("cpu_lane")) / 1e6) + " at " +
                                            giga("raw_cpu_lane_bytes_per_second") + " GB/s");
  }
  if (const auto change = r.find("change"); change != r.end())
    cells.emplace_back("change", change->at("text").get<std::string>());
  return cells;
}

/// Characters, not bytes: ± is two.
std::size_t width(const std::string& text) {
  return static_cast<std::size_t>(std::count_if(
      text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

std::string md_text(const Rows& rows) {
  std::vector<std::vector<std::string>> lines(1);
  for (const auto& cell : md_cells(rows.front())) lines.front().push_back(cell.first);
  for (const Json& r : rows) {
    lines.emplace_back();
    for (auto& cell : md_cells(r)) lines.back().push_back(std::move(cell.second));
  }
  std::vector<std::size_t> widths(lines.front().size());
  for (const auto& line : lines)
    for (std::size_t i = 0; i < line.size(); ++i) widths[i] = std::max(widths[i], width(line[i]));
  std::string out;
  for (std::size_t n = 0; n < lines.size(); ++n) {
    for (std::size_t i = 0; i < widths.size(); ++i)
      out += "| " + std::string(widths[i] - width(lines[n][i]), ' ') + lines[n][i] + " ";
    out += "|\n";
    if (n > 0) continue;
    for (const std::size_t w : widths) out += "| " + std::string(w - 1, '-') + ": ";
    out += "|\n";
  }
  return out;
}

std::string md_head(const Json& r) {
  const auto text = [&](const char* name) { return r.at(name).get<std::string>(); };
  const auto number = [&](const char* name) { return r.at(name).get<std::uint64_t>(); };
  return "stoker " + text("version") + " (" + text("commit") + "), " + text("date") + ", " + text("cpu") +
         ", " + std::to_string(number("cores")) + " cores, " + format_bytes(number("memory_bytes")) + "\n\n" +
         text("model") + ": " + std::to_string(number("layers")) + " layers, top " +
         std::to_string(number("experts_per_token")) + " of " + std::to_string(number("experts")) +
         " experts of " + format_bytes(number("expert_bytes")) + "; pool " +
         std::to_string(number("pool_slots")) + " slots, " +
         number_text("%.0f", 100 * r.at("pool_share").get<double>()) + " % of the experts; " +
         text("backend") + "; ids: " + text("ids_from") + "; " + std::to_string(number("repetitions")) +
         " repetitions, mean ± standard deviation\n\n";
}

// ---- csv ----

/// "limit_percent_mean" and so on; lists are left out.
void flatten(const Json& value, const std::string& name, std::vector<std::pair<std::string, Json>>& out) {
  if (value.is_object()) {
    for (const auto& [key, child] : value.items()) flatten(child, name.empty() ? key : name + "_" + key, out);
  } else if (!value.is_array()) {
    out.emplace_back(name, value);
  }
}

std::string csv_cell(const Json& value) {
  if (value.is_null()) return "";
  if (!value.is_string()) return value.dump();
  std::string quoted = "\"";
  for (const char c : value.get<std::string>()) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
  return quoted + "\"";
}

std::string csv_text(const Rows& rows) {
  std::string out;
  for (std::size_t n = 0; n < rows.size(); ++n) {
    std::vector<std::pair<std::string, Json>> cells;
    flatten(rows[n], "", cells);
    std::string head, line;
    for (const auto& [name, value] : cells) {
      head += (head.empty() ? "" : ",") + name;
      line += (line.empty() ? "" : ",") + csv_cell(value);
    }
    out += (n == 0 ? head + "\n" : "") + line + "\n";
  }
  return out;
}

std::string dump(const Json& row) { return row.dump(-1, ' ', false, Json::error_handler_t::replace); }

}  // namespace

std::string bench_text(const Rows& rows, BenchFormat format) {
  std::string out;
  switch (format) {
    case BenchFormat::md:
      return md_head(rows.front()) + md_text(rows);
    case BenchFormat::csv:
      return csv_text(rows);
    case BenchFormat::json:
      for (const Json& row : rows) out += (out.empty() ? "[" : ",\n ") + dump(row);
      return out + "]\n";
    case BenchFormat::jsonl:
      for (const Json& row : rows) out += dump(row) + "\n";
      return out;
  }
  return out;
}

}  // namespace stoker::cli
