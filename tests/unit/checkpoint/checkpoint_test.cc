#include "checkpoint/checkpoint.h"

#include <catch2/catch.hpp>
#include <filesystem>

#include "tests/unit/checkpoint/scratch.h"

using namespace stoker;
using test::edit_header;
using test::replace_once;
using test::ScratchDir;
using test::shard_of;
using test::slurp;
using test::spill;

namespace {

constexpr const char* kIndex = "model.safetensors.index.json";

/// A fresh small checkpoint per test case.
struct Model {
  explicit Model(const std::function<void(SynthSpec&)>& change = {}) {
    SynthSpec spec = test::mini_spec(at);
    if (change) change(spec);
    const auto made = synthesize(spec);
    if (!made) FAIL(made.error().text());
  }
  [[nodiscard]] Result<Checkpoint> open() const { return Checkpoint::open(at); }

  ScratchDir dir;
  std::string at = dir / "model";
};

}  // namespace

TEST_CASE("every format and variant opens", "[checkpoint]") {
  const std::pair<SynthFormat, DType> formats[] = {{SynthFormat::fp8_bf16_scales, DType::f8_e4m3},
                                                   {SynthFormat::fp8_f32_scales, DType::f8_e4m3},
                                                   {SynthFormat::bf16, DType::bf16},
                                                   {SynthFormat::f32, DType::f32}};
  for (const auto& [format, dtype] : formats) {
    const Model model([f = format](SynthSpec& s) { s.format = f; });
    const auto c = model.open();
    if (!c) FAIL(c.error().text());
    CHECK(c->expert_dtype() == dtype);
    CHECK(c->files().size() == 3);
    CHECK(c->find("model.layers.1.self_attn.q_proj.weight")->info.shape ==
          std::vector<std::uint64_t>{512, 256});
    CHECK(c->find("nothing") == nullptr);
  }
  const Model variant([](SynthSpec& s) {
    s.config.tie_word_embeddings = true;
    s.config.shared_intermediate = 0;
    s.config.moe_intermediate = 96;  // ragged tiles: ceil(96 / 128) = 1
    s.config.hidden_size = 320;
    s.shards = 1;
  });
  const auto c = variant.open();
  if (!c) FAIL(c.error().text());
  CHECK(c->find("lm_head.weight") == nullptr);
  CHECK(c->files()[0].path == variant.at + "/model.safetensors");
  CHECK(c->find("model.layers.0.mlp.experts.3.down_proj.weight_scale_inv")->info.shape ==
        std::vector<std::uint64_t>{3, 1});
}

TEST_CASE("the fingerprint follows the content of headers and config", "[checkpoint]") {
  const Model model;
  const std::uint64_t before = model.open()->fingerprint();
  CHECK(model.open()->fingerprint() == before);
  spill(model.at + "/config.json", slurp(model.at + "/config.json") + " ");
  CHECK(model.open()->fingerprint() != before);
}

TEST_CASE("symlinked shards as in the Hugging Face cache are fine", "[checkpoint]") {
  const Model model;
  const std::string shard = shard_of(model.at, "model.norm.weight");
  std::filesystem::rename(shard, model.dir / "blob");
  std::filesystem::create_symlink(model.dir / "blob", shard);
  CHECK(model.open());
}

TEST_CASE("missing files are named", "[checkpoint]") {
  const Model model;
  CHECK_FAILS(Checkpoint::open(model.dir / "nowhere"), Errc::missing, "nowhere does not exist");
  CHECK_FAILS(Checkpoint::open(model.at + "/config.json"), Errc::invalid, "is not a directory");
  CHECK_FAILS(Checkpoint::open(model.dir / "."), Errc::missing, "config.json does not exist");
  const std::string shard = shard_of(model.at, "model.norm.weight");
  std::filesystem::remove(shard);
  CHECK_FAILS(model.open(), Errc::missing, shard);
  std::filesystem::remove(model.at + "/" + kIndex);
  CHECK_FAILS(model.open(), Errc::missing, "neither");
}

