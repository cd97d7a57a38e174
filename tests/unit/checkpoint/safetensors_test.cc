#include "checkpoint/safetensors.h"

#include <catch2/catch.hpp>

#include "tests/unit/checkpoint/scratch.h"

using namespace stoker;

namespace {

Result<std::vector<TensorInfo>> parse(const std::string& header, std::uint64_t data_bytes) {
  return parse_safetensors_header(header, header.size(), 8 + header.size() + data_bytes);
}

std::string one(const std::string& body) { return "{\"t\":{" + body + "}}"; }

}  // namespace

TEST_CASE("a header is written and read back", "[safetensors]") {
  const std::vector<TensorInfo> tensors = {{"b \"quoted\"\n", DType::bf16, {2, 3}, 0, 12},
                                           {"scalar", DType::f32, {}, 64, 4},
                                           {"codes", DType::f8_e4m3, {5}, 128, 5}};
  const std::string bytes =
      write_safetensors_header(tensors, 64, {{"format", "pt"}, {"model_dir", "/m/\xFF"}});
  REQUIRE(bytes.size() % 64 == 0);
  const auto back =
      parse_safetensors_header(std::string_view(bytes).substr(8), bytes.size() - 8, bytes.size() + 133);
  REQUIRE(back);
  REQUIRE(back->size() == 3);
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK((*back)[i].name == tensors[i].name);
    CHECK((*back)[i].dtype == tensors[i].dtype);
    CHECK((*back)[i].shape == tensors[i].shape);
    CHECK((*back)[i].begin == tensors[i].begin + bytes.size());
    CHECK((*back)[i].bytes == tensors[i].bytes);
  }
}

TEST_CASE("tensors come sorted by offset, holes and other dtypes are allowed", "[safetensors]") {
  const auto t = parse(R"({"b":{"dtype":"F64","shape":[1],"data_offsets":[16,24]},)"
                       R"("a":{"dtype":"U8","shape":[0,7],"data_offsets":[4,4]},)"
                       R"("c":{"data_offsets":[0,4],"shape":[2],"dtype":"BF16"}})",
                       24);
  REQUIRE(t);
  CHECK((*t)[0].name == "c");
  CHECK((*t)[1].name == "a");
  CHECK((*t)[2].name == "b");
  CHECK((*t)[2].dtype == DType::other);
}

