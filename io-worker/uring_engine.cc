// UringEngine: one io_uring, one owner thread. Facts about the kernel come from io_uring_setup(2),
// io_uring_register(2) and probes on 6.1..6.18.
//
//   * in flight <= depth < SQ entries <= CQ entries / 2, so neither queue can be full.
//   * no SQPOLL (hides errors, burns a core), no IOPOLL (forbids the doorbell).
//   * device reads cannot be cancelled, so the destructor waits for all of them: the kernel owns each
//     target until its completion.
#include <liburing.h>
#include <poll.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>

#include "io-worker/engine_common.h"
#include "shm/base/check.h"

namespace stoker {
namespace {

/// The kernel refuses larger single buffers with EFAULT.
constexpr std::uint64_t kRegisteredPieceMax = 1_GiB;
constexpr std::uint64_t kDoorbellTag = ~std::uint64_t{0};

/// Flags to ask for, best first; EINVAL means that the kernel is older than the flag.
struct RingKind {
  unsigned flags;
  const char* name;
};
constexpr RingKind kLadder[] = {
    // Linux 6.1. Disabled until first use, so that the owner thread is the one that uses the ring.
    {IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_SUBMIT_ALL |
         IORING_SETUP_R_DISABLED,
     "deferred task run"},
    {IORING_SETUP_COOP_TASKRUN, "cooperative task run"},  // Linux 5.19
    {0, "default flags"},
};

/// Owner of a ring. Only ever exists initialised.
class Ring {
 public:
  static Result<std::unique_ptr<Ring>> make(unsigned entries);
  ~Ring() { ::io_uring_queue_exit(&ring_); }
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;

  io_uring* get() { return &ring_; }
  [[nodiscard]] const RingKind& kind() const { return *kind_; }

  /// Makes the calling thread the submitter, once.
  void enable() {
    if ((kind_->flags & IORING_SETUP_R_DISABLED) == 0 || enabled_) return;
    // Not io_uring_enable_rings(): the shared library of liburing 2.3 forgot to export it.
    STOKER_CHECK(::io_uring_register(static_cast<unsigned>(ring_.ring_fd), IORING_REGISTER_ENABLE_RINGS,
                                     nullptr, 0) == 0);
    enabled_ = true;
  }

 private:
  Ring(const io_uring& ring, const RingKind& kind) : ring_(ring), kind_(&kind) {}
  io_uring ring_;
  const RingKind* kind_;
  bool enabled_ = false;
};

tl::unexpected<Error> setup_failure(int os_errno) {
  switch (os_errno) {
    case EPERM:
      return fail(
          Errc::unsupported,
          "io_uring is forbidden here (sysctl kernel.io_uring_disabled is not 0, or a container's seccomp "
          "profile; allow io_uring_setup, or go on with pread)",
          os_errno);
    case ENOSYS:
      return fail(Errc::unsupported,
                  "io_uring is not there (kernel before 5.13, or a seccomp profile that hides it; allow "
                  "io_uring_setup, or go on with pread)",
                  os_errno);
    case ENOMEM:
      return fail(
          Errc::no_memory,
          "io_uring: no memory for the ring (kernels before 5.12 count it against RLIMIT_MEMLOCK: ulimit "
          "-l unlimited, or LimitMEMLOCK=infinity)",
          os_errno);
    case EMFILE:
    case ENFILE:
      return fail(Errc::io, "io_uring: too many open files (raise ulimit -n, or LimitNOFILE=)", os_errno);
    default:
      return fail(Errc::unsupported, "io_uring: the ring cannot be made", os_errno);
  }
}

Result<std::unique_ptr<Ring>> Ring::make(unsigned entries) {
  int error = EINVAL;
  for (const RingKind& kind : kLadder) {
    io_uring ring{};
    io_uring_params params{};
    params.flags = kind.flags;
    error = -::io_uring_queue_init_params(entries, &ring, &params);
    if (error == EINVAL) continue;
    if (error != 0) return setup_failure(error);

    std::unique_ptr<Ring> owner(new Ring(ring, kind));  // private constructor: make_unique cannot
    constexpr unsigned kNeeded = IORING_FEAT_NODROP | IORING_FEAT_EXT_ARG | IORING_FEAT_RSRC_TAGS;
    if ((params.features & kNeeded) != kNeeded)
      return fail(Errc::unsupported, "io_uring of this kernel is too old (5.13 is needed)");
    STOKER_CHECK(params.sq_entries >= entries && params.cq_entries >= 2 * params.sq_entries);
    if (const int result = ::io_uring_ring_dontfork(owner->get()); result < 0) return setup_failure(-result);
    return owner;
  }
  return setup_failure(error);
}

/// Errors of io_uring_enter after which trying again later is right; all others are bugs.
bool is_transient(int result) {
  return result == -EAGAIN || result == -EBUSY || result == -ENOMEM || result == -EINTR;
}

class UringEngine final : public IoEngine {
 public:
  UringEngine(std::unique_ptr<Ring> ring, std::vector<EngineFileFacts> files, const EngineOptions& options);
  UringEngine(const UringEngine&) = delete;
  UringEngine& operator=(const UringEngine&) = delete;
  ~UringEngine() override;

