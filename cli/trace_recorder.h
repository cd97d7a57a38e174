// Routing samples from a worker's PUB socket, put together to whole tokens.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "daemons/common/zmq_socket.h"
#include "shm/base/result.h"
#include "stoker.pb.h"
#include "trace/trace_file.h"

namespace stoker::cli {

/// Samples in, tokens out. ZeroMQ drops samples that nobody takes in time, so a token counts only when every
/// one of its layers has arrived.
class TraceAssembler {
 public:
  explicit TraceAssembler(const TraceShape& shape) : shape_(shape) {}
  /// The token that this sample completes, if any. The pointer holds until the next call.
  const TraceToken* add(const wire::RoutingSample& sample);
  [[nodiscard]] std::uint64_t incomplete() const { return incomplete_; }
  void forget();

 private:
  struct Part {
    TraceToken token;
    std::uint32_t layers = 0;
  };
  using Key = std::pair<std::uint64_t, std::uint32_t>;  // step, sequence
  Part& part_of(const wire::RoutingSample& sample);
  TraceShape shape_;
  std::map<Key, Part> parts_;
  TraceToken done_;
  std::uint64_t incomplete_ = 0;
};

class TraceRecorder {
 public:
  /// Subscribes to the worker of `run_dir`. Samples that come before the subscription is known are lost.
  static Result<TraceRecorder> connect(const std::string& run_dir, const TraceShape& shape);

  /// Takes what has arrived; whole tokens go to `writer` if it is not null.
  Result<void> drain(TraceWriter* writer);
  [[nodiscard]] const ZmqSocket& socket() const { return socket_; }
  [[nodiscard]] std::uint64_t samples() const { return samples_; }
  [[nodiscard]] std::uint64_t tokens() const { return tokens_; }
  [[nodiscard]] std::uint64_t incomplete() const { return assembler_.incomplete(); }
  /// Forgets what was counted and half received.
  void restart();

 private:
  TraceRecorder(ZmqContext context, ZmqSocket socket, const TraceShape& shape)
      : context_(std::move(context)), socket_(std::move(socket)), assembler_(shape) {}
  ZmqContext context_;
  ZmqSocket socket_;
  TraceAssembler assembler_;
  std::uint64_t samples_ = 0, tokens_ = 0;
};

}  // namespace stoker::cli
