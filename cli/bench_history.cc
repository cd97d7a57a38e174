#include "cli/bench_history.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "cli/statistics.h"
#include "shm/base/unique_fd.h"

namespace stoker::cli {

using Json = nlohmann::ordered_json;

namespace {

/// Rows that agree in these measured the same thing.
constexpr std::array kSame = {"model", "layers",     "experts",    "expert_bytes",  "experts_per_token",
                              "test",  "pool_state", "pool_slots", "warm_up_tokens"};
/// Worth a word when they differ.
constexpr std::array kConditions = {"cpu", "cores", "backend", "ids_from"};
constexpr std::array kSpread = {"mean", "stddev", "min", "max"};

/// What is wrong with a row, "" if nothing is.
std::string fault_of(const Json& row) {
  if (!row.is_object()) return "is not a JSON object";
  for (const char* key : kSame)
    if (!row.contains(key) || row[key].is_structured()) return std::string("has no ") + key;
  for (const char* key : {"date", "commit"})
    if (!row.contains(key) || !row[key].is_string()) return std::string("has no ") + key;
  if (!row.contains("repetitions") || !row["repetitions"].is_number_unsigned()) return "has no repetitions";
  const auto speed = row.find("tokens_per_second");
  if (speed == row.end() || !speed->is_object()) return "has no tokens_per_second";
  for (const char* key : kSpread)
    if (!speed->contains(key) || !(*speed)[key].is_number())
      return std::string("has no tokens_per_second.") + key;
  if ((*speed)["mean"].get<double>() <= 0) return "has a tokens_per_second.mean that is not positive";
  return "";
}

bool same(const Json& a, const Json& b) {
  return std::all_of(kSame.begin(), kSame.end(), [&](const char* key) { return a.at(key) == b.at(key); });
}

Json change_between(const Json& now, const Json& then) {
  const Json &a = now.at("tokens_per_second"), &b = then.at("tokens_per_second");
  const double ratio = a.at("mean").get<double>() / b.at("mean").get<double>();
  // No assumption on how the noise is distributed: beyond it is what no repetition of the other run reached.
  // One repetition shows no noise at all.
  const bool repeated = now.at("repetitions") > 1 && then.at("repetitions") > 1;
  const bool apart = a.at("min").get<double>() > b.at("max").get<double>() ||
                     a.at("max").get<double>() < b.at("min").get<double>();
  const bool beyond_noise = repeated && apart;
  Json differs = Json::array();
  for (const char* key : kConditions)
    if (now.value(key, Json()) != then.value(key, Json())) differs.push_back(key);
  std::string text = number_text("%.3f ×", ratio) +
                     (beyond_noise ? ""
                      : repeated   ? " (noise)"
                                   : " (too few repetitions)") +
                     ", was " + number_text("%.2f", b.at("mean").get<double>()) +
                     number_text(" ± %.2f", b.at("stddev").get<double>()) + " at " +
                     then.at("commit").get<std::string>();
  for (const Json& key : differs) text += ", other " + key.get<std::string>();
  return {{"ratio", ratio},          {"beyond_noise", beyond_noise},
          {"date", then.at("date")}, {"commit", then.at("commit")},
          {"mean", b.at("mean")},    {"stddev", b.at("stddev")},
          {"differs", differs},      {"text", text}};
}

}  // namespace

Result<Rows> parse_history(const std::string& text, const std::string& path) {
  Rows rows;
  std::size_t number = 0;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    const std::string line = text.substr(at, end - at);
    at = end + 1;
    ++number;
    if (line.empty()) continue;
    Json row = Json::parse(line, nullptr, false);
    const std::string fault = row.is_discarded() ? "is not JSON" : fault_of(row);
    if (!fault.empty()) {
      return fail(Errc::invalid, path + " line " + std::to_string(number) + " " + fault +
                                     ": not a row of `stoker bench`. Remove the line, or name another file");
    }
    rows.push_back(std::move(row));
  }
  return rows;
}

Result<void> append_history(const std::string& path, const Rows& rows) {
  const UniqueFd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666));
  if (!file.valid()) return fail(Errc::io, "cannot open " + path, errno);
  std::string lines;
  for (Json row : rows) {
    row.erase("change");  // of interest for one run only
    lines += bench_text({row}, BenchFormat::jsonl);
  }
  const ssize_t written = ::write(file.get(), lines.data(), lines.size());
  if (written < 0) return fail(Errc::io, "cannot write " + path, errno);
  if (static_cast<std::size_t>(written) != lines.size())
    return fail(Errc::io, "cannot write all of " + path + ": is the disk full? Its last line is cut");
  return {};
}

void add_changes(Rows& rows, const Rows& history) {
  for (Json& row : rows) {
    const auto then =
        std::find_if(history.rbegin(), history.rend(), [&](const Json& old) { return same(row, old); });
    if (then != history.rend()) {
      row["change"] = change_between(row, *then);
      continue;
    }
    for (const char* key : {"ratio", "beyond_noise", "date", "commit", "mean", "stddev"})
      row["change"][key] = nullptr;
    row["change"]["differs"] = Json::array();
    row["change"]["text"] = "nothing to compare with";
  }
}

}  // namespace stoker::cli
