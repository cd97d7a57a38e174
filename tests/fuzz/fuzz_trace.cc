// A routing trace of arbitrary bytes: refused with a reason, or safe to compute statistics of.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "shm/base/check.h"
#include "trace/foreign.h"
#include "trace/statistics.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto trace = stoker::parse_any_trace(std::string_view(reinterpret_cast<const char*>(data), size));
  if (!trace) {
    STOKER_CHECK(!trace.error().message.empty());
    return 0;
  }
  if (std::size_t{trace->shape.layers} * trace->shape.experts > 1U << 16) return 0;
  const auto layers = stoker::layer_statistics(*trace);
  STOKER_CHECK(layers.size() == trace->shape.layers);
  for (const auto& layer : layers)
    STOKER_CHECK(layer.tokens == trace->tokens.size() && layer.top50 <= 1.000001);
  return 0;
}
