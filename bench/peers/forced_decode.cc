// forced_decode: decodes given token ids with libllama, one at a time, and prints what it cost as one line of
// JSON. The counterpart of bench/out_of_core.py for llama.cpp and for forks of it with the same C API.
// Nothing builds it but this command, where LLAMA is a source tree of such a library and BUILD its build
// folder:
//
//   g++ -std=c++20 -O2 -I LLAMA/include -I LLAMA/ggml/include -o forced_decode bench/peers/forced_decode.cc
//       -L BUILD/bin -lllama -lggml -lggml-base -Wl,-rpath,BUILD/bin
//
// With -DEXPERT_STREAM also for the fork that streams experts itself (--slots, --io-threads, --direct).
//
// As in our own run: a first sequence warms whatever holds the experts (prompt of 4 ids, then --warm forced
// ids), then everything is forgotten and a second one (prompt: last 4 warm ids, then --tokens forced ids) is
// measured. The last forced id needs no decode, so --tokens 64 measures 63 steps.
#include <llama.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace {

constexpr std::size_t kPrompt = 4;

struct Arguments {
  std::string model;
  std::string ids;
  std::string routes;  ///< write the chosen experts of the measured steps here (slower: one stop per layer)
  std::string load = "mmap";
  std::size_t warm = 96;
  std::size_t tokens = 64;
  int threads = 2;
  std::uint32_t slots = 0;  ///< of each layer; 0: no expert streaming
  int io_threads = 4;
  bool direct = false;
};

const char* const kUsage =
    "usage: forced_decode MODEL.gguf IDS [--warm N] [--tokens N] [--threads N] [--load mmap|copy]\n"
    "                     [--routes FILE] [--slots N] [--io-threads N] [--direct]\n";

template <typename Number>
bool parse(std::string_view text, Number& out) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  return error == std::errc{} && end == text.data() + text.size();
}

/// One option with its value; false when it is not known or its value is not good.
bool take(Arguments& a, std::string_view name, std::string_view value) {
  if (name == "--warm") return parse(value, a.warm) && a.warm >= kPrompt;
  if (name == "--tokens") return parse(value, a.tokens) && a.tokens >= 2;
  if (name == "--threads") return parse(value, a.threads);
  if (name == "--slots") return parse(value, a.slots);
  if (name == "--io-threads") return parse(value, a.io_threads);
  if (name == "--load") return a.load = value, value == "mmap" || value == "copy";
  if (name == "--routes") return a.routes = value, true;
  return false;
}

std::optional<Arguments> arguments_of(std::span<char*> argv) {
  Arguments a;
  std::vector<std::string> places;
  for (std::size_t i = 1; i < argv.size(); ++i) {
    const std::string_view word = argv[i];
    if (word == "--direct") {
      a.direct = true;
    } else if (!word.starts_with("--")) {
      places.emplace_back(word);
    } else if (++i == argv.size() || !take(a, word, argv[i])) {
      return std::nullopt;
    }
  }
  if (places.size() != 2) return std::nullopt;
  a.model = places[0];
  a.ids = places[1];
  return a;
}

/// A number of a "name: value" file of /proc, e.g. read_bytes of /proc/self/io; kB are left as kB.
double proc_number(const char* file, std::string_view name) {
  std::ifstream in(file);
  for (std::string word; in >> word;) {
    double value = 0;
    if (word == std::string(name) + ":" && in >> value) return value;
  }
  return 0;
}

/// Major page faults of this process: the twelfth field of /proc/self/stat.
double major_faults() {
  std::ifstream in("/proc/self/stat");
  std::string word;
  for (int field = 0; field < 12; ++field) in >> word;
  double value = 0;
  return parse(word, value) ? value : 0;
}

struct Cost {
  double read_bytes = proc_number("/proc/self/io", "read_bytes");
  double faults = major_faults();
  double microseconds = static_cast<double>(llama_time_us());
};

struct Routes {
  std::ofstream out;
  bool on = false;
};

/// Writes "layer id id ..." for every router's choice while on.
bool on_node(ggml_tensor* node, bool ask, void* data) {
  constexpr std::string_view kChoice = "ffn_moe_topk-";
  auto& routes = *static_cast<Routes*>(data);
  const std::string_view name = node->name;
  if (!routes.on || !name.starts_with(kChoice) || name.find(' ') != name.npos) return !ask;
  if (ask) return true;
  routes.out << name.substr(kChoice.size());
  std::vector<std::int32_t> ids(static_cast<std::size_t>(node->ne[0]));
  ggml_backend_tensor_get(node, ids.data(), 0, ids.size() * sizeof ids[0]);
  for (const auto id : ids) routes.out << ' ' << id;
  routes.out << '\n';
  return true;
}

