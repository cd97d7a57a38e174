// The warm manifest in the life of a loader: read at the start, brought back by the loader in the background,
// written again every minute and at the end. An orderly stop, kill -9 and power loss alike leave a recent
// one.
#pragma once

#include <condition_variable>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "daemons/common/config.h"
#include "io-worker/loader.h"
#include "io-worker/preload.h"
#include "io-worker/warm_manifest.h"
#include "shm/base/clock.h"
#include "shm/pool.h"

namespace stoker {

/// Where the manifest of the model in `model_dir` is: "" = nowhere (off, or "auto" without a state
/// directory). Errc::invalid for a setting that is neither auto, off nor a path.
Result<std::string> warm_manifest_path(const Config& config, const std::string& model_dir);

/// Writes the manifest when it has changed, from a thread of its own: fsync may take long, and the loader's
/// thread serves demands. Reads shared memory only.
class WarmWriter {
 public:
  WarmWriter(const Pool& pool, WarmShape shape, std::string path, Duration every);
  WarmWriter(const WarmWriter&) = delete;
  WarmWriter& operator=(const WarmWriter&) = delete;
  ~WarmWriter();  ///< ends the thread, then writes a last time

 private:
  void run();
  void save();
  const Pool& pool_;
  WarmShape shape_;
  std::string path_;
  Duration every_;
  std::string written_;  ///< what the file holds, as far as we know
  bool complained_ = false;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool quit_ = false;   ///< guarded by mutex_
  std::thread thread_;  ///< last: starts when the rest is there
};

class WarmStart {
 public:
  static constexpr Duration kWriteEvery = std::chrono::minutes(1);

  /// `path` "" turns all of it off. What it is given must outlive it; it must outlive `loader`'s last turn.
  WarmStart(Pool& pool, const ExpertPlan& plan, std::uint64_t fingerprint, std::string path,
            const Clock& clock);
  /// Before workers are let in: history is restored here, experts come later. A manifest that cannot be used
  /// is ignored with one log line.
  void begin(Loader& loader);
  /// After a turn of the loader: says once when all is back.
  void look();
  /// No more reads will come: writes the manifest.
  void end() { writer_.reset(); }

 private:
  Pool& pool_;
  const ExpertPlan& plan_;
  WarmShape shape_;
  std::string path_;
  const Clock& clock_;
  std::optional<Preload> preload_;
  std::optional<WarmWriter> writer_;
  Duration began_{};
  bool told_ = false;
};

}  // namespace stoker
