#include <poll.h>

#include <catch2/catch.hpp>

#include "daemons/worker/engine_loop.h"
#include "tests/unit/daemons/fake_model.h"
#include "tests/unit/daemons/latch.h"

using namespace stoker;
using namespace stoker::test;

namespace {

struct Harness {
  Harness() : loop(model, source, rules, nullptr, clock, options()) {
    rules.token_limit = kVocabulary;
    REQUIRE(loop.start().has_value());
  }
  ~Harness() { step.open(); }  // a failed check must not leave the engine at the door
  Harness(const Harness&) = delete;
  Harness& operator=(const Harness&) = delete;
  static SchedulerOptions options() {
    SchedulerOptions o;
    o.context = 100'000;
    o.sequence_memory = 1'000'000'000;
    return o;
  }
  void submit(const std::string& id, std::uint32_t max_tokens) {
    Request request;
    request.client = "c";
    request.id = id;
    request.prompt = {1, 2, 3};
    request.max_tokens = max_tokens;
    request.sampling.temperature = 0;
    request.arrived = clock.now();
    loop.submit(std::move(request));
  }
  /// Waits for events until `done` is true of one of them.
  template <class Done>
  void until(Done done) {
    for (;;) {
      pollfd item{.fd = loop.event_fd(), .events = POLLIN, .revents = 0};
      while (::poll(&item, 1, 1000) == 0) {
      }
      bool found = false;
      for (const Outgoing& event : loop.take_events()) {
        if (event.message.has_token()) ++tokens;
        found = found || done(event.message);
      }
      if (found) return;
    }
  }

  SteadyClock clock;
  FakeModel model;
  NoSource source;
  GenerationRules rules;
  Latch step;
  unsigned tokens = 0;
  EngineLoop loop;
};

}  // namespace

TEST_CASE("requests go in on one thread and answers come out on it") {
  Harness h;
  for (int i = 0; i < 20; ++i) h.submit("r" + std::to_string(i), 30);
  int done = 0;
  h.until([&](const wire::ServerMessage& m) { return m.has_done() && ++done == 20; });
  CHECK(h.tokens == 600);
  while (h.loop.status().requests_done < 20) std::this_thread::yield();  // told after the events
}

TEST_CASE("an idle loop lets the source tidy up") {
  Harness h;
  while (h.source.idle_calls < 2) std::this_thread::yield();
  h.submit("r", 5);
  h.until([](const wire::ServerMessage& m) { return m.has_done(); });
  const unsigned before = h.source.idle_calls;
  while (h.source.idle_calls == before) std::this_thread::yield();
}

TEST_CASE("an endless request can be cancelled, and a stop ends the rest") {
  Harness h;
  h.submit("endless", 90'000);
  h.submit("other", 90'000);
  h.until([](const wire::ServerMessage& m) { return m.has_token(); });
  h.loop.cancel("c", "endless");
  h.until(
      [](const wire::ServerMessage& m) { return m.has_done() && m.done().finish_reason() == "cancelled"; });
  h.loop.stop();
  h.until([](const wire::ServerMessage& m) { return m.has_error() && m.error().code() == "shutting_down"; });
  while (!h.loop.finished()) std::this_thread::yield();
  CHECK_FALSE(h.loop.lost().has_value());
}

TEST_CASE("a gone client's request ends without a word") {
  Harness h;
  h.submit("endless", 90'000);
  h.until([](const wire::ServerMessage& m) { return m.has_token(); });
  h.loop.drop_client("c");
  while (h.loop.status().requests_cancelled == 0) std::this_thread::yield();
  CHECK(h.loop.status().decoding == 0);
}

TEST_CASE("cancels wait for requests that exist, and once each") {
  Harness h;
  h.model.on_step = [&] { h.step.pass(); };
  h.submit("endless", 90'000);
  h.step.wait_for_arrival();  // the engine is busy: what is posted now waits
  for (int i = 0; i < 1000; ++i) {
    h.loop.cancel("c", "endless");
    h.loop.cancel("c", "unknown-" + std::to_string(i));
    h.loop.cancel("stranger", "endless");
  }
  CHECK(h.loop.backlog().commands == 1);
  h.step.open();
  h.until(
      [](const wire::ServerMessage& m) { return m.has_done() && m.done().finish_reason() == "cancelled"; });
  h.submit("endless", 3);  // the id is free again
  h.until([](const wire::ServerMessage& m) { return m.has_done() && m.done().finish_reason() == "length"; });
}

TEST_CASE("a request after its like was cancelled or dropped can be cancelled too") {
  Harness h;
  h.model.on_step = [&] { h.step.pass(); };
  h.submit("r", 90'000);
  h.step.wait_for_arrival();
  SECTION("cancelled") { h.loop.cancel("c", "r"); }
  SECTION("dropped") { h.loop.drop_client("c"); }
  h.submit("r", 90'000);
  h.loop.cancel("c", "r");
  CHECK(h.loop.backlog().commands == 3);
  h.step.open();
  while (h.loop.status().requests_cancelled < 2) std::this_thread::yield();
  CHECK(h.loop.status().decoding == 0);
}

TEST_CASE("what waits for the scheduler is counted until it has looked") {
  Harness h;
  h.model.on_step = [&] { h.step.pass(); };
  h.submit("a", 3);
  h.step.wait_for_arrival();
  CHECK(h.loop.backlog().requests == 0);
  h.submit("b", 3);
  h.submit("c", 3);
  CHECK(h.loop.backlog().requests == 2);
  CHECK(h.loop.backlog().bytes > 2 * 3 * sizeof(std::uint32_t));
  h.step.open();
  int done = 0;
  h.until([&](const wire::ServerMessage& m) { return m.has_done() && ++done == 3; });
  CHECK(h.loop.backlog().requests == 0);
  CHECK(h.loop.backlog().bytes == 0);
}

TEST_CASE("a loop that has lost its pool answers what was submitted, and what still comes") {
  Harness h;
  h.model.on_step = [&] { h.step.pass(); };
  h.model.broken = Error{Errc::layout, 0, "another pool"};
  h.submit("first", 3);
  h.step.wait_for_arrival();
  h.submit("waits", 3);  // the loop ends without another look at its inbox
  h.step.open();
  h.until([](const wire::ServerMessage& m) { return m.has_error() && m.error().id() == "waits"; });
  while (!h.loop.finished()) std::this_thread::yield();
  CHECK(h.loop.lost().has_value());
  h.submit("late", 3);
  h.until([](const wire::ServerMessage& m) {
    return m.has_error() && m.error().id() == "late" && m.error().code() == "shutting_down";
  });
}
