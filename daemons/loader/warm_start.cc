#include "daemons/loader/warm_start.h"

#include <array>
#include <cstdio>
#include <filesystem>

#include "daemons/common/log.h"
#include "daemons/common/size.h"
#include "shm/base/hex.h"

namespace stoker {
namespace {

std::string fixed(double value) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.1f", value);
  return text.data();
}

}  // namespace

Result<std::string> warm_manifest_path(const Config& config, const std::string& model_dir) {
  if (config.warm_manifest == "off") return "";
  if (config.warm_manifest.find('/') != std::string::npos) return config.warm_manifest;
  if (config.warm_manifest != "auto")
    return fail(Errc::invalid, "loader.warm_manifest: \"" + config.warm_manifest +
                                   "\" is neither auto, off nor a path (./" + config.warm_manifest +
                                   " would be one)");
  if (config.state_dir.empty()) return "";
  // By the model's place, not by its fingerprint: a model that changes takes over its old file.
  std::error_code error;
  const auto canonical = std::filesystem::canonical(model_dir, error);
  return config.state_dir + "/warm/" + name_hash(error ? model_dir : canonical.string());
}

WarmWriter::WarmWriter(const Pool& pool, WarmShape shape, std::string path, Duration every)
    : pool_(pool), shape_(shape), path_(std::move(path)), every_(every), thread_([this] { run(); }) {}

WarmWriter::~WarmWriter() {
  {
    const std::lock_guard lock(mutex_);
    quit_ = true;
  }
  wake_.notify_one();
  thread_.join();
  save();
}

void WarmWriter::run() {
  std::unique_lock lock(mutex_);
  while (!wake_.wait_for(lock, every_, [this] { return quit_; })) {
    lock.unlock();
    save();
    lock.lock();
  }
}

void WarmWriter::save() {
  const WarmManifest manifest = collect_warm(pool_, shape_);
  if (manifest.empty()) return;  // nothing happened: an older manifest may know more
  std::string bytes = encode_warm_manifest(manifest, shape_);
  if (bytes == written_) return;
  const auto done = write_warm_manifest(path_, bytes);
  if (done) {
    written_ = std::move(bytes);
    complained_ = false;
  } else if (!complained_) {
    log_warn("the warm manifest is not saved: " + done.error().text());
    complained_ = true;
  }
}

WarmStart::WarmStart(Pool& pool, const ExpertPlan& plan, std::uint64_t fingerprint, std::string path,
                     const Clock& clock)
    : pool_(pool),
      plan_(plan),
      shape_{
          .fingerprint = fingerprint, .layers = plan.layers(), .experts_per_layer = plan.experts_per_layer()},
      path_(std::move(path)),
      clock_(clock) {}

void WarmStart::begin(Loader& loader) {
  if (path_.empty()) return;
  const auto manifest = read_warm_manifest(path_, shape_);
  if (manifest) {
    const PoolCensus slots = census(pool_);
    const std::size_t room = slots.by_state[static_cast<unsigned>(SlotState::free)] +
                             slots.by_state[static_cast<unsigned>(SlotState::quarantined)];
    restore_usage(pool_, *manifest);
    began_ = clock_.now();
    preload_.emplace(*manifest, plan_, room);
    loader.set_preload(*preload_);
    if (preload_->planned() > 0)
      log_info("warm start: " + std::to_string(preload_->planned()) + " of the " +
               std::to_string(manifest->size()) + " experts in " + path_ + " come back in the background");
  } else if (manifest.error().code != Errc::missing) {
    log_warn("ignoring the warm manifest " + path_ + ": " + manifest.error().text());
  }
  writer_.emplace(pool_, shape_, path_, kWriteEvery);
}

void WarmStart::look() {
  if (told_ || !preload_ || !preload_->finished() || preload_->planned() == 0) return;
  told_ = true;
  log_info("warm start: " + std::to_string(preload_->restored()) + " experts, " +
           format_bytes(preload_->restored() * plan_.expert_bytes()) + ", in " +
           fixed(seconds(clock_.now() - began_)) + " s");
}

}  // namespace stoker
