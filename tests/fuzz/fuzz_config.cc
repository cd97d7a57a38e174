// config.json and generation_config.json on arbitrary bytes. What is accepted must be safe to size buffers
// by.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "checkpoint/config.h"
#include "checkpoint/tensor_list.h"
#include "shm/base/check.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  (void)stoker::parse_generation_config(text);
  const auto config = stoker::parse_model_config(text);
  if (!config) {
    STOKER_CHECK(!config.error().message.empty());
    return 0;
  }
  STOKER_CHECK(config->mixers.size() == config->layers);
  STOKER_CHECK(config->attention_heads % config->kv_heads == 0);
  STOKER_CHECK(config->linear_value_heads % config->linear_key_heads == 0);
  STOKER_CHECK(config->rotary_dim >= 2 && config->rotary_dim <= config->head_dim &&
               config->rotary_dim % 2 == 0);
  STOKER_CHECK(config->experts_per_token >= 1 && config->experts_per_token <= config->experts);
  STOKER_CHECK((config->scale_block_rows == 0) == (config->scale_block_cols == 0));
  if (config->layers <= 8)
    for (const stoker::TensorSpec& spec : stoker::resident_tensors(*config)) {
      std::uint64_t elements = 1;
      for (std::uint64_t d : spec.shape)
        STOKER_CHECK(d > 0 && !__builtin_mul_overflow(elements, d, &elements));
    }
  return 0;
}
