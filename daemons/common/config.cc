#include "daemons/common/config.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <map>

#include <CLI/CLI.hpp>

#include "daemons/common/config_table.h"

namespace stoker {
namespace {

struct Flags {
  std::map<std::string, std::string> values;  ///< key -> text, only those that were given
  std::string config_file;
  std::string help;
};

const char* program_name(Program program) {
  switch (program) {
    case Program::loader:
      return "stoker-loader";
    case Program::worker:
      return "stoker-worker";
    case Program::predictor:
      return "stoker-predictor";
    case Program::gateway:
      return "stoker-gateway";
    case Program::all:
      break;
  }
  return "stoker";
}

/// The only user of CLI11 in the daemons; its exceptions end here.
Result<Flags> parse_flags(Program program, const std::vector<std::string>& arguments) {
  Flags flags;
  CLI::App app("Part of Stoker. Every flag can also be set in config.toml and as STOKER_<SECTION>_<KEY>.",
               program_name(program));
  app.add_option("--config", flags.config_file, "Read only this configuration file");
  std::map<std::string, std::string> text;
  std::map<std::string, bool> toggles;
  for (const Setting& setting : settings()) {
    if ((setting.programs & static_cast<unsigned>(program)) == 0) continue;
    const std::string key(setting.key), flag(setting.flag);
    std::string help(setting.help);
    if (!setting.choices.empty()) help += " (" + std::string(setting.choices) + ")";
    help += "  [" + environment_name(key) + "]";
    if (std::holds_alternative<bool Config::*>(setting.member)) {
      app.add_flag("--" + flag + ",!--no-" + flag, toggles[key], help);
    } else {
      app.add_option("--" + flag, text[key], help);
    }
  }
  try {
    std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());
    app.parse(reversed);
  } catch (const CLI::CallForHelp&) {
    flags.help = app.help();
    return flags;
  } catch (const CLI::ParseError& e) {
    return fail(Errc::invalid, std::string(e.what()) + " (see " + program_name(program) + " --help)");
  }
  for (const Setting& setting : settings()) {
    if ((setting.programs & static_cast<unsigned>(program)) == 0) continue;
    const std::string key(setting.key);
    if (app.count("--" + std::string(setting.flag)) == 0) continue;
    const auto toggle = toggles.find(key);
    flags.values[key] = toggle != toggles.end() ? (toggle->second ? "true" : "false") : text[key];
  }
  return flags;
}

Result<void> apply_environment(Config& config, const ConfigSources& sources) {
  for (const Setting& setting : settings()) {
    const std::string name = environment_name(setting.key);
    const std::optional<std::string> value = sources.environment(name);
    if (!value) continue;
    if (auto assigned = assign(config, setting, *value); !assigned)
      return fail(std::move(assigned).error(), "environment variable " + name);
    config.origins[std::string(setting.key)] = name;
  }
  return {};
}

Result<void> apply_flags(Config& config, const Flags& flags) {
  for (const Setting& setting : settings()) {
    const auto given = flags.values.find(std::string(setting.key));
    if (given == flags.values.end()) continue;
    if (auto assigned = assign(config, setting, given->second); !assigned)
      return fail(std::move(assigned).error(), "--" + std::string(setting.flag));
    config.origins[given->first] = "flag";
  }
  return {};
}

std::string default_run_dir(const ConfigSources& sources) {
  const std::optional<std::string> runtime = sources.environment("XDG_RUNTIME_DIR");
  return runtime && !runtime->empty() ? *runtime + "/stoker" : "/run/stoker";
}

/// Where a service keeps what should survive a reboot (systemd.exec, XDG base directories).
std::string state_dir(const ConfigSources& sources) {
  const auto absolute = [&](const char* name) {
    const std::string value = sources.environment(name).value_or("");
    return value.starts_with('/') ? value.substr(0, value.find(':')) : "";
  };
  if (const std::string given = absolute("STATE_DIRECTORY"); !given.empty()) return given;
  if (const std::string xdg = absolute("XDG_STATE_HOME"); !xdg.empty()) return xdg + "/stoker";
  if (const std::string home = absolute("HOME"); !home.empty()) return home + "/.local/state/stoker";
  return "";
}

}  // namespace

ConfigSources standard_sources(int argc, const char* const* argv) {
  ConfigSources sources;
  sources.arguments.assign(argv + std::min(argc, 1), argv + argc);
  sources.environment = [](const std::string& name) -> std::optional<std::string> {
    const char* value = std::getenv(name.c_str());
    if (value == nullptr) return std::nullopt;
    return std::string(value);
  };
  sources.files.emplace_back("/etc/stoker/config.toml");
  std::error_code error;
  std::vector<std::string> drop_ins;
  for (const auto& entry : std::filesystem::directory_iterator("/etc/stoker/conf.d", error))
    if (entry.path().extension() == ".toml") drop_ins.push_back(entry.path().string());
  std::sort(drop_ins.begin(), drop_ins.end());
  sources.files.insert(sources.files.end(), drop_ins.begin(), drop_ins.end());
  if (const auto xdg = sources.environment("XDG_CONFIG_HOME"); xdg && !xdg->empty()) {
    sources.files.push_back(*xdg + "/stoker/config.toml");
  } else if (const auto home = sources.environment("HOME"); home && !home->empty()) {
    sources.files.push_back(*home + "/.config/stoker/config.toml");
  }
  return sources;
}

Result<Config> load_config(Program program, const ConfigSources& sources) {
  STOKER_TRY(const Flags flags, parse_flags(program, sources.arguments));
  Config config;
  if (!flags.help.empty()) {
    config.help = flags.help;
    return config;
  }
  std::string only = flags.config_file;
  if (only.empty()) only = sources.environment("STOKER_CONFIG").value_or("");
  if (only.empty()) {
    for (const std::string& file : sources.files) STOKER_TRY_VOID(apply_file(config, file));
  } else {
    std::error_code error;
    if (!std::filesystem::is_regular_file(only, error))
      return fail(Errc::invalid,
                  "configuration file " + only + " does not exist; see --config and STOKER_CONFIG");
    STOKER_TRY_VOID(apply_file(config, only));
  }
  STOKER_TRY_VOID(apply_environment(config, sources));
  STOKER_TRY_VOID(apply_flags(config, flags));
  if (config.run_dir.empty()) config.run_dir = default_run_dir(sources);
  if (config.loader_dir.empty()) config.loader_dir = config.run_dir;
  config.state_dir = state_dir(sources);
  config.notify_socket = sources.environment("NOTIFY_SOCKET").value_or("");
  config.journal = sources.environment("JOURNAL_STREAM").has_value();
  return config;
}

std::vector<std::string> describe(const Config& config, Program program) {
  std::vector<std::string> lines;
  for (const Setting& setting : settings()) {
    if ((setting.programs & static_cast<unsigned>(program)) == 0) continue;
    const std::string key(setting.key);
    const auto origin = config.origins.find(key);
    lines.push_back(key + " = " + value_text(config, setting) + "  (" +
                    (origin == config.origins.end() ? "default" : origin->second) + ")");
  }
  return lines;
}

}  // namespace stoker
