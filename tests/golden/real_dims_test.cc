// As golden_test.cc, for the golden with the real model's dimensions: a binary of its own because it is slow.
#include <catch2/catch.hpp>

#include "tests/golden/golden_check.h"

TEST_CASE("golden: real dimensions, F32 scales") { stoker::golden::check_golden("c_real_dims"); }
