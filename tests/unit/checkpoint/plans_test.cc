#include <catch2/catch.hpp>
#include <cstring>

#include "checkpoint/checkpoint.h"
#include "tests/unit/checkpoint/scratch.h"

using namespace stoker;

namespace {

std::string read_range(const Checkpoint& checkpoint, FileId file, std::uint64_t offset, std::uint64_t bytes) {
  std::ifstream in(checkpoint.files()[file.value].path, std::ios::binary);
  in.seekg(static_cast<std::streamoff>(offset));
  std::string out(bytes, '\0');
  in.read(out.data(), static_cast<std::streamsize>(bytes));
  out.resize(static_cast<std::size_t>(in.gcount()));  // short at the end of the file
  return out;
}

std::string tensor_bytes(const Checkpoint& checkpoint, const std::string& name) {
  const TensorRef* ref = checkpoint.find(name);
  REQUIRE(ref != nullptr);
  return read_range(checkpoint, ref->file, ref->info.begin, ref->info.bytes);
}

/// Reads all extents of an expert as the loader does and compares the three matrices.
void check_expert(const Checkpoint& checkpoint, const ExpertPlan& plan, std::uint32_t layer,
                  std::uint32_t expert) {
  const ExpertKey key(layer * plan.experts_per_layer() + expert);
  std::string slot(plan.slot_bytes(), '\xEE');
  const auto [extents, count] = plan.extents(key);
  REQUIRE((count >= 1 && count <= 3));
  std::uint64_t used = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const Extent& e = extents[i];
    CHECK(e.offset % kDirectAlign == 0);
    CHECK(e.length % kDirectAlign == 0);
    CHECK(e.slot_offset == used);
    used += e.length;
    REQUIRE(used <= plan.slot_bytes());
    const std::string bytes = read_range(checkpoint, e.file, e.offset, e.length);
    CHECK(e.offset + bytes.size() == std::min(e.offset + e.length, checkpoint.files()[e.file.value].bytes));
    slot.replace(e.slot_offset, bytes.size(), bytes);
  }
  const std::string prefix =
      "model.layers." + std::to_string(layer) + ".mlp.experts." + std::to_string(expert) + ".";
  const ExpertParts parts = plan.parts(key);
  const std::pair<const char*, std::uint32_t> matrices[] = {
      {"gate_proj.weight", parts.gate}, {"up_proj.weight", parts.up}, {"down_proj.weight", parts.down}};
  for (const auto& [name, offset] : matrices) {
    const std::string want = tensor_bytes(checkpoint, prefix + name);
    CHECK(slot.compare(offset, want.size(), want) == 0);
  }
}

std::string build_image(const Checkpoint& checkpoint, const WeightsPlan& plan) {
  std::string image(plan.image_bytes, '\0');
  image.replace(0, plan.header.size(), plan.header);
  for (const WeightsPlan::Copy& copy : plan.copies) {
    const std::string bytes = read_range(checkpoint, copy.file, copy.file_offset, copy.bytes);
    if (!copy.widen_bf16) {
      image.replace(copy.image_offset, bytes.size(), bytes);
      continue;
    }
    for (std::size_t i = 0; i < bytes.size(); i += 2) {
      image[copy.image_offset + 2 * i + 2] = bytes[i];
      image[copy.image_offset + 2 * i + 3] = bytes[i + 1];
    }
  }
  for (const auto& [at, bytes] : plan.literals) image.replace(at, bytes.size(), bytes);
  return image;
}

float bf16_at(const std::string& bytes, std::size_t i) {
  std::uint16_t half = 0;
  std::memcpy(&half, bytes.data() + 2 * i, 2);
  const std::uint32_t wide = std::uint32_t{half} << 16;
  float out = 0;
  std::memcpy(&out, &wide, 4);
  return out;
}

float f32_at(const std::string& bytes, std::size_t i) {
  float out = 0;
  std::memcpy(&out, bytes.data() + 4 * i, 4);
  return out;
}

}  // namespace

