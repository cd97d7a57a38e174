// The only file that uses toml++ (and catches its exceptions).
#include <toml++/toml.h>
#include <filesystem>

#include "daemons/common/config_table.h"

namespace stoker {
namespace {

const Setting* find_setting(std::string_view key) {
  for (const Setting& setting : settings())
    if (setting.key == key) return &setting;
  return nullptr;
}

std::string at(const std::string& path, const toml::node& node) {
  return path + ":" + std::to_string(node.source().begin.line);
}

/// A TOML scalar as the text that a flag would have; empty for tables, arrays, dates.
std::optional<std::string> scalar_text(const toml::node& node) {
  if (const auto* s = node.as_string()) return s->get();
  if (const auto* i = node.as_integer()) return std::to_string(i->get());
  if (const auto* b = node.as_boolean()) return std::string(b->get() ? "true" : "false");
  if (const auto* f = node.as_floating_point()) return std::to_string(f->get());
  return std::nullopt;
}

Result<void> apply_key(Config& config, const std::string& path, const std::string& key,
                       const toml::node& node) {
  const Setting* setting = find_setting(key);
  if (setting == nullptr)
    return fail(Errc::invalid,
                at(path, node) + ": unknown key \"" + key + "\"; did you mean \"" + nearest_key(key) + "\"?");
  const std::optional<std::string> text = scalar_text(node);
  if (!text) return fail(Errc::invalid, at(path, node) + ": " + key + " must be a plain value");
  if (auto assigned = assign(config, *setting, *text); !assigned)
    return fail(std::move(assigned).error(), at(path, node) + ": " + key);
  config.origins[key] = at(path, node);
  return {};
}

Result<void> apply_table(Config& config, const std::string& path, const toml::table& table) {
  for (const auto& [section, node] : table) {
    const std::string name(section.str());
    const toml::table* keys = node.as_table();
    if (keys == nullptr)
      return fail(Errc::invalid, at(path, node) + ": unknown key \"" + name +
                                     "\" outside a section; did you mean \"" + nearest_key(name) + "\"?");
    for (const auto& [key, value] : *keys)
      STOKER_TRY_VOID(apply_key(config, path, name + "." + std::string(key.str()), value));
  }
  return {};
}

}  // namespace

Result<void> apply_file(Config& config, const std::string& path) {
  std::error_code error;
  if (!std::filesystem::exists(path, error) && !error) return {};
  try {
    return apply_table(config, path, toml::parse_file(path));
  } catch (const toml::parse_error& e) {
    const auto line = e.source().begin.line;
    return fail(Errc::invalid,
                path + ":" + std::to_string(line) + ": not valid TOML: " + std::string(e.description()));
  } catch (const std::exception& e) {
    return fail(Errc::invalid, path + ": " + e.what());
  }
}

}  // namespace stoker