TEST_CASE("what this user may not read is named, with the remedy", "[checkpoint]") {
  if (::geteuid() == 0) {
    WARN("skipped: root reads everything");
    return;
  }
  const Model model;
  const std::string shard = shard_of(model.at, "model.norm.weight");
  std::filesystem::permissions(shard, std::filesystem::perms::none);
  CHECK_FAILS(model.open(), Errc::missing, "chmod o+r " + shard);
  std::filesystem::permissions(model.at, std::filesystem::perms::none);
  CHECK_FAILS(model.open(), Errc::missing, "chmod o+x " + model.at);
  CHECK_FAILS(Checkpoint::open(model.at + "/deeper"), Errc::missing, "chmod o+x " + model.at);
  std::filesystem::permissions(model.at, std::filesystem::perms::owner_all);
}

TEST_CASE("a truncated shard states both sizes", "[checkpoint]") {
  const Model model;
  const std::string shard = shard_of(model.at, "model.norm.weight");
  const auto size = std::filesystem::file_size(shard);
  std::filesystem::resize_file(shard, size - 1);
  CHECK_FAILS(model.open(), Errc::corrupt, std::to_string(size));
  CHECK_FAILS(model.open(), Errc::corrupt, std::to_string(size - 1));
  CHECK_FAILS(model.open(), Errc::corrupt, shard);
}

TEST_CASE("tensors that do not fit the config are refused", "[checkpoint]") {
  const std::string norm = "model.layers.0.input_layernorm.weight";
  const std::string expert = "model.layers.1.mlp.experts.2.up_proj.weight";
  SECTION("missing tensor") {
    const Model model;
    edit_header(shard_of(model.at, norm),
                [&](std::string& h) { replace_once(h, norm, "model.layers.0.other"); });
    std::string index = slurp(model.at + "/" + kIndex);
    replace_once(index, norm, "model.layers.0.other");
    spill(model.at + "/" + kIndex, index);
    CHECK_FAILS(model.open(), Errc::missing, norm);
  }
  SECTION("wrong shape") {
    const Model model;
    edit_header(shard_of(model.at, norm), [&](std::string& h) {
      replace_once(h, norm + "\":{\"dtype\":\"BF16\",\"shape\":[256]",
                   norm + "\":{\"dtype\":\"BF16\",\"shape\":[2,128]");
    });
    CHECK_FAILS(model.open(), Errc::corrupt, norm);
    CHECK_FAILS(model.open(), Errc::corrupt, "[2, 128]");
  }
  SECTION("wrong dtype") {
    const Model model;
    edit_header(shard_of(model.at, norm), [&](std::string& h) {
      replace_once(h, norm + "\":{\"dtype\":\"BF16\"", norm + "\":{\"dtype\":\"F16\"");
    });
    CHECK_FAILS(model.open(), Errc::unsupported, "F16");
  }
  SECTION("experts of two dtypes") {
    const Model model;
    edit_header(shard_of(model.at, expert), [&](std::string& h) {
      replace_once(h, expert + "\":{\"dtype\":\"F8_E4M3\"", expert + "\":{\"dtype\":\"U8\"");
    });
    CHECK_FAILS(model.open(), Errc::unsupported, expert);
  }
  SECTION("FP8 without scales") {
    const Model model;
    edit_header(shard_of(model.at, expert + "_scale_inv"),
                [&](std::string& h) { replace_once(h, expert + "_scale_inv", expert + "_scale_xyz"); });
    std::string index = slurp(model.at + "/" + kIndex);
    replace_once(index, expert + "_scale_inv", expert + "_scale_xyz");
    spill(model.at + "/" + kIndex, index);
    CHECK_FAILS(model.open(), Errc::missing, expert + "_scale_inv");
  }
  SECTION("FP8 without quantization_config") {
    const Model model;
    std::string config = slurp(model.at + "/config.json");
    replace_once(config, "quantization_config", "quantization_other");
    spill(model.at + "/config.json", config);
    CHECK_FAILS(model.open(), Errc::corrupt, "no quantization_config");
  }
  SECTION("another tile size than the scales have") {
    const Model model;
    std::string config = slurp(model.at + "/config.json");
    replace_once(config, "\"weight_block_size\": [\n      128", "\"weight_block_size\": [\n      64");
    spill(model.at + "/config.json", config);
    CHECK_FAILS(model.open(), Errc::corrupt, "weight_block_size");
  }
  SECTION("config.json of a larger model") {
    const Model model;
    std::string config = slurp(model.at + "/config.json");
    replace_once(config, "\"num_experts\": 4", "\"num_experts\": 5");
    spill(model.at + "/config.json", config);
    CHECK_FAILS(model.open(), Errc::corrupt, "mlp.gate.weight");
  }
  SECTION("overlapping tensors") {
    const Model model;
    edit_header(shard_of(model.at, "model.norm.weight"), [](std::string& h) {
      const std::string key = "\"model.norm.weight\":{\"dtype\":\"BF16\",\"shape\":[256],\"data_offsets\":[";
      const auto at = h.find(key) + key.size();
      REQUIRE(at > key.size());
      const std::uint64_t begin = std::stoull(h.substr(at));
      REQUIRE(begin >= 2);
      const std::string old = std::to_string(begin) + "," + std::to_string(begin + 512) + "]";
      replace_once(h, old, std::to_string(begin - 2) + "," + std::to_string(begin + 510) + "]");
    });
    CHECK_FAILS(model.open(), Errc::corrupt, "overlap");
  }
}