TEST_CASE("hostile headers are refused", "[safetensors]") {
  struct Row {
    std::string header;
    Errc code;
    const char* part;
  };
  const Row rows[] = {
      {"", Errc::corrupt, "JSON"},
      {"{", Errc::corrupt, "JSON"},
      {"[]", Errc::corrupt, "not a JSON object"},
      {"7", Errc::corrupt, "not a JSON object"},
      {"{}x", Errc::corrupt, "JSON"},
      {R"({"t":1})", Errc::corrupt, "a number"},
      {R"({"t":null})", Errc::corrupt, "a null"},
      {R"({"t":[]})", Errc::corrupt, "a list"},
      {R"({"":{}})", Errc::corrupt, "name is empty"},
      {one(""), Errc::corrupt, "lacks"},
      {one(R"("dtype":"BF16","shape":[1])"), Errc::corrupt, "lacks"},
      {one(R"("dtype":"BF16","shape":[1],"data_offsets":[0])"), Errc::corrupt, "lacks"},
      {one(R"("dtype":"BF16","shape":[1],"data_offsets":[0,2,4])"), Errc::corrupt, "lacks"},
      {one(R"("dtype":"Q4_K","shape":[1],"data_offsets":[0,2])"), Errc::unsupported, "Q4_K"},
      {one(R"("dtype":["BF16"],"shape":[1],"data_offsets":[0,2])"), Errc::corrupt, "a list"},
      {one(R"("dtype":"BF16","shape":["1"],"data_offsets":[0,2])"), Errc::corrupt, "a string"},
      {one(R"("dtype":"BF16","shape":[-1],"data_offsets":[0,2])"), Errc::corrupt, "negative"},
      {one(R"("dtype":"BF16","shape":[1.0],"data_offsets":[0,2])"), Errc::corrupt, "fraction"},
      {one(R"("dtype":"BF16","shape":[[1]],"data_offsets":[0,2])"), Errc::corrupt, "a list"},
      {one(R"("dtype":"BF16","shape":[{}],"data_offsets":[0,2])"), Errc::corrupt, "an object"},
      {one(R"("dtype":"BF16","shape":[1],"data_offsets":[0,4])"), Errc::corrupt, "need 2 bytes"},
      {one(R"("dtype":"BF16","shape":[1],"data_offsets":[2,0])"), Errc::corrupt, "data_offsets"},
      {one(R"("dtype":"BF16","shape":[64],"data_offsets":[0,128])"), Errc::corrupt, "truncated"},
      {one(R"("dtype":"BF16","shape":[9223372036854775807,3],"data_offsets":[0,2])"), Errc::corrupt,
       "64 bits"},
      {one(R"("dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,18446744073709551615])"),
       Errc::corrupt, "64 bits"},
      {one(R"("dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1])"), Errc::corrupt, "repeated"},
      {one(R"("dtype":"U8","shape":[1],"shape":[1],"data_offsets":[0,1])"), Errc::corrupt, "repeated"},
      {one(R"("dtype":"U8","shape":[1],"data_offsets":[0,1],"more":1)"), Errc::corrupt, "more"},
      {one(R"("dtype":"U8","shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1],"data_offsets":[0,1])"), Errc::corrupt,
       "longer"},
      {R"({"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},
           "t":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
       Errc::corrupt, "appears twice"},
      {R"({"t":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},
           "s":{"dtype":"U8","shape":[4],"data_offsets":[3,7]}})",
       Errc::corrupt, "overlap"},
      {R"({"__metadata__":{"a":1}})", Errc::corrupt, "a number"},
      {R"({"__metadata__":{"a":{}}})", Errc::corrupt, "an object"},
      {R"({"__metadata__":"a"})", Errc::corrupt, "a string"},
      {R"({"__metadata__":{},"__metadata__":{}})", Errc::corrupt, "twice"},
      {"{\"t\xFF\":{}}", Errc::corrupt, "JSON"},
      {std::string(200'000, '['), Errc::corrupt, "list"},
  };
  for (const Row& row : rows) {
    INFO(row.header.substr(0, 120));
    CHECK_FAILS(parse(row.header, 100), row.code, row.part);
  }
}

TEST_CASE("a tensor beyond the file names both sizes", "[safetensors]") {
  const std::string header = one(R"("dtype":"U8","shape":[100],"data_offsets":[0,100])");
  const std::uint64_t whole = 8 + header.size() + 100;
  REQUIRE(parse_safetensors_header(header, header.size(), whole));
  const Error e = test::error_of(parse_safetensors_header(header, header.size(), whole - 1));
  CHECK_THAT(e.message, Catch::Matchers::Contains(std::to_string(whole)) &&
                            Catch::Matchers::Contains(std::to_string(whole - 1)));
  CHECK_FAILS(parse_safetensors_header(header, header.size(), 8), Errc::corrupt, "truncated");
  CHECK_FAILS(parse_safetensors_header(header, 1ULL << 40, 1ULL << 50), Errc::corrupt, "limit");
}

TEST_CASE("files that are no safetensors files are refused with their path", "[safetensors]") {
  const test::ScratchDir dir;
  CHECK_FAILS(read_safetensors_header(dir / "none"), Errc::missing, "none does not exist");
  test::spill(dir / "short", "1234567");
  CHECK_FAILS(read_safetensors_header(dir / "short"), Errc::corrupt, "short has 7 bytes");
  test::spill(dir / "pointer", "version https://git-lfs.github.com/spec/v1\n");
  CHECK_FAILS(read_safetensors_header(dir / "pointer"), Errc::corrupt, "not a safetensors file");
  test::spill(dir / "cut", std::string("\x20\0\0\0\0\0\0\0{}", 10));
  CHECK_FAILS(read_safetensors_header(dir / "cut"), Errc::corrupt, "claims 32 bytes");
  CHECK_FAILS(read_safetensors_header(dir / "."), Errc::invalid, "not a regular file");
}
