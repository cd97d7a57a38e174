// RequestIntake before an EngineLoop with the fake model, and a builder that the test can hold up.
#pragma once

#include <poll.h>

#include <catch2/catch.hpp>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "daemons/common/messages.h"
#include "daemons/worker/request_intake.h"
#include "tests/unit/daemons/fake_model.h"
#include "tests/unit/daemons/latch.h"

namespace stoker::test {

/// "hold" as a prompt stands at the door of the builder; "bad" cannot be built; all else becomes three
/// tokens.
inline constexpr const char *kHold = "hold", *kBad = "bad";

inline wire::GenerateRequest generate(const std::string& id, const std::string& prompt,
                                      std::uint32_t max_tokens = 3) {
  wire::GenerateRequest request;
  request.set_id(id);
  request.set_prompt(prompt);
  request.set_max_tokens(max_tokens);
  request.mutable_sampling()->set_temperature(0);
  return request;
}

struct IntakeRig {
  /// `on_step` runs before every step of the model.
  explicit IntakeRig(IntakeLimits limits = {}, std::function<void()> on_step = {})
      : loop(model, source, rules, nullptr, clock, options()),
        intake(
            loop, [this](const auto& wire, const auto& new_seed) { return build(wire, new_seed); }, clock,
            limits) {
    rules.token_limit = kVocabulary;
    model.on_step = std::move(on_step);
    REQUIRE(loop.start().has_value());
    intake.start();
  }
  ~IntakeRig() {  // a failed check must not leave a thread at a door
    door.open();
    step.open();
  }
  IntakeRig(const IntakeRig&) = delete;
  IntakeRig& operator=(const IntakeRig&) = delete;

  static SchedulerOptions options() {
    SchedulerOptions o;
    o.context = 100'000;
    o.sequence_memory = 1'000'000'000;
    return o;
  }
  tl::expected<Request, RequestProblem> build(const wire::GenerateRequest& wire,
                                              const RequestIntake::NewSeed& new_seed) {
    {
      const std::lock_guard lock(mutex);
      built.push_back(wire.id());
      builders.insert(std::this_thread::get_id());
    }
    if (wire.prompt() == kHold) door.pass();
    if (wire.prompt() == kBad)
      return tl::unexpected<RequestProblem>({error_code::kInvalidRequest, "cannot be built"});
    Request request;
    request.id = wire.id();
    request.prompt = {1, 2, 3};
    request.max_tokens = wire.max_tokens();
    request.sampling.temperature = 0;
    request.sampling.seed = new_seed();
    request.raw_logits = wire.raw_logits_of_steps();
    return request;
  }
  /// Ids in the order in which the builder saw them.
  std::vector<std::string> seen() {
    const std::lock_guard lock(mutex);
    return built;
  }

  SteadyClock clock;
  FakeModel model;
  NoSource source;
  GenerationRules rules;
  Latch door, step;
  std::mutex mutex;
  std::vector<std::string> built;  ///< guarded by mutex, as the next
  std::set<std::thread::id> builders;
  EngineLoop loop;
  RequestIntake intake;
};

}  // namespace stoker::test
