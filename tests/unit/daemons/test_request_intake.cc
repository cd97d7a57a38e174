#include "daemons/worker/request_intake.h"

#include "tests/unit/daemons/intake_rig.h"

using namespace stoker;
using namespace stoker::test;

namespace {

/// What clients have heard: the ends of their requests, by "client/id", in order.
struct Harness : IntakeRig {
  using IntakeRig::IntakeRig;

  void submit(const std::string& id, const std::string& prompt = "text", std::uint32_t max_tokens = 3,
              const std::string& client = "c") {
    intake.submit(client, generate(id, prompt, max_tokens));
  }
  /// Waits for the next events.
  void hear() {
    pollfd item{.fd = loop.event_fd(), .events = POLLIN, .revents = 0};
    while (::poll(&item, 1, 1000) == 0) {
    }
    for (const Outgoing& event : loop.take_events()) {
      const wire::ServerMessage& m = event.message;
      if (m.has_token()) ++tokens;
      if (m.has_done()) ends[event.client + "/" + m.done().id()].push_back(m.done().finish_reason());
      if (m.has_error()) {
        ends[event.client + "/" + m.error().id()].push_back(m.error().code());
        texts[event.client + "/" + m.error().id()] = m.error().message();
      }
    }
  }
  /// How the request with this id ended; all its ends when there was more than one.
  std::string end_of(const std::string& id, const std::string& client = "c") {
    const std::string key = client + "/" + id;
    while (ends.count(key) == 0) hear();
    std::string all;
    for (const std::string& end : ends[key]) all += (all.empty() ? "" : " ") + end;
    return all;
  }

