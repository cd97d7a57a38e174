// From demand to read: the time between a worker's post() and the moment the loader hands the read to the
// kernel, with the real demand table, eventfd, loader and io_uring engine in two threads. "asleep": the
// loader waits in the kernel and must be woken, 3 ms after the last demand, which the demanding thread spent
// computing (as a worker does) or sleeping too; "reads under way": with those of four demands of 0.3 ms ago.
//
// Each row three times: with the loader on the demanding thread's CPU, on another, and where the kernel puts
// it. Beside them the yardstick: what it takes to wake a thread by eventfd on that CPU, and nothing else.
// Then once more with a loader that spins (loader.spin_ms) and so need not be woken.
//   bench_demand MODEL_DIR [ROUNDS]      goal: below 10 us at the median
#include <sched.h>
#include <stdlib.h>  // NOLINT(modernize-deprecated-headers): mkdtemp
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "io-worker/engine.h"
#include "io-worker/loader.h"
#include "shm/attach.h"
#include "shm/base/unique_fd.h"
#include "shm/lease.h"
#include "shm/run_directory.h"

namespace {

using namespace stoker;  // NOLINT(google-build-using-namespace): a program of one file

constexpr std::uint32_t kSlots = 64;

template <class T>
T take(Result<T> result) {
  if (result) return *std::move(result);
  std::fprintf(stderr, "bench_demand: %s\n", result.error().text().c_str());
  std::exit(1);
}

/// The CPUs this program may use, in order.
std::vector<int> allowed_cpus() {
  cpu_set_t set;
  std::vector<int> cpus;
  if (::sched_getaffinity(0, sizeof set, &set) != 0) std::exit(1);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(static_cast<std::size_t>(cpu), &set)) cpus.push_back(cpu);
  return cpus;
}

/// The calling thread runs on these from now on.
void run_on(const std::vector<int>& cpus) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int cpu : cpus) CPU_SET(static_cast<std::size_t>(cpu), &set);
  if (::sched_setaffinity(0, sizeof set, &set) != 0) std::exit(1);
}

/// As a worker does between two demands, or not at all.
void pass_time(Duration span, bool computing, const Clock& clock) {
  if (!computing) return std::this_thread::sleep_for(span);
  for (const Duration until = clock.now() + span; clock.now() < until;) {
  }
}

constexpr Duration kAsleepAfter = std::chrono::milliseconds(3);

/// Microseconds from write() to the return of the read() of a thread that slept on `cpus`.
std::vector<double> wake_only(int rounds, bool computing, const std::vector<int>& cpus) {
  const SteadyClock clock;
  const UniqueFd bell(::eventfd(0, EFD_CLOEXEC)), answer(::eventfd(0, EFD_CLOEXEC));
  std::atomic<std::int64_t> woken{0};
  std::uint64_t value = 1;
  std::thread sleeper([&] {
    run_on(cpus);
    std::uint64_t count = 0;
    for (int i = 0; i<rounds&& ::read(bell.get(), &count, sizeof count)> 0; ++i) {
      woken = clock.now().count();
      if (::write(answer.get(), &count, sizeof count) < 0) return;
    }
  });
  std::vector<double> us;
  for (int i = 0; i < rounds; ++i) {
    pass_time(kAsleepAfter, computing, clock);
    const Duration start = clock.now();
    if (::write(bell.get(), &value, sizeof value) < 0 || ::read(answer.get(), &value, sizeof value) < 0)
      std::exit(1);
    us.push_back(std::chrono::duration<double, std::micro>(Duration{woken} - start).count());
  }
  sleeper.join();
  return us;
}

