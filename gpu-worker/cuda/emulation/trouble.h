// What does not work on an emulated device: for tests of how its users go on.
#pragma once

#include <charconv>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace stoker::emulation {

/// STOKER_EMULATION_TROUBLE, "NAME" or "NAME:N": the N-th time (default: the first) and from then on,
///   kernel     a kernel fails, and with it the device for good (CUDA: an illegal address, a launch timeout)
///   capture    what was captured cannot be made a graph
///   launch     a graph cannot be launched: there is no memory for it
///   pin        host memory cannot be registered
///   pageable   copies out of memory that is not pinned read it late, as on a GPU that can read all of the
///              host's memory; not a failure
///   driver     count() finds a driver that is too old
///   no-driver  count() finds none
class Trouble {
 public:
  Trouble() = default;
  /// Nothing when it is none of these.
  static std::optional<Trouble> parse(std::string_view text) {
    Trouble trouble;
    const auto colon = text.find(':');
    trouble.name_ = text.substr(0, colon);
    if (colon != std::string_view::npos) {
      const char* end = text.data() + text.size();
      const auto [stop, error] = std::from_chars(text.data() + colon + 1, end, trouble.from_);
      if (error != std::errc() || stop != end) return std::nullopt;
    }
    if (trouble.name_.empty()) return trouble;
    for (const std::string_view known :
         {"kernel", "capture", "launch", "pin", "pageable", "driver", "no-driver"})
      if (trouble.name_ == known) return trouble;
    return std::nullopt;
  }
  /// Whether this time, one more of `what`, it happens.
  bool strikes(std::string_view what) { return what == name_ && ++count_ >= from_; }

 private:
  std::string name_;
  std::uint64_t from_ = 1, count_ = 0;
};

}  // namespace stoker::emulation
