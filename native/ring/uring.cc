#include "ring/uring.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
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

#ifndef IORING_ENTER_REGISTERED_RING
#define IORING_ENTER_REGISTERED_RING (1U << 4)
#endif

namespace holdfast::ring {

namespace {

constexpr uint32_t kRangeThreads = 2;
// An entry's user data: the operation's id, with a mark for what else than its transfer it is.
constexpr uint64_t kProbeMark = ~uint64_t{0};
constexpr uint64_t kFlushMark = uint64_t{1} << 32;
constexpr uint64_t kCancelMark = uint64_t{1} << 33;

// Tables of registered files and memory; what does not fit goes without.
constexpr uint32_t kMaxRegisteredFiles = 1024;
constexpr uint32_t kMaxRegisteredMemories = 1024;

// io_uring_register(2) as of kernel 5.19, laid out here because the headers that we build on may be older.
constexpr uint32_t kRegisterBuffers2 = 15;
constexpr uint32_t kRegisterBuffersUpdate = 16;
constexpr uint32_t kRegisterRingDescriptors = 20;
constexpr uint32_t kUnregisterRingDescriptors = 21;
constexpr uint32_t kSparse = 1;    // IORING_RSRC_REGISTER_SPARSE

struct RegisterTable {
  uint32_t count;
  uint32_t flags;
  uint64_t reserved;
  uint64_t data;
  uint64_t tags;
};
static_assert(sizeof(RegisterTable) == 32);

struct UpdateTable {
  uint32_t offset;
  uint32_t reserved;
  uint64_t data;
  uint64_t tags;
  uint32_t count;
  uint32_t reserved2;
};
static_assert(sizeof(UpdateTable) == 32);

// io_uring_enter(2) with a time limit, as of kernel 5.11.
constexpr uint32_t kFeatureWithArgument = 1U << 8;
constexpr uint32_t kEnterWithArgument = 1U << 3;

struct WaitArgument {
  uint64_t signals;
  uint32_t signals_size;
  uint32_t reserved;
  uint64_t limit;    // a timespec with fields of 64 bits
};
static_assert(sizeof(WaitArgument) == 24 && sizeof(timespec) == 16);

struct RingDescriptor {
  uint32_t offset;
  uint32_t reserved;
  uint64_t data;
};

int Register(int ring, uint32_t opcode, const void* argument, uint32_t count) {
  const long result = syscall(__NR_io_uring_register, ring, opcode, argument, count);
  return result < 0 ? -errno : static_cast<int>(result);
}

}  // namespace

Uring::~Uring() {
  if (entries_ != nullptr) munmap(entries_, entries_size_);
  if (completion_ring_ != nullptr && completion_ring_ != rings_) munmap(completion_ring_, completion_ring_size_);
  if (rings_ != nullptr) munmap(rings_, rings_size_);
  if (enter_flags_ != 0) {
    RingDescriptor given{static_cast<uint32_t>(enter_ring_), 0, 0};
    Register(ring_, kUnregisterRingDescriptors, &given, 1);
  }
  if (ring_ >= 0) close(ring_);
}

int Uring::Enter(uint32_t to_submit, uint32_t min_complete, uint32_t flags, const timespec* limit) const {
  WaitArgument argument{0, 0, 0, reinterpret_cast<uint64_t>(limit)};
  flags |= enter_flags_;
  if (limit != nullptr) flags |= kEnterWithArgument;
  const long result = syscall(__NR_io_uring_enter, enter_ring_, to_submit, min_complete, flags,
                              limit != nullptr ? &argument : nullptr, limit != nullptr ? sizeof(argument) : 0);
  return result < 0 ? -errno : static_cast<int>(result);
}

bool Uring::Start(uint32_t capacity, Style best, Operation* operations, Failure* failure) {
  operations_ = operations;
  if (!Setup(capacity, best, failure) || !Map(failure) || !Probe(failure)) return false;
  failure->stage = "pthread_create";
  failure->error = ranges_.Start(kRangeThreads);
  if (failure->error != 0) return false;
  RegisterTables();
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
    const long result = syscall(__NR_io_uring_setup, 2 * capacity, &params_);
    if (result >= 0) {
      ring_ = enter_ring_ = static_cast<int>(result);
      style_ = static_cast<Style>(style);
      failure->error = EOVERFLOW;
      failure->stage = "io_uring_setup";
      return params_.sq_entries >= 2 * capacity;
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

// None of this is needed to work, so what the kernel refuses is left.
void Uring::RegisterTables() {
  RingDescriptor own{~uint32_t{0}, 0, static_cast<uint64_t>(ring_)};
  if (Register(ring_, kRegisterRingDescriptors, &own, 1) == 1) {
    enter_ring_ = static_cast<int>(own.offset);
    enter_flags_ = IORING_ENTER_REGISTERED_RING;
  }
  RegisterTable memories{kMaxRegisteredMemories, kSparse, 0, 0, 0};
  if (Register(ring_, kRegisterBuffers2, &memories, sizeof(memories)) == 0) memories_ = kMaxRegisteredMemories;
  int none[kMaxRegisteredFiles];
  for (int& place : none) place = -1;
  if (Register(ring_, IORING_REGISTER_FILES, none, kMaxRegisteredFiles) != 0) return;
  files_ = kMaxRegisteredFiles;
  if (!FilesGoAtOnce()) files_ = 0;
}

// Older kernels let go of a file some time after it was taken out of the table, and so long a device that was closed
// would be found busy. A pipe shows it: the reading end sees at once that the other one is gone, or it does not.
bool Uring::FilesGoAtOnce() const {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return false;
  const bool in = SetFile(0, ends[1]) == 0;
  close(ends[1]);
  const bool out = SetFile(0, -1) == 0;
  pollfd reading{ends[0], POLLIN, 0};
  const bool gone = in && out && poll(&reading, 1, 0) == 1 && (reading.revents & POLLHUP) != 0;
  close(ends[0]);
  return gone;
}

int Uring::SetFile(uint32_t index, int fd) const {
  io_uring_files_update update{};
  update.offset = index;
  update.fds = reinterpret_cast<uint64_t>(&fd);
  const int result = Register(ring_, IORING_REGISTER_FILES_UPDATE, &update, 1);
  return result < 0 ? -result : 0;
}

int Uring::SetMemory(uint32_t index, void* base, size_t size) const {
  const iovec memory{base, size};
  UpdateTable update{index, 0, reinterpret_cast<uint64_t>(&memory), 0, 1, 0};
  const int result = Register(ring_, kRegisterBuffersUpdate, &update, sizeof(update));
  return result < 0 ? -result : 0;
}

int Uring::RegisterFile(uint32_t index, int fd) { return index < files_ ? SetFile(index, fd) : ENOTSUP; }

int Uring::RegisterMemory(uint32_t index, void* base, size_t size) {
  return index < memories_ ? SetMemory(index, base, size) : ENOTSUP;
}

void Uring::UnregisterFile(uint32_t index) {
  if (index < files_) SetFile(index, -1);
}

void Uring::UnregisterMemory(uint32_t index) {
  if (index < memories_) SetMemory(index, nullptr, 0);
}

void Uring::Queue(Operation* operation) {
  if (IsRange(operation->kind)) {
    ranges_.Queue(operation);
  } else {
    Prepare(operation);
  }
}

io_uring_sqe* Uring::NextEntry() {
  io_uring_sqe* entry = &entries_[tail_ & submission_mask_];
  memset(entry, 0, sizeof(*entry));
  tail_++;
  pending_++;
  return entry;
}

void Uring::Prepare(Operation* operation) {
  if (operation->kind == Kind::kFlush) return PrepareFlush(operation);
  io_uring_sqe* entry = NextEntry();
  const bool reads = operation->kind == Kind::kRead;
  entry->user_data = operation->id;
  entry->fd = operation->fd;
  entry->off = operation->offset + operation->done;
  if (operation->file != kNotRegistered) {
    entry->fd = operation->file;
    entry->flags = IOSQE_FIXED_FILE;
  }
  if (operation->pieces != nullptr) {
    entry->opcode = reads ? IORING_OP_READV : IORING_OP_WRITEV;
    entry->addr = reinterpret_cast<uint64_t>(operation->pieces);
    entry->len = operation->piece_count;
  } else {
    entry->addr = reinterpret_cast<uint64_t>(operation->data + operation->done);
    entry->len = operation->length - operation->done;
    if (operation->memory != kNotRegistered) {
      entry->opcode = reads ? IORING_OP_READ_FIXED : IORING_OP_WRITE_FIXED;
      entry->buf_index = static_cast<uint16_t>(operation->memory);
    } else {
      entry->opcode = reads ? IORING_OP_READ : IORING_OP_WRITE;
    }
  }
  if (operation->kind == Kind::kWriteFua) entry->rw_flags = RWF_DSYNC;
  if (operation->kind != Kind::kWriteThenFlush) return;
  entry->flags |= IOSQE_IO_LINK;
  operation->parts = 2;
  operation->apart = false;
  PrepareFlush(operation);
}

void Uring::PrepareFlush(Operation* operation) {
  io_uring_sqe* entry = NextEntry();
  entry->opcode = IORING_OP_FSYNC;
  entry->fsync_flags = IORING_FSYNC_DATASYNC;
  entry->user_data = operation->id | kFlushMark;
  entry->fd = operation->fd;
  if (operation->file == kNotRegistered) return;
  entry->fd = operation->file;
  entry->flags = IOSQE_FIXED_FILE;
}

// A write and its flush are left alone: cancelled in between, it would be a write that is not durable.
void Uring::Cancel(Operation* operation) {
  if (ranges_.TryCancel(operation)) return;
  if (!IsTransfer(operation->kind) || operation->kind == Kind::kWriteThenFlush || Stalled()) return;
  io_uring_sqe* entry = NextEntry();
  entry->opcode = IORING_OP_ASYNC_CANCEL;
  entry->fd = -1;
  entry->addr = operation->id;
  entry->user_data = operation->id | kCancelMark;
  Kick();
  if (!Stalled()) return;
  // It must not take up the room of operations that go on.
  pending_--;
  __atomic_store_n(submission_tail_, --tail_, __ATOMIC_RELEASE);
}

void Uring::KickAndWait(uint64_t nanoseconds) {
  const timespec limit{0, static_cast<long>(nanoseconds)};
  const bool in_one = (params_.features & kFeatureWithArgument) != 0 && pending_ > 0;
  Submit(in_one ? &limit : nullptr);
  if (!in_one) WaitOnDescriptors(nanoseconds);
}

void Uring::Submit(const timespec* limit) {
  ranges_.Kick();
  if (pending_ == 0) return;
  __atomic_store_n(submission_tail_, tail_, __ATOMIC_RELEASE);
  const uint32_t flags = style_ == Style::kDeferred || limit != nullptr ? IORING_ENTER_GETEVENTS : 0;
  while (pending_ > 0) {
    const int taken = Enter(pending_, limit != nullptr ? 1 : 0, flags, limit);
    if (taken == -EINTR) continue;
    // The kernel is short of memory or wants its completions read first: the rest goes with the next Reap.
    if (taken == -EAGAIN || taken == -EBUSY || taken == 0) return;
    if (taken < 0) return FailPending(taken);
    pending_ -= static_cast<uint32_t>(taken);
    if (pending_ > 0) NoteApart();
  }
}

// The kernel was short of memory between two entries. A link does not reach over that.
void Uring::NoteApart() {
  const uint64_t mark = entries_[(tail_ - pending_) & submission_mask_].user_data;
  if ((mark & kFlushMark) == 0) return;
  Operation* operation = &operations_[static_cast<uint32_t>(mark)];
  operation->apart = operation->parts == 2;
}

// The kernel refuses the ring itself (a sandbox was closed behind us). What it has not taken is taken back and fails.
void Uring::FailPending(int32_t error) {
  while (pending_ > 0) {
    tail_--;
    pending_--;
    Operation* operation = Complete(entries_[tail_ & submission_mask_].user_data, error);
    if (operation == nullptr) continue;
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

void Uring::BeginReaping(bool told) {
  if (style_ != Style::kDeferred) return;
  uint64_t counter;
  if (told) (void)!read(ranges_.event(), &counter, sizeof(counter));
  Quiet(true);
}

bool Uring::EndReaping() {
  if (style_ != Style::kDeferred) return false;
  // Sequentially consistent, here and in MoreToDo: the look comes after the kernel may tell us again.
  Quiet(false);
  return Ready();
}

bool Uring::Ready() const {
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
    const Operation* operation = Complete(completion.user_data, completion.res);
    head++;
    if (operation == nullptr) continue;
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

Operation* Uring::Complete(uint64_t mark, int32_t value) {
  if ((mark & kCancelMark) != 0) return nullptr;
  Operation* operation = &operations_[static_cast<uint32_t>(mark)];
  const bool flushed = (mark & kFlushMark) != 0;
  if (operation->kind == Kind::kWriteThenFlush) {
    (flushed ? operation->flush_result : operation->write_result) = value;
    return --operation->parts == 0 ? CompleteBoth(operation) : nullptr;
  }
  if (flushed) {
    operation->result = value < 0 ? value : 0;
    return operation;
  }
  return GoOn(operation, Advance(operation, value));
}

// A write that is not whole breaks the link, and both go again. A flush that failed never does: the device tells it once.
Operation* Uring::CompleteBoth(Operation* operation) {
  if (operation->flush_result < 0 && operation->flush_result != -ECANCELED) {
    operation->result = operation->flush_result;
    return operation;
  }
  if (operation->done < operation->length) {
    const Progress progress = Advance(operation, operation->write_result);
    if (progress != Progress::kOver || operation->result != 0) return GoOn(operation, progress);
  }
  if (operation->flush_result < 0 || operation->apart) {
    operation->parts = 1;
    operation->apart = false;
    PrepareFlush(operation);
    return nullptr;
  }
  operation->result = 0;
  return operation;
}

// The places of its entries in the submission ring are free again, so there is room.
Operation* Uring::GoOn(Operation* operation, Progress progress) {
  if (progress == Progress::kOver) return operation;
  if (progress == Progress::kPutOff) {
    ranges_.Queue(operation);
  } else {
    Prepare(operation);
  }
  return nullptr;
}

uint32_t Uring::Descriptors(int* descriptors) const {
  descriptors[0] = ranges_.event();
  if (style_ == Style::kDeferred) return 1;
  descriptors[1] = ring_;
  return 2;
}

}  // namespace holdfast::ring
