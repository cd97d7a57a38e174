// `stoker doctor`: what this machine allows, and the exact remedy for what it does not.
#include "cli/doctor.h"

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/context.h"

namespace stoker::cli {
namespace {

const char* level_name(Check::Level level) {
  switch (level) {
    case Check::Level::ok:
      return "OK";
    case Check::Level::warn:
      return "WARN";
    case Check::Level::fail:
      return "FAIL";
  }
  return "?";
}

std::string as_text(const Checks& checks) {
  std::string text, group;
  for (const Check& check : checks) {
    if (check.group != group) text += (group.empty() ? "" : "\n") + check.group + "\n";
    group = check.group;
    const std::string level = level_name(check.level);
    text += "  " + level + std::string(6 - level.size(), ' ') + check.name +
            std::string(check.name.size() < 20 ? 20 - check.name.size() : 1, ' ') + check.value + "\n";
    if (!check.fix.empty()) text += "          fix: " + check.fix + "\n";
  }
  return text;
}

std::string as_json(const Checks& checks) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const Check& check : checks) {
    nlohmann::ordered_json entry{{"group", check.group},
                                 {"name", check.name},
                                 {"level", level_name(check.level)},
                                 {"value", check.value}};
    if (!check.fix.empty()) entry["fix"] = check.fix;
    list.push_back(std::move(entry));
  }
  const nlohmann::ordered_json out{{"checks", list}};
  return out.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

int doctor(const std::string& model_argument, bool json, Context& context) {
  const auto settings = load_settings();
  if (!settings) return report(settings.error(), "configuration");
  const std::string model = model_argument.empty() ? settings->model_dir : model_argument;
  Checks checks;
  check_system(checks);
  check_memory(checks);
  check_io_uring(checks);
  check_gpu(checks);
  check_storage(checks, model);
  check_model(checks, model);
  check_services(checks, *settings, context.clock);
  if (!context.terminal.write_answer(json ? as_json(checks) : as_text(checks))) return kFailure;
  const bool failed =
      std::any_of(checks.begin(), checks.end(), [](const Check& c) { return c.level == Check::Level::fail; });
  return failed ? kFailure : kOk;
}

}  // namespace

void add_doctor(CLI::App& app, Action& action) {
  CLI::App* verb =
      app.add_subcommand("doctor", "Check machine, model and services; exit code 1 when something fails");
  auto model = std::make_shared<std::string>();
  auto json = std::make_shared<bool>(false);
  verb->add_option("MODEL_DIR", *model, "Checkpoint directory to check as well");
  verb->add_flag("--json", *json, "Print JSON");
  verb->callback(
      [model, json, &action] { action = [model, json](Context& c) { return doctor(*model, *json, c); }; });
}

}  // namespace stoker::cli
