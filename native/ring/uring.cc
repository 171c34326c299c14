#include "ring/uring.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef RWF_DSYNC
#define RWF_DSYNC 0x00000002
#endif
#ifndef IORING_SETUP_SUBMIT_ALL
#define IORING_SETUP_SUBMIT_ALL (1U << 7)
#endif
#ifndef IORING_SETUP_COOP_TASKRUN
#define IORING_SETUP_COOP_TASKRUN (1U << 8)
#endif
#ifndef IORING_SETUP_TASKRUN_FLAG
#define IORING_SETUP_TASKRUN_FLAG (1U << 9)
#define IORING_SQ_TASKRUN (1U << 2)
#endif
#ifndef IORING_CQ_EVENTFD_DISABLED
#define IORING_CQ_EVENTFD_DISABLED (1U << 0)
#endif
#ifndef IORING_SETUP_SINGLE_ISSUER
#define IORING_SETUP_SINGLE_ISSUER (1U << 12)
#endif
#ifndef IORING_SETUP_DEFER_TASKRUN
#define IORING_SETUP_DEFER_TASKRUN (1U << 13)
#endif

namespace holdfast::ring {

namespace {

constexpr uint32_t kRangeThreads = 2;
constexpr uint64_t kProbeMark = ~uint64_t{0};

int Register(int ring, uint32_t opcode, const void* argument, uint32_t count) {
  const long result = syscall(__NR_io_uring_register, ring, opcode, argument, count);
  return result < 0 ? -errno : static_cast<int>(result);
}

}  // namespace

Uring::~Uring() {
  if (entries_ != nullptr) munmap(entries_, entries_size_);
  if (completion_ring_ != nullptr && completion_ring_ != rings_) munmap(completion_ring_, completion_ring_size_);
  if (rings_ != nullptr) munmap(rings_, rings_size_);
  if (ring_ >= 0) close(ring_);
}

int Uring::Enter(uint32_t to_submit, uint32_t min_complete, uint32_t flags) const {
  const long result = syscall(__NR_io_uring_enter, ring_, to_submit, min_complete, flags, nullptr, 0);
  return result < 0 ? -errno : static_cast<int>(result);
}

bool Uring::Start(uint32_t capacity, Style best, Operation* operations, Failure* failure) {
  operations_ = operations;
  if (!Setup(capacity, best, failure) || !Map(failure) || !Probe(failure)) return false;
  failure->stage = "pthread_create";
  failure->error = ranges_.Start(kRangeThreads);
  if (failure->error != 0) return false;
  if (style_ != Style::kDeferred) return true;
  // Deferred work does not wake who polls the ring's own descriptor; it does signal an event.
  const int event = ranges_.event();
  failure->stage = "IORING_REGISTER_EVENTFD";
  failure->error = -Register(ring_, IORING_REGISTER_EVENTFD, &event, 1);
  return failure->error == 0;
}

bool Uring::Setup(uint32_t capacity, Style best, Failure* failure) {
  static constexpr uint32_t kFlags[] = {
      IORING_SETUP_SUBMIT_ALL | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
      IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN, 0};
  for (uint32_t style = static_cast<uint32_t>(best); style <= static_cast<uint32_t>(Style::kPlain); style++) {
    memset(&params_, 0, sizeof(params_));
    params_.flags = kFlags[style] | IORING_SETUP_CLAMP;
    const long result = syscall(__NR_io_uring_setup, capacity, &params_);
    if (result >= 0) {
      ring_ = static_cast<int>(result);
      style_ = static_cast<Style>(style);
      failure->error = EOVERFLOW;
      failure->stage = "io_uring_setup";
      return params_.sq_entries >= capacity;
    }
    if (errno != EINVAL) break;
  }
  failure->error = errno;
  failure->stage = "io_uring_setup";
  return false;
}

bool Uring::Map(Failure* failure) {
  const auto map = [this](size_t size, off_t where) {
    void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring_, where);
    return memory == MAP_FAILED ? nullptr : memory;
  };
  failure->stage = "mmap of the rings";
  const auto& sq = params_.sq_off;
  const auto& cq = params_.cq_off;
  rings_size_ = sq.array + params_.sq_entries * sizeof(uint32_t);
  completion_ring_size_ = cq.cqes + params_.cq_entries * sizeof(io_uring_cqe);
  const bool single = (params_.features & IORING_FEAT_SINGLE_MMAP) != 0;
  if (single && completion_ring_size_ > rings_size_) rings_size_ = completion_ring_size_;
  rings_ = map(rings_size_, IORING_OFF_SQ_RING);
  completion_ring_ = single ? rings_ : map(completion_ring_size_, IORING_OFF_CQ_RING);
  entries_size_ = params_.sq_entries * sizeof(io_uring_sqe);
  entries_ = static_cast<io_uring_sqe*>(map(entries_size_, IORING_OFF_SQES));
  if (rings_ == nullptr || completion_ring_ == nullptr || entries_ == nullptr) {
    failure->error = errno;
    return false;
  }
  auto* submission = static_cast<uint8_t*>(rings_);
  auto* completion = static_cast<uint8_t*>(completion_ring_);
  submission_tail_ = reinterpret_cast<uint32_t*>(submission + sq.tail);
  submission_mask_ = *reinterpret_cast<uint32_t*>(submission + sq.ring_mask);
  submission_flags_ = reinterpret_cast<uint32_t*>(submission + sq.flags);
  completion_flags_ = reinterpret_cast<uint32_t*>(completion + cq.flags);
  completion_head_ = reinterpret_cast<uint32_t*>(completion + cq.head);
  completion_tail_ = reinterpret_cast<uint32_t*>(completion + cq.tail);
  completion_mask_ = *reinterpret_cast<uint32_t*>(completion + cq.ring_mask);
  completions_ = reinterpret_cast<io_uring_cqe*>(completion + cq.cqes);
  auto* array = reinterpret_cast<uint32_t*>(submission + sq.array);
  for (uint32_t i = 0; i < params_.sq_entries; i++) array[i] = i;
  tail_ = *submission_tail_;
  return true;
}