  std::map<std::string, std::vector<std::string>> ends;
  std::map<std::string, std::string> texts;
  unsigned tokens = 0;
};

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("requests are built in order on one thread, which is not the caller's") {
  Harness h;
  for (const char* id : {"a", "b", "c", "d"}) h.submit(id);
  for (const char* id : {"a", "b", "c", "d"}) CHECK(h.end_of(id) == "length");
  CHECK(h.tokens == 12);
  CHECK(h.seen() == std::vector<std::string>{"a", "b", "c", "d"});
  CHECK(h.builders.size() == 1);
  CHECK(h.builders.count(std::this_thread::get_id()) == 0);
}

TEST_CASE("a tokenize request is answered without the model") {
  IntakeRig rig;
  wire::GenerateRequest request = generate("r", "text");
  request.set_tokenize(true);
  rig.intake.submit("c", request);
  pollfd item{.fd = rig.loop.event_fd(), .events = POLLIN, .revents = 0};
  while (::poll(&item, 1, 1000) == 0) {
  }
  const auto events = rig.loop.take_events();
  REQUIRE(events.size() == 1);
  REQUIRE(events[0].message.has_tokens());
  const auto& ids = events[0].message.tokens().tokens().ids();
  CHECK(std::vector<std::uint32_t>(ids.begin(), ids.end()) == std::vector<std::uint32_t>{1, 2, 3});
  CHECK(rig.model.steps.empty());
}

TEST_CASE("what cannot be built is answered") {
  Harness h;
  h.submit("r", kBad);
  CHECK(h.end_of("r") == "invalid_request");
  CHECK(h.texts["c/r"] == "cannot be built");
  SchedulerStatus status;
  h.intake.add_to(status);
  CHECK(status.requests_refused == 1);
  CHECK(status.queued == 0);
}

TEST_CASE("a cancel ends a request that is being built, at once and once") {
  Harness h;
  h.submit("r", kHold);
  h.door.wait_for_arrival();
  h.intake.cancel("c", "r");
  CHECK(h.end_of("r") == "cancelled");  // the builder still stands at the door
  h.intake.cancel("c", "r");
  h.door.open();
  h.submit("next");
  CHECK(h.end_of("next") == "length");  // by now the first one's result was thrown away
  CHECK(h.end_of("r") == "cancelled");
  CHECK(h.tokens == 3);
  SchedulerStatus status;
  h.intake.add_to(status);
  CHECK(status.requests_cancelled == 1);
}

TEST_CASE("a cancel ends a request that waits behind another's build, and it is never built") {
  Harness h;
  h.submit("long", kHold, 3, "other");
  h.door.wait_for_arrival();
  h.submit("r");
  h.submit("r", "text", 3, "third");
  h.intake.cancel("c", "r");
  CHECK(h.end_of("r") == "cancelled");
  h.door.open();
  CHECK(h.end_of("long", "other") == "length");
  CHECK(h.end_of("r", "third") == "length");  // of the same id, but another client's
  CHECK(h.seen() == std::vector<std::string>{"long", "r"});
  CHECK(h.end_of("r") == "cancelled");
}

TEST_CASE("a cancel of a running request does not wait for another's build") {
  Harness h;
  h.submit("endless", "text", 90'000);
  while (h.tokens == 0) h.hear();
  h.submit("long", kHold, 3, "other");
  h.door.wait_for_arrival();
  h.intake.cancel("c", "endless");
  CHECK(h.end_of("endless") == "cancelled");
}

TEST_CASE("a cancel is for the requests before it, not for those after it") {
  Harness h;
  h.submit("long", kHold, 3, "other");
  h.door.wait_for_arrival();
  h.submit("r");
  h.intake.cancel("c", "r");
  h.submit("r");
  CHECK(h.end_of("r") == "cancelled");
  h.door.open();
  while (h.ends["c/r"].size() < 2) h.hear();
  CHECK(h.end_of("r") == "cancelled length");
}

TEST_CASE("a gone client's requests end without a word wherever they are") {
  Harness h;
  h.submit("running", "text", 90'000);
  while (h.tokens == 0) h.hear();
  h.submit("building", kHold);
  h.door.wait_for_arrival();
  h.submit("waiting");
  h.submit("other", "text", 3, "other");
  h.intake.drop_client("c");
  h.door.open();
  CHECK(h.end_of("other", "other") == "length");
  while (h.loop.status().requests_cancelled < 1) std::this_thread::yield();
  SchedulerStatus status = h.loop.status();
  h.intake.add_to(status);
  CHECK(status.requests_cancelled == 3);
  CHECK(h.ends.size() == 1);
  CHECK(h.seen() == std::vector<std::string>{"running", "building", "other"});
}

TEST_CASE("requests over the count are refused with both numbers") {
  Harness h({.requests = 3});
  h.model.on_step = [&] { h.step.pass(); };
  h.submit("running");
  h.step.wait_for_arrival();  // a step that takes long: what comes now waits in the engine's inbox
  h.submit("inbox");
  while (h.loop.backlog().requests < 1) std::this_thread::yield();
  h.submit("building", kHold);
  h.door.wait_for_arrival();
  h.submit("waiting");
  SchedulerStatus status;
  h.intake.add_to(status);
  CHECK(status.queued == 3);
  h.submit("too many");
  CHECK(h.end_of("too many") == "queue_full");  // neither step nor build have moved
  CHECK(contains(h.texts["c/too many"], "3 requests wait already, at most 3"));
  h.intake.cancel("c", "waiting");
  CHECK(h.end_of("waiting") == "cancelled");
  h.submit("fits");
  h.door.open();
  h.step.open();
  for (const char* id : {"running", "inbox", "building", "fits"}) CHECK(h.end_of(id) == "length");
}

TEST_CASE("requests over the bytes are refused with both numbers") {
  Harness h({.requests = 100, .bytes = 10'000});
  h.submit("building", kHold);
  h.door.wait_for_arrival();
  h.submit("large", std::string(9'000, 'x'));
  h.submit("too large", std::string(2'000, 'x'));
  CHECK(h.end_of("too large") == "queue_full");
  CHECK(contains(h.texts["c/too large"], "8.8 KiB"));  // 9,000 bytes and the one that is built
  CHECK(contains(h.texts["c/too large"], "9.8 KiB"));
  h.submit("small", std::string(100, 'x'));
  h.intake.cancel("c", "large");
  h.submit("room again", std::string(9'000, 'x'));
  wire::GenerateRequest ids = generate("ids", "");
  for (std::uint32_t i = 0; i < 1'000; ++i) ids.mutable_tokens()->add_ids(1);
  h.intake.submit("c", ids);  // 1 KB on the wire, 4 in memory
  CHECK(h.end_of("ids") == "queue_full");
  h.door.open();
  for (const char* id : {"building", "small", "room again"}) CHECK(h.end_of(id) == "length");
}

TEST_CASE("a stop answers what is built and what waits, without waiting for the builder") {
  Harness h;
  h.submit("building", kHold);
  h.door.wait_for_arrival();
  h.submit("waiting");
  h.intake.stop();
  h.loop.stop();
  CHECK(h.end_of("building") == "shutting_down");
  CHECK(h.end_of("waiting") == "shutting_down");
  h.submit("late");
  CHECK(h.end_of("late") == "shutting_down");
  while (!h.loop.finished()) std::this_thread::yield();
  CHECK_FALSE(h.intake.finished());
  h.door.open();
  while (!h.intake.finished()) std::this_thread::yield();
  CHECK(h.seen() == std::vector<std::string>{"building"});
  CHECK(h.end_of("building") == "shutting_down");
}
