// `stoker config show`, `stoker version`.
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/context.h"
#include "cli/version.h"
#include "daemons/common/config_table.h"

namespace stoker::cli {
namespace {

int config_show(bool json, Context& context) {
  const auto settings_now = load_settings();
  if (!settings_now) return report(settings_now.error(), "configuration");
  if (!json) {
    std::string text;
    for (const std::string& line : describe(*settings_now, Program::all)) text += line + "\n";
    return context.terminal.write_answer(text) ? kOk : kFailure;
  }
  nlohmann::ordered_json out;
  for (const Setting& setting : settings()) {
    const std::string key(setting.key);
    const auto origin = settings_now->origins.find(key);
    const std::string text = value_text(*settings_now, setting);
    auto value = nlohmann::ordered_json::parse(text, nullptr, false);  // numbers, booleans and quoted strings
    if (value.is_discarded()) value = text;
    out[key] = {{"value", value},
                {"origin", origin == settings_now->origins.end() ? "default" : origin->second}};
  }
  return context.terminal.write_answer(out.dump(2) + "\n") ? kOk : kFailure;
}

int version(bool json, Context& context) {
  const nlohmann::ordered_json out{{"version", kVersion}, {"backends", {"cpu"}}};
  const std::string text = json ? out.dump() : std::string("stoker ") + kVersion;
  return context.terminal.write_answer(text + "\n") ? kOk : kFailure;
}

}  // namespace

Result<Config> load_settings() { return load_config(Program::all, standard_sources(0, nullptr)); }

void add_config(CLI::App& app, Action& action) {
  CLI::App* config = app.add_subcommand("config", "Configuration of the daemons");
  config->require_subcommand(1);
  CLI::App* show = config->add_subcommand("show", "Every key with its value and where that came from");
  auto json = std::make_shared<bool>(false);
  show->add_flag("--json", *json, "Print JSON");
  show->callback([json, &action] { action = [json](Context& c) { return config_show(*json, c); }; });
}

void add_version(CLI::App& app, Action& action) {
  CLI::App* verb = app.add_subcommand("version", "Version and backends of this build");
  auto json = std::make_shared<bool>(false);
  verb->add_flag("--json", *json, "Print JSON");
  verb->callback([json, &action] { action = [json](Context& c) { return version(*json, c); }; });
}

}  // namespace stoker::cli
