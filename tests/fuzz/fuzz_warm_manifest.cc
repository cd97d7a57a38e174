// A warm manifest of arbitrary bytes: refused with a reason, or safe to use.
#include <xxhash.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "io-worker/warm_manifest.h"
#include "shm/base/check.h"

namespace {

// Of the seeds.
constexpr stoker::WarmShape kShape{.fingerprint = 0x0123456789ABCDEF, .layers = 4, .experts_per_layer = 16};

void look_at(const std::string& bytes) {
  const auto manifest = stoker::parse_warm_manifest(bytes, kShape);
  if (!manifest) {
    STOKER_CHECK(!manifest.error().message.empty());
    return;
  }
  STOKER_CHECK(manifest->size() <= kShape.expert_count());
  for (const stoker::WarmExpert& e : *manifest)
    STOKER_CHECK(e.expert.value < kShape.expert_count() && e.frequency >= 0);
  STOKER_CHECK(stoker::encode_warm_manifest(*manifest, kShape) == bytes);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::string bytes(reinterpret_cast<const char*>(data), size);
  look_at(bytes);
  // No fuzzer guesses a checksum: what is behind it is tried with the right one.
  if (size >= 8) bytes.resize(size - 8);
  const std::uint64_t sum = XXH3_64bits(bytes.data(), bytes.size());
  bytes.append(reinterpret_cast<const char*>(&sum), sizeof sum);
  look_at(bytes);
  return 0;
}
