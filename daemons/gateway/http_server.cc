#include "daemons/gateway/http_server.h"

#include <sys/stat.h>
#include <unistd.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/connect.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <charconv>
#include <exception>
#include <type_traits>

#include "daemons/common/limits.h"
#include "daemons/common/log.h"
#include "daemons/gateway/access.h"

namespace stoker::gateway {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using local_protocol = asio::local::stream_protocol;
using boost::system::error_code;
using namespace std::chrono_literals;

/// Descriptors are what runs out; each connection costs one and some kilobytes.
constexpr std::size_t kConnectionsMax = 512;

Result<tcp::endpoint> parse_address(const std::string& text) {
  const std::size_t colon = text.rfind(':');
  const auto wrong = [&] {
    return fail(Errc::invalid,
                "gateway.listen \"" + text +
                    "\" is not HOST:PORT (127.0.0.1:8642, [::1]:8642, localhost:8642) or none");
  };
  if (colon == std::string::npos) return wrong();
  std::string host = text.substr(0, colon);
  unsigned port = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data() + colon + 1, end, port);
  if (error != std::errc() || stop != end || port > 65535) return wrong();
  if (host == "localhost") host = "127.0.0.1";
  if (host.starts_with('[') && host.ends_with(']')) host = host.substr(1, host.size() - 2);
  error_code failed;
  const auto address = asio::ip::make_address(host, failed);
  if (failed) return wrong();
  return tcp::endpoint(address, static_cast<std::uint16_t>(port));
}

/// Counts a connection while it lives.
class Open {
 public:
  explicit Open(Service& service) : service_(service) { ++service_.connections; }
  Open(const Open&) = delete;
  Open& operator=(const Open&) = delete;
  ~Open() {
    if (--service_.connections == 0 && service_.stopping) service_.closed();
  }

 private:
  Service& service_;
};

asio::awaitable<void> serve(asio::generic::stream_protocol::socket socket, Service& service, bool local) {
  const Open counted(service);
  try {
    co_await run_session(std::move(socket), service, local);
  } catch (const std::exception& e) {  // Asio's and the JSON library's way to say "out of memory"
    log_error(std::string("a connection ended: ") + e.what());
  }
}

template <class Acceptor>
asio::awaitable<void> accept_all(Acceptor& acceptor, Service& service, bool local) {
  asio::steady_timer pause(acceptor.get_executor());
  error_code error;
  while (acceptor.is_open()) {
    // Nothing is lost: who waits in the kernel's queue is served when another connection has ended.
    while (error || service.connections >= kConnectionsMax) {
      if (error) log_warn("cannot accept a connection: " + error.message());
      error.clear();
      pause.expires_after(100ms);
      co_await pause.async_wait(asio::redirect_error(asio::use_awaitable, error));
      error.clear();
    }
    if (!acceptor.is_open()) co_return;
    auto socket = co_await acceptor.async_accept(asio::redirect_error(asio::use_awaitable, error));
    if (error == asio::error::operation_aborted) co_return;
    if (error) continue;
    // A token is a small packet, and is not to wait for the receipt of the one before it.
    if constexpr (std::is_same_v<Acceptor, tcp::acceptor>) socket.set_option(tcp::no_delay(true), error);
    asio::co_spawn(acceptor.get_executor(), serve(std::move(socket), service, local), asio::detached);
  }
}

}  // namespace

Result<HttpServer::Tcp> HttpServer::listen_tcp(asio::io_context& io, const ListenOptions& options) {
  STOKER_TRY(const tcp::endpoint endpoint, parse_address(options.address));
  if (!endpoint.address().is_loopback() && !options.has_key)
    return fail(Errc::invalid,
                "gateway.listen " + options.address +
                    " can be reached by other machines: that needs a key (gateway.api_key_file), "
                    "or listen on 127.0.0.1");
  Tcp acceptor(io);
  error_code error;
  acceptor.open(endpoint.protocol(), error);
  if (!error) acceptor.set_option(asio::socket_base::reuse_address(true), error);
  if (!error) acceptor.bind(endpoint, error);
  if (!error) acceptor.listen(asio::socket_base::max_listen_connections, error);
  if (!error) return acceptor;
  if (error == asio::error::address_in_use)
    return fail(Errc::busy, "somebody else listens on " + options.address +
                                "; choose another gateway.listen (--listen HOST:PORT, or none)");
  return fail(Errc::io, "cannot listen on " + options.address + ": " + error.message());
}

Result<HttpServer::Local> HttpServer::listen_local(asio::io_context& io, const ListenOptions& options) {
  const std::string& path = options.socket_path;
  if (path.size() > limits::kSocketPathBytes)
    return fail(Errc::invalid, "the run directory's path is too long for a socket: " + path);
  error_code error;
  local_protocol::socket probe(io);
  probe.connect(local_protocol::endpoint(path), error);
  if (!error) return fail(Errc::busy, "another gateway serves " + path);
  ::unlink(path.c_str());  // of one that is dead
  Local acceptor(io);
  acceptor.open(local_protocol(), error);
  const mode_t mask = ::umask(options.group_access ? 0117 : 0177);
  if (!error) acceptor.bind(local_protocol::endpoint(path), error);
  ::umask(mask);
  if (!error) acceptor.listen(asio::socket_base::max_listen_connections, error);
  if (error) return fail(Errc::io, "cannot listen on " + path + ": " + error.message());
  return acceptor;
}

Result<HttpServer> HttpServer::listen(asio::io_context& io, const ListenOptions& options) {
  std::optional<Tcp> tcp_acceptor;
  std::optional<Local> local_acceptor;
  if (options.address != "none") {
    STOKER_TRY(tcp_acceptor, listen_tcp(io, options));
  }
  if (!options.socket_path.empty()) {
    STOKER_TRY(local_acceptor, listen_local(io, options));
  }
  return HttpServer(std::move(tcp_acceptor), std::move(local_acceptor), options.socket_path);
}

void HttpServer::start(Service& service) {
  if (tcp_) asio::co_spawn(tcp_->get_executor(), accept_all(*tcp_, service, false), asio::detached);
  if (local_) asio::co_spawn(local_->get_executor(), accept_all(*local_, service, true), asio::detached);
}

void HttpServer::stop() {
  error_code ignored;
  if (tcp_) tcp_->close(ignored);
  if (local_) local_->close(ignored);
  if (local_) ::unlink(socket_path_.c_str());
}

std::string HttpServer::where() const {
  std::string text;
  error_code ignored;
  if (tcp_) {
    const tcp::endpoint at = tcp_->local_endpoint(ignored);
    const std::string host = at.address().to_string();
    text = "http://" + (at.address().is_v6() ? "[" + host + "]" : host) + ":" + std::to_string(at.port());
  }
  if (local_) text += (text.empty() ? "unix:" : " and unix:") + socket_path_;
  return text;
}

}  // namespace stoker::gateway