/// The real engine; remembers when the first read after arm() went to it.
class StampedEngine final : public IoEngine {
 public:
  StampedEngine(std::unique_ptr<IoEngine> engine, const Clock& clock)
      : engine_(std::move(engine)), clock_(clock) {}
  std::size_t submit(std::span<const ReadOp> ops) override {
    const Duration now = clock_.now();
    const std::size_t taken = engine_->submit(ops);
    if (taken > 0 && armed_.exchange(false)) stamp_.store(now.count());
    submitted_.fetch_add(taken);
    return taken;
  }
  std::size_t reap(std::span<Completion> out, Duration wait) override { return engine_->reap(out, wait); }
  [[nodiscard]] std::size_t in_flight() const noexcept override { return engine_->in_flight(); }
  [[nodiscard]] std::size_t capacity() const noexcept override { return engine_->capacity(); }
  [[nodiscard]] std::string describe() const override { return engine_->describe(); }
  void arm() { armed_.store(true); }
  [[nodiscard]] std::uint64_t submitted() const { return submitted_.load(); }
  [[nodiscard]] Duration stamp() const { return Duration{stamp_.load()}; }

 private:
  std::unique_ptr<IoEngine> engine_;
  const Clock& clock_;
  std::atomic<bool> armed_{false};
  std::atomic<std::int64_t> stamp_{0};
  std::atomic<std::uint64_t> submitted_{0};  ///< reads; an expert takes one or two
};

void report(const char* where, const char* name, std::vector<double> us) {
  std::sort(us.begin(), us.end());
  const auto at = [&](double q) {
    return us.empty() ? 0.0 : us[static_cast<std::size_t>(q * static_cast<double>(us.size() - 1))];
  };
  std::printf("| %s | %s | %.1f | %.1f | %.1f | %.1f | %zu |\n", where, name, at(0), at(0.5), at(0.9),
              at(0.99), us.size());
}

class Bench {
 public:
  /// The loader's thread runs on `cpus`.
  Bench(const std::string& model, std::vector<int> cpus, Duration spin)
      : cpus_(std::move(cpus)),
        spin_(spin),
        checkpoint_(take(Checkpoint::open(model))),
        plan_(take(ExpertPlan::make(checkpoint_))),
        pool_(take(Pool::create_or_adopt(spec()))) {
    std::vector<std::string> paths;
    for (const ShardFile& file : checkpoint_.files()) paths.push_back(file.path);
    files_ = take(open_files(paths));
    char text[] = "/tmp/stoker-bench-XXXXXX";
    if (::mkdtemp(text) == nullptr) std::exit(1);
    directory_ = text;
    server_.emplace(take(AttachServer::create(
        pool_, {.socket_path = loader_socket_path(directory_), .pool_name = name_, .weights_name = "none"})));
    loader_ = std::thread([this] { serve(); });
    client_.emplace(take(AttachClient::attach(loader_socket_path(directory_), std::chrono::seconds(10))));
    port_.emplace(pool_, client_->grant().index);
    leases_.emplace(pool_, client_->grant().index);
  }
  ~Bench() {
    stop_ = true;
    client_->ring_doorbell();
    loader_.join();
    client_.reset();
    server_.reset();
    std::filesystem::remove_all(directory_);
    Pool::unlink(name_);
  }
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;

  /// Microseconds from post() to submission, `rounds` times; `busy` reads are under way at each.
  std::vector<double> run(int rounds, std::uint32_t busy, bool computing) {
    std::vector<double> us;
    std::vector<DemandTicket> others;
    for (int i = 0; i < rounds; ++i) {
      for (std::uint32_t b = 0; b < busy; ++b) others.push_back(demand());
      pass_time(busy == 0 ? kAsleepAfter : kAsleepAfter / 10, computing, clock_);
      if (engine_->submitted() < posted_) {  // on a busy machine: the stamp would be another demand's
        for (const DemandTicket other : others) finish(other);
        others.clear();
        continue;
      }
      engine_->arm();
      const Duration start = clock_.now();
      const DemandTicket ticket = demand();
      finish(ticket);
      // A read before the start was one of the others, which the loader was slow to take in.
      if (engine_->stamp() >= start)
        us.push_back(std::chrono::duration<double, std::micro>(engine_->stamp() - start).count());
      for (const DemandTicket other : others) finish(other);
      others.clear();
    }
    return us;
  }

