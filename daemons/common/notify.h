// sd_notify(3) without libsystemd: one datagram to $NOTIFY_SOCKET.
#pragma once

#include <string>
#include <string_view>

namespace stoker {

class Notifier {
 public:
  /// `socket_path`: value of $NOTIFY_SOCKET ("@name" = abstract); "" = nobody listens, all calls do nothing.
  explicit Notifier(std::string socket_path) : path_(std::move(socket_path)) {}
  void ready(std::string_view status) const;
  void status(std::string_view status) const;
  void stopping() const;

 private:
  void send(const std::string& message) const;
  std::string path_;
};

}  // namespace stoker
