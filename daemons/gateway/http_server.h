// Where the gateway listens: one TCP address, and a socket in the run directory.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <optional>
#include <string>

#include "daemons/gateway/http_session.h"
#include "shm/base/result.h"

namespace stoker::gateway {

struct ListenOptions {
  std::string address;      ///< "HOST:PORT", HOST a number or localhost; "none": no TCP
  std::string socket_path;  ///< "": no socket in the file system
  bool group_access = false;
  bool has_key = false;  ///< without one only addresses of this machine itself are accepted
};

class HttpServer {
 public:
  /// Binds and listens. Errc::invalid for an address that makes no sense or would be open to the world
  /// without a key, Errc::busy when somebody else listens there.
  static Result<HttpServer> listen(boost::asio::io_context& io, const ListenOptions& options);

  /// Serves what connects, until stop().
  void start(Service& service);
  void stop();
  /// "http://127.0.0.1:8642 and unix:/run/stoker/api.sock"
  [[nodiscard]] std::string where() const;

 private:
  using Tcp = boost::asio::ip::tcp::acceptor;
  using Local = boost::asio::local::stream_protocol::acceptor;
  static Result<Tcp> listen_tcp(boost::asio::io_context& io, const ListenOptions& options);
  static Result<Local> listen_local(boost::asio::io_context& io, const ListenOptions& options);
  HttpServer(std::optional<Tcp> tcp, std::optional<Local> local, std::string socket_path)
      : tcp_(std::move(tcp)), local_(std::move(local)), socket_path_(std::move(socket_path)) {}

  std::optional<Tcp> tcp_;
  std::optional<Local> local_;
  std::string socket_path_;
};

}  // namespace stoker::gateway
