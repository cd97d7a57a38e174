#include "daemons/common/config_table.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <numeric>
#include <vector>

namespace stoker {
namespace {

constexpr unsigned kLoader = static_cast<unsigned>(Program::loader);
constexpr unsigned kWorker = static_cast<unsigned>(Program::worker);
constexpr unsigned kPredictor = static_cast<unsigned>(Program::predictor);
constexpr unsigned kGateway = static_cast<unsigned>(Program::gateway);
constexpr unsigned kAll = static_cast<unsigned>(Program::all);

const std::array kSettings = {
    Setting{"model.dir", "model", kLoader | kWorker, &Config::model_dir,
            "Checkpoint directory, as published"},
    Setting{"run.dir", "run-dir", kAll, &Config::run_dir,
            "Directory of sockets and locks; identifies the stack (default: $XDG_RUNTIME_DIR/stoker or "
            "/run/stoker)"},
    Setting{"run.loader_dir", "loader-dir", kWorker | kPredictor, &Config::loader_dir,
            "Run directory of the loader to attach to, for another worker on its pool (default: --run-dir)"},
    Setting{"run.group_access", "group-access", kAll, &Config::group_access,
            "Sockets and shared memory with mode 0660 instead of 0600"},
    Setting{"log.level", "log-level", kAll, &Config::log_level, "How much to log",
            "trace|debug|info|warn|error|off"},
    Setting{"loader.ram", "ram", kLoader, &Config::ram,
            "Memory budget for resident weights and pool: 8GiB, 512M, 50% of the machine"},
    Setting{"loader.pool_slots", "pool-slots", kLoader, &Config::pool_slots,
            "Experts in the pool; 0 = as many as the budget holds"},
    Setting{"loader.engine", "engine", kLoader, &Config::engine, "How to read", "auto|uring|pread"},
    Setting{"loader.bytes_in_flight", "bytes-in-flight", kLoader, &Config::bytes_in_flight,
            "Bytes being read at the same time; 0 = measured at start"},
    Setting{"loader.hint_share", "hint-share", kLoader, &Config::hint_share,
            "Share of the bytes in flight that hints may use, 0 to 1"},
    Setting{"loader.hint_budget", "hint-budget", kLoader, &Config::hint_budget,
            "Bytes read for hints per step of a worker at most; 0 = no limit"},
    Setting{"loader.spin_ms",
            "spin-ms",
            kLoader,
            &Config::spin_ms,
            "After a demand, look for the next this long instead of sleeping; takes a CPU while requests run",
            {},
            0,
            1000},
    Setting{"loader.huge_pages", "huge-pages", kLoader, &Config::huge_pages, "Huge pages for the pool",
            "auto|off"},
    Setting{"loader.checksums", "verify-checksums", kLoader, &Config::checksums,
            "Check every expert that is read against this file"},
    Setting{"loader.unlink_on_exit", "unlink-on-exit", kLoader, &Config::unlink_on_exit,
            "Drop pool and weights at an orderly stop (default: stay warm for the next start)"},
    Setting{"loader.warm_manifest", "warm-manifest", kLoader, &Config::warm_manifest,
            "File that remembers what the pool held, for starts with an empty pool: auto, off or a path"},
    Setting{"worker.threads",
            "threads",
            kWorker,
            &Config::threads,
            "Compute threads; 0 = one per CPU",
            {},
            0,
            1024},
    Setting{"worker.simd", "simd", kWorker, &Config::simd, "Vector instructions",
            "auto|scalar|avx2|avx512|avx512vbmi"},
    Setting{"worker.max_sequences",
            "max-sequences",
            kWorker,
            &Config::max_sequences,
            "Requests computed together",
            {},
            1,
            256},
    Setting{"worker.device", "device", kWorker, &Config::device,
            "Where the model is computed; auto: on a GPU if there is one (emulation: for tests)",
            "auto|cpu|cuda|emulation"},
    Setting{"worker.gpu", "gpu", kWorker, &Config::gpu, "Which GPU, as CUDA numbers them", {}, 0, 255},
    Setting{"worker.vram", "vram", kWorker, &Config::vram,
            "Memory to use on the GPU, e.g. 8GiB (0: what is free, less a margin)"},
    Setting{"worker.expert_lane", "expert-lane", kWorker, &Config::expert_lane,
            "Experts that are not in VRAM: copied to the GPU, computed on the CPU, or (auto) what is sooner; "
            "the result "
            "is the same",
            "auto|gpu|cpu"},
    Setting{
        "worker.copy_ahead", "copy-ahead", kWorker, &Config::copy_ahead,
        "On a GPU, while a read is awaited: copy what the next layer will probably want; not measured yet"},
    Setting{"worker.queue", "queue", kWorker, &Config::queue, "Requests waiting at most", {}, 1, 100'000},
    Setting{"worker.context",
            "context",
            kWorker,
            &Config::context,
            "Tokens per sequence at most (prompt and answer); capped by the model's own",
            {},
            1,
            1U << 20},
    Setting{
        "worker.chunk", "chunk", kWorker, &Config::chunk, "Prompt tokens per prefill step", {}, 1, 1U << 16},
    Setting{"worker.sequence_memory", "sequence-memory", kWorker, &Config::sequence_memory,
            "Memory budget for the state of all sequences"},
    Setting{"worker.kept_sequences",
            "kept-sequences",
            kWorker,
            &Config::kept_sequences,
            "Requests that ended whose state is kept for those that go on from it, within --sequence-memory; "
            "0 = none",
            {},
            0,
            256},
    Setting{"worker.samples", "predictor-samples", kWorker, &Config::samples,
            "Publish routing samples for the predictor"},
    Setting{"worker.loader_wait",
            "loader-wait",
            kWorker,
            &Config::loader_wait,
            "Seconds to wait for a loader",
            {},
            1,
            86'400},
    Setting{"predictor.hints", "hints", kPredictor, &Config::hints,
            "auto: prefetch while steps are faster for it; on, off: always, never", "auto|on|off"},
    Setting{"predictor.hint_width",
            "hint-width",
            kPredictor,
            &Config::hint_width,
            "Reads for hints per token and layer at most",
            {},
            1,
            256},
    Setting{"predictor.hint_horizon",
            "hint-horizon",
            kPredictor,
            &Config::hint_horizon,
            "How many layers ahead tables of earlier routing look",
            {},
            1,
            64},
    Setting{"gateway.listen", "listen", kGateway, &Config::listen,
            "HOST:PORT of the HTTP API, or none; the socket api.sock in the run directory is always there"},
    Setting{"gateway.api_key_file", "api-key-file", kGateway, &Config::api_key_file,
            "File whose first line is the key that clients must send (default: none; only this machine may "
            "connect)"},
    Setting{"gateway.model_name", "model-name", kGateway, &Config::model_name,
            "The model's name in the API (default: the name of its directory)"},
};

Result<void> assign_string(std::string& target, const Setting& setting, const std::string& text) {
  if (setting.choices.empty()) {
    target = text;
    return {};
  }
  std::string_view rest = setting.choices;
  while (!rest.empty()) {
    const std::string_view choice = rest.substr(0, rest.find('|'));
    if (choice == text) {
      target = text;
      return {};
    }
    rest.remove_prefix(std::min(rest.size(), choice.size() + 1));
  }
  return fail(Errc::invalid, "\"" + text + "\" is not one of " + std::string(setting.choices));
}

Result<void> assign_bool(bool& target, const std::string& text) {
  if (text == "true" || text == "1" || text == "yes" || text == "on") {
    target = true;
  } else if (text == "false" || text == "0" || text == "no" || text == "off") {
    target = false;
  } else {
    return fail(Errc::invalid, "\"" + text + "\" is not true or false");
  }
  return {};
}

Result<void> assign_number(std::uint32_t& target, const Setting& setting, const std::string& text) {
  std::uint32_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < setting.least ||
      value > setting.most)
    return fail(Errc::invalid, "\"" + text + "\" is not a whole number from " +
                                   std::to_string(setting.least) + " to " + std::to_string(setting.most));
  target = value;
  return {};
}

Result<void> assign_share(double& target, const std::string& text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !(value >= 0 && value <= 1))
    return fail(Errc::invalid, "\"" + text + "\" is not a number from 0 to 1");
  target = value;
  return {};
}

std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replaced});
    }
  }
  return row.back();
}

