#include "daemons/gateway/http_session.h"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/basic_stream.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <exception>
#include <optional>

#include "daemons/common/limits.h"
#include "daemons/common/log.h"
#include "daemons/common/messages.h"
#include "daemons/gateway/access.h"

namespace stoker::gateway {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using namespace std::chrono_literals;
using beast::error_code;
using Stream = beast::basic_stream<asio::generic::stream_protocol>;

constexpr auto kIdleMax = 75s;   ///< between two requests of a connection, and for a request's head
constexpr auto kBodyMax = 300s;  ///< for a body: 64 MiB at 2 Mbit/s
constexpr auto kWriteMax = 60s;  ///< a client that reads nothing for so long is treated as gone
constexpr auto kLingerMax = 2s;
constexpr Duration kPingEvery = 5s;
/// A stream begins after so long even if the worker is too busy to say whether it accepts the request.
constexpr Duration kBeginAfter = 10s;
constexpr std::size_t kHeadBytes = 64U << 10;
/// The conversation is sent on in a message that has other fields too.
constexpr std::size_t kBodyBytes = limits::kClientMessageBytes - (1U << 20);
/// What a client may send ahead while its answer is written.
constexpr std::size_t kAheadBytes = 64U << 10;

ApiError too_large() {
  return {.status = 413,
          .code = "request_too_large",
          .message = "the body has more than " + std::to_string(kBodyBytes) + " bytes"};
}

auto with(error_code& error) { return asio::redirect_error(asio::use_awaitable, error); }

/// The answer to one request in progress.
struct Exchange {
  explicit Exchange(Generation generation, Service& service, const asio::any_io_executor& executor)
      : plan(std::move(generation.plan)),
        reply(std::move(generation.reply)),
        write_error(generation.write_error),
        answer(
            plan.tools, plan.one_call, [this, &service] { return plan.call_id_prefix + service.new_id(); },
            plan.answer_begins),
        box(executor) {}
  Plan plan;
  std::unique_ptr<Reply> reply;
  WriteError write_error;
  Answer answer;
  Mailbox box;
  std::string id;
  bool watching = false, client_gone = false;
  bool begun = false;      ///< the stream's head is out
  bool cancelled = false;  ///< by us, because the answer is complete
  std::optional<ApiError> error;
  std::optional<wire::DoneEvent> done;
  std::string body;  ///< of an answer that is not streamed

  /// There is nothing more to wait for.
  [[nodiscard]] bool over() const { return client_gone || error || done || !body.empty(); }
};

class Session {
 public:
  Session(asio::generic::stream_protocol::socket socket, Service& service, bool local)
      : stream_(std::move(socket)), service_(service), local_(local) {}

  asio::awaitable<void> run();

 private:
  using Parser = http::request_parser<http::string_body>;
  asio::awaitable<bool> serve_one();
  asio::awaitable<void> close();
  asio::awaitable<bool> read_body(Parser& parser);
  asio::awaitable<bool> respond(ApiResponse response);
  asio::awaitable<bool> respond(ApiError error, WriteError write);
  asio::awaitable<bool> generate(Generation generation);
  asio::awaitable<bool> drive(Exchange& exchange);
  asio::awaitable<bool> begin_stream();
  asio::awaitable<bool> send_piece(std::string text);
  asio::awaitable<bool> take_messages(Exchange& exchange);
  asio::awaitable<bool> end_stream(Exchange& exchange);
  asio::awaitable<void> watch(Exchange& exchange);
  asio::awaitable<void> stop_watching(Exchange& exchange);
  static std::string take_one(Exchange& exchange, const wire::ServerMessage& message);
  static std::string shown(Exchange& exchange, const std::vector<AnswerEvent>& events);
  [[nodiscard]] ApiError stopping_error() const;

