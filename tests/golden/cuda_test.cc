// The GPU backend against the same goldens, and bit for bit against the CPU backend: on the emulated device,
// or with STOKER_TEST_DEVICE=cuda on a real one.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cstdlib>
#include <string>

#include "tests/golden/golden_check.h"
#include "tests/unit/cuda/emulated_trouble.h"

namespace stoker::golden {
namespace {

std::string device_kind() {
  const char* kind = std::getenv("STOKER_TEST_DEVICE");
  return kind == nullptr ? "emulation" : kind;
}

CudaOptions small_options() {
  CudaOptions options;
  options.kind = device_kind();
  options.step_tokens = 128;
  options.context = 1024;
  options.sequences = 4;
  options.sequence_memory = 1 << 20;
  options.cpu.threads = 1;
  // As if both lanes were equally fast: experts take turns.
  options.cpu_rate = options.copy_rate = 1e9;
  options.measure_time = {};
  options.warn = [](const std::string& text) { WARN(text); };
  return options;
}

std::unique_ptr<CudaModel> open_cuda(const GoldenRun& run, const CudaOptions& options) {
  auto model = run.load_cuda(options);
  if (!model) FAIL(model.error().text());
  return std::move(*model);
}

/// All cases on a GPU, or with STOKER_TEST_ALL=1. The emulation has time for few by default: 23 tokens fed in
/// two ways, and where `greedy`, an answer of 32.
std::vector<std::size_t> chosen_cases(bool greedy) {
  if (device_kind() != "emulation" || std::getenv("STOKER_TEST_ALL") != nullptr) return {};
  return greedy ? std::vector<std::size_t>{0, 11, 15} : std::vector<std::size_t>{11};
}

void check(const std::string& name, bool greedy) {
  const auto opened = open_golden(name);
  CudaOptions options = small_options();
  options.vram_slots = 3 * opened->golden().config.layers;
  const auto model = open_cuda(*opened, options);
  check_golden(*opened, *model, name, chosen_cases(greedy));
}

/// A case in pieces, with the last tokens one by one, so that both kinds of step are there.
std::vector<std::uint32_t> mixed_split(const Case& item) {
  std::vector<std::uint32_t> split = {static_cast<std::uint32_t>(item.tokens.size()) - 12};
  split.resize(13, 1);
  return split;
}

void check_same_bits(const std::string& name) {
  const auto opened = open_golden(name);
  const Case& item = opened->golden().cases.at(13);
  REQUIRE(item.tokens.size() == 70);
  const std::vector<std::uint32_t> split = mixed_split(item);
  const Feed feed{item.tokens, split};
  const auto want = logits_of(*open_model(*opened), opened->source(), feed);
  const std::uint32_t layers = opened->golden().config.layers;
  const std::uint32_t all = layers * opened->golden().config.experts;
  struct Setting {
    Lane lane;
    std::uint32_t slots, shuffle;
    bool graphs;
    bool ahead = false;
  };
  int seed = 0;
  for (const Setting& s : {Setting{Lane::gpu, all, 0, true}, Setting{Lane::gpu, 2 * layers, 1, false},
                           Setting{Lane::cpu, layers, 2, true}, Setting{Lane::automatic, 4 * layers, 3, true},
                           Setting{Lane::automatic, 2 * layers, 4, true, true}}) {
    ::setenv("STOKER_EMULATION_SEED", std::to_string(++seed).c_str(), 1);
    CudaOptions options = small_options();
    options.lane = s.lane;
    options.vram_slots = s.slots;
    options.graphs = s.graphs;
    options.copy_ahead = s.ahead;
    const auto model = open_cuda(*opened, options);
    CAPTURE(name, model->describe(), s.shuffle, s.graphs);
    opened->source().shuffle(s.shuffle);
    CHECK(same_bits(logits_of(*model, opened->source(), feed), want));
    // Every setting uses what it is meant to use.
    const auto& lanes = model->lane_counts();
    const bool both = opened->golden().config.experts_per_token > 1;
    CHECK((lanes.cpu > 0) == (s.lane == Lane::cpu || (s.lane == Lane::automatic && both)));
    CHECK(lanes.copied > 0);
    CHECK((lanes.vram > 0) == (s.lane != Lane::cpu));
    CHECK((lanes.ahead > 0) == s.ahead);
    CHECK(opened->source().leased() == 0);
  }
}

}  // namespace

TEST_CASE("cuda golden: T0", "[t0]") { check("t0", true); }
TEST_CASE("cuda golden: FP8", "[a_fp8]") { check("a_fp8", true); }
TEST_CASE("cuda golden: BF16", "[b_bf16]") { check("b_bf16", false); }
TEST_CASE("cuda golden: key heads = value heads", "[d_equal_heads]") { check("d_equal_heads", false); }
TEST_CASE("cuda golden: odd dimensions, tied, no shared expert", "[e_odd]") { check("e_odd", true); }
TEST_CASE("cuda golden: tied BF16, one expert per token", "[f_tied_bf16]") { check("f_tied_bf16", true); }

TEST_CASE("cuda: the bits of the CPU: FP8", "[bits]") { check_same_bits("a_fp8"); }
TEST_CASE("cuda: the bits of the CPU: odd dimensions", "[bits]") { check_same_bits("e_odd"); }
TEST_CASE("cuda: the bits of the CPU: BF16, tied", "[bits]") { check_same_bits("f_tied_bf16"); }

TEST_CASE("cuda: back at a mark", "[bits]") {
  const auto opened = open_golden("e_odd");
  const std::vector<std::uint32_t> tokens = opened->golden().cases.at(13).tokens;
  const std::vector<std::uint32_t> whole = {static_cast<std::uint32_t>(tokens.size())};
  const auto want = logits_of(*open_model(*opened), opened->source(), {tokens, whole});
  const auto model = open_cuda(*opened, small_options());
  CHECK(same_bits(logits_after_detours(*model, opened->source(), tokens, tokens.size() / 2, 20), want));
}

TEST_CASE("cuda: beside other sequences", "[bits]") {
  const auto opened = open_golden("e_odd");
  const auto& cases = opened->golden().cases;
  const auto cpu = open_model(*opened);
  const auto model = open_cuda(*opened, small_options());
  std::vector<std::vector<std::uint32_t>> splits;
  std::vector<Feed> feeds;
  for (std::size_t i = 5; i < 8; ++i)
    splits.push_back({static_cast<std::uint32_t>(cases[i].tokens.size()) - 8});
  for (auto& split : splits) split.resize(9, 1);
  for (std::size_t i = 0; i < splits.size(); ++i) feeds.push_back({cases[i + 5].tokens, splits[i]});
  const auto together = run(*model, opened->source(), feeds);
  if (!together) FAIL(together.error().text());
  for (std::size_t i = 0; i < feeds.size(); ++i)
    CHECK(same_bits((*together)[i], logits_of(*cpu, opened->source(), feeds[i])));
}

TEST_CASE("cuda: too little memory is an error with both numbers", "[refused]") {
  const auto opened = open_golden("a_fp8");
  CudaOptions options = small_options();
  options.vram = 1 << 20;
  const auto model = opened->load_cuda(options);
  REQUIRE(!model.has_value());
  CHECK(model.error().code == Errc::no_memory);
  CHECK(model.error().message.find("--vram") != std::string::npos);
}

/// An emulated card of this many bytes for as long as it lives.
class SmallCard {
 public:
  explicit SmallCard(std::uint64_t bytes) {
    ::setenv("STOKER_EMULATED_VRAM", std::to_string(bytes).c_str(), 1);
  }
  ~SmallCard() { ::unsetenv("STOKER_EMULATED_VRAM"); }
  SmallCard(const SmallCard&) = delete;
  SmallCard& operator=(const SmallCard&) = delete;
};

TEST_CASE("cuda: a budget that the card does not have is what it has, with a warning of both", "[budget]") {
  if (device_kind() != "emulation") return;
  const SmallCard card(1ULL << 30);
  const auto opened = open_golden("t0");
  CudaOptions options = small_options();
  std::vector<std::string> warnings;
  options.warn = [&](const std::string& text) { warnings.push_back(text); };
  options.sequence_percent = 25;
  const auto load = [&](std::uint64_t bytes, double percent) {
    options.vram = bytes;
    options.vram_percent = percent;
    return open_cuda(*opened, options)->sequence_memory() >> 20;
  };
  CHECK(load(400ULL << 20, 0) == 100);
  CHECK(load(0, 0) == 424 / 4);
  CHECK(warnings.empty());
  CHECK(load(10ULL << 30, 0) == 424 / 4);
  CHECK(load(0, 100) == 424 / 4);
  REQUIRE(warnings.size() == 2);
  CHECK(
      warnings[0] ==
      "--vram 10240 MiB is more than there is: 1024 MiB of the 1024 MiB of emulated GPU are free, 600 MiB of "
      "that are left alone; using 424 MiB");
  CHECK(warnings[1].find("--vram 1024 MiB") == 0);
}

TEST_CASE("cuda: a card that is full is refused with its numbers", "[budget]") {
  if (device_kind() != "emulation") return;
  const SmallCard card(500ULL << 20);
  const auto model = open_golden("t0")->load_cuda(small_options());
  REQUIRE(!model.has_value());
  CHECK(model.error().code == Errc::no_memory);
  CHECK(model.error().text().find("500 MiB of the 500 MiB of emulated GPU are free") != std::string::npos);
}

TEST_CASE("cuda: what the device says is taken, and what sequences may take, is within the budget",
          "[budget]") {
  if (device_kind() != "emulation") return;  // on a real card others come and go
  const auto opened = open_golden("a_fp8");
  const auto module = DeviceModule::open("emulation");
  REQUIRE(module);
  const auto taken = [&] {
    std::uint64_t free = 0, total = 0;
    REQUIRE(module->api().memory(&free, &total) == nullptr);
    return total - free;
  };
  CudaOptions options = small_options();
  options.vram_slots = opened->golden().config.layers;
  std::uint64_t least = 0;
  {
    const auto model = open_cuda(*opened, options);
    least = taken();
  }
  options.vram_slots = 0;
  options.vram = least + options.sequence_memory + (1 << 20);
  const auto model = open_cuda(*opened, options);
  CHECK(model->vram().slots() > opened->golden().config.layers);
  CHECK(model->vram().slots() < opened->golden().config.layers * opened->golden().config.experts);
  CHECK(taken() + model->sequence_memory() <= options.vram);
  CHECK(taken() + model->sequence_memory() > options.vram - (1 << 18));  // and not much less
}

TEST_CASE("cuda: only a machine without a GPU is one where a GPU is missing", "[refused]") {
  const auto opened = open_golden("t0");
  CudaOptions second = small_options();
  second.device = 77;
  const auto other = opened->load_cuda(second);
  REQUIRE(!other.has_value());
  CHECK(other.error().code == Errc::invalid);
  CHECK(other.error().text().find("--gpu 77") == 0);
  if (device_kind() != "emulation") return;
  for (const auto& [trouble, code] : {std::pair{"driver", Errc::unsupported}, {"no-driver", Errc::missing}}) {
    const device::EmulatedTrouble emulated(trouble);
    const auto model = opened->load_cuda(small_options());
    REQUIRE(!model.has_value());
    CHECK(model.error().code == code);
  }
}

TEST_CASE("cuda: shapes that the kernels do not take are refused before anything is computed", "[refused]") {
  const auto opened = open_golden("t0");
  const auto refused = [&](const ModelConfig& config, const CudaOptions& options, const std::string& text) {
    const auto model = opened->load_cuda(options, config);
    REQUIRE(!model.has_value());
    INFO(model.error().message);
    CHECK(model.error().message.find(text) != std::string::npos);
  };
  const ModelConfig& golden = opened->golden().config;
  ModelConfig wide = golden, tall = golden, taps = golden;
  wide.head_dim = device::kHeadDimMax + 1;
  tall.hidden_size = device::kHiddenMax + 1;
  taps.conv_kernel = device::kConvTapsMax + 1;
  refused(wide, small_options(), "head_dim is 1025, the GPU worker takes at most 1024: give --device cpu");
  refused(tall, small_options(), "hidden_size");
  refused(taps, small_options(), "linear_conv_kernel_dim");
  CudaOptions long_steps = small_options();
  long_steps.step_tokens = 0xFFFF'FFFFU;
  refused(golden, long_steps, "--chunk");
}

TEST_CASE("cuda: a scale that the kernels cannot take is refused, the CPU computes with it", "[refused]") {
  const auto opened = open_golden("a_fp8");
  opened->expert_scales(1)[3] = device::kScaleLimit;
  const auto model = opened->load_cuda(small_options());
  REQUIRE(!model.has_value());
  CHECK(model.error().code == Errc::unsupported);
  CHECK(model.error().message.find("--device cpu") != std::string::npos);
  CHECK(opened->load_model(Simd::automatic).has_value());
}

TEST_CASE("cuda: a context that is full fails its own sequence only", "[refused]") {
  const auto opened = open_golden("t0");
  CudaOptions options = small_options();
  options.context = 256;
  options.step_tokens = 64;
  const auto model = open_cuda(*opened, options);
  const auto full = model->new_sequence();
  const auto other = model->new_sequence();
  const std::vector<std::uint32_t> prompt(64, 1);
  const std::vector<std::uint32_t> one = {1};
  std::vector<SegmentResult> results(1);
  const Segment fill{full.get(), 0, prompt, Segment::Logits::none};
  for (int chunk = 0; chunk < 4; ++chunk)
    REQUIRE(
        model->step(std::span(&fill, 1), Access::prefill, opened->source(), nullptr, results).has_value());
  CHECK(!results[0].error);
  results.resize(2);
  const std::vector<Segment> both = {{full.get(), 0, one, Segment::Logits::last},
                                     {other.get(), 1, one, Segment::Logits::last}};
  REQUIRE(model->step(both, Access::decode, opened->source(), nullptr, results).has_value());
  REQUIRE(results[0].error.has_value());
  CHECK(results[0].error->code == Errc::too_large);
  REQUIRE(!results[1].error);
  const std::vector<std::uint32_t> split = {1};
  const auto want = logits_of(*open_model(*opened), opened->source(), {one, split});
  CHECK(same_bits({results[1].logits.begin(), results[1].logits.end()}, want));
}

TEST_CASE("cuda: copies that read the host's memory late find it as it was", "[trouble]") {
  if (device_kind() != "emulation") return;
  const auto opened = open_golden("e_odd");
  const std::vector<std::uint32_t> tokens = {1, 2, 3, 4, 5, 6};
  const std::vector<std::uint32_t> split = {5, 1};
  const auto want = logits_of(*open_model(*opened), opened->source(), {tokens, split});
  const device::EmulatedTrouble trouble("pageable");
  const auto model = open_cuda(*opened, small_options());
  CHECK(same_bits(logits_of(*model, opened->source(), {tokens, split}), want));
}

TEST_CASE("cuda: a pool that cannot be pinned is said with its numbers, and rates are those of the pool",
          "[trouble]") {
  if (device_kind() != "emulation") return;
  const auto opened = open_golden("e_odd");
  const std::vector<std::uint32_t> tokens = {1, 2, 3, 4, 5, 6};
  const std::vector<std::uint32_t> split = {4, 1, 1};
  const auto want = logits_of(*open_model(*opened), opened->source(), {tokens, split});
  for (const char* name : {"", "pin"}) {
    CAPTURE(name);
    const device::EmulatedTrouble trouble(name);
    CudaOptions options = small_options();
    options.cpu_rate = options.copy_rate = 0;
    std::vector<std::string> warnings;
    options.warn = [&](const std::string& text) { warnings.push_back(text); };
    const auto model = open_cuda(*opened, options);
    const std::string pool = std::to_string(opened->source().memory().size() >> 20);
    REQUIRE(warnings.size() == std::string(name).size() / 3);
    if (!warnings.empty()) CHECK(warnings[0].find("0 MiB of the pool's " + pool + " MiB are pinned") == 0);
    CHECK(model->rates().memory > 0);
    CHECK(model->rates().copies > 0);
    CHECK(model->rates().cpu > 0);
    CHECK(same_bits(logits_of(*model, opened->source(), {tokens, split}), want));
  }
}

TEST_CASE("cuda: without memory for graphs steps go on without them", "[trouble]") {
  if (device_kind() != "emulation") return;
  const auto opened = open_golden("e_odd");
  const std::vector<std::uint32_t>& tokens = opened->golden().cases.at(11).tokens;
  std::vector<std::uint32_t> split = {static_cast<std::uint32_t>(tokens.size()) - 6};
  split.resize(7, 1);
  const auto want = logits_of(*open_model(*opened), opened->source(), {tokens, split});
  for (const char* name : {"capture", "capture:4", "launch", "launch:11"}) {
    CAPTURE(name);
    const device::EmulatedTrouble trouble(name);
    CudaOptions options = small_options();
    std::vector<std::string> warnings;
    options.warn = [&](const std::string& text) { warnings.push_back(text); };
    const auto model = open_cuda(*opened, options);
    CHECK(same_bits(logits_of(*model, opened->source(), {tokens, split}), want));
    REQUIRE(warnings.size() == 1);
    CHECK(warnings[0].find("graphs") != std::string::npos);
    CHECK(warnings[0].find("out of device memory") != std::string::npos);
  }
}

TEST_CASE("cuda: an output that is not finite fails its segment and names the layer", "[trouble]") {
  const auto opened = open_golden("a_fp8");
  const std::uint32_t layers = opened->golden().config.layers;
  const std::span<std::byte> experts = opened->source().memory();
  const std::vector<std::byte> sound(experts.begin(), experts.end());
  const std::size_t of_layer = experts.size() / layers;
  const std::vector<std::uint32_t> tokens = {1, 2, 3, 4, 5};
  for (const std::uint32_t layer : {0U, layers - 1}) {
    for (const std::size_t before : {std::size_t{0}, std::size_t{4}}) {
      const auto model = open_cuda(*opened, small_options());
      const auto sequence = model->new_sequence();
      const auto feed = [&](std::span<const std::uint32_t> piece) {
        const Segment segment{sequence.get(), 0, piece, Segment::Logits::last};
        SegmentResult result;
        const Access access = piece.size() == 1 ? Access::decode : Access::prefill;
        if (const auto stats =
                model->step(std::span(&segment, 1), access, opened->source(), nullptr, std::span(&result, 1));
            !stats)
          FAIL(stats.error().text());
        return result.error ? result.error->text() : "";
      };
      if (before > 0) CHECK(feed(std::span(tokens).first(before)).empty());
      const auto damaged = experts.subspan(layer * of_layer, of_layer);
      std::fill(damaged.begin(), damaged.end(), std::byte{0xFF});  // NaN
      const std::string text = feed(std::span(tokens).subspan(before));
      CAPTURE(before, text);
      CHECK(text.find(" of layer " + std::to_string(layer) + " produced non-finite values") !=
            std::string::npos);
      std::copy(sound.begin(), sound.end(), experts.begin());
    }
  }
}

/// Serves as MemorySource does, but for one call.
class FailingSource final : public ExpertSource {
 public:
  FailingSource(MemorySource& source, int fails_at) : source_(source), left_(fails_at) {}
  void begin(LayerId layer, std::span<const ExpertId> wanted, Access access) override {
    source_.begin(layer, wanted, access);
  }
  Result<SourceEvent> next(bool wait) override {
    if (--left_ == 0) return fail(Errc::peer_gone, "the loader is gone");
    return source_.next(wait);
  }
  void release(const LeasedExpert& expert) override { source_.release(expert); }

