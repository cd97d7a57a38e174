// Doctor's look at the disk, the model and the services.
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>

#include "checkpoint/checkpoint.h"
#include "cli/doctor.h"
#include "cli/session.h"
#include "daemons/common/endpoints.h"
#include "daemons/common/size.h"
#include "daemons/common/worker_client.h"
#include "gpu-worker/text/chat_template.h"
#include "gpu-worker/text/tokenizer.h"
#include "shm/base/unique_fd.h"

namespace stoker::cli {
namespace {

namespace fs = std::filesystem;
using Level = Check::Level;

std::string file_system_name(long type) {
  static const std::map<long, std::string> kNames = {
      {EXT4_SUPER_MAGIC, "ext4"}, {XFS_SUPER_MAGIC, "xfs"}, {BTRFS_SUPER_MAGIC, "btrfs"},
      {TMPFS_MAGIC, "tmpfs"},     {NFS_SUPER_MAGIC, "nfs"}, {OVERLAYFS_SUPER_MAGIC, "overlay"},
      {F2FS_SUPER_MAGIC, "f2fs"}, {0x2FC12FC1, "zfs"},      {0x65735546, "fuse"}};
  const auto found = kNames.find(type);
  return found == kNames.end() ? "file system of type " + std::to_string(type) : found->second;
}

/// "[mq-deadline] none" of the block device under `path`; "" when there is none (network, tmpfs).
std::string io_scheduler(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return "";
  const std::string device =
      "/sys/dev/block/" + std::to_string(major(info.st_dev)) + ":" + std::to_string(minor(info.st_dev));
  for (const char* where : {"/queue/scheduler", "/../queue/scheduler"}) {
    std::ifstream file(device + where);
    std::string line;
    if (std::getline(file, line)) return line;
  }
  return "";
}

std::string first_shard(const std::string& model_dir) {
  std::error_code error;
  std::string best;
  for (const auto& entry : fs::directory_iterator(model_dir, error)) {
    const std::string path = entry.path().string();
    if (entry.path().extension() == ".safetensors" && (best.empty() || path < best)) best = path;
  }
  return best;
}

/// Opens with O_DIRECT and reads one aligned block.
void check_direct(Checks& checks, const std::string& shard) {
  const UniqueFd file(::open(shard.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC));
  alignas(4096) char block[4096];
  const bool direct = file.valid() && ::pread(file.get(), block, sizeof block, 0) > 0;
  checks.push_back(
      {direct ? Level::ok : Level::warn, "Storage", "O_DIRECT",
       direct ? "works" : std::string("refused: ") + std::strerror(errno),
       direct ? "" : "put the model on ext4 or xfs; until then reads go through the page cache"});
}

/// How the published files suit direct reads: with one extent per expert a packed copy could save nothing.
void check_layout(Checks& checks, const ExpertPlan& plan) {
  std::uint64_t reads = 0, bytes = 0;
  for (std::uint32_t key = 0; key < plan.expert_count(); ++key) {
    const auto [extents, count] = plan.extents(ExpertKey{key});
    reads += count;
    for (std::size_t i = 0; i < count; ++i) bytes += extents[i].length;
  }
  const auto experts = static_cast<double>(plan.expert_count());
  const double excess = static_cast<double>(bytes) / (experts * static_cast<double>(plan.expert_bytes())) - 1;
  char text[96];
  std::snprintf(text, sizeof text, "%.3f per expert, %.2f %% more bytes than its weights",
                static_cast<double>(reads) / experts, excess * 100);
  checks.push_back({Level::ok, "Model", "reads", text, ""});
}

}  // namespace

void check_storage(Checks& checks, const std::string& model_dir) {
  if (model_dir.empty()) {
    checks.push_back({Level::ok, "Storage", "model", "none named; give MODEL_DIR to check its disk", ""});
    return;
  }
  struct statfs info {};
  if (::statfs(model_dir.c_str(), &info) != 0) {
    checks.push_back({Level::fail, "Storage", "directory", model_dir + ": " + std::strerror(errno),
                      "name the directory that holds config.json"});
    return;
  }
  const std::string name = file_system_name(static_cast<long>(info.f_type));
  const bool network = name == "nfs" || name == "fuse";
  checks.push_back({network ? Level::warn : Level::ok, "Storage", "file system", name,
                    network ? "copy the model to a local NVMe drive" : ""});
  if (const std::string scheduler = io_scheduler(model_dir); !scheduler.empty()) {
    checks.push_back({Level::ok, "Storage", "I/O scheduler", scheduler, ""});
  }
  if (const std::string shard = first_shard(model_dir); !shard.empty()) check_direct(checks, shard);
}

void check_model(Checks& checks, const std::string& model_dir) {
  if (model_dir.empty()) return;
  const auto failed = [&](const char* name, const Error& error) {
    checks.push_back({Level::fail, "Model", name, error.text(),
                      "run `stoker verify " + model_dir + "`, or download it again"});
  };
  const auto checkpoint = Checkpoint::open(model_dir);
  if (!checkpoint) {
    failed("checkpoint", checkpoint.error());
    return;
  }
  std::uint64_t bytes = 0;
  for (const ShardFile& file : checkpoint->files()) bytes += file.bytes;
  checks.push_back({Level::ok, "Model", "checkpoint",
                    std::to_string(checkpoint->files().size()) + " shard(s), " + format_bytes(bytes), ""});
  if (const auto plan = ExpertPlan::make(*checkpoint); !plan) {
    failed("experts", plan.error());
  } else {
    const std::uint64_t all = plan->expert_count() * plan->slot_bytes();
    checks.push_back({Level::ok, "Model", "experts",
                      std::to_string(plan->expert_count()) + " of " + format_bytes(plan->expert_bytes()) +
                          ", " + format_bytes(all) + " in a pool that holds all",
                      ""});
    check_layout(checks, *plan);
    // One layer's choice must fit, or no token can be computed.
    const std::uint64_t least = checkpoint->config().experts_per_token * plan->slot_bytes();
    const bool fits = least < machine_memory() / 2;
    checks.push_back({fits ? Level::ok : Level::fail, "Model", "smallest pool", format_bytes(least),
                      fits ? "" : "this machine's memory cannot hold one layer's choice of experts"});
  }
  if (const auto tokenizer = Tokenizer::load(model_dir + "/tokenizer.json"); !tokenizer) {
    failed("tokenizer", tokenizer.error());
  } else {
    checks.push_back({Level::ok, "Model", "tokenizer", std::to_string(tokenizer->size()) + " tokens", ""});
  }
  if (!has_chat_template(model_dir)) {
    checks.push_back({Level::warn, "Model", "chat template", "none",
                      "use `stoker run --raw`, or add chat_template.jinja"});
  } else if (const auto chat = ChatTemplate::load(model_dir); !chat) {
    checks.push_back({Level::warn, "Model", "chat template", chat.error().text(), "use `stoker run --raw`"});
  } else {
    checks.push_back({Level::ok, "Model", "chat template", "known", ""});
  }
}

void check_services(Checks& checks, const Config& settings, const Clock& clock) {
  std::error_code error;
  const fs::path run_dir = settings.run_dir;
  if (!fs::is_directory(run_dir, error)) {
    checks.push_back({Level::ok, "Services", "run directory", run_dir.string() + " (not made yet)", ""});
  } else {
    // A client needs no more; who starts a stack in a directory that is closed to them is told so then.
    const bool ours = ::access(run_dir.c_str(), R_OK | X_OK) == 0;
    checks.push_back(
        {ours ? Level::ok : Level::warn, "Services", "run directory", run_dir.string(),
         ours ? "" : "join the group of the service, or set run.dir to a directory of your own"});
  }
  auto client = WorkerClient::connect(settings.run_dir, clock);
  if (!client) {
    checks.push_back({Level::ok, "Services", "stack", "not running (`stoker run` starts a private one)", ""});
    return;
  }
  const auto status = client->status(std::chrono::seconds(5));
  checks.push_back({status ? Level::ok : Level::fail, "Services", "stack",
                    status ? "answers" : status.error().text(),
                    status ? "" : "restart it; its log says why it hangs"});
  const bool http = gateway_listens(settings.run_dir);
  checks.push_back(
      {http ? Level::ok : Level::warn, "Services", "HTTP API",
       http ? "listens, also at unix:" + endpoint::api(settings.run_dir) : "not running",
       http ? "" : "systemctl start stoker-gateway, or stoker-gateway --run-dir " + settings.run_dir});
}

}  // namespace stoker::cli
