// raw_read: GB/s of random, expert-sized O_DIRECT reads. The yardstick that decode speed is measured
// against (docs of every benchmark say "share of raw bandwidth, same run").
#include <sys/mman.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "io-worker/calibrate.h"
#include "io-worker/engine.h"
#include "shm/base/clock.h"

namespace stoker {
namespace {

struct Arguments {
  std::vector<std::string> files;
  std::uint32_t read_bytes = 3 << 20;
  std::size_t depth = 0;  ///< 0: try 1, 2, 4, 8, 16
  double run_seconds = 2;
  std::string engine = "uring";
  std::uint64_t seed = 1;
  bool json = false;
};

/// Anonymous memory for the targets, huge pages if they are to be had.
class Scratch {
 public:
  explicit Scratch(std::size_t bytes)
      : data_(::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)),
        bytes_(bytes) {
    if (data_ == MAP_FAILED) return;
    ::madvise(data_, bytes_, MADV_HUGEPAGE);
    ::madvise(data_, bytes_, MADV_POPULATE_WRITE);  // page faults are not what is measured
  }
  ~Scratch() {
    if (data_ != MAP_FAILED) ::munmap(data_, bytes_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  [[nodiscard]] bool valid() const { return data_ != MAP_FAILED; }
  [[nodiscard]] std::span<std::byte> span() const { return {static_cast<std::byte*>(data_), bytes_}; }

 private:
  void* data_;
  std::size_t bytes_;
};

Result<nlohmann::json> measure(const Arguments& arguments) {
  STOKER_TRY(const auto files, open_files(arguments.files));
  const std::size_t depth = arguments.depth > 0 ? arguments.depth : 16;
  const Scratch scratch(depth * arguments.read_bytes);
  if (!scratch.valid()) return fail(Errc::no_memory, "no memory for the read targets");
  const EngineOptions options{.depth = depth,
                              .doorbell_fd = -1,
                              .registered = scratch.span(),
                              .pread_threads = static_cast<unsigned>(std::min<std::size_t>(depth, 64))};
  STOKER_TRY(const auto engine, arguments.engine == "uring" ? make_uring_engine(files, options)
                                                            : make_pread_engine(files, options));

  const SteadyClock clock;
  const auto time =
      std::chrono::duration_cast<Duration>(std::chrono::duration<double>(arguments.run_seconds));
  nlohmann::json report{
      {"engine", engine->describe()}, {"read_bytes", arguments.read_bytes}, {"direct", true}};
  for (const EngineFile& file : files)
    if (!file.direct) report["direct"] = false;
  for (std::size_t each = 1; each <= 16; each *= 2) {
    if (arguments.depth > 0) each = arguments.depth;
    const ReadProbe probe{.read_bytes = arguments.read_bytes,
                          .depth = each,
                          .bytes_max = ~std::uint64_t{0},
                          .time_max = time,
                          .seed = arguments.seed + each};
    STOKER_TRY(const ReadRate rate, measure_random_reads(*engine, files, scratch.span(), probe, clock));
    report["points"].push_back({{"depth", each},
                                {"bytes", rate.bytes},
                                {"seconds", seconds(rate.elapsed)},
                                {"gb_per_second", rate.bytes_per_second() / 1e9}});
    if (arguments.depth > 0) break;
  }
  return report;
}

void print(const nlohmann::json& report) {
  std::printf("%s, reads of %u bytes%s\n", report["engine"].get<std::string>().c_str(),
              report["read_bytes"].get<unsigned>(),
              report["direct"].get<bool>() ? "" : ", NOT O_DIRECT: page cache");
  for (const auto& point : report["points"])
    std::printf("depth %2u: %6.3f GB/s\n", point["depth"].get<unsigned>(),
                point["gb_per_second"].get<double>());
}

int run(int argc, char** argv) {
  Arguments arguments;
  CLI::App app(
      "Measures random O_DIRECT reads of expert size. Without --depth: at 1, 2, 4, 8 and 16 in flight.");
  app.add_option("files", arguments.files, "Files to read, e.g. the shards of a checkpoint")->required();
  app.add_option("--size", arguments.read_bytes, "Bytes per read, a multiple of 4096")
      ->check(CLI::Range(4096, 1 << 30))
      ->capture_default_str();
  app.add_option("--depth", arguments.depth, "Reads in flight")->check(CLI::Range(1, 1024));
  app.add_option("--seconds", arguments.run_seconds, "Time per depth")
      ->check(CLI::Range(0.01, 3600.0))
      ->capture_default_str();
  app.add_option("--engine", arguments.engine)
      ->check(CLI::IsMember({"uring", "pread"}))
      ->capture_default_str();
  app.add_option("--seed", arguments.seed, "Of the offsets")->capture_default_str();
  app.add_flag("--json", arguments.json, "One JSON object on stdout");
  CLI11_PARSE(app, argc, argv);

  const auto report = measure(arguments);
  if (!report) {
    std::fprintf(stderr, "raw_read: %s\n", report.error().text().c_str());
    return 1;
  }
  if (arguments.json)
    std::printf("%s\n", report->dump().c_str());
  else
    print(*report);
  return 0;
}

}  // namespace
}  // namespace stoker

int main(int argc, char** argv) { return stoker::run(argc, argv); }
