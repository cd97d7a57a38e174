#include <catch2/catch.hpp>
#include <string>

#include "predictor/restraint.h"

using namespace stoker;
using State = Restraint::State;

namespace {

/// A worker whose loader reads `issued` experts per step for hints, of which `used` are used. A step with
/// hints takes `with_us`, one without `without_us`.
struct Worker {
  explicit Worker(Restraint& restraint) : r(restraint) {}
  Restraint& r;
  HintCounters total;
  std::uint64_t step = 0, with_us = 900, without_us = 1000;
  double busy = 0.1;

  void run(unsigned steps, std::uint64_t issued, std::uint64_t used) {
    for (unsigned i = 0; i < steps; ++i) {
      const bool hints = r.width() > 0;
      total.issued += hints ? issued : 0;
      total.used += hints ? used : 0;
      const std::uint64_t ns = (hints ? with_us : without_us) * 1000;
      total.now_ns += ns;
      total.demand_busy_ns += static_cast<std::uint64_t>(busy * static_cast<double>(ns));
      r.on_step(0, ++step, total);
    }
  }
};

constexpr unsigned kTrial = 256, kPause = 256;

}  // namespace

TEST_CASE("half of a trial's steps have hints; one that pays turns them on") {
  Restraint r({});
  Worker w(r);
  CHECK(r.state() == State::probing);
  w.run(kTrial, 10, 8);
  CHECK(w.total.issued == 10 * kTrial / 2);
  CHECK(r.state() == State::on);
  CHECK(r.width() == 16);
  CHECK(r.gain() == Approx(0.1));
}

TEST_CASE("right but no faster: it retreats, and stays away longer every time") {
  Restraint r({});
  Worker w(r);
  w.with_us = 1001;
  w.run(kTrial, 10, 10);
  CHECK(r.state() == State::retreated);
  CHECK(r.width() == 0);
  w.run(kPause - 1, 10, 10);
  CHECK(r.state() == State::retreated);
  w.run(1 + kTrial, 10, 10);
  CHECK(r.state() == State::retreated);
  w.run(2 * kPause - 1, 10, 10);
  CHECK(r.state() == State::retreated);
  w.run(1, 10, 10);
  CHECK(r.state() == State::probing);
  CHECK(r.retreats() == 2);
  w.with_us = 950;
  w.run(kTrial, 10, 8);
  CHECK(r.state() == State::on);
}

TEST_CASE("wasted reads make it retreat within one window") {
  Restraint r({});
  Worker w(r);
  w.run(kTrial, 10, 8);
  REQUIRE(r.state() == State::on);
  w.run(64, 10, 2);
  CHECK(r.state() == State::retreated);
  w.run(kPause + kTrial, 10, 4);  // not good enough to return
  CHECK(r.state() == State::retreated);
  w.run(2 * kPause + kTrial, 10, 8);
  CHECK(r.state() == State::on);
}

TEST_CASE("demands that keep the disk busy make it retreat, however right it is") {
  Restraint r({});
  Worker w(r);
  w.run(kTrial, 10, 10);
  w.busy = 0.9;
  w.run(64, 10, 10);
  CHECK(r.state() == State::retreated);
  w.run(5000, 10, 10);
  CHECK(r.state() == State::retreated);
  w.busy = 0.2;
  w.run(4096 + 2 * kTrial, 10, 10);
  CHECK(r.state() == State::on);
}

TEST_CASE("the busier the disk and the worse the guesses, the surer it must be") {
  Restraint r({});
  Worker w(r);
  w.run(kTrial + 64, 10, 7);
  const float idle = r.threshold();
  w.busy = 0.5;
  w.run(64, 10, 7);
  const float busy = r.threshold();
  CHECK(busy > idle);
  w.run(64, 10, 5);
  CHECK(r.threshold() > busy);
  w.run(256, 10, 9);
  CHECK(r.threshold() == Approx(busy).margin(0.01));
}

TEST_CASE("few reads, a new pool and pauses between requests decide nothing") {
  Restraint r({});
  Worker w(r);
  w.run(kTrial, 10, 9);
  w.run(10, 1, 0);
  w.run(200, 0, 0);
  CHECK(r.state() == State::on);
  w.total = {};  // a new pool counts from nothing
  w.run(64, 10, 9);
  CHECK(r.state() == State::on);
  // Idle for an hour, then the next request: a prefill takes a step number.
  w.total.now_ns += 3'600'000'000'000ULL;
  w.total.demand_busy_ns += 3'600'000'000'000ULL;
  ++w.step;
  w.run(64, 10, 9);
  CHECK(r.state() == State::on);
}

TEST_CASE("now and then it proves itself anew") {
  Restraint r({});
  Worker w(r);
  w.run(kTrial + 4096, 10, 9);
  CHECK(r.state() == State::probing);
  w.with_us = 1100;
  w.run(kTrial, 10, 9);
  CHECK(r.state() == State::retreated);
}

TEST_CASE("on is on and off is off") {
  Restraint on({.mode = HintMode::on}), off({.mode = HintMode::off});
  Worker a(on), b(off);
  a.busy = 1;
  a.run(1000, 10, 0);
  b.run(1000, 10, 10);
  CHECK(on.width() == 16);
  CHECK(off.width() == 0);
  CHECK(std::string(on.state_name()) == "on");
  CHECK(std::string(off.state_name()) == "off");
}

TEST_CASE("steps of several workers do not look like a jump") {
  Restraint r({});
  HintCounters total;
  for (std::uint64_t step = 1; step <= 64; ++step)
    for (const std::uint32_t process : {0U, 1U}) {
      total.now_ns += 500'000;
      total.demand_busy_ns += 200'000;
      r.on_step(process, step + 1000ULL * process, total);
    }
  CHECK(r.busy() == Approx(0.4).margin(0.01));
}
