// The emulated GPU as a whole: memory, streams, events. runtime.cc gives it the face of device::Api.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "gpu-worker/cuda/emulation/device_memory.h"
#include "gpu-worker/cuda/emulation/random.h"
#include "gpu-worker/cuda/emulation/trouble.h"

namespace stoker::emulation {

/// One call of record(). An event remembers the latest; who waits keeps the one it waits for.
struct Record {
  bool done = false;
  std::uint64_t time = 0;
};

struct Operation {
  std::string what;                     ///< for error texts
  std::function<std::string()> run;     ///< what went wrong, or nothing; may be empty
  std::shared_ptr<const Record> after;  ///< blocks its stream until this is done
  const std::byte* host = nullptr;      ///< host memory that it will touch
  std::uint64_t host_bytes = 0;
};

using Recording = std::vector<Operation>;

struct Stream {
  unsigned number = 0;
  std::deque<Operation> queue;
  std::unique_ptr<Recording> capture;  ///< operations go here instead
  bool freed = false;                  ///< by its user; lives until the queue is empty
};

struct Event {
  bool timed = false;
  std::shared_ptr<const Record> latest;
};

struct Graph {
  std::shared_ptr<const Recording> operations;
};

/// Operations run only inside advance(), that is when somebody waits or asks; then one after another, of
/// streams drawn at random, as far as events allow. Seeds divisible by four run them as soon as they may
/// instead: what the host changes between enqueueing and waiting is seen wrongly by one of the two kinds.
/// Functions return what went wrong, or an empty string. A failure while an operation runs is final, as on a
/// GPU.
class Device {
 public:
  explicit Device(std::uint64_t seed) : random_(seed), eager_(seed % 4 == 0) {}

  DeviceMemory memory;
  Trouble trouble;

  [[nodiscard]] const std::string& failure() const { return failure_; }
  void set_failure(std::string text);
  [[nodiscard]] bool capturing() const;
  Random& random() { return random_; }

  // Null when the pointer is not (or no longer) one of this device.
  [[nodiscard]] Stream* find(const void* stream) const;
  [[nodiscard]] Event* find_event(const void* event) const;
  [[nodiscard]] Graph* find_graph(const void* graph) const;
  Stream& new_stream();
  void free(Stream& stream);
  Event& new_event(bool timed);
  void free(Event& event) { events_.erase(&event); }
  Graph& new_graph(Recording operations);
  void free(Graph& graph) { graphs_.erase(&graph); }

  void enqueue(Stream& stream, Operation operation);
  void record(Event& event, Stream& stream);

  /// Runs operations until `done`.
  std::string advance(const std::function<bool()>& done);
  /// Runs a few operations, maybe none.
  void advance_a_little();
  std::string drain();

  // Pinned host memory.
  std::string pin(std::byte* p, std::uint64_t bytes, std::shared_ptr<void> owner);
  std::string unpin(void* p);
  enum class Pinning { none, whole, part };
  [[nodiscard]] Pinning pinning(const void* p, std::uint64_t bytes) const;

 private:
  struct Pinned {
    std::uint64_t bytes;
    std::shared_ptr<void> owner;
  };

  bool step();
  Stream* choose();

  Random random_;
  bool eager_;
  std::string failure_;
  std::uint64_t time_ = 0;  ///< operations run so far
  unsigned stream_count_ = 0;
  std::vector<std::unique_ptr<Stream>> streams_;
  Stream* last_ = nullptr;  ///< whose operation ran last
  std::vector<Stream*> runnable_;
  std::unordered_map<const void*, std::unique_ptr<Event>> events_;
  std::unordered_map<const void*, std::unique_ptr<Graph>> graphs_;
  std::map<const std::byte*, Pinned> pinned_;
};

}  // namespace stoker::emulation