// Asks which operations the kernel has, then sends one that does nothing and waits for it: sandboxes exist that let a
// ring be made and nothing pass through it.
bool Uring::Probe(Failure* failure) {
  failure->stage = "IORING_REGISTER_PROBE";
  alignas(io_uring_probe) uint8_t memory[sizeof(io_uring_probe) + 256 * sizeof(io_uring_probe_op)] = {};
  auto* probe = reinterpret_cast<io_uring_probe*>(memory);
  const int result = Register(ring_, IORING_REGISTER_PROBE, probe, 256);
  if (result < 0) {
    failure->error = -result;
    return false;
  }
  for (const uint32_t opcode : {IORING_OP_NOP, IORING_OP_READ, IORING_OP_WRITE, IORING_OP_FSYNC}) {
    if (opcode > probe->last_op || (probe->ops[opcode].flags & IO_URING_OP_SUPPORTED) == 0) {
      failure->error = EOPNOTSUPP;
      return false;
    }
  }
  failure->stage = "io_uring_enter";
  io_uring_sqe* entry = &entries_[tail_ & submission_mask_];
  memset(entry, 0, sizeof(*entry));
  entry->opcode = IORING_OP_NOP;
  entry->user_data = kProbeMark;
  __atomic_store_n(submission_tail_, ++tail_, __ATOMIC_RELEASE);
  int entered;
  do {
    entered = Enter(1, 1, IORING_ENTER_GETEVENTS);
  } while (entered == -EINTR);
  if (entered < 0) {
    failure->error = -entered;
    return false;
  }
  const uint32_t head = *completion_head_;
  failure->error = EIO;
  if (__atomic_load_n(completion_tail_, __ATOMIC_ACQUIRE) == head) return false;
  if (completions_[head & completion_mask_].user_data != kProbeMark) return false;
  __atomic_store_n(completion_head_, head + 1, __ATOMIC_RELEASE);
  return true;
}

void Uring::Queue(Operation* operation) {
  if (IsRange(operation->kind)) {
    ranges_.Queue(operation);
  } else {
    Prepare(operation);
  }
}

void Uring::Prepare(Operation* operation) {
  io_uring_sqe* entry = &entries_[tail_ & submission_mask_];
  memset(entry, 0, sizeof(*entry));
  entry->fd = operation->fd;
  entry->user_data = operation->id;
  if (operation->kind == Kind::kFlush) {
    entry->opcode = IORING_OP_FSYNC;
    entry->fsync_flags = IORING_FSYNC_DATASYNC;
  } else {
    entry->opcode = operation->kind == Kind::kRead ? IORING_OP_READ : IORING_OP_WRITE;
    entry->addr = reinterpret_cast<uint64_t>(operation->data + operation->done);
    entry->len = operation->length - operation->done;
    entry->off = operation->offset + operation->done;
    if (operation->kind == Kind::kWriteFua) entry->rw_flags = RWF_DSYNC;
  }
  tail_++;
  pending_++;
}

