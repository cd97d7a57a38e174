#include "checkpoint/config.h"

#include <cmath>

#include "checkpoint/json_input.h"

namespace stoker {

using nlohmann::json;

namespace {

/// Reads typed keys of one JSON object; the first problem is kept and later reads return defaults, so
/// that the list of keys below reads straight down.
class KeyReader {
 public:
  KeyReader(const json& object, std::string file) : object_(object), file_(std::move(file)) {}

  [[nodiscard]] const json* find(const char* key) const {
    const auto it = object_.find(key);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }

  std::uint32_t count(const char* key, std::uint32_t min, std::uint32_t max) {
    const json* value = find(key);
    if (value == nullptr) return refuse<std::uint32_t>(Errc::missing, key, "is missing");
    return count(*value, key, min, max);
  }

  std::uint32_t count(const json& value, const std::string& key, std::uint32_t min, std::uint32_t max) {
    if (value.is_number_unsigned()) {
      const auto n = value.get<std::uint64_t>();
      if (n >= min && n <= max) return static_cast<std::uint32_t>(n);
    }
    return refuse<std::uint32_t>(Errc::corrupt, key,
                                 "is " + json_excerpt(value) + "; an integer from " + std::to_string(min) +
                                     " to " + std::to_string(max) + " is supported");
  }

  double number(const json& value, const std::string& key, double min, double max) {
    const double x = value.is_number() ? value.get<double>() : NAN;
    if (x >= min && x <= max) return x;  // false for NaN
    return refuse<double>(Errc::corrupt, key,
                          "is " + json_excerpt(value) + "; a number from " + short_text(min) + " to " +
                              short_text(max) + " is supported");
  }

  bool flag(const char* key, bool absent) {
    const json* value = find(key);
    if (value == nullptr) return absent;
    if (value->is_boolean()) return value->get<bool>();
    return refuse<bool>(Errc::corrupt, key, "is " + json_excerpt(*value) + "; true or false is supported");
  }

  std::string text(const char* key, const std::string& absent) {
    const json* value = find(key);
    if (value == nullptr) return absent;
    if (value->is_string()) return value->get<std::string>();
    return refuse<std::string>(Errc::corrupt, key, "is " + json_excerpt(*value) + "; a string is supported");
  }

  /// Token ids: an integer, a list of them, or nothing.
  std::vector<std::uint32_t> ids(const char* key, std::uint32_t id_max) {
    const json* value = find(key);
    std::vector<std::uint32_t> out;
    if (value == nullptr) return out;
    if (!value->is_array()) return {count(*value, key, 0, id_max)};
    if (value->size() > 64)
      return refuse<std::vector<std::uint32_t>>(Errc::corrupt, key, "lists more than 64 ids");
    for (const json& id : *value) out.push_back(count(id, key, 0, id_max));
    return out;
  }

  template <class T>
  T refuse(Errc code, const std::string& key, const std::string& problem) {
    if (!error_) error_ = Error{code, 0, file_ + ": \"" + key + "\" " + problem};
    return T{};
  }

  [[nodiscard]] const std::optional<Error>& error() const { return error_; }

 private:
  static std::string short_text(double x) { return json(x).dump(); }