  std::size_t submit(std::span<const ReadOp> ops) override;
  std::size_t reap(std::span<Completion> out, Duration wait_max) override;
  [[nodiscard]] std::size_t in_flight() const noexcept override {
    return jobs_.size() - free_jobs_.size() + refused_.size();
  }
  [[nodiscard]] std::size_t capacity() const noexcept override { return jobs_.size(); }
  [[nodiscard]] std::string describe() const override;

 private:
  /// A read the kernel knows about. user_data = generation << 32 | index, so that a completion for an
  /// earlier use of the same entry is noticed.
  struct Job {
    std::uint64_t tag = 0;
    std::uint32_t generation = 0;
  };

  void register_files();
  void register_buffers(const EngineOptions& options);
  void queue(const ReadOp& op);
  void flush();
  void arm_doorbell();
  void enter(Duration wait_max);
  std::size_t collect(std::span<Completion> out);
  Completion finish(const io_uring_cqe& cqe);
  [[nodiscard]] int buffer_index(const ReadOp& op) const;

  std::unique_ptr<Ring> ring_;
  std::vector<EngineFileFacts> files_;
  std::vector<Job> jobs_;
  std::vector<std::uint32_t> free_jobs_;
  std::vector<Completion> refused_;  ///< reads that never went to the kernel, waiting to be reaped
  int doorbell_fd_;
  bool doorbell_armed_ = false;
  bool files_registered_ = false;
  std::uintptr_t registered_begin_ = 0;
  std::uint64_t registered_bytes_ = 0;  ///< 0: plain reads
  std::uint64_t piece_bytes_ = 0;
  std::string plain_reason_;
};

UringEngine::UringEngine(std::unique_ptr<Ring> ring, std::vector<EngineFileFacts> files,
                         const EngineOptions& options)
    : ring_(std::move(ring)),
      files_(std::move(files)),
      jobs_(options.depth),
      doorbell_fd_(options.doorbell_fd) {
  free_jobs_.reserve(options.depth);
  refused_.reserve(options.depth);
  for (std::size_t i = options.depth; i > 0; --i) free_jobs_.push_back(static_cast<std::uint32_t>(i - 1));
  register_files();
  register_buffers(options);
}

UringEngine::~UringEngine() {
  refused_.clear();
  std::array<Completion, 64> dropped;
  while (in_flight() > 0) reap(dropped, std::chrono::seconds(1));
}

/// Saves the kernel a reference count per read. Without it (RLIMIT_NOFILE) plain descriptors do.
void UringEngine::register_files() {
  if (files_.empty()) return;
  std::vector<int> fds;
  for (const EngineFileFacts& file : files_) fds.push_back(file.fd);
  files_registered_ =
      ::io_uring_register_files(ring_->get(), fds.data(), static_cast<unsigned>(fds.size())) == 0;
}

void UringEngine::register_buffers(const EngineOptions& options) {
  const std::span<std::byte> memory = options.registered;
  if (memory.empty()) {
    plain_reason_ = "none given";
    return;
  }
  const std::uint64_t piece = std::max(align_down(kRegisteredPieceMax, options.registered_granule),
                                       std::min(kRegisteredPieceMax, options.registered_granule));
  std::vector<iovec> pieces;
  for (std::uint64_t at = 0; at < memory.size(); at += piece)
    pieces.push_back(
        {.iov_base = memory.data() + at, .iov_len = std::min<std::uint64_t>(piece, memory.size() - at)});
  const int result =
      ::io_uring_register_buffers(ring_->get(), pieces.data(), static_cast<unsigned>(pieces.size()));
  if (result != 0) {
    plain_reason_ = std::string("registering failed: ") + std::strerror(-result);
    if (result == -ENOMEM)
      plain_reason_ += "; raise the memlock limit: ulimit -l unlimited, or LimitMEMLOCK=infinity";
    return;
  }
  registered_begin_ = reinterpret_cast<std::uintptr_t>(memory.data());
  registered_bytes_ = memory.size();
  piece_bytes_ = piece;
}

/// The registered piece that holds the whole target, or -1. With pieces of 1024 MiB, a 3 MiB read at
/// 1022 MiB spans two: -1, and it is read like any other memory.
int UringEngine::buffer_index(const ReadOp& op) const {
  const auto target = reinterpret_cast<std::uintptr_t>(op.target);
  if (registered_bytes_ == 0 || target < registered_begin_) return -1;
  const std::uint64_t first = target - registered_begin_;
  if (first >= registered_bytes_ || op.length > registered_bytes_ - first) return -1;
  const std::uint64_t index = first / piece_bytes_;
  return (first + op.length - 1) / piece_bytes_ == index ? static_cast<int>(index) : -1;
}

std::size_t UringEngine::submit(std::span<const ReadOp> ops) {
  ring_->enable();
  const std::size_t taken = std::min(ops.size(), capacity() - in_flight());
  for (const ReadOp& op : ops.first(taken)) {
    if (const std::int64_t error = refusal(op, files_); error != 0)
      refused_.push_back({.tag = op.tag, .result = error});
    else
      queue(op);
  }
  flush();
  return taken;
}

void UringEngine::queue(const ReadOp& op) {
  io_uring_sqe* sqe = ::io_uring_get_sqe(ring_->get());
  STOKER_CHECK(sqe != nullptr);
  const int fd = files_registered_ ? static_cast<int>(op.file.value) : files_[op.file.value].fd;
  if (const int buffer = buffer_index(op); buffer >= 0)
    ::io_uring_prep_read_fixed(sqe, fd, op.target, op.length, op.offset, buffer);
  else
    ::io_uring_prep_read(sqe, fd, op.target, op.length, op.offset);
  // After prep: liburing 2.3 resets the flags there.
  if (files_registered_) ::io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);

