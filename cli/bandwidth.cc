#include "cli/bandwidth.h"

#include <poll.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "cli/input.h"
#include "cli/process.h"
#include "cli/stack.h"
#include "shm/base/types.h"

namespace stoker::cli {

using namespace std::chrono_literals;

namespace {

/// The signal that came before the child ended, or 0.
int wait_for(ChildProcess& child, Interrupts& interrupts) {
  while (!child.wait(0ns)) {
    std::array polled{pollfd{child.pidfd(), POLLIN, 0}, pollfd{interrupts.fd(), POLLIN, 0}};
    ::poll(polled.data(), polled.size(), -1);
    if (const int signal = interrupts.take(); signal != 0) {
      static_cast<void>(child.stop(1s));
      return signal;
    }
  }
  return 0;
}

tl::expected<DiskBandwidth, ExitReport> raw_read(const DiskProbe& probe, const std::string& engine,
                                                 Interrupts& interrupts) {
  const auto stop = [](std::string why) {
    return tl::unexpected(ExitReport{kFailure, "cannot measure the disk", std::move(why)});
  };
  // Takes what the child prints; gone with the descriptor.
  const UniqueFd memory(::memfd_create("raw_read", MFD_CLOEXEC));
  if (!memory.valid()) return stop("no memory file for the output of raw_read");
  const std::string output = "/proc/self/fd/" + std::to_string(memory.get());
  const std::uint64_t read_bytes = align_up(std::max<std::uint64_t>(probe.read_bytes, 1), kDirectAlign);
  ChildSpec spec{"raw_read",
                 {bin_directory() + "/raw_read", "--json", "--engine", engine, "--size",
                  std::to_string(read_bytes), "--seconds", std::to_string(probe.seconds)},
                 output};
  spec.argv.insert(spec.argv.end(), probe.files.begin(), probe.files.end());
  auto child = ChildProcess::spawn(spec);
  if (!child) return stop(child.error().text());
  if (const int signal = wait_for(*child, interrupts); signal != 0)
    return tl::unexpected(ExitReport{exit_code_of_signal(signal), "interrupted", "nothing was measured"});
  if (shell_status(child->status()) != 0) return stop(last_words(output));
  const auto text = read_input(output);
  if (!text) return stop(text.error().text());
  const auto parsed = parse_raw_read(*text);
  if (!parsed) return stop(parsed.error().text());
  return *parsed;
}

}  // namespace

Result<DiskBandwidth> parse_raw_read(const std::string& text) {
  DiskBandwidth best;
  try {
    const auto report = nlohmann::json::parse(text);
    best.direct = report.at("direct").get<bool>();
    for (const auto& point : report.at("points")) {
      const double rate = point.at("gb_per_second").get<double>() * 1e9;
      if (rate <= best.bytes_per_second) continue;
      best.bytes_per_second = rate;
      best.depth = point.at("depth").get<std::uint64_t>();
    }
  } catch (const nlohmann::json::exception&) {
    return fail(Errc::corrupt, "raw_read printed no report; is it of another version?");
  }
  if (best.bytes_per_second <= 0) return fail(Errc::corrupt, "raw_read measured nothing");
  return best;
}

tl::expected<DiskBandwidth, ExitReport> measure_disk(const DiskProbe& probe, Interrupts& interrupts) {
  const bool choose = probe.engine.empty() || probe.engine == "auto";
  auto measured = raw_read(probe, choose ? "uring" : probe.engine, interrupts);
  // As the loader does: pread where io_uring cannot be had.
  if (!measured && choose && measured.error().code == kFailure) return raw_read(probe, "pread", interrupts);
  return measured;
}

}  // namespace stoker::cli
