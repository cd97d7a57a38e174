#include <catch2/catch.hpp>

#include "daemons/loader/budget.h"
#include "shm/base/types.h"

using namespace stoker;

namespace {
BudgetRequest request() {
  return {.ram = 8_GiB,
          .ram_is_explicit = true,
          .pool_slots = 0,
          .weights_bytes = 3_GiB,
          .slot_bytes = 3_MiB,
          .expert_count = 48 * 512,
          .experts_per_token = 10};
}
}  // namespace

TEST_CASE("the budget is used and never exceeded") {
  const auto budget = plan_budget(request());
  REQUIRE(budget.has_value());
  CHECK(budget->total_bytes <= 8_GiB);
  CHECK(budget->total_bytes > 8_GiB - 4_MiB);
  CHECK(budget->slots > 1690);
  CHECK(budget->slots < 1707);
}

TEST_CASE("a pool never holds more than the model has") {
  BudgetRequest r = request();
  r.ram = 1024_GiB;
  CHECK(plan_budget(r)->slots == 48 * 512);
  r.pool_slots = 1'000'000;
  CHECK(plan_budget(r)->slots == 48 * 512);
}

TEST_CASE("a pool too small for one layer's choice is refused with both numbers and the remedy") {
  BudgetRequest r = request();
  r.ram = 3_GiB + 25_MiB;  // room for 8 slots of 3 MiB at most
  const auto small = plan_budget(r);
  REQUIRE_FALSE(small.has_value());
  CHECK(small.error().code == Errc::no_memory);
  CHECK(small.error().message.find("10") != std::string::npos);
  CHECK(small.error().message.find("--ram") != std::string::npos);
  r.ram = 1_GiB;  // not even the weights
  CHECK_FALSE(plan_budget(r).has_value());
  r = request();
  r.ram_is_explicit = false;
  r.pool_slots = 9;
  const auto nine = plan_budget(r);
  REQUIRE_FALSE(nine.has_value());
  CHECK(nine.error().message.find("9 experts") != std::string::npos);
  r.pool_slots = 10;
  CHECK(plan_budget(r)->slots == 10);
}

TEST_CASE("the least budget that the error names is enough") {
  BudgetRequest r = request();
  r.pool_slots = 10;
  r.ram_is_explicit = false;
  const std::uint64_t least = plan_budget(r)->total_bytes;
  r.pool_slots = 0;
  r.ram = least + kPageBytes;
  REQUIRE(plan_budget(r).has_value());
  CHECK(plan_budget(r)->slots == 10);
}

TEST_CASE("--pool-slots beyond an explicit --ram is a contradiction") {
  BudgetRequest r = request();
  r.pool_slots = 10'000;
  CHECK_FALSE(plan_budget(r).has_value());
  r.ram_is_explicit = false;
  CHECK(plan_budget(r)->slots == 10'000);
}
