#include "cli/stack_options.h"

#include <unistd.h>

#include <climits>

namespace stoker::cli {
namespace {

void push(std::vector<std::string>& argv, const char* flag, const std::string& value) {
  if (value.empty()) return;
  argv.emplace_back(flag);
  argv.push_back(value);
}

void push(std::vector<std::string>& argv, const char* flag, const std::optional<std::uint32_t>& value) {
  if (value) push(argv, flag, std::to_string(*value));
}

}  // namespace

bool StackOptions::any() const {
  return !ram.empty() || pool_slots || !engine.empty() || no_predictor || threads || !simd.empty() ||
         !device.empty() || !vram.empty() || chunk || context || !warm_manifest.empty();
}

void add_stack_options(CLI::App& app, StackOptions& options) {
  const char* group = "Stack";
  auto* ram =
      app.add_option("--ram", options.ram, "Memory for resident weights and expert pool together, e.g. 24GiB")
          ->group(group);
  app.add_option("--pool-slots", options.pool_slots, "Size of the pool in experts, instead of --ram")
      ->check(CLI::PositiveNumber)
      ->excludes(ram)
      ->group(group);
  app.add_option("--engine", options.engine, "How the loader reads: auto, uring or pread")
      ->check(CLI::IsMember({"auto", "uring", "pread"}))
      ->group(group);
  app.add_flag("--no-predictor", options.no_predictor, "Run without prefetch hints")->group(group);
  app.add_option("--threads", options.threads, "Compute threads (default: all CPUs)")
      ->check(CLI::Range(1, 1024))
      ->group(group);
  app.add_option("--simd", options.simd, "Instruction set; the result is the same")
      ->check(CLI::IsMember({"auto", "scalar", "avx2", "avx512", "avx512vbmi"}))
      ->group(group);
  app.add_option("--device", options.device,
                 "Where the model is computed (default: on a GPU if there is one)")
      ->check(CLI::IsMember({"auto", "cpu", "cuda", "emulation"}))
      ->group(group);
  app.add_option("--vram", options.vram, "Memory to use on the GPU, e.g. 8GiB (default: what is free there)")
      ->group(group);
  app.add_option("--chunk", options.chunk, "Prompt tokens per prefill step")
      ->check(CLI::PositiveNumber)
      ->group(group);
  app.add_option("--context", options.context,
                 "Longest prompt + answer in tokens (default: 32768, or the model's if less)")
      ->check(CLI::PositiveNumber)
      ->group(group);
  app.add_option(
         "--warm-manifest", options.warm_manifest,
         "File that remembers what the pool held: auto, off or a path (default: auto; off for a stack "
         "of one command)")
      ->group(group);
}

std::string bin_directory() {
  char path[PATH_MAX];
  const ssize_t n = ::readlink("/proc/self/exe", path, sizeof path);
  if (n <= 0) return ".";
  const std::string self(path, static_cast<std::size_t>(n));
  return self.substr(0, self.rfind('/'));
}

std::vector<ChildSpec> stack_children(const StackOptions& options, const std::string& run_dir, StackLogs logs,
                                      bool unlink_on_exit) {
  const std::string bin = bin_directory();
  const auto child = [&](const std::string& name) {
    const std::string log = logs == StackLogs::files ? run_dir + "/" + name + ".log" : "";
    return ChildSpec{name, {bin + "/stoker-" + name, "--run-dir", run_dir}, log};
  };
  ChildSpec loader = child("loader");
  push(loader.argv, "--model", options.model_dir);
  push(loader.argv, "--ram", options.ram);
  push(loader.argv, "--pool-slots", options.pool_slots);
  push(loader.argv, "--engine", options.engine);
  push(loader.argv, "--warm-manifest", options.warm_manifest);
  if (unlink_on_exit) loader.argv.emplace_back("--unlink-on-exit");

  ChildSpec worker = child("worker");
  push(worker.argv, "--model", options.model_dir);
  push(worker.argv, "--threads", options.threads);
  push(worker.argv, "--simd", options.simd);
  push(worker.argv, "--device", options.device);
  push(worker.argv, "--vram", options.vram);
  push(worker.argv, "--chunk", options.chunk);
  push(worker.argv, "--context", options.context);

  std::vector<ChildSpec> children{std::move(loader), std::move(worker)};
  if (!options.no_predictor) children.push_back(child("predictor"));
  if (options.gateway) {
    ChildSpec gateway = child("gateway");
    push(gateway.argv, "--listen", options.listen);
    push(gateway.argv, "--api-key-file", options.api_key_file);
    children.push_back(std::move(gateway));
  }
  return children;
}

}  // namespace stoker::cli
