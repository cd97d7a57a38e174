// `stoker cache drop`: gives back the memory that a stopped stack keeps warm.
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "cli/context.h"
#include "cli/stack.h"
#include "shm/pool.h"
#include "shm/run_directory.h"

namespace stoker::cli {
namespace {

struct CacheOptions {
  std::string run_dir;
  bool json = false;
};

/// Bytes of the POSIX shared-memory objects whose names begin with `prefix`.
std::uint64_t shared_bytes(const std::string& prefix) {
  std::uint64_t bytes = 0;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/dev/shm", error)) {
    if (entry.path().filename().string().rfind(prefix, 0) == 0) bytes += entry.file_size(error);
  }
  return bytes;
}

/// A pool is its owner's. Root acts as the owner of the run directory, so that it finds what a service left
/// and leaves no lock that the service cannot open.
Result<void> act_as_owner(const std::string& run_dir) {
  struct stat info {};
  if (::stat(run_dir.c_str(), &info) != 0 || info.st_uid == ::geteuid()) return {};
  const std::string owner = "user " + std::to_string(info.st_uid) + ", who keeps " + run_dir;
  if (::geteuid() == 0) {
    if (::setegid(info.st_gid) == 0 && ::seteuid(info.st_uid) == 0) return {};
    return fail(Errc::io, "cannot act as " + owner, errno);
  }
  if (shared_bytes(pool_name(run_dir)) > 0) return {};
  return fail(Errc::io,
              "this belongs to " + owner + "; only that user and root can free it (sudo stoker cache drop)");
}

int drop(const CacheOptions& options, Context& context) {
  const auto settings = load_settings();
  if (!settings) return report(settings.error(), "configuration");
  std::string run_dir = options.run_dir.empty() ? settings->run_dir : options.run_dir;
  std::error_code error;
  const auto canonical = std::filesystem::canonical(run_dir, error);
  if (!error) run_dir = canonical.string();
  if (const auto owner = act_as_owner(run_dir); !owner) return report(owner.error(), "cache drop");
  // Nobody can start a loader here while we hold its lock. Without the directory there is no loader either.
  std::optional<LoaderLock> lock;
  if (!error) {
    auto held = LoaderLock::acquire(run_dir, settings->group_access);
    if (!held) return report(held.error(), "cache drop");
    lock.emplace(*std::move(held));
  }
  const std::uint64_t bytes = shared_bytes(pool_name(run_dir));
  remove_shared_memory(run_dir);
  if (options.json) {
    const nlohmann::ordered_json out{{"run_dir", run_dir}, {"bytes", bytes}};
    return context.terminal.write_answer(out.dump() + "\n") ? kOk : kFailure;
  }
  context.terminal.note(bytes == 0 ? "nothing is kept for " + run_dir
                                   : "freed " + format_bytes(bytes) + " kept for " + run_dir);
  return kOk;
}

}  // namespace

void add_cache(CLI::App& app, Action& action) {
  CLI::App* cache = app.add_subcommand("cache", "The memory that a stopped stack keeps warm");
  cache->require_subcommand(1);
  auto options = std::make_shared<CacheOptions>();
  CLI::App* verb = cache->add_subcommand("drop", "Free it (when no loader runs)");
  verb->add_option("--run-dir", options->run_dir, "Run directory of the stack");
  verb->add_flag("--json", options->json, "Print JSON");
  verb->callback([options, &action] { action = [options](Context& c) { return drop(*options, c); }; });
}

}  // namespace stoker::cli
