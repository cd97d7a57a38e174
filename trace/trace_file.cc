#include "trace/trace_file.h"

#include <bit>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <sstream>
#include <type_traits>

namespace stoker {
namespace {

static_assert(std::endian::native == std::endian::little, "fields are copied as they lie in memory");

constexpr std::string_view kMagic = "STRACE2\n", kMagicBefore = "STRACE1\n";  // as long as each other
static_assert(sizeof(LayerTimes) == 16 && std::is_trivially_copyable_v<LayerTimes>);
constexpr std::size_t kHeaderBytes = 8 + 4 * 4 + 8;
constexpr std::uint32_t kLayersMax = 1U << 12, kExpertsMax = 1U << 16, kPerLayerMax = 256;
constexpr std::uint8_t kTierMax = 4;

template <class T>
void put(std::string& out, const T& value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}
template <class T>
void put(std::string& out, const std::vector<T>& values) {
  out.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}

/// Copies fields off the front; the caller has checked that they are there.
struct Cursor {
  std::string_view left;
  template <class T>
  void take(T& value) {
    std::memcpy(&value, left.data(), sizeof value);
    left.remove_prefix(sizeof value);
  }
  template <class T>
  void take(std::vector<T>& values) {
    if (!values.empty()) std::memcpy(values.data(), left.data(), values.size() * sizeof(T));
    left.remove_prefix(values.size() * sizeof(T));
  }
};

std::size_t record_bytes(const TraceShape& s, bool timed) {
  const std::size_t times = timed ? sizeof(LayerTimes) : 0;
  return 16 + std::size_t{s.layers} * (std::size_t{s.top_k} * 7 + std::size_t{s.candidates} * 2 + times);
}

Result<TraceShape> take_shape(Cursor& cursor) {
  TraceShape s;
  cursor.take(s.layers);
  cursor.take(s.experts);
  cursor.take(s.top_k);
  cursor.take(s.candidates);
  cursor.take(s.expert_bytes);
  if (s.layers == 0 || s.layers > kLayersMax || s.experts == 0 || s.experts >= kExpertsMax || s.top_k == 0 ||
      s.top_k > std::min(s.experts, kPerLayerMax) || s.candidates > kPerLayerMax) {
    return fail(Errc::corrupt, "impossible shape: " + std::to_string(s.layers) + " layers, " +
                                   std::to_string(s.experts) + " experts, top " + std::to_string(s.top_k) +
                                   ", " + std::to_string(s.candidates) + " candidates");
  }
  return s;
}

Result<void> check(const TraceShape& shape, const TraceToken& token, std::size_t index) {
  const auto bad = [&](const std::string& what) {
    return fail(Errc::corrupt, "token " + std::to_string(index) + ": " + what);
  };
  for (const std::uint16_t expert : token.chosen)
    if (expert >= shape.experts) return bad("expert " + std::to_string(expert) + " is impossible");
  for (const std::uint16_t expert : token.candidates)
    if (expert >= shape.experts && expert != kNoExpert)
      return bad("candidate " + std::to_string(expert) + " is impossible");
  for (const float weight : token.weights)
    if (!std::isfinite(weight)) return bad("a weight is not a finite number");
  for (const std::uint8_t tier : token.tiers)
    if (tier > kTierMax) return bad("tier " + std::to_string(tier) + " is impossible");
  for (const LayerTimes& t : token.times)
    for (const float time : {t.demanded, t.stalled, t.landed, t.done})
      if (!(time >= 0) || !std::isfinite(time)) return bad("a time is not a duration");
  return {};
}

std::string errno_text(const std::string& path) { return path + ": " + std::strerror(errno); }

}  // namespace

TraceToken TraceToken::sized(const TraceShape& shape) {
  TraceToken token;
  const std::size_t chosen = std::size_t{shape.layers} * shape.top_k;
  token.chosen.resize(chosen, kNoExpert);
  token.weights.resize(chosen);
  token.tiers.resize(chosen);
  token.candidates.resize(std::size_t{shape.layers} * shape.candidates, kNoExpert);
  return token;
}

Result<TraceWriter> TraceWriter::create(const std::string& path, const TraceShape& shape) {
  TraceWriter writer(path, shape);
  writer.file_.open(path, std::ios::binary | std::ios::trunc);
  writer.record_ = kMagic;
  for (const std::uint32_t value : {shape.layers, shape.experts, shape.top_k, shape.candidates})
    put(writer.record_, value);
  put(writer.record_, shape.expert_bytes);
  writer.file_ << writer.record_;
  if (!writer.file_.flush()) return fail(Errc::io, errno_text(path));
  return writer;
}

Result<void> TraceWriter::append(const TraceToken& token) {
  record_.clear();
  put(record_, token.step);
  put(record_, token.sequence);
  put(record_, token.token);
  put(record_, token.chosen);
  put(record_, token.weights);
  put(record_, token.tiers);
  put(record_, token.candidates);
  times_ = token.times;
  times_.resize(shape_.layers);
  put(record_, times_);
  file_ << record_;
  if (!file_) return fail(Errc::io, errno_text(path_));
  return {};
}

Result<void> TraceWriter::close() {
  file_.close();
  if (file_.fail()) return fail(Errc::io, errno_text(path_));
  return {};
}

Result<Trace> parse_trace(std::string_view bytes) {
  const bool timed = bytes.starts_with(kMagic);
  if (bytes.size() < kHeaderBytes || (!timed && !bytes.starts_with(kMagicBefore))) {
    return fail(Errc::corrupt, "not a routing trace: it does not begin with STRACE1 or 2 and a header of " +
                                   std::to_string(kHeaderBytes) + " bytes");
  }
  Cursor cursor{bytes.substr(kMagic.size())};
  Trace trace;
  trace.tiers_known = true;
  STOKER_TRY(trace.shape, take_shape(cursor));
  const std::size_t size = record_bytes(trace.shape, timed);
  trace.bytes_ignored = cursor.left.size() % size;
  trace.tokens.reserve(cursor.left.size() / size);
  while (cursor.left.size() >= size) {
    TraceToken token = TraceToken::sized(trace.shape);
    cursor.take(token.step);
    cursor.take(token.sequence);
    cursor.take(token.token);
    cursor.take(token.chosen);
    cursor.take(token.weights);
    cursor.take(token.tiers);
    cursor.take(token.candidates);
    if (timed) token.times.resize(trace.shape.layers);
    cursor.take(token.times);
    STOKER_TRY_VOID(check(trace.shape, token, trace.tokens.size()));
    trace.tokens.push_back(std::move(token));
  }
  return trace;
}

Result<std::string> read_trace_bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return fail(Errc::missing, errno_text(path));
  std::ostringstream bytes;
  bytes << file.rdbuf();
  if (file.bad() || bytes.fail()) return fail(Errc::io, errno_text(path));
  return std::move(bytes).str();
}

Result<Trace> read_trace(const std::string& path) {
  STOKER_TRY(const std::string bytes, read_trace_bytes(path));
  auto trace = parse_trace(bytes);
  if (!trace) return fail(trace.error().code, path + ": " + trace.error().message);
  return trace;
}

}  // namespace stoker
