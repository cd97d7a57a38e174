#include "checkpoint/verify.h"

#include <catch2/catch.hpp>
#include <filesystem>

#include "tests/unit/checkpoint/scratch.h"

using namespace stoker;
using test::ScratchDir;

namespace {

/// Overwrites bytes of a tensor in its shard.
void poke(const std::string& directory, const std::string& tensor, std::uint64_t at,
          const std::string& bytes) {
  const auto checkpoint = Checkpoint::open(directory);
  REQUIRE(checkpoint);
  const TensorRef* ref = checkpoint->find(tensor);
  REQUIRE(ref != nullptr);
  std::fstream file(checkpoint->files()[ref->file.value].path,
                    std::ios::binary | std::ios::in | std::ios::out);
  file.seekp(static_cast<std::streamoff>(ref->info.begin + at));
  file << bytes;
  REQUIRE(file.good());
}

const VerifyProblem* find(const VerifyReport& report, const std::string& tensor) {
  for (const VerifyProblem& problem : report.problems)
    if (problem.tensor == tensor) return &problem;
  return nullptr;
}

}  // namespace

TEST_CASE("a good checkpoint verifies and is counted", "[verify]") {
  const ScratchDir dir;
  for (SynthFormat format : {SynthFormat::fp8_bf16_scales, SynthFormat::fp8_f32_scales, SynthFormat::bf16}) {
    SynthSpec spec = test::mini_spec(dir / "m");
    spec.format = format;
    spec.force = true;
    const auto made = synthesize(spec);
    REQUIRE(made);
    VerifyProgress last;
    const auto report = verify_checkpoint(spec.directory, {}, [&](const VerifyProgress& p) {
      last = p;
      return true;
    });
    if (!report) FAIL(report.error().text());
    CHECK(report->good());
    CHECK(report->tensors == made->tensors);
    CHECK(report->tensor_bytes == made->tensor_bytes);
    CHECK(report->files == 3);
    CHECK(last.done_bytes == report->file_bytes);
    if (format == SynthFormat::bf16) {
      CHECK(report->scales == 0);
    } else {
      CHECK(report->scales > 48);
      CHECK(report->scale_min > 0);
      CHECK(report->scale_max < 1e-2F);
      CHECK(report->scale_min < report->scale_max);
    }
  }
}

TEST_CASE("bad values are found, with tensor and index", "[verify]") {
  const ScratchDir dir;
  const SynthSpec spec = test::mini_spec(dir / "m");
  REQUIRE(synthesize(spec));
  const std::string expert = "model.layers.1.mlp.experts.2.up_proj.weight";
  poke(spec.directory, expert, 777, "\x7F");
  poke(spec.directory, expert, 901, "\xFF");
  poke(spec.directory, expert + "_scale_inv", 2, std::string("\x80\xFF", 2));                     // -infinity
  poke(spec.directory, "model.layers.0.input_layernorm.weight", 20, std::string("\xC0\x7F", 2));  // NaN
  const auto report = verify_checkpoint(spec.directory);
  REQUIRE(report);
  CHECK(report->problems_total == 3);
  const VerifyProblem* codes = find(*report, expert);
  REQUIRE(codes != nullptr);
  CHECK(codes->index == 777);
  CHECK(codes->count == 2);
  CHECK_THAT(codes->text(),
             Catch::Matchers::Contains(expert) && Catch::Matchers::Contains("element 777 (and 1 more)"));
  const VerifyProblem* scale = find(*report, expert + "_scale_inv");
  REQUIRE(scale != nullptr);
  CHECK(scale->index == 1);
  CHECK_THAT(scale->what, Catch::Matchers::Contains("scale"));
  const VerifyProblem* norm = find(*report, "model.layers.0.input_layernorm.weight");
  REQUIRE(norm != nullptr);
  CHECK(norm->index == 10);
  CHECK(report->scale_min > 0);  // of the finite ones

  VerifyOptions options;
  options.problems_max = 1;
  const auto shorter = verify_checkpoint(spec.directory, options);
  REQUIRE(shorter);
  CHECK(shorter->problems.size() == 1);
  CHECK(shorter->problems_total == 3);
}

TEST_CASE("largest finite codes and values are good", "[verify]") {
  const ScratchDir dir;
  const SynthSpec spec = test::mini_spec(dir / "m");
  REQUIRE(synthesize(spec));
  poke(spec.directory, "model.layers.1.mlp.experts.2.up_proj.weight", 5, "\x7E\xFE\x80");
  poke(spec.directory, "model.norm.weight", 0, std::string("\x7F\x7F\x7F\xFF", 4));
  const auto report = verify_checkpoint(spec.directory);
  REQUIRE(report);
  CHECK(report->good());
}

TEST_CASE("shards in the Hugging Face cache are compared with their hash", "[verify]") {
  const ScratchDir dir;
  SynthSpec spec = test::mini_spec(dir / "m");
  spec.shards = 1;
  spec.locality = false;
  REQUIRE(synthesize(spec));
  const std::string shard = spec.directory + "/model.safetensors";
  // A wrong promise; what it should have been comes back in the message.
  const std::string wrong(64, '0');
  std::filesystem::rename(shard, dir / wrong);
  std::filesystem::create_symlink(dir / wrong, shard);
  const auto report = verify_checkpoint(spec.directory);
  REQUIRE(report);
  CHECK(report->hashed_files == 1);
  REQUIRE(report->problems_total == 1);
  const std::string& what = report->problems[0].what;
  const std::string right = what.substr(std::string("SHA-256 is ").size(), 64);
  std::filesystem::remove(shard);
  std::filesystem::rename(dir / wrong, dir / right);
  std::filesystem::create_symlink(dir / right, shard);
  const auto again = verify_checkpoint(spec.directory);
  REQUIRE(again);
  CHECK(again->good());
  CHECK(again->hashed_files == 1);
  const std::string command = "sha256sum '" + (dir / right) + "' | cut -c1-64 > '" + (dir / "sum") + "'";
  if (std::system(command.c_str()) == 0) CHECK(test::slurp(dir / "sum") == right + "\n");
  VerifyOptions options;
  options.hash = false;
  CHECK(verify_checkpoint(spec.directory, options)->hashed_files == 0);
}

TEST_CASE("verify passes on errors of open and can be cancelled", "[verify]") {
  const ScratchDir dir;
  CHECK_FAILS(verify_checkpoint(dir / "none"), Errc::missing, "none");
  const SynthSpec spec = test::mini_spec(dir / "m");
  REQUIRE(synthesize(spec));
  CHECK_FAILS(verify_checkpoint(spec.directory, {}, [](const VerifyProgress&) { return false; }),
              Errc::cancelled, "cancelled");
}
