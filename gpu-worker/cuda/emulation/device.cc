#include "gpu-worker/cuda/emulation/device.h"

#include <algorithm>
#include <utility>

namespace stoker::emulation {
namespace {

bool overlap(const std::byte* a, std::uint64_t a_bytes, const std::byte* b, std::uint64_t b_bytes) {
  return a < b + b_bytes && b < a + a_bytes;
}

template <class T>
T* find_in(const std::unordered_map<const void*, std::unique_ptr<T>>& all, const void* p) {
  const auto found = all.find(p);
  return found == all.end() ? nullptr : found->second.get();
}

}  // namespace

void Device::set_failure(std::string text) {
  if (failure_.empty()) failure_ = std::move(text);
}

bool Device::capturing() const {
  return std::any_of(streams_.begin(), streams_.end(), [](const auto& s) { return s->capture != nullptr; });
}

Stream* Device::find(const void* stream) const {
  for (const auto& s : streams_) {
    if (s.get() == stream && !s->freed) return s.get();
  }
  return nullptr;
}

Event* Device::find_event(const void* event) const { return find_in(events_, event); }

Graph* Device::find_graph(const void* graph) const { return find_in(graphs_, graph); }

Stream& Device::new_stream() {
  streams_.push_back(std::make_unique<Stream>());
  streams_.back()->number = ++stream_count_;
  return *streams_.back();
}

void Device::free(Stream& stream) {
  stream.freed = true;
  stream.capture = nullptr;
  std::erase_if(streams_, [](const auto& s) { return s->freed && s->queue.empty(); });
  last_ = nullptr;
}

Event& Device::new_event(bool timed) {
  auto event = std::make_unique<Event>();
  event->timed = timed;
  Event& result = *event;
  events_.emplace(&result, std::move(event));
  return result;
}

Graph& Device::new_graph(Recording operations) {
  auto graph = std::make_unique<Graph>();
  graph->operations = std::make_shared<const Recording>(std::move(operations));
  Graph& result = *graph;
  graphs_.emplace(&result, std::move(graph));
  return result;
}

void Device::enqueue(Stream& stream, Operation operation) {
  if (stream.capture != nullptr) {
    stream.capture->push_back(std::move(operation));
    return;
  }
  stream.queue.push_back(std::move(operation));
  if (!eager_) return;
  const DeviceMemory::Access access(memory);
  while (failure_.empty() && step()) {
  }
}

void Device::record(Event& event, Stream& stream) {
  auto record = std::make_shared<Record>();
  event.latest = record;
  enqueue(stream, {.what = "record",
                   .run =
                       [this, record] {
                         record->done = true;
                         record->time = time_;
                         return std::string();
                       },
                   .after = nullptr});
}

std::string Device::advance(const std::function<bool()>& done) {
  const DeviceMemory::Access access(memory);
  last_ = nullptr;  // who was ahead the last time is not favoured now
  while (failure_.empty() && !done()) {
    if (!step()) {
      set_failure(
          "deadlock: every stream is empty or waits for an event whose record is behind another wait");
    }
  }
  return failure_;
}

void Device::advance_a_little() {
  const DeviceMemory::Access access(memory);
  for (std::uint32_t left = random_.below(4); left > 0 && failure_.empty() && step(); --left) {
  }
}

std::string Device::drain() {
  return advance([&] {
    return std::all_of(streams_.begin(), streams_.end(), [](const auto& s) { return s->queue.empty(); });
  });
}

bool Device::step() {
  Stream* stream = choose();
  if (stream == nullptr) return false;
  last_ = stream;
  const Operation operation = std::move(stream->queue.front());
  stream->queue.pop_front();
  ++time_;
  if (operation.run) {
    if (std::string text = operation.run(); !text.empty()) {
      set_failure(operation.what + " on stream " + std::to_string(stream->number) + ": " + text);
    }
  }
  if (stream->freed && stream->queue.empty()) free(*stream);
  return true;
}

/// Mostly the stream of the last operation, so that one gets far ahead of another; null when none can go on.
Stream* Device::choose() {
  runnable_.clear();
  for (const auto& s : streams_) {
    if (s->queue.empty()) continue;
    const Operation& first = s->queue.front();
    if (first.after == nullptr || first.after->done) runnable_.push_back(s.get());
  }
  if (runnable_.empty()) return nullptr;
  if (random_.below(4) != 0 && std::find(runnable_.begin(), runnable_.end(), last_) != runnable_.end())
    return last_;
  return runnable_[random_.below(static_cast<std::uint32_t>(runnable_.size()))];
}

std::string Device::pin(std::byte* p, std::uint64_t bytes, std::shared_ptr<void> owner) {
  if (p == nullptr || bytes == 0) return "no memory given";
  if (memory.owns(p)) return "this is device memory";
  for (const auto& [begin, range] : pinned_) {
    if (overlap(begin, range.bytes, p, bytes)) return "part or all of this memory is registered already";
  }
  pinned_.emplace(p, Pinned{bytes, std::move(owner)});
  return {};
}

std::string Device::unpin(void* p) {
  const auto found = pinned_.find(static_cast<const std::byte*>(p));
  if (found == pinned_.end()) return "this memory is not pinned, or does not begin here";
  for (const auto& s : streams_) {
    for (const Operation& operation : s->queue) {
      if (operation.host != nullptr &&
          overlap(operation.host, operation.host_bytes, found->first, found->second.bytes)) {
        return operation.what + " on stream " + std::to_string(s->number) +
               " has not run yet and uses this memory: synchronize first";
      }
    }
  }
  pinned_.erase(found);
  return {};
}

Device::Pinning Device::pinning(const void* p, std::uint64_t bytes) const {
  const auto* at = static_cast<const std::byte*>(p);
  for (const auto& [begin, range] : pinned_) {
    if (!overlap(begin, range.bytes, at, bytes)) continue;
    return begin <= at && at + bytes <= begin + range.bytes ? Pinning::whole : Pinning::part;
  }
  return Pinning::none;
}

}  // namespace stoker::emulation
