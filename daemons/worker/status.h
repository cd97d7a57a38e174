// The status JSON: everything `stoker status` shows. Field names are documented in docs/protocol.md.
#pragma once

#include <cstdint>
#include <string>

#include "checkpoint/config.h"
#include "daemons/common/config.h"
#include "daemons/worker/scheduler.h"
#include "gpu-worker/decode.h"
#include "shm/pool.h"

namespace stoker {

/// What does not change while a worker runs.
struct StatusFacts {
  const Config* config = nullptr;
  const ModelConfig* model = nullptr;
  const Pool* pool = nullptr;
  std::string backend;        ///< Model::describe()
  DeviceRates rates;          ///< Model::rates()
  std::uint32_t context = 0;  ///< in force, after capping by the model
  std::uint64_t sequence_memory = 0;
  std::uint64_t weights_bytes = 0;
  bool has_tokenizer = false, has_chat_template = false;
  Duration started{};
};

std::string status_json(const StatusFacts& facts, const SchedulerStatus& scheduler, Duration now);

}  // namespace stoker
