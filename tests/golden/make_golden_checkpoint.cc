// make_golden_checkpoint NAME DIRECTORY [TOKENIZER_JSON]: writes a golden's checkpoint without Python.
#include <cstdio>
#include <string>

#include "tests/golden/golden_checkpoint.h"

int main(int argc, char** argv) {
  if (argc < 3 || argc > 4) {
    std::fprintf(stderr,
                 "usage: make_golden_checkpoint NAME DIRECTORY [TOKENIZER_JSON]\n"
                 "NAME is a file in %s, without .json\n",
                 STOKER_GOLDEN_DATA);
    return 2;
  }
  const auto golden = stoker::golden::read_golden(STOKER_GOLDEN_DATA, argv[1]);
  if (!golden) {
    std::fprintf(stderr, "%s\n", golden.error().text().c_str());
    return 1;
  }
  const auto done = stoker::golden::write_checkpoint(*golden, argv[2], argc == 4 ? argv[3] : "");
  if (!done) {
    std::fprintf(stderr, "%s\n", done.error().text().c_str());
    return 1;
  }
  return 0;
}
