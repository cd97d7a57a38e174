// stoker-predictor: routing samples in (SUB), hints out (PUSH). Holds no state that matters: it may die and
// come back at any time.
#include <unistd.h>

#include <array>
#include <cstdio>
#include <fstream>
#include <iostream>

#include "daemons/common/config.h"
#include "daemons/common/endpoints.h"
#include "daemons/common/limits.h"
#include "daemons/common/log.h"
#include "daemons/common/messages.h"
#include "daemons/common/notify.h"
#include "daemons/common/signals.h"
#include "daemons/common/zmq_socket.h"
#include "daemons/predictor/sample_reader.h"
#include "shm/base/clock.h"

namespace stoker {
namespace {

constexpr Duration kReportEvery = std::chrono::seconds(1);

HintMode mode_of(const std::string& name) {
  if (name == "on") return HintMode::on;
  return name == "off" ? HintMode::off : HintMode::automatic;
}

class Predictor {
 public:
  static Result<int> run(const Config& config);

 private:
  Predictor(const Config& config, ZmqSocket samples, ZmqSocket hints)
      : report_path_(endpoint::predictor_report(config.run_dir)),
        reader_({.horizon = config.hint_horizon,
                 .restraint = {.mode = mode_of(config.hints), .width = config.hint_width}}),
        samples_(std::move(samples)),
        hints_(std::move(hints)) {}
  Result<void> loop(StopSignals& signals, const Clock& clock);
  Result<void> drain();
  void write_report();

  std::string report_path_;
  SampleReader reader_;
  ZmqSocket samples_, hints_;
  std::uint64_t malformed_ = 0, unsent_ = 0;
  bool report_failed_ = false;
};

Result<int> Predictor::run(const Config& config) {
  STOKER_TRY(StopSignals signals, StopSignals::make());
  STOKER_TRY(const ZmqContext context, ZmqContext::make());
  ZmqOptions samples{.receive_bytes_max = limits::kSampleBytes, .receive_queue = limits::kSampleQueue};
  ZmqOptions hints{.send_queue = limits::kHintQueue};
  STOKER_TRY(ZmqSocket in,
             ZmqSocket::connect(context, ZmqRole::sub, endpoint::samples(config.run_dir), samples));
  STOKER_TRY(ZmqSocket out,
             ZmqSocket::connect(context, ZmqRole::push, endpoint::hints(config.loader_dir), hints));
  Predictor predictor(config, std::move(in), std::move(out));
  const Notifier notifier(config.notify_socket);
  const SteadyClock clock;
  notifier.ready("waiting for routing samples");
  log_info("ready in " + config.run_dir);
  STOKER_TRY_VOID(predictor.loop(signals, clock));
  notifier.stopping();
  ::unlink(predictor.report_path_.c_str());
  log_info("stopping; score " + predictor.reader_.json());
  return 0;
}

Result<void> Predictor::loop(StopSignals& signals, const Clock& clock) {
  Duration next_report = clock.now();
  while (!signals.stop_requested()) {
    std::array items{PollItem{.socket = &samples_}, PollItem{.fd = signals.fd()}};
    STOKER_TRY_VOID(wait_readable(items, kReportEvery));
    if (items[0].readable) STOKER_TRY_VOID(drain());
    if (clock.now() >= next_report) {
      write_report();
      next_report = clock.now() + kReportEvery;
    }
  }
  return {};
}

Result<void> Predictor::drain() {
  // Bounded, so that a flood of samples cannot keep the loop from its other work.
  for (int i = 0; i < limits::kSampleQueue; ++i) {
    STOKER_TRY(const auto message, samples_.receive());
    if (!message) return {};
    const auto sample = decode_sample(message->back());
    if (!sample) {
      if (++malformed_ == 1) log_warn("ignoring a malformed sample: " + sample.error().text());
      continue;
    }
    const wire::HintBatch* batch = reader_.on_sample(*sample);
    if (batch == nullptr) continue;
    const std::string bytes = encode(*batch);
    const std::array<std::string_view, 1> parts{bytes};
    STOKER_TRY(const SendOutcome outcome, hints_.send(parts));
    if (outcome != SendOutcome::sent) ++unsent_;  // no loader: hints are only useful fresh
  }
  return {};
}

/// Whole or not at all: readers never see half a file.
void Predictor::write_report() {
  const std::string temporary = report_path_ + ".new";
  {
    std::ofstream out(temporary, std::ios::trunc);
    out << "{\"pid\":" << ::getpid() << ",\"malformed\":" << malformed_ << ",\"unsent\":" << unsent_
        << ",\"score\":" << reader_.json() << "}\n";
    if (!out.flush()) {
      if (!report_failed_)
        log_warn("cannot write " + temporary + "; status will not show the predictor's score");
      report_failed_ = true;
      return;
    }
  }
  report_failed_ = std::rename(temporary.c_str(), report_path_.c_str()) != 0;
}

int main_checked(int argc, const char* const* argv) {
  const auto config = load_config(Program::predictor, standard_sources(argc, argv));
  if (!config) {
    std::cerr << "stoker-predictor: " << config.error().text() << "\n";
    return 2;
  }
  if (!config->help.empty()) {
    std::cout << config->help;
    return 0;
  }
  log_start("predictor", config->log_level, config->journal);
  for (const std::string& line : describe(*config, Program::predictor)) log_info(line);
  const auto code = Predictor::run(*config);
  if (code) return *code;
  log_error(code.error().text());
  return 1;
}

}  // namespace
}  // namespace stoker

int main(int argc, char** argv) { return stoker::main_checked(argc, argv); }