template <class... F>
struct Overload : F... {
  using F::operator()...;
};
template <class... F>
Overload(F...) -> Overload<F...>;  // clang 14 does not deduce aggregates

}  // namespace

std::span<const Setting> settings() { return kSettings; }

std::string environment_name(std::string_view key) {
  std::string name = "STOKER_";
  for (char c : key) name += c == '.' ? '_' : (c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c);
  return name;
}

Result<void> assign(Config& config, const Setting& setting, const std::string& text) {
  return std::visit(
      Overload{
          [&](std::string Config::*m) -> Result<void> { return assign_string(config.*m, setting, text); },
          [&](bool Config::*m) -> Result<void> { return assign_bool(config.*m, text); },
          [&](std::uint32_t Config::*m) -> Result<void> { return assign_number(config.*m, setting, text); },
          [&](double Config::*m) -> Result<void> { return assign_share(config.*m, text); },
          [&](Size Config::*m) -> Result<void> {
            STOKER_TRY(config.*m, parse_size(text));
            return {};
          },
      },
      setting.member);
}

std::string value_text(const Config& config, const Setting& setting) {
  return std::visit(Overload{
                        [&](std::string Config::*m) { return "\"" + config.*m + "\""; },
                        [&](bool Config::*m) { return std::string(config.*m ? "true" : "false"); },
                        [&](std::uint32_t Config::*m) { return std::to_string(config.*m); },
                        [&](double Config::*m) { return std::to_string(config.*m); },
                        [&](Size Config::*m) { return format_size(config.*m); },
                    },
                    setting.member);
}

std::string nearest_key(std::string_view key) {
  const auto distance = [&](const Setting& s) { return edit_distance(key, s.key); };
  const auto best =
      std::min_element(kSettings.begin(), kSettings.end(),
                       [&](const Setting& a, const Setting& b) { return distance(a) < distance(b); });
  return std::string(best->key);
}

}  // namespace stoker
