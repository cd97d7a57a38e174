#include "checkpoint/synth.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "checkpoint/synth_files.h"
#include "checkpoint/synth_layout.h"
#include "checkpoint/synth_routing.h"
#include "checkpoint/synth_values.h"
#include "tests/unit/checkpoint/routing_rates.h"
#include "tests/unit/checkpoint/scratch.h"

using namespace stoker;
using test::ScratchDir;
using test::slurp;

TEST_CASE("the full-size twin has exactly the published tensors", "[synth]") {
  SynthSpec spec = *synth_preset("Qwen3-Coder-Next-FP8");
  const auto report = synth_plan(spec);
  REQUIRE(report);
  CHECK(report->tensors == 148'383);
  CHECK(report->tensor_bytes == 80'362'904'064ULL);
  CHECK(report->files == 40);
  spec.sparse = true;
  const auto sparse = synth_plan(spec);
  REQUIRE(sparse);
  CHECK(sparse->tensor_bytes == report->tensor_bytes);
  CHECK(sparse->experts == 24'576);
  CHECK(sparse->real_experts > 600);
  CHECK(sparse->real_experts < 900);
  CHECK(sparse->written_bytes == 80'362'904'064ULL - (sparse->experts - sparse->real_experts) * 3'145'728ULL);
}

TEST_CASE("config.json reads back to the spec", "[synth]") {
  for (const char* name : {"tiny", "bench", "Qwen3-Coder-Next-FP8"}) {
    const SynthSpec spec = *synth_preset(name);
    const auto config = parse_model_config(synth_config_json(spec));
    REQUIRE(config);
    CHECK(config->mixers == spec.config.mixers);
    CHECK(config->rotary_dim == spec.config.rotary_dim);
    CHECK(config->experts == spec.config.experts);
    CHECK(config->eos_token_ids == spec.config.eos_token_ids);
    CHECK(config->scale_block_cols == 128);
    CHECK(parse_generation_config(synth_generation_json(spec)));
  }
  CHECK_FAILS(synth_preset("huge"), Errc::invalid, "huge");
}

TEST_CASE("shards are in the order of the standard serialiser", "[synth]") {
  for (const SynthShard& shard : synth_shards(*synth_preset("tiny")))
    for (std::size_t i = 1; i < shard.tensors.size(); ++i) {
      const TensorInfo &a = shard.tensors[i - 1].info, &b = shard.tensors[i].info;
      CHECK(a.begin + a.bytes == b.begin);
      CHECK((a.dtype == b.dtype ? a.name < b.name : a.dtype == DType::bf16));
    }
}

TEST_CASE("the same seed gives the same bytes with any number of threads", "[synth]") {
  const ScratchDir dir;
  SynthSpec spec = test::mini_spec(dir / "a");
  spec.threads = 1;
  REQUIRE(synthesize(spec));
  spec.directory = dir / "b";
  spec.threads = 5;
  REQUIRE(synthesize(spec));
  spec.directory = dir / "c";
  spec.seed = 2;
  REQUIRE(synthesize(spec));
  bool seed_matters = false;
  std::size_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(dir / "a")) {
    const std::string name = entry.path().filename().string();
    CHECK(slurp(dir / "a/" + name) == slurp(dir / "b/" + name));
    seed_matters |= slurp(dir / "a/" + name) != slurp(dir / "c/" + name);
    ++files;
  }
  CHECK(files == 6);
  CHECK(seed_matters);
}

TEST_CASE("values are finite and of the stated size", "[synth]") {
  SynthSpec spec = *synth_preset("tiny");
  spec.locality = GENERATE(false, true);
  const SynthValues values(spec);
  for (const SynthShard& shard : synth_shards(spec))
    for (const SynthTensor& tensor : shard.tensors) {
      const std::uint64_t n = std::min<std::uint64_t>(tensor.info.elements(), 4096);
      if (tensor.info.dtype == DType::f8_e4m3) {
        std::vector<std::byte> codes(n);
        values.fill(tensor, 0, codes);
        CHECK(std::none_of(codes.begin(), codes.end(),
                           [](std::byte b) { return (b & std::byte{0x7F}) == std::byte{0x7F}; }));
        continue;
      }
      std::vector<float> x(n);
      values.fill_floats(tensor, 0, x);
      double sum = 0, squares = 0;
      for (float v : x) {
        REQUIRE(std::isfinite(v));
        sum += v;
        squares += double{v} * v;
        if (tensor.scale) CHECK(v > 0);
      }
      if (tensor.scale || n < 1024) continue;
      INFO(tensor.info.name);
      const double mean = sum / static_cast<double>(n), size = std::sqrt(squares / static_cast<double>(n));
      CHECK(std::fabs(mean) < 0.2 * size);
      if (tensor.role == TensorRole::embedding) CHECK(size == Approx(1.0).epsilon(0.2));
      if (tensor.role == TensorRole::in_proj_ba) CHECK(size == Approx(1.0 / 16).epsilon(0.1));
    }
}

TEST_CASE("parts of a tensor can be filled alone", "[synth]") {
  SynthSpec spec = *synth_preset("tiny");
  spec.locality = true;
  const SynthValues values(spec);
  for (const SynthShard& shard : synth_shards(spec))
    for (const SynthTensor& tensor : shard.tensors) {
      if (tensor.info.elements() < 64) continue;
      const std::size_t width = dtype_bytes(tensor.info.dtype);
      std::vector<std::byte> whole(64 * width), part(24 * width);
      values.fill(tensor, 0, whole);
      values.fill(tensor, 16, part);
      REQUIRE(std::equal(part.begin(), part.end(), whole.begin() + static_cast<std::ptrdiff_t>(16 * width)));
    }
}

TEST_CASE("sparse checkpoints have holes where most experts are, and valid scales", "[synth]") {
  const ScratchDir dir;
  SynthSpec spec = test::mini_spec(dir / "m");
  spec.sparse = true;
  spec.config.experts = 64;
  spec.real_share = 0.25;
  const auto report = synthesize(spec);
  REQUIRE(report);
  CHECK(report->real_experts > 0);
  CHECK(report->real_experts < report->experts);
  const auto checkpoint = Checkpoint::open(spec.directory);
  REQUIRE(checkpoint);
  std::size_t real = 0;
  for (std::uint32_t e = 0; e < 128; ++e) {
    const std::string name = "model.layers." + std::to_string(e / 64) + ".mlp.experts." +
                             std::to_string(e % 64) + ".gate_proj.weight";
    const TensorRef* ref = checkpoint->find(name);
    const std::string bytes =
        slurp(checkpoint->files()[ref->file.value].path).substr(ref->info.begin, ref->info.bytes);
    real += bytes.find_first_not_of('\0') != std::string::npos;
    const TensorRef* scale = checkpoint->find(name + "_scale_inv");
    const std::string scales =
        slurp(checkpoint->files()[scale->file.value].path).substr(scale->info.begin, scale->info.bytes);
    CHECK(scales.find_first_not_of('\0') != std::string::npos);
  }
  CHECK(real == report->real_experts);
}

TEST_CASE("synth refuses what it cannot or must not do", "[synth]") {
  const ScratchDir dir;
  SynthSpec spec = test::mini_spec(dir / "m");
  REQUIRE(synthesize(spec));
  CHECK_FAILS(synthesize(spec), Errc::invalid, "--force");
  spec.force = true;
  CHECK(synthesize(spec));
  CHECK_FALSE(std::filesystem::exists(dir / "m.replaced"));
  std::filesystem::create_directory(dir / "precious");
  test::spill(dir / "precious/file", "x");
  spec.directory = dir / "precious";
  CHECK_FAILS(synthesize(spec), Errc::invalid, "not replacing");
  CHECK(slurp(dir / "precious/file") == "x");

  spec.directory = dir / "n";
  spec.tokenizer_path = dir / "no-tokenizer.json";
  CHECK_FAILS(synthesize(spec), Errc::missing, "no-tokenizer.json");
  spec.tokenizer_path.clear();
  spec.config.experts_per_token = 5;
  CHECK_FAILS(synthesize(spec), Errc::invalid, "num_experts_per_tok");
  spec = test::mini_spec(dir / "n");
  CHECK_FAILS(synthesize(spec, [](const SynthProgress&) { return false; }), Errc::cancelled, "cancelled");
  spec.directory = dir / "none/n";
  CHECK_FAILS(synthesize(spec), Errc::io, "none");
  SynthSpec huge = *synth_preset("Qwen3-Coder-Next-FP8");
  huge.config.layers = 1024;  // 1.7 TB
  huge.config.mixers.assign(1024, MixerType::linear_attention);
  huge.config.experts = 64;
  huge.config.moe_intermediate = 16384;
  huge.directory = dir / "n";
  CHECK_FAILS(synthesize(huge), Errc::no_memory, "free");
  CHECK_FALSE(std::filesystem::exists(dir / "n"));
  CHECK_FALSE(std::filesystem::exists(dir / "n.partial"));
}

TEST_CASE("tokenizer and template are copied, progress ends at the total", "[synth]") {
  const ScratchDir dir;
  test::spill(dir / "tok", "{}");
  test::spill(dir / "tpl", "{{ x }}");
  SynthSpec spec = test::mini_spec(dir / "m");
  spec.tokenizer_path = dir / "tok";
  spec.template_path = dir / "tpl";
  spec.routing_tokens = 50;
  SynthProgress last;
  REQUIRE(synthesize(spec, [&](const SynthProgress& p) {
    last = p;
    return true;
  }));
  CHECK(last.done_bytes == last.total_bytes);
  CHECK(last.total_bytes > 0);
  CHECK(slurp(dir / "m/tokenizer.json") == "{}");
  CHECK(slurp(dir / "m/chat_template.jinja") == "{{ x }}");
  const std::string ids = slurp(dir / "m/routing_tokens.txt");
  CHECK(std::count(ids.begin(), ids.end(), '\n') == 50);
}

TEST_CASE("the planted walk has the calibrated cache hit rates", "[synth]") {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  WARN("skipped: a minute of arithmetic on one thread, which a sanitizer has nothing to say about");
  return;
#endif
  SynthSpec spec = *synth_preset("bench");
  spec.config.hidden_size = 256;  // the distribution of the logits does not depend on it
  const auto rates = test::measure_routing(spec, 2, 3000, {64, 128});
  INFO("LRU-64 " << rates.lru.at(64) << ", LRU-128 " << rates.lru.at(128) << ", overlap " << rates.overlap
                 << ", top quarter " << rates.top_quarter);
  CHECK(rates.lru.at(64) == Approx(0.67).margin(0.03));
  CHECK(rates.lru.at(128) == Approx(0.81).margin(0.03));
  CHECK(rates.overlap == Approx(0.42).margin(0.06));
  CHECK(rates.top_quarter == Approx(0.65).margin(0.07));

  // What it is there for: the same routers without planted directions.
  spec.routing.common = spec.routing.topic = spec.routing.subtopic = 0;
  const auto random = test::measure_routing(spec, 1, 1000, {64, 128});
  CHECK(random.lru.at(128) < 0.3);
}

TEST_CASE("the walk stays in its vocabulary and in its subtopics", "[synth]") {
  SynthSpec spec = *synth_preset("bench");
  for (std::uint32_t vocab : {151'669U, 2'000U, 40U, 1U}) {
    spec.routing_vocab = vocab;
    const RoutingModel model(spec);
    const auto ids = model.walk(4000);
    REQUIRE(ids.size() == 4000);
    CHECK(*std::max_element(ids.begin(), ids.end()) < vocab);
    if (vocab < 10'000) continue;
    std::size_t stays = 0;
    for (std::size_t i = 1; i < ids.size(); ++i)
      stays += model.subtopic(ids[i]) == model.subtopic(ids[i - 1]);
    CHECK(static_cast<double>(stays) / 4000 == Approx(1 - 1 / 3.0 - 1 / 70.0).margin(0.05));
  }
}
