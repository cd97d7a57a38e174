// Configuration of all daemons: one struct, four sources. Precedence: command-line flag, then environment
// (STOKER_<SECTION>_<KEY>), then file (config.toml), then the default written here.
//
// Files, later ones win: /etc/stoker/config.toml, /etc/stoker/conf.d/*.toml (by name),
// $XDG_CONFIG_HOME/stoker/config.toml (~/.config); or only the one given with --config / STOKER_CONFIG.
// An unknown key is an error with file, line and the nearest known key.
//
// This is the only place of the daemons that reads environment variables.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "daemons/common/size.h"
#include "shm/base/result.h"

namespace stoker {

/// Who reads the configuration: decides which flags exist. Files and environment may hold everything.
enum class Program : unsigned { loader = 1, worker = 2, predictor = 4, gateway = 8, all = 15 };

struct Config {
  // [model]
  std::string model_dir;  ///< checkpoint directory as published

  // [run]
  std::string run_dir;     ///< sockets, lock, pool name; default $XDG_RUNTIME_DIR/stoker or /run/stoker
  std::string loader_dir;  ///< run directory of the loader, for a second worker on its pool; default run_dir
  bool group_access = false;  ///< sockets and shared memory 0660 instead of 0600

  // [log]
  std::string log_level = "info";

  // [loader]
  /// Budget: resident weights + pool + control. A little under the usual size of /dev/shm, which is half of
  /// the machine's memory and holds other things too.
  Size ram{.bytes = 0, .percent = 45};
  std::uint32_t pool_slots = 0;  ///< experts in the pool; 0 = as many as `ram` holds
  std::string engine = "auto";   ///< auto, uring, pread
  Size bytes_in_flight;          ///< bytes being read at the same time; 0 = measured at start
  double hint_share = 0.25;      ///< of bytes_in_flight that hints may use
  Size hint_budget{.bytes = 256ULL << 20,
                   .percent = 0};  ///< read for hints per step of a worker; 0 = no limit
  std::uint32_t spin_ms = 0;       ///< how long the loader looks for demands before it sleeps; 0 = not at all
  std::string huge_pages = "auto";  ///< auto, off
  std::string checksums;            ///< file made by `stoker verify --checksums`; "" = reads are not checked
  bool unlink_on_exit = false;      ///< drop pool and weights at an orderly stop instead of staying warm
  std::string warm_manifest = "auto";  ///< auto (in state_dir), off, or a path: io-worker/warm_manifest.h

  // [worker]
  std::uint32_t threads = 0;         ///< 0 = one per CPU of the affinity mask
  std::string simd = "auto";         ///< auto, scalar, avx2, avx512, avx512vbmi
  std::string device = "auto";       ///< auto: a GPU if there is one; cpu, cuda, emulation
  std::uint32_t gpu = 0;             ///< which GPU, as CUDA numbers them
  Size vram;                         ///< budget on the GPU; 0 = what is free there, less a margin
  std::string expert_lane = "auto";  ///< experts that are not in VRAM: auto, gpu, cpu
  bool copy_ahead = false;           ///< copies to VRAM for the next layer while a read is awaited
  std::uint32_t max_sequences = 8;   ///< requests computed together
  std::uint32_t queue = 256;         ///< requests waiting at most
  std::uint32_t context = 32768;     ///< tokens per sequence at most; capped by the model's own
  std::uint32_t chunk = 1024;        ///< prompt tokens per prefill step
  Size sequence_memory{.bytes = 0, .percent = 25};  ///< budget of all sequences' state
  std::uint32_t kept_sequences = 8;  ///< of requests that ended, for those that go on from them; 0: none
  bool samples = true;               ///< publish routing samples for the predictor
  std::uint32_t loader_wait = 60;    ///< seconds to wait for a loader before a request fails

  // [predictor]
  std::string hints = "auto";      ///< auto, on, off
  std::uint32_t hint_width = 16;   ///< reads for hints per token and layer at most
  std::uint32_t hint_horizon = 1;  ///< how many layers ahead the tables look

  // [gateway]
  std::string listen = "127.0.0.1:8642";  ///< HOST:PORT, or none
  std::string api_key_file;               ///< its first line is the key; "" = no key
  std::string model_name;                 ///< what clients see; "" = name of the model directory

  // Not settings: facts of the environment that other files need.
  std::string notify_socket;  ///< $NOTIFY_SOCKET, "" if none
  std::string state_dir;  ///< $STATE_DIRECTORY, $XDG_STATE_HOME/stoker or ~/.local/state/stoker; "" if none
  bool journal = false;   ///< $JOURNAL_STREAM is set: stderr goes to the journal

  /// Where each key came from: "worker.threads" -> "flag", "STOKER_WORKER_THREADS", "/path:3"; absent =
  /// default.
  std::map<std::string, std::string> origins;
  /// --help was asked for: print this to stdout and exit with 0. Empty otherwise.
  std::string help;
};

/// Everything load_config takes from outside, so that tests can replace it.
struct ConfigSources {
  std::vector<std::string> arguments;  ///< without argv[0]
  std::function<std::optional<std::string>(const std::string&)> environment;
  std::vector<std::string> files;  ///< in order of rising precedence; missing ones are skipped
};

/// The real environment and the standard files.
ConfigSources standard_sources(int argc, const char* const* argv);

/// Errc::invalid for usage errors (unknown flag, key or value), with flag, variable or file:line named.
Result<Config> load_config(Program program, const ConfigSources& sources);

/// "key = value  (origin)", one line per key that `program` uses; printed at start.
std::vector<std::string> describe(const Config& config, Program program);

}  // namespace stoker