TEST_CASE("other layouts are named as such", "[checkpoint]") {
  const auto rename = [](const Model& model, const std::string& from, const std::string& to) {
    edit_header(shard_of(model.at, from),
                [&](std::string& h) { replace_once(h, "\"" + from + "\"", "\"" + to + "\""); });
    std::string index = slurp(model.at + "/" + kIndex);
    replace_once(index, "\"" + from + "\"", "\"" + to + "\"");
    spill(model.at + "/" + kIndex, index);
  };
  SECTION("fused experts") {
    const Model model;
    rename(model, "model.layers.0.mlp.experts.0.gate_proj.weight", "model.layers.0.mlp.experts.gate_up_proj");
    CHECK_FAILS(model.open(), Errc::unsupported, "fused");
  }
  SECTION("split linear attention") {
    const Model model;
    rename(model, "model.layers.0.linear_attn.in_proj_qkvz.weight",
           "model.layers.0.linear_attn.in_proj_qkv.weight");
    CHECK_FAILS(model.open(), Errc::unsupported, "split");
  }
  SECTION("extra tensors are ignored") {
    const Model model;
    std::string index = slurp(model.at + "/" + kIndex);
    const std::string shard = shard_of(model.at, "model.norm.weight");
    edit_header(shard, [](std::string& h) {
      replace_once(h, "{", "{\"mtp.fc.weight\":{\"dtype\":\"BF16\",\"shape\":[0],\"data_offsets\":[0,0]},");
    });
    replace_once(
        index, "\"weight_map\": {",
        "\"weight_map\": {\"mtp.fc.weight\":\"" + std::filesystem::path(shard).filename().string() + "\",");
    spill(model.at + "/" + kIndex, index);
    const auto c = model.open();
    if (!c) FAIL(c.error().text());
    CHECK(c->find("mtp.fc.weight") != nullptr);
  }
}

TEST_CASE("a bad index is refused", "[checkpoint]") {
  const Model model;
  const std::string path = model.at + "/" + kIndex;
  const std::string good = slurp(path);
  const auto with = [&](const std::string& text) {
    spill(path, text);
    return model.open();
  };
  CHECK_FAILS(with("{}"), Errc::corrupt, "no weight_map");
  CHECK_FAILS(with("[1]"), Errc::corrupt, "weight_map");
  CHECK_FAILS(with("7"), Errc::corrupt, "not a JSON object");
  CHECK_FAILS(with(good.substr(0, good.size() / 2)), Errc::corrupt, "not valid JSON");
  CHECK_FAILS(with(R"({"weight_map":{"a":"../../etc/passwd"}})"), Errc::corrupt, "plain file names");
  CHECK_FAILS(with(R"({"weight_map":{"a":1}})"), Errc::corrupt, "not a file name");
  CHECK_FAILS(with(R"({"weight_map":{"a":{}}})"), Errc::corrupt, "object");
  CHECK_FAILS(with(R"({"weight_map":{"a":"x.safetensors","a":"y.safetensors"}})"), Errc::corrupt,
              "mapped twice");
  CHECK_FAILS(with(R"({"weight_map":{},"weight_map":{}})"), Errc::corrupt, "twice");
  CHECK_FAILS(with(R"({"weight_map":{"a":"gone.safetensors"}})"), Errc::missing, "gone.safetensors");
  std::string moved = good;
  const std::string key = "\"model.norm.weight\": \"";
  const auto at = moved.find(key) + key.size();
  moved.replace(at, std::string("model-00003").size(), "model-00001");
  REQUIRE(moved != good);
  CHECK_FAILS(with(moved), Errc::corrupt, "model.norm.weight");
  CHECK(with(good));
}
