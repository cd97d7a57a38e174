#include "cli/supervisor.h"

#include <algorithm>

namespace stoker::cli {

using namespace std::chrono_literals;

Supervisor::Supervisor(SupervisorOptions options, const Clock& clock, Sink sink)
    : options_(std::move(options)), clock_(clock), sink_(std::move(sink)) {
  for (const ChildSpec& spec : options_.children) slots_.push_back({spec, std::nullopt, {}, std::nullopt});
}

Supervisor::~Supervisor() { stop(); }

Result<void> Supervisor::launch(Slot& slot) {
  slot.due.reset();
  STOKER_TRY(ChildProcess process, ChildProcess::spawn(slot.spec));
  const pid_t pid = process.pid();
  slot.process.emplace(std::move(process));
  sink_({SupervisorEvent::Kind::started, slot.spec.name, pid, 0,
         slot.spec.name + " started (pid " + std::to_string(pid) + ")"});
  return {};
}

Result<void> Supervisor::start() {
  for (Slot& slot : slots_) STOKER_TRY_VOID(launch(slot));
  return {};
}

std::vector<int> Supervisor::fds() const {
  std::vector<int> fds;
  for (const Slot& slot : slots_) {
    if (slot.process) fds.push_back(slot.process->pidfd());
  }
  return fds;
}

std::optional<int> Supervisor::on_death(Slot& slot) {
  const int wait_status = slot.process->status();
  const int status = shell_status(wait_status);
  const std::string what = slot.spec.name + " " + describe_status(wait_status);
  const pid_t pid = slot.process->pid();
  slot.process.reset();

  const Duration now = clock_.now();
  slot.deaths.push_back(now);
  std::erase_if(slot.deaths, [&](Duration at) { return now - at > options_.deaths_window; });
  const bool startup_error = !ready_ && status < 128;
  const bool too_often = slot.deaths.size() > options_.deaths_max;
  if (startup_error || too_often || !options_.restart) {
    const std::string why = startup_error ? " before the stack was ready"
                            : too_often
                                ? ", " + std::to_string(slot.deaths.size()) + " times in " +
                                      std::to_string(static_cast<int>(seconds(options_.deaths_window))) + " s"
                                : " (--no-restart)";
    sink_({SupervisorEvent::Kind::gave_up, slot.spec.name, pid, status, what + why + ": giving up"});
    return status;
  }
  const Duration delay = options_.backoff_first * (1U << std::min<std::size_t>(slot.deaths.size() - 1, 6));
  slot.due = now + delay;
  const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(delay).count();
  sink_({SupervisorEvent::Kind::died, slot.spec.name, pid, status,
         what + ", restarting in " + std::to_string(ms) + " ms"});
  return std::nullopt;
}

std::optional<int> Supervisor::step() {
  for (Slot& slot : slots_) {
    if (slot.process && slot.process->wait(0ns)) {
      if (const auto status = on_death(slot)) return status;
    }
    if (slot.due && *slot.due <= clock_.now()) {
      if (const auto started = launch(slot); !started) {
        sink_({SupervisorEvent::Kind::gave_up, slot.spec.name, 0, 1, started.error().text()});
        return 1;
      }
    }
  }
  return std::nullopt;
}

Duration Supervisor::step_within() const {
  Duration within = 60s;
  for (const Slot& slot : slots_) {
    if (slot.due) within = std::min(within, std::max<Duration>(*slot.due - clock_.now(), 0ns));
  }
  return within;
}

void Supervisor::stop() {
  // Reverse order of start: clients' sequences end before the experts under them go away.
  for (auto slot = slots_.rbegin(); slot != slots_.rend(); ++slot) {
    slot->due.reset();
    if (!slot->process) continue;
    slot->process->stop(options_.stop_grace);
    slot->process.reset();
  }
}

}  // namespace stoker::cli
