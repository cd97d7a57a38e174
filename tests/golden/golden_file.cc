#include "tests/golden/golden_file.h"

#include <cstring>
#include <nlohmann/json.hpp>

#include "checkpoint/file_bytes.h"
#include "shm/base/types.h"

namespace stoker::golden {
namespace {

using Json = nlohmann::ordered_json;  // keeps config.json's key order

constexpr std::size_t kRecordFloats = kProbes + 4;

DType parse_dtype(const std::string& text) {
  for (DType t : {DType::f8_e4m3, DType::bf16, DType::f32})
    if (text == dtype_name(t)) return t;
  return DType::other;
}

Rules parse_rules(const std::string& text) {
  return text == "appendix_a" ? Rules::appendix_a : text == "tied" ? Rules::tied : Rules::tiny;
}

Case parse_case(const Json& json, const Golden& golden) {
  Case out;
  out.name = json.at("name");
  json.at("tokens").get_to(out.tokens);
  json.at("splits").get_to(out.splits);
  out.prompt = json.at("prompt");
  json.at("greedy").get_to(out.greedy);
  const std::size_t offset = json.at("offset");
  const std::size_t count = out.tokens.size();
  const std::span<const float> all(golden.blob);
  const std::span<const float> part = all.subspan(offset, count * kRecordFloats + golden.config.vocab_size);
  for (std::size_t p = 0; p < count; ++p) {
    const auto record = part.subspan(p * kRecordFloats, kRecordFloats);
    out.positions.push_back({record.first(kProbes), record[kProbes],
                             static_cast<std::uint32_t>(record[kProbes + 1]), record[kProbes + 2],
                             record[kProbes + 3]});
  }
  out.last_logits = part.subspan(count * kRecordFloats);
  return out;
}

Golden parse_manifest(const Json& json, const std::string& blob) {
  Golden golden;
  golden.name = json.at("name");
  golden.salt = json.at("salt");
  golden.rules = parse_rules(json.at("rules"));
  golden.weight_dtype = parse_dtype(json.at("weight_dtype"));
  golden.scale_dtype = parse_dtype(json.at("scale_dtype"));
  golden.shard_bytes = json.at("shard_bytes");
  golden.straddling_experts = json.at("straddling_experts");
  golden.config_json = json.at("config").dump(2) + "\n";
  for (const Json& shard : json.at("shards"))
    golden.shards.push_back({shard.at("file"), shard.at("data_bytes"), shard.at("data_sha256")});
  golden.blob.resize(blob.size() / sizeof(float));
  std::memcpy(golden.blob.data(), blob.data(), golden.blob.size() * sizeof(float));
  return golden;
}

}  // namespace

Result<Golden> read_golden(const std::string& directory, const std::string& name) {
  const std::string base = directory + "/" + name;
  STOKER_TRY(const std::string text, read_file(base + ".json", 16_MiB));
  STOKER_TRY(const std::string blob, read_file(base + ".bin", 64_MiB));
  try {
    const Json json = Json::parse(text);
    Golden golden = parse_manifest(json, blob);
    STOKER_TRY(golden.config, parse_model_config(golden.config_json));
    for (const Json& item : json.at("cases")) {
      const std::size_t floats = item.at("tokens").size() * kRecordFloats + golden.config.vocab_size;
      if (item.at("offset").get<std::size_t>() + floats > golden.blob.size())
        return fail(Errc::corrupt, base + ".bin is shorter than " + base + ".json says");
      golden.cases.push_back(parse_case(item, golden));
    }
    return golden;
  } catch (const nlohmann::json::exception& error) {
    return fail(Errc::corrupt, base + ".json: " + error.what());
  }
}

std::uint32_t probe_id(std::uint64_t position, std::uint64_t j, std::uint32_t vocab) {
  const std::uint64_t x = (position * kProbes + j) * 2654435761ULL;
  return static_cast<std::uint32_t>(((x & 0xFFFFFFFFULL) >> 8) % vocab);
}

}  // namespace stoker::golden
