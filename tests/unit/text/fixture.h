// The tokenizer that most tests of text use.
#pragma once

#include "gpu-worker/text/tokenizer.h"
#include "tests/unit/text/test_data.h"

namespace stoker::test {

inline Tokenizer fixture() {
  auto tokenizer = Tokenizer::load(data_path("tokenizer.json"));
  REQUIRE(tokenizer.has_value());
  return std::move(*tokenizer);
}

}  // namespace stoker::test
