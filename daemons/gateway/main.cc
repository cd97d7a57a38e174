// stoker-gateway: OpenAI's and Anthropic's HTTP APIs in front of the worker. Holds no state that matters: it
// may die and come back at any time.
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <charconv>
#include <ctime>
#include <fstream>
#include <iostream>
#include <random>

#include "daemons/common/config.h"
#include "daemons/common/endpoints.h"
#include "daemons/common/log.h"
#include "daemons/common/notify.h"
#include "daemons/common/signals.h"
#include "daemons/gateway/http_server.h"
#include "shm/base/clock.h"
#include "shm/run_directory.h"

namespace stoker::gateway {
namespace {

using namespace std::chrono_literals;

constexpr Duration kFirstLook = 2s;
/// For connections to say their last word; most take no time.
constexpr auto kStopGrace = 2s;

Result<std::string> read_key(const std::string& path) {
  if (path.empty()) return std::string();
  std::ifstream in(path);
  std::string key;
  if (!in || !std::getline(in, key))
    return fail(Errc::missing, "gateway.api_key_file " + path + " cannot be read, or is empty");
  while (!key.empty() && (key.back() == '\r' || key.back() == ' ')) key.pop_back();
  if (key.size() < 8)
    return fail(Errc::invalid, "gateway.api_key_file " + path + ": the key must have at least 8 characters");
  return key;
}

class IdMaker {
 public:
  /// 96 random bits in hexadecimal.
  std::string operator()() {
    std::string id(24, '0');
    for (std::size_t at = 0; at < id.size(); at += 8) {
      const std::uint32_t bits = random_();
      for (std::size_t i = 0; i < 8; ++i) id[at + i] = "0123456789abcdef"[bits >> (4 * i) & 15];
    }
    return id;
  }

 private:
  std::random_device random_;
};

class Gateway {
 public:
  explicit Gateway(const Config& config, std::string key)
      : link_(config.run_dir, clock_,
              [this](const std::string& id, wire::ServerMessage message) {
                boost::asio::post(
                    io_, [this, id, m = std::move(message)]() mutable { mailboxes_.put(id, std::move(m)); });
              }),
        routes_({.model_name = config.model_name,
                 .worker_status = [this] { return worker_status(); },
                 .new_id = [this] { return ids_(); },
                 .now = [] { return static_cast<std::int64_t>(std::time(nullptr)); }},
                metrics_),
        service_{.routes = routes_,
                 .metrics = metrics_,
                 .link = link_,
                 .mailboxes = mailboxes_,
                 .api_key = std::move(key),
                 .new_id = [this] { return ids_(); },
                 .closed = {},
                 .idle = {}} {}
  Gateway(const Gateway&) = delete;
  Gateway& operator=(const Gateway&) = delete;
  ~Gateway() { link_.stop(); }

  Result<int> run(const Config& config, StopSignals& signals) {
    STOKER_TRY(const std::string run_dir, make_run_directory({config.run_dir, "", config.group_access}));
    STOKER_TRY(HttpServer server, HttpServer::listen(io_, {.address = config.listen,
                                                           .socket_path = endpoint::api(run_dir),
                                                           .group_access = config.group_access,
                                                           .has_key = !service_.api_key.empty()}));
    STOKER_TRY_VOID(link_.start());
    link_.wait_known(kFirstLook);  // or the first requests would be told that there is none
    server.start(service_);
    boost::asio::posix::stream_descriptor stop(io_, signals.fd());
    boost::asio::steady_timer grace(io_);
    stop.async_wait(boost::asio::posix::stream_descriptor::wait_read, [&](const auto&) {
      log_info("stopping");
      server.stop();
      grace.expires_after(kStopGrace);
      grace.async_wait([this](const auto&) { io_.stop(); });
      service_.closed = [&grace] { grace.cancel(); };
      service_.stop();
    });
    const Notifier notifier(config.notify_socket);
    notifier.ready("serving " + server.where());
    log_info("ready, serving " + server.where());
    io_.run();
    notifier.stopping();
    stop.release();
    service_.closed = [] {};  // some may be left, and end with io_
    return 0;
  }

 private:
  std::optional<Json> worker_status() {
    const auto text = link_.status();
    if (!text) return std::nullopt;
    auto json = parse_json(*text);
    if (!json || !json->is_object()) return std::nullopt;
    return *std::move(json);
  }

  const SteadyClock clock_;
  IdMaker ids_;
  Metrics metrics_;
  Mailboxes mailboxes_;
  WorkerLink link_;  ///< its thread posts to io_, until it is stopped
  Routes routes_;
  Service service_;
  boost::asio::io_context io_{1};  ///< the first to go: connections that are left use all of the above
};

Result<int> run(const Config& config) {
  // Before any thread starts.
  STOKER_TRY(StopSignals signals, StopSignals::make());
  STOKER_TRY(std::string key, read_key(config.api_key_file));
  Gateway gateway(config, std::move(key));
  return gateway.run(config, signals);
}

int main_checked(int argc, const char* const* argv) {
  const auto config = load_config(Program::gateway, standard_sources(argc, argv));
  if (!config) {
    std::cerr << "stoker-gateway: " << config.error().text() << "\n";
    return 2;
  }
  if (!config->help.empty()) {
    std::cout << config->help;
    return 0;
  }
  log_start("gateway", config->log_level, config->journal);
  for (const std::string& line : describe(*config, Program::gateway)) log_info(line);
  const auto code = run(*config);
  if (code) return *code;
  log_error(code.error().text());
  return 1;
}

}  // namespace
}  // namespace stoker::gateway

int main(int argc, char** argv) { return stoker::gateway::main_checked(argc, argv); }