void Uring::Kick() {
  ranges_.Kick();
  if (pending_ == 0) return;
  __atomic_store_n(submission_tail_, tail_, __ATOMIC_RELEASE);
  const uint32_t flags = style_ == Style::kDeferred ? IORING_ENTER_GETEVENTS : 0;
  while (pending_ > 0) {
    const int taken = Enter(pending_, 0, flags);
    if (taken == -EINTR) continue;
    // The kernel is short of memory or wants its completions read first: the rest goes with the next Reap.
    if (taken == -EAGAIN || taken == -EBUSY || taken == 0) return;
    if (taken < 0) return FailPending(taken);
    pending_ -= static_cast<uint32_t>(taken);
  }
}

// The kernel refuses the ring itself (a sandbox was closed behind us). What it has not taken is taken back and fails.
void Uring::FailPending(int32_t error) {
  while (pending_ > 0) {
    tail_--;
    pending_--;
    Operation* operation = &operations_[entries_[tail_ & submission_mask_].user_data];
    operation->result = error;
    operation->next = failed_;
    failed_ = operation;
  }
  __atomic_store_n(submission_tail_, tail_, __ATOMIC_RELEASE);
  ranges_.Poke();
}

// Deferred completions that the kernel will post when we come in.
bool Uring::MoreToDo() const {
  return (__atomic_load_n(submission_flags_, __ATOMIC_SEQ_CST) & IORING_SQ_TASKRUN) != 0;
}

void Uring::Quiet(bool quiet) {
  __atomic_store_n(completion_flags_, quiet ? IORING_CQ_EVENTFD_DISABLED : 0, __ATOMIC_SEQ_CST);
}

void Uring::BeginReaping() {
  if (style_ != Style::kDeferred) return;
  uint64_t counter;
  (void)!read(ranges_.event(), &counter, sizeof(counter));
  Quiet(true);
}

bool Uring::EndReaping() {
  if (style_ != Style::kDeferred) return false;
  // Sequentially consistent, here and in MoreToDo: the look comes after the kernel may tell us again.
  Quiet(false);
  return MoreToDo() || __atomic_load_n(completion_tail_, __ATOMIC_SEQ_CST) != *completion_head_;
}

uint32_t Uring::Reap(Result* results, uint32_t limit) {
  uint32_t head = *completion_head_;
  uint32_t tail = __atomic_load_n(completion_tail_, __ATOMIC_ACQUIRE);
  if (head == tail && MoreToDo()) {
    Enter(0, 0, IORING_ENTER_GETEVENTS);
    tail = __atomic_load_n(completion_tail_, __ATOMIC_ACQUIRE);
  }
  uint32_t count = 0;
  while (head != tail && count < limit) {
    const io_uring_cqe& completion = completions_[head & completion_mask_];
    Operation* operation = &operations_[completion.user_data];
    const bool over = Complete(operation, completion.res);
    head++;
    if (!over) continue;
    results[count].id = operation->id;
    results[count].value = operation->result;
    count++;
  }
  __atomic_store_n(completion_head_, head, __ATOMIC_RELEASE);
  Kick();
  for (; failed_ != nullptr && count < limit; failed_ = failed_->next) {
    results[count].id = failed_->id;
    results[count].value = failed_->result;
    count++;
  }
  return count < limit ? count + ranges_.Reap(results + count, limit - count) : count;
}

bool Uring::Complete(Operation* operation, int32_t moved) {
  if (operation->kind == Kind::kFlush) {
    operation->result = moved < 0 ? moved : 0;
    return true;
  }
  if (moved == -EINTR || moved == -EAGAIN) return Again(operation);
  if (moved < 0) {
    operation->result = moved;
    return true;
  }
  operation->done += static_cast<uint32_t>(moved);
  if (operation->done >= operation->length) {
    operation->result = 0;
    return true;
  }
  if (moved > 0) return Again(operation);
  operation->result = kEndedEarly;
  return true;
}

// The completion's place in the submission ring is free again, so there is room.
bool Uring::Again(Operation* operation) {
  Prepare(operation);
  return false;
}

uint32_t Uring::Descriptors(int* descriptors) const {
  descriptors[0] = ranges_.event();
  if (style_ == Style::kDeferred) return 1;
  descriptors[1] = ring_;
  return 2;
}

}  // namespace holdfast::ring
