// What the worker says about one request, on its way to the connection that waits for it. One thread.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/steady_timer.hpp>
#include <deque>
#include <map>
#include <string>

#include "shm/base/clock.h"
#include "stoker.pb.h"

namespace stoker::gateway {

class Mailbox {
 public:
  explicit Mailbox(const boost::asio::any_io_executor& executor) : bell_(executor) {}

  void put(wire::ServerMessage message) {
    messages_.push_back(std::move(message));
    ring();
  }
  /// Something else has happened that whoever waits here should know.
  void ring() { bell_.cancel(); }
  /// Until there is a message, the bell rang, or `most` has passed.
  boost::asio::awaitable<void> wait(Duration most);
  [[nodiscard]] bool empty() const { return messages_.empty(); }
  void clear() { messages_.clear(); }
  wire::ServerMessage take() {
    wire::ServerMessage message = std::move(messages_.front());
    messages_.pop_front();
    return message;
  }

 private:
  boost::asio::steady_timer bell_;
  std::deque<wire::ServerMessage> messages_;
};

/// Mailboxes of the requests in progress, by id. Messages for others are dropped: their client is gone.
class Mailboxes {
 public:
  void put(const std::string& id, wire::ServerMessage message) {
    if (const auto found = boxes_.find(id); found != boxes_.end()) found->second->put(std::move(message));
  }
  void open(const std::string& id, Mailbox& box) { boxes_[id] = &box; }
  void close(const std::string& id) { boxes_.erase(id); }
  void ring_all() {
    for (const auto& [id, box] : boxes_) box->ring();
  }

 private:
  std::map<std::string, Mailbox*> boxes_;
};

}  // namespace stoker::gateway