 private:
  MemorySource& source_;
  int left_;
};

TEST_CASE("cuda: a source that fails ends the step, not the device", "[trouble]") {
  const auto opened = open_golden("t0");
  const std::vector<std::uint32_t> tokens = {1, 2, 3, 4, 5, 6, 7, 8};
  const std::vector<std::uint32_t> split = {8};
  const auto want = logits_of(*open_model(*opened), opened->source(), {tokens, split});
  const auto model = open_cuda(*opened, small_options());
  FailingSource source(opened->source(), 3);
  const auto sequence = model->new_sequence();
  const Segment segment{sequence.get(), 0, tokens, Segment::Logits::last};
  SegmentResult result;
  const auto step =
      model->step(std::span(&segment, 1), Access::prefill, source, nullptr, std::span(&result, 1));
  REQUIRE(!step.has_value());
  CHECK(step.error().code == Errc::peer_gone);
  CHECK(opened->source().leased() == 0);
  opened->source().forget();
  CHECK(same_bits(logits_of(*model, opened->source(), {tokens, split}), want));
}

TEST_CASE("cuda: a device that is lost says so with every step", "[trouble]") {
  if (device_kind() != "emulation") return;
  const auto opened = open_golden("t0");
  const device::EmulatedTrouble trouble("kernel:40");
  const auto model = open_cuda(*opened, small_options());
  const std::vector<std::uint32_t> tokens = {1, 2, 3, 4};
  const auto step = [&] {
    const auto sequence = model->new_sequence();
    const Segment segment{sequence.get(), 0, tokens, Segment::Logits::last};
    SegmentResult result;
    auto stats = model->step(std::span(&segment, 1), Access::prefill, opened->source(), nullptr,
                             std::span(&result, 1));
    opened->source().forget();
    return stats;
  };
  auto failed = step();
  for (int i = 0; failed && i < 20; ++i) failed = step();
  REQUIRE(!failed.has_value());
  for (int i = 0; i < 2; ++i, failed = step()) {
    INFO(failed.error().text());
    CHECK(failed.error().code == Errc::device_lost);
    CHECK(failed.error().text().find("GPU 0 (emulated GPU) cannot be used any more") == 0);
    CHECK(failed.error().text().find("an illegal address") != std::string::npos);
    CHECK(opened->source().leased() == 0);
  }
}

}  // namespace stoker::golden