  Stream stream_;
  beast::flat_buffer buffer_;
  Service& service_;
  bool local_;
  // Of the request in progress.
  std::string path_;
  unsigned version_ = 11;
  bool keep_alive_ = true, head_only_ = false;
};

asio::awaitable<void> Session::run() {
  // gcc 12 evaluates a co_await behind && or || in any case: it stands alone, here and below.
  bool more = true;
  while (more && !service_.stopping) more = co_await serve_one();
  co_await close();
}

/// What the client has not stopped sending is read for a while: closing before it would take the answer away
/// from a client that has not read it yet (TCP resets such connections).
asio::awaitable<void> Session::close() {
  error_code error;
  stream_.socket().shutdown(asio::socket_base::shutdown_send, error);
  stream_.expires_after(kLingerMax);
  while (!error && !service_.stopping) {
    buffer_.clear();
    const auto room = buffer_.prepare(kAheadBytes);
    co_await stream_.async_read_some(room, with(error));
  }
}

/// False: the connection is over.
asio::awaitable<bool> Session::serve_one() {
  error_code error;
  Parser parser;
  parser.header_limit(kHeadBytes);
  parser.body_limit(kBodyBytes);
  stream_.expires_after(kIdleMax);
  const auto idle = service_.idle.insert(service_.idle.end(), [this] { stream_.cancel(); });
  co_await http::async_read_header(stream_, buffer_, parser, with(error));
  service_.idle.erase(idle);
  path_ = "other";
  keep_alive_ = false;
  if (error == http::error::end_of_stream || error == beast::error::timeout) co_return false;
  if (error) {
    if (error.category() != make_error_code(http::error::bad_method).category()) co_return false;
    if (error == http::error::body_limit) co_return co_await respond(too_large(), openai_error);
    const unsigned status = error == http::error::header_limit ? 431 : 400;
    ApiError problem{.status = status, .code = "bad_request", .message = "not HTTP: " + error.message()};
    co_return co_await respond(std::move(problem), openai_error);
  }
  const auto& head = parser.get();
  const std::string target(head.target());
  path_ = target.substr(0, target.find('?'));
  version_ = head.version();
  keep_alive_ = head.keep_alive();
  head_only_ = head.method() == http::verb::head;
  const auto field = [&](auto name) { return std::string_view(head[name].data(), head[name].size()); };
  const auto no = refused({.authorization = field(http::field::authorization),
                           .x_api_key = field("x-api-key"),
                           .origin = field(http::field::origin),
                           .host = field(http::field::host)},
                          Routes::is_open(path_) ? "" : service_.api_key, local_ || Routes::is_open(path_));
  if (no) {
    keep_alive_ = false;  // its body stays unread
    co_return co_await respond(*no, Routes::error_form(path_));
  }
  const bool complete = co_await read_body(parser);
  if (!complete) co_return false;
  Routed routed = service_.routes.route(
      {.method = std::string(head.method_string()), .path = path_, .body = std::move(parser.get().body())});
  if (auto* response = std::get_if<ApiResponse>(&routed)) co_return co_await respond(std::move(*response));
  co_return co_await generate(std::move(std::get<Generation>(routed)));
}

asio::awaitable<bool> Session::read_body(Parser& parser) {
  error_code error;
  stream_.expires_after(kBodyMax);
  if (beast::iequals(parser.get()[http::field::expect], "100-continue")) {
    http::response<http::empty_body> go_on(http::status::continue_, version_);
    co_await http::async_write(stream_, go_on, with(error));
    if (error) co_return false;
  }
  co_await http::async_read(stream_, buffer_, parser, with(error));
  if (!error) co_return true;
  keep_alive_ = false;
  if (error == http::error::body_limit) {
    co_await respond(too_large(), Routes::error_form(path_));
  }
  co_return false;
}

asio::awaitable<bool> Session::respond(ApiResponse response) {
  service_.metrics.count_response(Routes::known_path(path_), response.status);
  http::response<http::string_body> out(static_cast<http::status>(response.status), version_);
  out.set(http::field::server, "stoker");
  out.set(http::field::content_type, response.content_type);
  if (response.retry_after > 0) out.set(http::field::retry_after, std::to_string(response.retry_after));
  if (!response.allow.empty()) out.set(http::field::allow, response.allow);
  out.keep_alive(keep_alive_);
  out.content_length(response.body.size());
  if (!head_only_) out.body() = std::move(response.body);
  error_code error;
  stream_.expires_after(kWriteMax);
  http::response_serializer<http::string_body> serializer(out);
  if (head_only_) {
    co_await http::async_write_header(stream_, serializer, with(error));
  } else {
    co_await http::async_write(stream_, serializer, with(error));
  }
  co_return !error && keep_alive_;
}

asio::awaitable<bool> Session::respond(ApiError error, WriteError write) {
  ApiResponse response = Routes::response(error, write);
  co_return co_await respond(std::move(response));
}

ApiError Session::stopping_error() const {
  return from_worker(stoker::error_code::kShuttingDown,
                     "the server is stopping; send the request again later");
}

/// What is to be sent because of new parts of the answer.
std::string Session::shown(Exchange& exchange, const std::vector<AnswerEvent>& events) {
  std::string text;
  if (!exchange.plan.stream) return text;
  for (const AnswerEvent& event : events) text += exchange.reply->more(event, exchange.answer);
  return text;
}

std::string Session::take_one(Exchange& exchange, const wire::ServerMessage& message) {
  switch (message.body_case()) {
    case wire::ServerMessage::kToken:
      exchange.reply->on_token(message.token());
      return shown(exchange, exchange.answer.push(message.token().text()));
    case wire::ServerMessage::kProgress:
      if (!exchange.plan.stream) return {};
      return exchange.reply->progress(message.progress());
    case wire::ServerMessage::kDone: {
      std::string text = shown(exchange, exchange.answer.push(message.done().text()));
      text += shown(exchange, exchange.answer.finish());
      exchange.done = message.done();
      return text;
    }
    case wire::ServerMessage::kTokens:
      exchange.body = exchange.reply->tokens(message.tokens());
      return {};
    case wire::ServerMessage::kError:
      exchange.error = from_worker(message.error().code(), message.error().message());
      return {};
    default:
      return {};
  }
}

/// All messages that are there. False: the client is gone.
asio::awaitable<bool> Session::take_messages(Exchange& exchange) {
  std::string text;
  while (!exchange.box.empty() && !exchange.error && !exchange.done) {
    const wire::ServerMessage message = exchange.box.take();
    if (exchange.plan.stream && !exchange.begun && !message.has_error()) {
      const bool sent = co_await begin_stream();
      if (!sent) co_return false;
      exchange.begun = true;
      text += exchange.reply->begin(message.progress().prompt_total());
    }
    text += take_one(exchange, message);
    if (exchange.answer.complete() && !exchange.cancelled) {
      exchange.cancelled = true;
      service_.link.cancel(exchange.id);
    }
  }
  if (text.empty()) co_return true;
  co_return co_await send_piece(std::move(text));
}

asio::awaitable<bool> Session::begin_stream() {
  service_.metrics.count_response(Routes::known_path(path_), 200);
  http::response<http::empty_body> head(http::status::ok, version_);
  head.set(http::field::server, "stoker");
  head.set(http::field::content_type, "text/event-stream; charset=utf-8");
  head.set(http::field::cache_control, "no-cache");
  head.set("X-Accel-Buffering", "no");  // nginx would hold the stream back
  if (version_ < 11) keep_alive_ = false;
  head.keep_alive(keep_alive_);
  if (version_ >= 11) head.chunked(true);
  error_code error;
  http::response_serializer<http::empty_body> serializer(head);
  stream_.expires_after(kWriteMax);
  co_await http::async_write_header(stream_, serializer, with(error));
  co_return !error;
}

asio::awaitable<bool> Session::send_piece(std::string text) {
  error_code error;
  stream_.expires_after(kWriteMax);
  if (version_ >= 11) {
    co_await asio::async_write(stream_, http::make_chunk(asio::buffer(text)), with(error));
  } else {
    co_await asio::async_write(stream_, asio::buffer(text), with(error));
  }
  co_return !error;
}

/// Reads while the answer is written: the only way to learn that the client has gone.
asio::awaitable<void> Session::watch(Exchange& exchange) {
  error_code error;
  while (!error && buffer_.size() < kAheadBytes) {
    const auto room = buffer_.prepare(4096);
    const std::size_t bytes = co_await stream_.async_read_some(room, with(error));
    buffer_.commit(bytes);
  }
  if (error && error != asio::error::operation_aborted) exchange.client_gone = true;
  exchange.watching = false;
  exchange.box.ring();
}

asio::awaitable<void> Session::stop_watching(Exchange& exchange) {
  if (exchange.watching) stream_.cancel();
  while (exchange.watching) {
    exchange.box.clear();  // or wait() would not
    co_await exchange.box.wait(1h);
  }
}

/// Until the answer is complete, or never will be. False: the client is gone.
asio::awaitable<bool> Session::drive(Exchange& exchange) {
  bool writable = true;
  while (writable && !exchange.over() && !service_.stopping) {
    const Duration within = exchange.begun || !exchange.plan.stream ? kPingEvery : kBeginAfter;
    co_await exchange.box.wait(within);
    if (exchange.client_gone || service_.stopping) continue;
    if (!exchange.box.empty()) {
      writable = co_await take_messages(exchange);
    } else if (exchange.plan.stream) {
      std::string text = exchange.reply->ping();
      if (!exchange.begun) {
        exchange.begun = true;
        text = exchange.reply->begin(0) + text;
        writable = co_await begin_stream();
      }
      if (writable) writable = co_await send_piece(std::move(text));
    }
  }
  co_return writable && !exchange.client_gone;
}

asio::awaitable<bool> Session::generate(Generation generation) {
  const auto executor = co_await asio::this_coro::executor;
  Exchange exchange(std::move(generation), service_, executor);
  exchange.id = service_.link.submit(exchange.plan.request);
  service_.mailboxes.open(exchange.id, exchange.box);
  service_.metrics.begin_generation();
  exchange.watching = true;
  stream_.expires_never();  // holds for the read that watches; writes have their own limit
  asio::co_spawn(executor, watch(exchange), asio::detached);

  bool connected = true;
  try {
    connected = co_await drive(exchange);
  } catch (const std::exception& e) {  // out of memory; watch() must not outlive its exchange
    exchange.error = from_worker(stoker::error_code::kInternal, e.what());
  }
  if (!exchange.over() && service_.stopping) exchange.error = stopping_error();
  service_.mailboxes.close(exchange.id);
  service_.metrics.end_generation();
  if (!exchange.done && exchange.body.empty()) service_.link.cancel(exchange.id);
  co_await stop_watching(exchange);
  if (!connected) {
    service_.metrics.count_disconnect();
    co_return false;
  }
  if (exchange.done) service_.metrics.count_generation(exchange.done->stats());
  if (exchange.begun) co_return co_await end_stream(exchange);
  if (exchange.error) co_return co_await respond(*exchange.error, exchange.write_error);
  if (exchange.done) exchange.body = exchange.reply->whole(exchange.answer, *exchange.done);
  ApiResponse response{.body = std::move(exchange.body)};
  co_return co_await respond(std::move(response));
}

asio::awaitable<bool> Session::end_stream(Exchange& exchange) {
  std::string last = exchange.error ? exchange.reply->error(*exchange.error)
                                    : exchange.reply->end(exchange.answer, *exchange.done);
  const bool sent = co_await send_piece(std::move(last));
  if (!sent) co_return false;
  if (version_ < 11) co_return false;
  error_code error;
  stream_.expires_after(kWriteMax);
  co_await asio::async_write(stream_, http::make_chunk_last(), with(error));
  co_return !error && keep_alive_;
}

}  // namespace

boost::asio::awaitable<void> Mailbox::wait(Duration most) {
  if (!messages_.empty()) co_return;
  error_code ignored;
  bell_.expires_after(std::chrono::duration_cast<asio::steady_timer::duration>(most));
  co_await bell_.async_wait(with(ignored));
}

asio::awaitable<void> run_session(asio::generic::stream_protocol::socket socket, Service& service,
                                  bool local) {
  Session session(std::move(socket), service, local);
  co_await session.run();
}

}  // namespace stoker::gateway