  const json& object_;
  std::string file_;
  std::optional<Error> error_;
};

constexpr std::uint32_t kLayersMax = 1024;
constexpr std::uint32_t kWidthMax = 65536;
constexpr std::uint32_t kExpertsMax = 65535;  // ExpertId is 16 bits, kNone-like values stay free

void read_architecture(KeyReader& keys, ModelConfig& config) {
  config.architecture = keys.text("model_type", "");
  const json* names = keys.find("architectures");
  const std::string shown = names == nullptr ? "none" : json_excerpt(*names);
  if (config.architecture != "qwen3_next")
    keys.refuse<int>(Errc::unsupported, "model_type",
                     "is \"" + printable(config.architecture, 60) + "\" (architectures: " + shown +
                         "); only \"qwen3_next\" (Qwen3NextForCausalLM) is supported");
  else if (names != nullptr && shown != "[\"Qwen3NextForCausalLM\"]")
    keys.refuse<int>(Errc::unsupported, "architectures",
                     "is " + shown + "; only [\"Qwen3NextForCausalLM\"] is supported");
}

void read_mixers(KeyReader& keys, ModelConfig& config) {
  const json* types = keys.find("layer_types");
  if (types == nullptr) {
    const json* interval_value = keys.find("full_attention_interval");
    const std::uint32_t interval =
        interval_value == nullptr ? 4 : keys.count("full_attention_interval", 1, kLayersMax);
    if (interval == 0) return;  // refused above
    for (std::uint32_t i = 0; i < config.layers; ++i)
      config.mixers.push_back((i + 1) % interval == 0 ? MixerType::full_attention
                                                      : MixerType::linear_attention);
    return;
  }
  if (!types->is_array() || types->size() != config.layers) {
    keys.refuse<int>(Errc::corrupt, "layer_types",
                     "is not a list of num_hidden_layers = " + std::to_string(config.layers) + " strings");
    return;
  }
  for (const json& type : *types) {
    if (type == "linear_attention")
      config.mixers.push_back(MixerType::linear_attention);
    else if (type == "full_attention")
      config.mixers.push_back(MixerType::full_attention);
    else
      keys.refuse<int>(
          Errc::unsupported, "layer_types",
          "contains " + json_excerpt(type) + "; \"linear_attention\" and \"full_attention\" are supported");
  }
}

/// Older files keep the RoPE numbers at top level (with rope_scaling null), newer ones in rope_parameters.
void read_rope(KeyReader& keys, ModelConfig& config) {
  const json* nested = keys.find("rope_parameters");
  if (nested != nullptr && !nested->is_object()) {
    keys.refuse<int>(Errc::corrupt, "rope_parameters", "is not an object");
    return;
  }
  const auto pick = [&](const char* key) -> const json* {
    if (nested != nullptr) {
      const auto it = nested->find(key);
      if (it != nested->end() && !it->is_null()) return &*it;
    }
    return keys.find(key);
  };
  if (const json* scaling = keys.find("rope_scaling"); scaling != nullptr) {
    const json type =
        scaling->is_object() ? scaling->value("rope_type", scaling->value("type", json())) : json();
    if (type != "default")
      keys.refuse<int>(Errc::unsupported, "rope_scaling",
                       "is " + json_excerpt(*scaling) + "; only null (no RoPE scaling) is supported");
  }
  if (const json* type = nested == nullptr ? nullptr : pick("rope_type");
      type != nullptr && *type != "default")
    keys.refuse<int>(Errc::unsupported, "rope_parameters.rope_type",
                     "is " + json_excerpt(*type) + "; only \"default\" is supported");
  const json* theta = pick("rope_theta");
  if (theta == nullptr)
    keys.refuse<int>(Errc::missing, "rope_theta", "is missing (at top level or in rope_parameters)");
  else
    config.rope_theta = keys.number(*theta, "rope_theta", 1.0, 1e15);
  const json* factor = pick("partial_rotary_factor");
  // 0.25 is what the Hugging Face class injects when the key is missing (model.md 1.1).
  const double part = factor == nullptr ? 0.25 : keys.number(*factor, "partial_rotary_factor", 0.0, 1.0);
  config.rotary_dim = static_cast<std::uint32_t>(std::floor(config.head_dim * part));
  if (config.rotary_dim < 2 || config.rotary_dim % 2 != 0)
    keys.refuse<int>(Errc::unsupported, "partial_rotary_factor",
                     "gives " + std::to_string(config.rotary_dim) + " rotary dimensions of head_dim " +
                         std::to_string(config.head_dim) + "; an even number of at least 2 is supported");
}

void read_attention(KeyReader& keys, ModelConfig& config) {
  config.attention_heads = keys.count("num_attention_heads", 1, 1024);
  config.kv_heads = keys.count("num_key_value_heads", 1, 1024);
  config.head_dim = keys.count("head_dim", 2, 4096);
  if (config.kv_heads != 0 && config.attention_heads % config.kv_heads != 0)
    keys.refuse<int>(
        Errc::corrupt, "num_key_value_heads",
        "is " + std::to_string(config.kv_heads) +
            ", which does not divide num_attention_heads = " + std::to_string(config.attention_heads));
  if (keys.flag("attention_bias", false))
    keys.refuse<int>(Errc::unsupported, "attention_bias", "is true; only false is supported");
  if (keys.flag("use_sliding_window", false))
    keys.refuse<int>(Errc::unsupported, "use_sliding_window", "is true; only false is supported");
  read_rope(keys, config);
}

void read_deltanet(KeyReader& keys, ModelConfig& config) {
  config.linear_key_heads = keys.count("linear_num_key_heads", 1, 1024);
  config.linear_value_heads = keys.count("linear_num_value_heads", 1, 1024);
  config.linear_key_dim = keys.count("linear_key_head_dim", 1, 1024);
  config.linear_value_dim = keys.count("linear_value_head_dim", 1, 1024);
  config.conv_kernel = keys.count("linear_conv_kernel_dim", 1, 16);
  if (config.linear_key_heads != 0 && config.linear_value_heads % config.linear_key_heads != 0)
    keys.refuse<int>(
        Errc::corrupt, "linear_num_key_heads",
        "is " + std::to_string(config.linear_key_heads) +
            ", which does not divide linear_num_value_heads = " + std::to_string(config.linear_value_heads));
}

void read_experts(KeyReader& keys, ModelConfig& config) {
  config.experts = keys.count("num_experts", 1, kExpertsMax);
  config.experts_per_token = keys.count("num_experts_per_tok", 1, 1024);
  config.moe_intermediate = keys.count("moe_intermediate_size", 1, kWidthMax);
  config.shared_intermediate = keys.count("shared_expert_intermediate_size", 0, kWidthMax);
  config.norm_topk_prob = keys.flag("norm_topk_prob", true);  // the Hugging Face class default
  if (config.experts_per_token > config.experts)
    keys.refuse<int>(Errc::corrupt, "num_experts_per_tok",
                     "is " + std::to_string(config.experts_per_token) +
                         ", more than num_experts = " + std::to_string(config.experts));
  if (keys.find("decoder_sparse_step") != nullptr && keys.count("decoder_sparse_step", 0, kLayersMax) != 1)
    keys.refuse<int>(Errc::unsupported, "decoder_sparse_step",
                     "is not 1; only models whose every layer has experts are supported");
  if (const json* dense = keys.find("mlp_only_layers");
      dense != nullptr && !(dense->is_array() && dense->empty()))
    keys.refuse<int>(Errc::unsupported, "mlp_only_layers",
                     "is " + json_excerpt(*dense) + "; only [] (no dense layers) is supported");
}

void read_quantisation(KeyReader& keys, ModelConfig& config) {
  const json* value = keys.find("quantization_config");
  if (value == nullptr) return;
  if (!value->is_object()) {
    keys.refuse<int>(Errc::corrupt, "quantization_config", "is not an object");
    return;
  }
  const auto refuse = [&](const char* key, const json& found, const char* supported) {
    keys.refuse<int>(Errc::unsupported, std::string("quantization_config.") + key,
                     "is " + json_excerpt(found) + "; " + supported + " is supported");
  };
  const auto at = [&](const char* key, const json& absent) { return value->value(key, absent); };
  if (const json method = at("quant_method", nullptr); method != "fp8")
    refuse("quant_method", method, "\"fp8\"");
  if (const json fmt = at("fmt", "e4m3"); fmt != "e4m3") refuse("fmt", fmt, "\"e4m3\"");
  if (const json scheme = at("activation_scheme", "dynamic"); scheme != "dynamic")
    refuse("activation_scheme", scheme, "\"dynamic\"");
  const json block = at("weight_block_size", nullptr);
  if (!block.is_array() || block.size() != 2) {
    refuse("weight_block_size", block, "a pair such as [128, 128]");
    return;
  }
  config.scale_block_rows = keys.count(block[0], "quantization_config.weight_block_size", 1, 4096);
  config.scale_block_cols = keys.count(block[1], "quantization_config.weight_block_size", 1, 4096);
}

void read_general(KeyReader& keys, ModelConfig& config) {
  config.vocab_size = keys.count("vocab_size", 1, 1U << 24);
  config.hidden_size = keys.count("hidden_size", 1, kWidthMax);
  config.layers = keys.count("num_hidden_layers", 1, kLayersMax);
  config.max_position_embeddings = keys.count("max_position_embeddings", 1, 1U << 28);
  config.tie_word_embeddings = keys.flag("tie_word_embeddings", false);
  if (const json* eps = keys.find("rms_norm_eps"); eps != nullptr)
    config.rms_norm_eps = static_cast<float>(keys.number(*eps, "rms_norm_eps", 0.0, 1.0));
  if (const std::string act = keys.text("hidden_act", "silu"); act != "silu" && !keys.error())
    keys.refuse<int>(Errc::unsupported, "hidden_act",
                     "is \"" + printable(act, 60) + "\"; \"silu\" is supported");
  const std::string dtype = keys.text("dtype", keys.text("torch_dtype", "bfloat16"));
  if (dtype != "bfloat16" && dtype != "float32" && !keys.error())
    keys.refuse<int>(Errc::unsupported, "dtype",
                     "is \"" + printable(dtype, 60) + "\"; \"bfloat16\" and \"float32\" are supported");
  if (config.vocab_size > 0) config.eos_token_ids = keys.ids("eos_token_id", config.vocab_size - 1);
}

}  // namespace

Result<ModelConfig> parse_model_config(std::string_view text) {
  STOKER_TRY(const json root, parse_json(text, "config.json"));
  if (!root.is_object()) return fail(Errc::corrupt, "config.json is not a JSON object");
  KeyReader keys(root, "config.json");
  ModelConfig config;
  read_architecture(keys, config);
  read_general(keys, config);
  read_mixers(keys, config);
  read_attention(keys, config);
  read_deltanet(keys, config);
  read_experts(keys, config);
  read_quantisation(keys, config);
  if (keys.error()) return tl::unexpected<Error>(*keys.error());
  return config;
}

Result<GenerationConfig> parse_generation_config(std::string_view text) {
  STOKER_TRY(const json root, parse_json(text, "generation_config.json"));
  if (!root.is_object()) return fail(Errc::corrupt, "generation_config.json is not a JSON object");
  KeyReader keys(root, "generation_config.json");
  GenerationConfig config;
  const auto number = [&](const char* key, double min, double max) -> std::optional<float> {
    const json* value = keys.find(key);
    if (value == nullptr) return std::nullopt;
    return static_cast<float>(keys.number(*value, key, min, max));
  };
  if (keys.find("do_sample") != nullptr) config.do_sample = keys.flag("do_sample", false);
  config.temperature = number("temperature", 0.0, 1e4);
  config.top_p = number("top_p", 0.0, 1.0);
  config.min_p = number("min_p", 0.0, 1.0);
  config.repetition_penalty = number("repetition_penalty", 1e-4, 1e4);
  if (keys.find("top_k") != nullptr) config.top_k = keys.count("top_k", 0, 1U << 24);
  config.eos_token_ids = keys.ids("eos_token_id", (1U << 24) - 1);
  if (keys.error()) return tl::unexpected<Error>(*keys.error());
  return config;
}

}  // namespace stoker
