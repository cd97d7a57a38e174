// Options that shape a stack (loader, worker, predictor, gateway), shared by run, chat, logits and serve, and
// the command lines of the daemons they turn into.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>
#include <vector>

#include "cli/process.h"

namespace stoker::cli {

struct StackOptions {
  std::string model_dir;
  std::string ram;  ///< "" = the loader's default
  std::optional<std::uint32_t> pool_slots;
  std::string engine;  ///< auto, uring, pread; "" = default
  bool no_predictor = false;
  std::optional<std::uint32_t> threads;
  std::string simd;
  std::string device;  ///< auto, cpu, cuda; "" = default
  std::string vram;
  std::optional<std::uint32_t> chunk;
  std::optional<std::uint32_t> context;
  std::string warm_manifest;  ///< auto, off, a path; "" = default
  bool gateway = false;       ///< the HTTP API too; never for a stack of one command
  std::string listen;         ///< HOST:PORT or none; "" = default
  std::string api_key_file;

  /// Any of them given on the command line: such a run wants a stack of its own.
  [[nodiscard]] bool any() const;
};

void add_stack_options(CLI::App& app, StackOptions& options);

/// Directory of the daemons' binaries: where this executable is.
std::string bin_directory();

enum class StackLogs { files, inherit };

/// The daemons in order of start. `unlink_on_exit`: the loader removes the pool's names when it stops.
std::vector<ChildSpec> stack_children(const StackOptions& options, const std::string& run_dir, StackLogs logs,
                                      bool unlink_on_exit);

}  // namespace stoker::cli
