#include "checkpoint/config.h"

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "checkpoint/synth.h"
#include "checkpoint/synth_files.h"
#include "tests/unit/checkpoint/scratch.h"

using namespace stoker;
using nlohmann::json;

namespace {

json coder_next() { return json::parse(synth_config_json(*synth_preset("Qwen3-Coder-Next-FP8"))); }

Result<ModelConfig> parse(const json& root) { return parse_model_config(root.dump()); }

}  // namespace

TEST_CASE("the published config is read", "[config]") {
  const auto c = parse(coder_next());
  REQUIRE(c);
  CHECK(c->layers == 48);
  CHECK(c->hidden_size == 2048);
  CHECK(c->rotary_dim == 64);
  CHECK(c->rope_theta == 5e6);
  CHECK(c->rms_norm_eps == 1e-6F);
  CHECK(c->experts == 512);
  CHECK(c->experts_per_token == 10);
  CHECK(c->scale_block_rows == 128);
  CHECK(c->eos_token_ids == std::vector<std::uint32_t>{151645});
  CHECK(std::count(c->mixers.begin(), c->mixers.end(), MixerType::full_attention) == 12);
  CHECK(c->mixers[3] == MixerType::full_attention);
}

TEST_CASE("older and newer spellings mean the same", "[config]") {
  json root = coder_next();
  root.erase("layer_types");
  root["full_attention_interval"] = 4;
  root.erase("rope_theta");
  root.erase("rope_scaling");
  root.erase("partial_rotary_factor");
  root["rope_parameters"] = {
      {"rope_theta", 10000000}, {"rope_type", "default"}, {"partial_rotary_factor", 0.5}};
  root.erase("dtype");
  root["torch_dtype"] = "bfloat16";
  root["eos_token_id"] = {5, 6};
  root.erase("norm_topk_prob");
  const auto c = parse(root);
  REQUIRE(c);
  CHECK(c->mixers[47] == MixerType::full_attention);
  CHECK(c->mixers[46] == MixerType::linear_attention);
  CHECK(c->rope_theta == 1e7);
  CHECK(c->rotary_dim == 128);
  CHECK(c->eos_token_ids == std::vector<std::uint32_t>{5, 6});
  CHECK(c->norm_topk_prob);
}

TEST_CASE("variants are accepted", "[config]") {
  json root = coder_next();
  root["tie_word_embeddings"] = true;
  root["norm_topk_prob"] = false;
  root["shared_expert_intermediate_size"] = 0;
  root.erase("quantization_config");
  root["eos_token_id"] = nullptr;
  const auto c = parse(root);
  REQUIRE(c);
  CHECK(c->tie_word_embeddings);
  CHECK_FALSE(c->norm_topk_prob);
  CHECK(c->shared_intermediate == 0);
  CHECK(c->scale_block_rows == 0);
  CHECK(c->eos_token_ids.empty());
}