TEST_CASE("extents bring the three matrices of every expert to their parts", "[plans]") {
  const test::ScratchDir dir;
  for (SynthFormat format : {SynthFormat::fp8_bf16_scales, SynthFormat::bf16, SynthFormat::f32})
    for (std::uint32_t shards : {1U, 3U, 13U}) {
      SynthSpec spec = test::mini_spec(dir / "m");
      spec.format = format;
      spec.shards = shards;
      spec.force = true;
      REQUIRE(synthesize(spec));
      const auto checkpoint = Checkpoint::open(spec.directory);
      if (!checkpoint) FAIL(checkpoint.error().text());
      const auto plan = ExpertPlan::make(*checkpoint);
      REQUIRE(plan);
      CHECK(plan->expert_count() == 8);
      CHECK(plan->slot_bytes() % kDirectAlign == 0);
      CHECK(plan->expert_bytes() == 3ULL * 128 * 256 * dtype_bytes(checkpoint->expert_dtype()));
      std::size_t straddling = 0;
      for (std::uint32_t layer = 0; layer < 2; ++layer)
        for (std::uint32_t expert = 0; expert < 4; ++expert) {
          check_expert(*checkpoint, *plan, layer, expert);
          const auto [extents, count] = plan->extents(ExpertKey(layer * 4 + expert));
          if (extents[0].file != extents[count - 1].file) ++straddling;
          if (shards == 1) CHECK(count == 1);  // down, gate, up lie together: one read
        }
      if (shards == 13) CHECK(straddling > 0);
    }
}

TEST_CASE("the weights image holds resident tensors, scale tables and parts", "[plans]") {
  const test::ScratchDir dir;
  for (SynthFormat format : {SynthFormat::fp8_bf16_scales, SynthFormat::fp8_f32_scales, SynthFormat::bf16}) {
    SynthSpec spec = test::mini_spec(dir / "m");
    spec.format = format;
    spec.force = true;
    REQUIRE(synthesize(spec));
    const auto checkpoint = Checkpoint::open(spec.directory);
    REQUIRE(checkpoint);
    const auto experts = ExpertPlan::make(*checkpoint);
    REQUIRE(experts);
    const auto plan = WeightsPlan::make(*checkpoint, *experts);
    REQUIRE(plan);
    CHECK(std::is_sorted(plan->copies.begin(), plan->copies.end(), [](const auto& a, const auto& b) {
      return a.file != b.file ? a.file < b.file : a.file_offset < b.file_offset;
    }));
    const std::string image = build_image(*checkpoint, *plan);
    const auto tensors = parse_safetensors_header(std::string_view(image).substr(8, plan->header.size() - 8),
                                                  plan->header.size() - 8, image.size());
    if (!tensors) FAIL(tensors.error().text());
    std::size_t tables = 0, verbatim = 0;
    for (const TensorInfo& info : *tensors) {
      CHECK(info.begin % 64 == 0);
      const std::string bytes = image.substr(info.begin, info.bytes);
      if (!info.name.starts_with("stoker.")) {
        CHECK(info.name.find(".experts.") == std::string::npos);
        CHECK(bytes == tensor_bytes(*checkpoint, info.name));
        ++verbatim;
      } else if (info.name.ends_with("expert_parts")) {
        std::int32_t up = 0;
        std::memcpy(&up, bytes.data() + (3 * 2 + 1) * 4, 4);  // expert 2, up
        const std::uint32_t layer = info.name == "stoker.layers.1.expert_parts" ? 1 : 0;
        CHECK(up == static_cast<std::int32_t>(experts->parts(ExpertKey(layer * 4 + 2)).up));
        ++tables;
      } else if (info.name == "stoker.layers.1.expert_scales") {
        // gate [1, 2] | up [1, 2] | down [2, 1] tiles
        REQUIRE(info.shape == std::vector<std::uint64_t>{4, 6});
        const std::string down =
            tensor_bytes(*checkpoint, "model.layers.1.mlp.experts.3.down_proj.weight_scale_inv");
        const std::string up =
            tensor_bytes(*checkpoint, "model.layers.1.mlp.experts.3.up_proj.weight_scale_inv");
        const bool wide = format == SynthFormat::fp8_f32_scales;
        CHECK(f32_at(bytes, 3 * 6 + 5) == (wide ? f32_at(down, 1) : bf16_at(down, 1)));
        CHECK(f32_at(bytes, 3 * 6 + 2) == (wide ? f32_at(up, 0) : bf16_at(up, 0)));
        CHECK(f32_at(bytes, 3 * 6 + 2) > 0);
        ++tables;
      }
    }
    CHECK(tables == (format == SynthFormat::bf16 ? 2U : 3U));
    CHECK(verbatim > 20);
    CHECK_THAT(plan->header, Catch::Matchers::Contains("\"model_dir\":\"" + spec.directory + "\""));
  }
}
