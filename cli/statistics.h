// Statistics of one answer, for people and for programs.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "stoker.pb.h"

namespace stoker::cli {

/// printf of one number; `format` has one double conversion.
std::string number_text(const char* format, double value);

/// "128 tok · 41.2 tok/s · ttft 0.31 s · experts: pool 93 % (prefetched 12 %) disk 7 %"
std::string statistics_line(const wire::Stats& stats);
nlohmann::ordered_json statistics_json(const wire::Stats& stats);

}  // namespace stoker::cli
