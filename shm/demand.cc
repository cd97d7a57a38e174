#include "shm/demand.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <climits>
#include <cstring>
#include <ctime>

#include "shm/base/check.h"

namespace stoker {

namespace {

constexpr std::uint32_t raw(DemandState state) { return static_cast<std::uint32_t>(state); }

static_assert(sizeof(std::atomic<std::uint32_t>) == sizeof(std::uint32_t), "a futex word is 4 bytes");

/// Shared futexes: the word is in memory of several processes, so not FUTEX_PRIVATE_FLAG. True: woken, or the
/// word was another already; false: time is up, or a signal came.
bool futex_wait(std::atomic<std::uint32_t>& word, std::uint32_t expected, Duration max) {
  const auto count = std::max<std::int64_t>(max.count(), 0);
  const timespec timeout{.tv_sec = count / 1'000'000'000, .tv_nsec = count % 1'000'000'000};
  return ::syscall(SYS_futex, &word, FUTEX_WAIT, expected, &timeout, nullptr, 0) == 0 || errno == EAGAIN;
}

void futex_wake_all(std::atomic<std::uint32_t>& word) {
  ::syscall(SYS_futex, &word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

}  // namespace

DemandPort::DemandPort(Pool& pool, unsigned process_index)
    : pool_(pool),
      process_(pool.process(process_index)),
      head_(process_.demand_head.load(std::memory_order_relaxed)),
      seen_(process_.completions.load(std::memory_order_acquire)) {
  free_.reserve(kDemandMax);
  for (unsigned i = kDemandMax; i-- > 0;) free_.push_back(static_cast<std::uint16_t>(i));
}

std::optional<DemandTicket> DemandPort::post(ExpertKey expert, std::uint32_t flags) {
  STOKER_CHECK(expert.value < pool_.expert_count());
  // The ring may hold stale indices besides the outstanding ones (a restarted loader lists entries and
  // skips the ring), so it can be full although the table is not.
  if (free_.empty() || head_ - process_.demand_tail.load(std::memory_order_acquire) >= kDemandMax)
    return std::nullopt;
  const std::uint16_t index = free_.back();
  free_.pop_back();
  ++in_use_;
  DemandEntry& entry = process_.demands[index];
  entry.expert.store(expert.value, std::memory_order_relaxed);
  entry.flags.store(flags, std::memory_order_relaxed);
  entry.slot.store(kNone, std::memory_order_relaxed);
  entry.from_disk.store(0, std::memory_order_relaxed);
  entry.os_errno.store(0, std::memory_order_relaxed);
  entry.state.store(raw(DemandState::pending), std::memory_order_release);
  process_.demand_ring[head_ % kDemandMax].store(index, std::memory_order_relaxed);
  ++head_;
  return DemandTicket{index};
}

bool DemandPort::publish() {
  process_.demand_head.store(head_, std::memory_order_seq_cst);
  return pool_.header().loader_sleeping.load(std::memory_order_seq_cst) != 0;
}

DemandState DemandPort::state(DemandTicket ticket) const {
  STOKER_CHECK(ticket.value < kDemandMax);
  const std::uint32_t value = process_.demands[ticket.value].state.load(std::memory_order_acquire);
  return value <= raw(DemandState::failed) ? static_cast<DemandState>(value) : DemandState::failed;
}

DemandResult DemandPort::poll(DemandTicket ticket) const {
  DemandResult result;
  result.state = state(ticket);
  const DemandEntry& entry = process_.demands[ticket.value];
  if (result.state == DemandState::granted) {
    result.slot = SlotId{entry.slot.load(std::memory_order_relaxed)};
    result.from_disk = entry.from_disk.load(std::memory_order_relaxed);
    if (result.slot.value >= pool_.slot_count()) {
      result.state = DemandState::failed;
      result.error = "loader granted slot " + std::to_string(result.slot.value) + ", the pool has " +
                     std::to_string(pool_.slot_count());
    }
  } else if (result.state == DemandState::failed) {
    result.os_errno = static_cast<int>(entry.os_errno.load(std::memory_order_relaxed));
    result.error.assign(entry.error, ::strnlen(entry.error, kDemandErrorBytes));
  }
  return result;
}

bool DemandPort::wait(Duration max) {
  std::uint32_t now = process_.completions.load(std::memory_order_seq_cst);
  if (now == seen_ && max > Duration::zero()) {
    process_.waiting.store(1, std::memory_order_seq_cst);
    // The kernel compares the word once more under its own lock: an increment after our load means no sleep.
    now = process_.completions.load(std::memory_order_seq_cst);
    // Woken without news: the wake-up of a completion that we had seen already came late. Wait on.
    while (now == seen_ && futex_wait(process_.completions, seen_, max))
      now = process_.completions.load(std::memory_order_seq_cst);
    process_.waiting.store(0, std::memory_order_relaxed);
    now = process_.completions.load(std::memory_order_seq_cst);
  }
  const bool completed = now != seen_;
  seen_ = now;
  return completed;
}

void DemandPort::release(DemandTicket ticket) {
  const DemandState now = state(ticket);
  STOKER_CHECK(now == DemandState::granted || now == DemandState::failed);
  process_.demands[ticket.value].state.store(raw(DemandState::free), std::memory_order_release);
  free_.push_back(ticket.value);
  STOKER_CHECK(in_use_ > 0);
  --in_use_;
}

DemandIntake::DemandIntake(Pool& pool) : pool_(pool) {}

void DemandIntake::attach(unsigned process_index) {
  STOKER_CHECK(process_index < kProcessMax);
  Process& process = processes_[process_index];
  process = Process{};
  process.served = true;
  process.tail = pool_.process(process_index).demand_tail.load(std::memory_order_relaxed);
}

void DemandIntake::resume(unsigned process_index) {
  attach(process_index);
  processes_[process_index].list_pending = true;
}

void DemandIntake::detach(unsigned process_index) {
  STOKER_CHECK(process_index < kProcessMax);
  processes_[process_index] = Process{};
}

void DemandIntake::take(unsigned process_index, std::uint32_t index, std::vector<Demand>& out) {
  Process& process = processes_[process_index];
  if (index >= kDemandMax || process.taken[index]) return;  // nonsense, or delivered already
  const DemandEntry& entry = pool_.process(process_index).demands[index];
  if (entry.state.load(std::memory_order_acquire) != raw(DemandState::pending)) return;  // completed already
  const std::uint32_t expert = entry.expert.load(std::memory_order_relaxed);
  const DemandTicket ticket{static_cast<std::uint16_t>(index)};
  process.taken[index] = true;
  if (expert >= pool_.expert_count()) {
    ++refused_;
    fail(process_index, ticket, EINVAL,
         "expert " + std::to_string(expert) + " does not exist, the model has " +
             std::to_string(pool_.expert_count()));
    notify(process_index);
    return;
  }
  out.push_back({.process = process_index,
                 .ticket = ticket,
                 .expert = ExpertKey{expert},
                 .flags = entry.flags.load(std::memory_order_relaxed)});
}

void DemandIntake::drain_ring(unsigned process_index, std::vector<Demand>& out) {
  Process& process = processes_[process_index];
  ProcessEntry& shared = pool_.process(process_index);
  const std::uint32_t head = shared.demand_head.load(std::memory_order_acquire);
  const bool plausible = head - process.tail <= kDemandMax;
  if (process.list_pending || !plausible) {
    // The table is read after the head: a demand that is not in the table yet has its index behind `head`.
    for (std::uint32_t index = 0; index < kDemandMax; ++index) take(process_index, index, out);
    process.list_pending = false;
  } else {
    for (std::uint32_t at = process.tail; at != head; ++at)
      take(process_index, shared.demand_ring[at % kDemandMax].load(std::memory_order_relaxed), out);
  }
  if (process.tail != head) {
    process.tail = head;
    shared.demand_tail.store(head, std::memory_order_release);
  }
}

void DemandIntake::drain(std::vector<Demand>& out) {
  for (unsigned i = 0; i < kProcessMax; ++i)
    if (processes_[i].served) drain_ring(i, out);
}

bool DemandIntake::grant(unsigned process_index, DemandTicket ticket, SlotId slot, std::uint32_t from_disk) {
  STOKER_CHECK(ticket.value < kDemandMax && slot.value < pool_.slot_count());
  processes_[process_index].taken[ticket.value] = false;
  DemandEntry& entry = pool_.process(process_index).demands[ticket.value];
  std::uint32_t expected = raw(DemandState::pending);
  if (entry.state.load(std::memory_order_acquire) != expected) return false;
  entry.slot.store(slot.value, std::memory_order_relaxed);
  entry.from_disk.store(from_disk, std::memory_order_relaxed);
  return entry.state.compare_exchange_strong(expected, raw(DemandState::granted), std::memory_order_acq_rel);
}

bool DemandIntake::fail(unsigned process_index, DemandTicket ticket, int os_errno, std::string_view text) {
  STOKER_CHECK(ticket.value < kDemandMax);
  processes_[process_index].taken[ticket.value] = false;
  DemandEntry& entry = pool_.process(process_index).demands[ticket.value];
  std::uint32_t expected = raw(DemandState::pending);
  if (entry.state.load(std::memory_order_acquire) != expected) return false;
  entry.os_errno.store(static_cast<std::uint32_t>(os_errno), std::memory_order_relaxed);
  const std::size_t length = std::min(text.size(), kDemandErrorBytes - 1);
  std::memcpy(entry.error, text.data(), length);
  entry.error[length] = '\0';
  return entry.state.compare_exchange_strong(expected, raw(DemandState::failed), std::memory_order_acq_rel);
}

void DemandIntake::notify(unsigned process_index) {
  ProcessEntry& process = pool_.process(process_index);
  process.completions.fetch_add(1, std::memory_order_seq_cst);
  if (process.waiting.load(std::memory_order_seq_cst) != 0) futex_wake_all(process.completions);
}

bool DemandIntake::prepare_sleep() {
  pool_.header().loader_sleeping.store(1, std::memory_order_seq_cst);
  for (unsigned i = 0; i < kProcessMax; ++i) {
    if (!processes_[i].served) continue;
    const bool news = processes_[i].list_pending ||
                      pool_.process(i).demand_head.load(std::memory_order_seq_cst) != processes_[i].tail;
    if (!news) continue;
    awake();
    return false;
  }
  return true;
}

void DemandIntake::awake() { pool_.header().loader_sleeping.store(0, std::memory_order_relaxed); }

}  // namespace stoker
