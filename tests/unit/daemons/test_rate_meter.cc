#include <catch2/catch.hpp>

#include "daemons/worker/rate_meter.h"

using namespace stoker;
using namespace std::chrono_literals;

TEST_CASE("rates count complete seconds and forget") {
  RateMeter meter;
  for (int i = 0; i < 10; ++i) meter.add(1000s + 100ms * i, 3);
  CHECK(meter.per_second(1000s + 500ms, 1) == 0);  // this second is not over
  CHECK(meter.per_second(1001s, 1) == 30);
  CHECK(meter.per_second(1001s, 60) == Approx(0.5));
  CHECK(meter.per_second(1002s, 1) == 0);
  CHECK(meter.per_second(1060s, 60) == Approx(0.5));
  CHECK(meter.per_second(1061s, 60) == 0);
}

TEST_CASE("a long pause leaves nothing behind") {
  RateMeter meter;
  for (int i = 0; i < 200; ++i) meter.add(1000s + 1s * i, 1);
  CHECK(meter.per_second(1200s, 60) == Approx(1));
  CHECK(meter.per_second(100'000s, 60) == 0);
  meter.add(100'000s, 5);
  CHECK(meter.per_second(100'001s, 1) == 5);
}