TEST_CASE("what cannot be run is refused by name", "[config]") {
  struct Row {
    const char* key;
    json value;
    Errc code;
  };
  const Row rows[] = {
      {"model_type", "llama", Errc::unsupported},
      {"architectures", {"Qwen3NextForSequenceClassification"}, Errc::unsupported},
      {"num_experts", 0, Errc::corrupt},
      {"num_experts", 70000, Errc::corrupt},
      {"num_experts", -1, Errc::corrupt},
      {"num_experts", 1.5, Errc::corrupt},
      {"num_experts", "512", Errc::corrupt},
      {"num_experts_per_tok", 513, Errc::corrupt},
      {"hidden_size", 4294967296ULL, Errc::corrupt},
      {"num_hidden_layers", 0, Errc::corrupt},
      {"num_key_value_heads", 3, Errc::corrupt},
      {"linear_num_key_heads", 5, Errc::corrupt},
      {"layer_types", {"linear_attention"}, Errc::corrupt},
      {"rope_scaling", {{"rope_type", "yarn"}, {"factor", 4}}, Errc::unsupported},
      {"partial_rotary_factor", 0, Errc::unsupported},
      {"rope_theta", "big", Errc::corrupt},
      {"attention_bias", true, Errc::unsupported},
      {"use_sliding_window", true, Errc::unsupported},
      {"hidden_act", "gelu", Errc::unsupported},
      {"dtype", "float16", Errc::unsupported},
      {"decoder_sparse_step", 2, Errc::unsupported},
      {"mlp_only_layers", {0}, Errc::unsupported},
      {"rms_norm_eps", -1.0, Errc::corrupt},
      {"tie_word_embeddings", 1, Errc::corrupt},
      {"eos_token_id", 151936, Errc::corrupt},
      {"quantization_config", {{"quant_method", "awq"}}, Errc::unsupported},
      {"quantization_config", 7, Errc::corrupt},
  };
  for (const Row& row : rows) {
    json root = coder_next();
    root[row.key] = row.value;
    INFO(row.key << " = " << row.value.dump());
    CHECK_FAILS(parse(root), row.code, row.key);
  }
  json root = coder_next();
  root["layer_types"][5] = "sliding_attention";
  CHECK_FAILS(parse(root), Errc::unsupported, "sliding_attention");
  root = coder_next();
  root["quantization_config"]["fmt"] = "e5m2";
  CHECK_FAILS(parse(root), Errc::unsupported, "quantization_config.fmt");
  root = coder_next();
  root["quantization_config"]["weight_block_size"] = {128};
  CHECK_FAILS(parse(root), Errc::unsupported, "weight_block_size");
}

TEST_CASE("missing keys are named", "[config]") {
  for (const char* key :
       {"hidden_size", "num_experts", "num_experts_per_tok", "head_dim", "vocab_size", "rope_theta",
        "linear_conv_kernel_dim", "moe_intermediate_size", "shared_expert_intermediate_size"}) {
    json root = coder_next();
    root.erase(key);
    INFO(key);
    CHECK_FAILS(parse(root), Errc::missing, key);
  }
}

TEST_CASE("hostile JSON is refused", "[config]") {
  CHECK_FAILS(parse_model_config(""), Errc::corrupt, "not valid JSON");
  CHECK_FAILS(parse_model_config("[]"), Errc::corrupt, "not a JSON object");
  CHECK_FAILS(parse_model_config("null"), Errc::corrupt, "not a JSON object");
  CHECK_FAILS(parse_model_config("{\"a\":1,\"a\":2}"), Errc::corrupt, "duplicate key \"a\"");
  CHECK_FAILS(parse_model_config("{\"a\":\"\xFF\"}"), Errc::corrupt, "not valid JSON");
  const std::string deep = "{\"a\":" + std::string(100'000, '[') + std::string(100'000, ']') + "}";
  CHECK_FAILS(parse_model_config(deep), Errc::corrupt, "nested deeper");
}

TEST_CASE("generation_config.json", "[config]") {
  const auto g = parse_generation_config(
      R"({"do_sample":true,"temperature":0.7,"top_p":0.8,"top_k":20,"repetition_penalty":1.05,
          "eos_token_id":[3,4],"transformers_version":"4.57"})");
  REQUIRE(g);
  CHECK(g->do_sample == true);
  CHECK(g->temperature == 0.7F);
  CHECK(g->top_k == 20U);
  CHECK_FALSE(g->min_p.has_value());
  CHECK(g->eos_token_ids == std::vector<std::uint32_t>{3, 4});
  CHECK(parse_generation_config("{}")->eos_token_ids.empty());
  CHECK_FAILS(parse_generation_config(R"({"temperature":-1})"), Errc::corrupt, "temperature");
  CHECK_FAILS(parse_generation_config(R"({"top_p":1.5})"), Errc::corrupt, "top_p");
}
