// A scheduler on a fake model in manual time, and what its clients are told.
#pragma once

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstring>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "daemons/common/messages.h"
#include "daemons/worker/scheduler.h"
#include "tests/unit/daemons/fake_model.h"

namespace stoker::test {

using namespace std::chrono_literals;

using Ids = std::vector<std::uint32_t>;

/// Collects what each request was told.
class Clients final : public EventSink {
 public:
  struct Told {
    Ids tokens;
    std::string text;
    std::string finish, error, error_text;
    wire::Stats stats;
    std::vector<std::uint32_t> positions;  ///< of LogitsEvents
    std::vector<std::uint32_t> winners;    ///< their largest logit
    std::vector<std::uint32_t> queue_positions;
    std::vector<float> scores;  ///< of ScoreEvents, joined
    unsigned endings = 0;
    std::vector<wire::TokenEvent> events;
  };
  void send(const std::string& client, wire::ServerMessage message) override {
    switch (message.body_case()) {
      case wire::ServerMessage::kToken: {
        Told& t = told[client + "/" + message.token().id()];
        t.tokens.push_back(message.token().token());
        t.text += message.token().text();
        t.events.push_back(message.token());
        break;
      }
      case wire::ServerMessage::kDone: {
        Told& t = told[client + "/" + message.done().id()];
        t.text += message.done().text();
        t.finish = message.done().finish_reason();
        t.stats = message.done().stats();
        ++t.endings;
        break;
      }
      case wire::ServerMessage::kError: {
        Told& t = told[client + "/" + message.error().id()];
        t.error = message.error().code();
        t.error_text = message.error().message();
        ++t.endings;
        break;
      }
      case wire::ServerMessage::kLogits: {
        Told& t = told[client + "/" + message.logits().id()];
        t.positions.push_back(message.logits().position());
        const std::string& bytes = message.logits().logits();
        std::vector<float> row(bytes.size() / sizeof(float));
        std::memcpy(row.data(), bytes.data(), bytes.size());
        t.winners.push_back(
            static_cast<std::uint32_t>(std::max_element(row.begin(), row.end()) - row.begin()));
        break;
      }
      case wire::ServerMessage::kScore: {
        Told& t = told[client + "/" + message.score().id()];
        CHECK(message.score().first_position() == t.scores.size() + 1);
        for (const float logprob : message.score().logprobs()) t.scores.push_back(logprob);
        break;
      }
      case wire::ServerMessage::kProgress:
        told[client + "/" + message.progress().id()].queue_positions.push_back(
            message.progress().queue_position());
        break;
      default:
        FAIL("unexpected event");
    }
  }
  std::map<std::string, Told> told;
};

/// A scheduler with everything around it; a step takes 10 ms of manual time.
struct Bench {
  explicit Bench(SchedulerOptions o = options(), const Tokenizer* tokenizer = nullptr) {
    rules.tokenizer = tokenizer;
    rules.token_limit = kVocabulary;
    rules.eos = {511};
    model.on_step = [this] { clock.advance(10ms); };
    scheduler.emplace(model, source, rules, nullptr, clients, clock, o);
  }
  static SchedulerOptions options() {
    SchedulerOptions o;
    o.max_sequences = 4;
    o.queue_max = 8;
    o.chunk = 16;
    o.context = 1000;
    o.sequence_memory = 1'000'000;
    o.kept_sequences = 0;
    return o;
  }
  void run() {
    for (int i = 0; i < 100'000 && scheduler->step(); ++i) {
    }
    CHECK(scheduler->idle());
    CHECK(model.alive == static_cast<int>(scheduler->status().kept_sequences));
    CHECK(scheduler->status().reserved_bytes == 0);
  }
  void submit(Request request) {
    request.arrived = clock.now();
    scheduler->submit(std::move(request));
  }
  Clients::Told& operator[](const std::string& key) { return clients.told[key]; }

  ManualClock clock;
  FakeModel model;
  NoSource source;
  GenerationRules rules;
  Clients clients;
  std::optional<Scheduler> scheduler;
};

inline Request request(const std::string& id, Ids prompt, std::uint32_t max_tokens,
                       const std::string& client = "c") {
  Request r;
  r.client = client;
  r.id = id;
  r.prompt = std::move(prompt);
  r.max_tokens = max_tokens;
  r.sampling.temperature = 0;
  return r;
}

inline Ids prompt(std::uint32_t first, std::size_t length) {
  Ids ids(length);
  for (std::size_t i = 0; i < length; ++i) ids[i] = static_cast<std::uint32_t>((first + i * 7) % 500);
  return ids;
}

/// What a request must answer, computed without a scheduler.
inline Ids expected(Ids tokens, std::size_t count) {
  Ids out;
  for (std::size_t i = 0; i < count; ++i) {
    out.push_back(next_token(tokens));
    tokens.push_back(out.back());
  }
  return out;
}

}  // namespace stoker::test