 private:
  PoolSpec spec() {
    PoolSpec spec;
    spec.name = name_;
    spec.slot_bytes = plan_.slot_bytes();
    spec.slot_count = kSlots;
    spec.layers = plan_.layers();
    spec.experts_per_layer = plan_.experts_per_layer();
    spec.checkpoint_fingerprint = checkpoint_.fingerprint();
    return spec;
  }
  /// The next expert; each comes again only after all others, long after it was evicted.
  DemandTicket demand() {
    const ExpertKey key{next_++ % plan_.expert_count()};
    const auto ticket = port_->post(key, 0);
    if (!ticket) std::exit(1);
    if (port_->publish()) client_->ring_doorbell();
    ++posted_;
    return *ticket;
  }
  void finish(DemandTicket ticket) {
    while (port_->state(ticket) == DemandState::pending) (void)port_->wait(std::chrono::milliseconds(20));
    const DemandResult result = port_->poll(ticket);
    port_->release(ticket);
    if (result.state != DemandState::granted || !leases_->adopt(result.slot)) {
      std::fprintf(stderr, "bench_demand: %s\n", result.error.c_str());
      std::exit(1);
    }
    if (leases_->release(result.slot)) client_->ring_doorbell();
  }
  void serve() {
    run_on(cpus_);
    auto engine = take(make_uring_engine(files_, {.depth = 256, .doorbell_fd = server_->doorbell_fd()}));
    engine_ = std::make_unique<StampedEngine>(std::move(engine), clock_);
    Loader loader(pool_, plan_, checkpoint_.files(), *engine_, clock_,
                  {.bytes_in_flight = 64ULL << 20, .spin = spin_, .checksums = {}});
    while (!stop_) {
      for (const AttachEvent& event : server_->poll(Duration{}))
        if (event.kind == AttachEvent::Kind::attached) loader.add_process(event.process);
      (void)loader.turn(std::chrono::milliseconds(50));
    }
    loader.drain();
  }

  std::vector<int> cpus_;
  Duration spin_;
  Checkpoint checkpoint_;
  ExpertPlan plan_;
  std::string name_ = "stoker-bench-demand." + std::to_string(::getpid());
  Pool pool_;
  std::vector<EngineFile> files_;
  std::string directory_;
  SteadyClock clock_;
  std::optional<AttachServer> server_;
  std::unique_ptr<StampedEngine> engine_;
  std::optional<AttachClient> client_;
  std::optional<DemandPort> port_;
  std::optional<LeaseTable> leases_;
  std::atomic<bool> stop_{false};
  std::thread loader_;
  std::uint32_t next_ = 0;
  std::uint64_t posted_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: bench_demand MODEL_DIR [ROUNDS]\n");
    return 2;
  }
  const int rounds = argc > 2 ? std::atoi(argv[2]) : 500;
  const std::vector<int> all = allowed_cpus();
  std::printf(
      "| loader's CPU | loader | min us | median us | p90 us | p99 us | demands "
      "|\n|---|---|---|---|---|---|---|\n");
  const auto rows = [&](const char* where, const std::vector<int>& cpus) {
    {
      Bench bench(argv[1], cpus, {});
      report(where, "asleep, the worker computing", bench.run(rounds, 0, true));
      report(where, "(a thread woken, nothing else)", wake_only(rounds, true, cpus));
      report(where, "asleep, the worker too", bench.run(rounds, 0, false));
      report(where, "(a thread woken, nothing else)", wake_only(rounds, false, cpus));
      report(where, "4 reads under way, the worker computing", bench.run(rounds, 4, true));
      report(where, "4 reads under way, the worker asleep", bench.run(rounds, 4, false));
    }
    Bench bench(argv[1], cpus, std::chrono::milliseconds(20));
    report(where, "spinning, the worker computing", bench.run(rounds, 0, true));
    report(where, "spinning, the worker asleep", bench.run(rounds, 0, false));
    report(where, "spinning, 4 reads under way, the worker computing", bench.run(rounds, 4, true));
    report(where, "spinning, 4 reads under way, the worker asleep", bench.run(rounds, 4, false));
  };
  rows("any", all);
  run_on({all.front()});
  rows("the worker's", {all.front()});
  if (all.size() > 1) rows("another", {all.back()});
}
