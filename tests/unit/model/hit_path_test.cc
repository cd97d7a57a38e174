// A decode step whose experts are all in the pool makes no system call and allocates nothing: the real model
// over the real pool and lease code, in a child process whose system calls are forbidden (seccomp).
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <csignal>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <thread>

#include "gpu-worker/pool_source.h"
#include "shm/run_directory.h"
#include "tests/unit/model/count_allocations.h"
#include "tests/unit/model/tiny_model.h"
#include "tests/unit/shm/pool_fixture.h"

namespace stoker::testing {
namespace {

using test::take;

constexpr int kSystemCall = 100, kAllocation = 101, kStepFailed = 102, kNoSeccomp = 103;

ModelConfig fp8_model() {
  ModelConfig config = t0_config();
  config.scale_block_rows = config.scale_block_cols = 16;
  return config;
}

/// All experts of a TinyModel in a pool of its own, and this process attached to it.
class ResidentStack {
 public:
  explicit ResidentStack(TinyModel& tiny) : spec_(spec_for(tiny)), guard_(spec_.name) {
    char text[] = "/tmp/stoker-test-XXXXXX";
    REQUIRE(::mkdtemp(text) != nullptr);
    directory_ = text;
    pool_.emplace(take(Pool::create_or_adopt(spec_)));
    const std::uint32_t experts = spec_.experts_per_layer;
    for (std::uint32_t key = 0; key < spec_.slot_count; ++key) {
      const TinyExpert& expert = tiny.expert(key / experts, key % experts);
      REQUIRE(expert.bytes.size() <= spec_.slot_bytes);
      std::memcpy(pool_->payload(SlotId{key}), expert.bytes.data(), expert.bytes.size());
      test::fill_slot(*pool_, SlotId{key}, ExpertKey{key});
    }
    attach();
    source_ = take(PoolSource::make(*pool_, *client_, tiny.image(), tiny.config(),
                                    std::uint64_t{tiny.config().moe_intermediate} * tiny.config().hidden_size,
                                    clock_, {.loader_socket = loader_socket_path(directory_)}));
  }
  ~ResidentStack() {
    client_.reset();
    std::filesystem::remove_all(directory_);
  }
  ResidentStack(const ResidentStack&) = delete;
  ResidentStack& operator=(const ResidentStack&) = delete;
  PoolSource& source() { return *source_; }
  [[nodiscard]] std::uint64_t hits() const { return pool_->counters().worker.pool_hits.load(); }

 private:
  static PoolSpec spec_for(const TinyModel& tiny) {
    PoolSpec spec = test::small_spec("hit-path");
    spec.layers = tiny.config().layers;
    spec.experts_per_layer = tiny.config().experts;
    spec.slot_count = spec.layers * spec.experts_per_layer;
    return spec;
  }
  void attach() {
    const std::string socket = loader_socket_path(directory_);
    server_.emplace(take(AttachServer::create(*pool_, {.socket_path = socket,
                                                       .pool_name = spec_.name,
                                                       .weights_name = spec_.name + ".weights",
                                                       .checkpoint_fingerprint = 0x1234})));
    std::atomic<bool> attached{false};
    std::thread loader([&] {
      while (!attached) (void)server_->poll(std::chrono::milliseconds(10));
    });
    auto client = AttachClient::attach(socket, std::chrono::seconds(30));
    attached = true;
    loader.join();
    client_.emplace(take(std::move(client)));
  }

  PoolSpec spec_;
  test::NameGuard guard_;
  std::string directory_;
  std::optional<Pool> pool_;
  std::optional<AttachServer> server_;
  std::optional<AttachClient> client_;
  SteadyClock clock_;
  std::unique_ptr<PoolSource> source_;
};

/// Says which call it was and ends the process.
void on_forbidden_call(int, siginfo_t* info, void*) {
  char text[] = "forbidden system call number 0000\n";
  int number = info->si_syscall;
  for (std::size_t i = sizeof text - 3; number > 0 && i > 0; --i, number /= 10)
    text[i] = static_cast<char>('0' + number % 10);
  static_cast<void>(!::write(STDERR_FILENO, text, sizeof text - 1));
  ::_exit(kSystemCall);
}

/// From here on every system call raises SIGSYS but the few that end the process; and reading the clock,
/// which is one only where the vDSO has none.
bool forbid_system_calls() {
  struct sigaction action {};
  action.sa_sigaction = on_forbidden_call;
  action.sa_flags = SA_SIGINFO;
  if (::sigaction(SIGSYS, &action, nullptr) != 0) return false;
  constexpr std::uint32_t kAllowed[] = {SYS_exit_group, SYS_write, SYS_clock_gettime};
  std::vector<sock_filter> filter{BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr))};
  for (const std::uint32_t number : kAllowed) {
    filter.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1));
    filter.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
  }
  filter.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP));
  const sock_fprog program{static_cast<unsigned short>(filter.size()), filter.data()};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

/// The child's exit status.
template <class Body>
int in_child(const Body& body) {
  const pid_t pid = ::fork();
  REQUIRE(pid >= 0);
  if (pid == 0) ::_exit(body());
  int status = 0;
  REQUIRE(::waitpid(pid, &status, 0) == pid);
  REQUIRE(WIFEXITED(status));
  return WEXITSTATUS(status);
}

}  // namespace

TEST_CASE("a decode step on pool hits makes no system call and allocates nothing") {
  TinyModel tiny(fp8_model(), {.matrices = DType::f8_e4m3, .others = DType::bf16});
  ResidentStack stack(tiny);
  auto model = tiny.load({.threads = 1});  // one thread: waking another would be a system call
  auto sequence = model->new_sequence();
  const std::uint32_t token = 3;
  const Segment segment{sequence.get(), 1, {&token, 1}, Segment::Logits::last};
  SegmentResult result;
  const auto steps = [&](int count) {
    bool ok = true;
    for (int i = 0; i < count; ++i)
      ok =
          model->step({&segment, 1}, Access::decode, stack.source(), nullptr, {&result, 1}).has_value() && ok;
    return ok;
  };
  REQUIRE(steps(3));
  const std::uint64_t before = stack.hits();
  const int status = in_child([&] {
    if (!forbid_system_calls()) return kNoSeccomp;
    start_counting_allocations();
    const bool ok = steps(20);
    const std::uint64_t allocations = stop_counting_allocations();
    if (!ok) return kStepFailed;
    return allocations == 0 ? 0 : kAllocation;
  });
  if (status == kNoSeccomp) {
    WARN("skipped: no seccomp here");
    return;
  }
  CHECK(status == 0);
  const ModelConfig& config = tiny.config();
  CHECK(stack.hits() - before == std::uint64_t{20} * config.layers * config.experts_per_token);
}

TEST_CASE("the filter catches a system call") {
  const int status = in_child([] {
    if (!forbid_system_calls()) return kNoSeccomp;
    static_cast<void>(::getppid());
    return 0;
  });
  CHECK((status == kSystemCall || status == kNoSeccomp));
}

}  // namespace stoker::testing
