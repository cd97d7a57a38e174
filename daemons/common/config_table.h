// The table behind config.h: every key once. Flags, environment names, file keys, help and the printed
// configuration are all made from it.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <variant>

#include "daemons/common/config.h"

namespace stoker {

struct Setting {
  std::string_view key;   ///< "section.name"; the environment name is made from it
  std::string_view flag;  ///< without dashes
  unsigned programs;      ///< bits of Program
  std::variant<std::string Config::*, bool Config::*, std::uint32_t Config::*, double Config::*,
               Size Config::*>
      member;
  std::string_view help;
  std::string_view choices = {};  ///< "a|b|c" for strings; empty = any
  std::uint32_t least = 0;        ///< for numbers
  std::uint32_t most = 0xFFFF'FFFF;
};

std::span<const Setting> settings();

/// "worker.max_sequences" -> "STOKER_WORKER_MAX_SEQUENCES".
std::string environment_name(std::string_view key);

/// Parses `text` into the setting's member; the error says what would be accepted, not where it came from.
Result<void> assign(Config& config, const Setting& setting, const std::string& text);
std::string value_text(const Config& config, const Setting& setting);

/// The known key with the smallest edit distance to `key`.
std::string nearest_key(std::string_view key);

/// Reads one TOML file into `config` (config_file.cc). A missing file is not an error.
Result<void> apply_file(Config& config, const std::string& path);

}  // namespace stoker