  const std::uint32_t index = free_jobs_.back();
  free_jobs_.pop_back();
  Job& job = jobs_[index];
  job.tag = op.tag;
  // The generation skips its last value so that no job looks like the doorbell.
  job.generation = job.generation + 2 == 0 ? 0 : job.generation + 1;
  ::io_uring_sqe_set_data64(sqe, (static_cast<std::uint64_t>(job.generation) << 32) | index);
}

/// Hands queued entries to the kernel. What it does not take now is offered again by the next reap.
void UringEngine::flush() {
  while (::io_uring_sq_ready(ring_->get()) > 0) {
    const int result = ::io_uring_submit(ring_->get());
    STOKER_CHECK(result >= 0 || is_transient(result));
    if (result <= 0) return;
  }
}

/// One poll for all rings to come (multishot, Linux 5.13): every write completes it, though the eventfd is
/// never read and so is always readable. A ring costs the woken loader no system call.
void UringEngine::arm_doorbell() {
  if (doorbell_fd_ < 0 || doorbell_armed_) return;
  io_uring_sqe* sqe = ::io_uring_get_sqe(ring_->get());
  STOKER_CHECK(sqe != nullptr);
  ::io_uring_prep_poll_multishot(sqe, doorbell_fd_, POLLIN);
  ::io_uring_sqe_set_data64(sqe, kDoorbellTag);
  doorbell_armed_ = true;
}

std::size_t UringEngine::reap(std::span<Completion> out, Duration wait_max) {
  ring_->enable();
  if (out.empty()) return 0;
  std::size_t count = std::min(out.size(), refused_.size());
  std::copy_n(refused_.end() - static_cast<std::ptrdiff_t>(count), count, out.begin());
  refused_.resize(refused_.size() - count);
  count += collect(out.subspan(count));
  if (count > 0) {
    flush();
    return count;
  }
  arm_doorbell();
  enter(wait_max);
  return collect(out);
}

/// One system call: submit what is queued, run deferred work, wait for the first completion.
void UringEngine::enter(Duration wait_max) {
  int result = 0;
  if (wait_max <= Duration::zero()) {
    result = ::io_uring_submit_and_get_events(ring_->get());
  } else {
    const auto whole = std::chrono::duration_cast<std::chrono::seconds>(wait_max);
    __kernel_timespec limit{.tv_sec = whole.count(), .tv_nsec = (wait_max - whole).count()};
    io_uring_cqe* first = nullptr;
    result = ::io_uring_submit_and_wait_timeout(ring_->get(), &first, 1, &limit, nullptr);
  }
  STOKER_CHECK(result >= 0 || result == -ETIME || is_transient(result));
}

std::size_t UringEngine::collect(std::span<Completion> out) {
  std::size_t count = 0;
  std::array<io_uring_cqe*, 64> batch;
  while (count < out.size()) {
    const auto want = static_cast<unsigned>(std::min(batch.size(), out.size() - count));
    const unsigned got = ::io_uring_peek_batch_cqe(ring_->get(), batch.data(), want);
    if (got == 0) break;
    for (unsigned i = 0; i < got; ++i) {
      if (batch[i]->user_data != kDoorbellTag) {
        out[count++] = finish(*batch[i]);
        continue;
      }
      STOKER_CHECK(batch[i]->res >= 0 || batch[i]->res == -ECANCELED);  // else not a descriptor one can poll
      if ((batch[i]->flags & IORING_CQE_F_MORE) == 0) doorbell_armed_ = false;
    }
    ::io_uring_cq_advance(ring_->get(), got);
  }
  return count;
}

Completion UringEngine::finish(const io_uring_cqe& cqe) {
  const auto index = static_cast<std::uint32_t>(cqe.user_data);
  STOKER_CHECK(index < jobs_.size() && jobs_[index].generation == cqe.user_data >> 32);
  free_jobs_.push_back(index);
  STOKER_CHECK(free_jobs_.size() <= jobs_.size());
  return {.tag = jobs_[index].tag, .result = cqe.res};
}

std::string UringEngine::describe() const {
  std::string text = "io_uring (";
  text += registered_bytes_ > 0 ? "registered buffers" : "plain buffers: " + plain_reason_;
  if (!files_registered_) text += ", plain files";
  return text + ", " + ring_->kind().name + ")";
}

}  // namespace

Result<std::unique_ptr<IoEngine>> make_uring_engine(const std::vector<EngineFile>& files,
                                                    const EngineOptions& options) {
  STOKER_TRY_VOID(check_options(options));
  const auto entries = std::bit_ceil(static_cast<unsigned>(options.depth) + 1);  // one for the doorbell
  STOKER_TRY(auto ring, Ring::make(entries));
  return std::make_unique<UringEngine>(std::move(ring), facts_of(files), options);
}

}  // namespace stoker
