// The checks of `stoker doctor`. All are read-only: nothing is created, changed or started.
#pragma once

#include <string>
#include <vector>

#include "daemons/common/config.h"
#include "shm/base/clock.h"

namespace stoker::cli {

struct Check {
  enum class Level { ok, warn, fail } level = Level::ok;
  std::string group, name, value;
  std::string fix;  ///< the command or change that helps; "" when ok
};

using Checks = std::vector<Check>;

// doctor_hardware.cc
void check_system(Checks& checks);
void check_memory(Checks& checks);
void check_io_uring(Checks& checks);
// doctor_gpu.cc
void check_gpu(Checks& checks);
// doctor_model.cc; `model_dir` "" = no model to look at
void check_storage(Checks& checks, const std::string& model_dir);
void check_model(Checks& checks, const std::string& model_dir);
void check_services(Checks& checks, const Config& settings, const Clock& clock);

}  // namespace stoker::cli