class Run {
 public:
  Run(const Arguments& a, Routes* routes) {
    auto model = llama_model_default_params();
    model.load_mode = a.load == "mmap" ? LLAMA_LOAD_MODE_MMAP : LLAMA_LOAD_MODE_NONE;
#ifdef EXPERT_STREAM
    model.moe_stream = a.slots > 0;
    model.moe_stream_slots = a.slots;
    model.moe_stream_io_threads = a.io_threads;
    model.moe_stream_direct = a.direct;
#endif
    model_ = llama_model_load_from_file(a.model.c_str(), model);
    if (model_ == nullptr) return;
    auto context = llama_context_default_params();
    context.n_ctx = 512;
    context.n_batch = context.n_ubatch = 64;
    context.n_threads = context.n_threads_batch = a.threads;
    if (routes != nullptr) {
      context.cb_eval = on_node;
      context.cb_eval_user_data = routes;
    }
    context_ = llama_init_from_model(model_, context);
  }
  ~Run() {
    if (context_ != nullptr) llama_free(context_);
    if (model_ != nullptr) llama_model_free(model_);
  }
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;

  [[nodiscard]] bool ready() const { return context_ != nullptr; }
  void forget() { llama_memory_clear(llama_get_memory(context_), true); }

  /// Decodes the ids as one batch and finds the most likely next token, as any caller would.
  bool feed(std::span<const llama_token> ids) {
    std::vector<llama_token> copy(ids.begin(), ids.end());
    if (llama_decode(context_, llama_batch_get_one(copy.data(), static_cast<int>(copy.size()))) != 0)
      return false;
    const float* logits = llama_get_logits_ith(context_, -1);
    const auto count = llama_vocab_n_tokens(llama_model_get_vocab(model_));
    best_ = static_cast<llama_token>(std::max_element(logits, logits + count) - logits);
    return true;
  }
  bool feed_each(std::span<const llama_token> ids) {
    return std::all_of(ids.begin(), ids.end(), [&](const llama_token& id) { return feed({&id, 1}); });
  }
  [[nodiscard]] llama_token best() const { return best_; }

 private:
  llama_model* model_ = nullptr;
  llama_context* context_ = nullptr;
  llama_token best_ = 0;
};

int fail(const std::string& what) {
  std::fprintf(stderr, "forced_decode: %s\n", what.c_str());
  return 1;
}

/// One line: {"name": number, ...}.
void print(std::initializer_list<std::pair<const char*, double>> numbers) {
  const char* before = "{";
  for (const auto& [name, number] : numbers) {
    std::printf("%s\"%s\": %.4f", before, name, number);
    before = ", ";
  }
  std::puts("}");
}

int measure(const Arguments& a, std::span<const llama_token> ids) {
  Routes routes{std::ofstream(a.routes), false};
  const Cost start;
  Run run(a, a.routes.empty() ? nullptr : &routes);
  if (!run.ready()) return fail("the model does not load");
  const Cost loaded;
  const auto warm = ids.first(a.warm);
  const auto forced = ids.subspan(a.warm, a.tokens - 1);
  if (!run.feed(ids.first(kPrompt)) || !run.feed_each(warm.first(warm.size() - 1))) {
    return fail("decode failed");
  }
  run.forget();
  if (!run.feed(warm.last(kPrompt))) return fail("decode failed");
  routes.on = true;
  const Cost before;
  if (!run.feed_each(forced)) return fail("decode failed");
  const Cost after;
  const auto steps = static_cast<double>(forced.size());
  const double seconds = (after.microseconds - before.microseconds) / 1e6;
  print({{"tokens_per_s", steps / seconds},
         {"seconds", seconds},
         {"steps", steps},
         {"bytes_per_token", (after.read_bytes - before.read_bytes) / steps},
         {"major_faults_per_token", (after.faults - before.faults) / steps},
         {"load_seconds", (loaded.microseconds - start.microseconds) / 1e6},
         {"warm_seconds", (before.microseconds - loaded.microseconds) / 1e6},
         {"anon_huge_bytes", 1024 * proc_number("/proc/self/smaps_rollup", "AnonHugePages")},
         {"rss_peak_bytes", 1024 * proc_number("/proc/self/status", "VmHWM")},
         {"last_best", run.best()}});
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const auto a = arguments_of({argv, static_cast<std::size_t>(argc)});
  if (!a) return std::fputs(kUsage, stderr), 2;
  std::ifstream in(a->ids);
  std::vector<llama_token> ids;
  for (llama_token id = 0; in >> id;) ids.push_back(id);
  if (ids.size() < a->warm + a->tokens) return fail(a->ids + " has too few ids");
  llama_log_set(
      [](ggml_log_level level, const char* text, void*) {
        if (level >= GGML_LOG_LEVEL_WARN && level != GGML_LOG_LEVEL_CONT) std::fputs(text, stderr);
      },
      nullptr);
  llama_backend_init();
  const int code = measure(*a, ids);
  llama_backend_free();
  return code;
}
