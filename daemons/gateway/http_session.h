// One HTTP connection, from its first request to its end: reads requests, asks the routes, writes responses
// and streams. Coroutines on the gateway's one thread.
//
// A generation:
//   1. submitted to the worker; nothing is written until the worker has accepted it, so that a refusal still
//   has
//      its own HTTP status
//   2. a stream begins before the first token, however long the prompt takes, and never is silent for longer
//      than kPingEvery: clients and proxies give up on silent ones
//   3. a client that hangs up, or does not read, has its request cancelled at once
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/io_context.hpp>
#include <functional>
#include <list>
#include <string>

#include "daemons/gateway/mailbox.h"
#include "daemons/gateway/metrics.h"
#include "daemons/gateway/routes.h"
#include "daemons/gateway/worker_link.h"

namespace stoker::gateway {

/// What all connections share; outlives them.
struct Service {
  const Routes& routes;
  Metrics& metrics;
  WorkerLink& link;
  Mailboxes& mailboxes;
  std::string api_key;  ///< "": none is asked for
  std::function<std::string()> new_id;
  bool stopping = false;                  ///< set once, by stop()
  std::size_t connections = 0;            ///< open
  std::function<void()> closed;           ///< called when the last connection has ended while stopping
  std::list<std::function<void()>> idle;  ///< closes a connection that waits for its next request

  /// Connections end as soon as their clients have been told.
  void stop() {
    stopping = true;
    mailboxes.ring_all();
    for (const auto& close : idle) close();
    if (connections == 0) closed();
  }
};

/// `local`: the socket is one of the file system.
boost::asio::awaitable<void> run_session(boost::asio::generic::stream_protocol::socket socket,
                                         Service& service, bool local);

}  // namespace stoker::gateway
