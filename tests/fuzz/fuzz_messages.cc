// libFuzzer: everything that arrives over ZeroMQ. The first byte chooses the edge. What passes must keep
// the promises of daemons/common/messages.h, and survive the code behind it.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "daemons/common/limits.h"
#include "daemons/common/messages.h"
#include "daemons/predictor/sample_reader.h"

namespace {

void require(bool promise) {
  if (!promise) std::abort();
}

void client(std::string_view bytes) {
  const auto message = stoker::parse_client(bytes);
  if (!message) return;
  const std::string id = stoker::request_id(*message);
  require(id.size() <= stoker::limits::kRequestIdBytes);
  if (!stoker::validate(*message)) return;
  require(message->body_case() != stoker::wire::ClientMessage::BODY_NOT_SET);
  if (message->has_generate()) {
    const auto& request = message->generate();
    require(!id.empty() && request.id() == id);
    require(request.sampling().temperature() >= 0 && request.sampling().top_p() <= 1);
    for (const std::uint32_t token : request.tokens().ids()) require(token < stoker::limits::kTokenId);
  }
  require(stoker::parse_client(stoker::encode(*message)).has_value());
}

void sample(std::string_view bytes) {
  // Several samples in one input, so that the predictor's state is reached: each is led by its length.
  stoker::PredictorOptions options;
  options.token_table_bytes = 1 << 16;
  stoker::SampleReader reader(options);
  while (bytes.size() > 1) {
    const std::size_t length = std::min<std::size_t>(static_cast<unsigned char>(bytes[0]), bytes.size() - 1);
    const auto decoded = stoker::decode_sample(bytes.substr(1, length));
    bytes.remove_prefix(1 + length);
    if (!decoded) continue;
    const auto* hints = reader.on_sample(*decoded);
    if (hints != nullptr) require(stoker::decode_hints(stoker::encode(*hints)).has_value());
  }
  for (const auto scores : {reader.core().near_scores(), reader.core().far_scores()})
    for (const stoker::GuessScore& score : scores)
      require(score.right <= score.sent && score.cold <= score.chosen);
  require(reader.json().front() == '{');
}

void hints(std::string_view bytes) {
  const auto batch = stoker::decode_hints(bytes);
  if (!batch) return;
  for (const auto& hint : batch->hints())
    require(hint.layer() < stoker::limits::kLayers && hint.expert() < stoker::limits::kExperts &&
            hint.confidence() >= 0 && hint.confidence() <= 1);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 4) {
    case 0:
      client(bytes);
      break;
    case 1:
      sample(bytes);
      break;
    case 2:
      hints(bytes);
      break;
    default:
      static_cast<void>(stoker::decode_server(bytes));
      break;
  }
  return 0;
}
