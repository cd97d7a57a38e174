#include <catch2/catch.hpp>

#include "daemons/common/size.h"

using stoker::Errc;
using stoker::parse_size;
using stoker::Size;

TEST_CASE("sizes are read in all the forms people write") {
  CHECK(parse_size("4096")->bytes == 4096);
  CHECK(parse_size("8GiB")->bytes == 8ULL << 30);
  CHECK(parse_size("8 gb")->bytes == 8ULL << 30);
  CHECK(parse_size("512M")->bytes == 512ULL << 20);
  CHECK(parse_size("1.5k")->bytes == 1536);
  CHECK(parse_size("2TiB")->bytes == 2ULL << 40);
  CHECK(parse_size("0")->bytes == 0);
  CHECK(parse_size("25%")->of(1000) == 250);
  CHECK(parse_size("8GiB")->of(1000) == 8ULL << 30);
}

TEST_CASE("sizes that make no sense are refused with the accepted forms") {
  for (const char* text :
       {"", "GiB", "-1", "8 parsecs", "101%", "0%", "-5%", "1e30", "nan", "inf", "99999999T", "8GiBx"}) {
    INFO(text);
    const auto size = parse_size(text);
    REQUIRE_FALSE(size.has_value());
    CHECK(size.error().code == Errc::invalid);
    CHECK(size.error().message.find("8GiB") != std::string::npos);
  }
}

TEST_CASE("a size survives printing and reading") {
  for (const Size size : {Size{.bytes = 123456789, .percent = 0}, Size{.bytes = 0, .percent = 12.5}})
    CHECK(*parse_size(stoker::format_size(size)) == size);
  CHECK(stoker::format_bytes(8ULL << 30) == "8.0 GiB");
  CHECK(stoker::format_bytes(12) == "12 bytes");
}

TEST_CASE("the machine has memory and this process uses some of it") {
  CHECK(stoker::machine_memory() > stoker::resident_memory());
  CHECK(stoker::resident_memory() > 0);
}
