#include "ring/thread_pool.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>  // musl's fcntl.h has not all of its flags
#include <linux/fs.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#ifndef RWF_DSYNC
#define RWF_DSYNC 0x00000002
#endif

namespace holdfast::ring {

namespace {

// An operation that the kernel puts off waits between its tries, each time longer, about half a second in all.
constexpr uint32_t kMaxDelays = 70;
constexpr long kDelayStepNs = 200'000;

bool WaitBeforeRetry(Operation* operation) {
  if (operation->delays++ >= kMaxDelays) return false;
  const timespec pause{0, kDelayStepNs * operation->delays};
  nanosleep(&pause, nullptr);
  return true;
}

ssize_t MoveOnce(const Operation& operation) {
  iovec single{operation.data + operation.done, operation.length - operation.done};
  const iovec* pieces = operation.pieces != nullptr ? operation.pieces : &single;
  const int count = operation.pieces != nullptr ? static_cast<int>(operation.piece_count) : 1;
  const off_t offset = static_cast<off_t>(operation.offset + operation.done);
  switch (operation.kind) {
    case Kind::kRead:
      return preadv(operation.fd, pieces, count, offset);
    case Kind::kWriteFua:
      return pwritev2(operation.fd, pieces, count, offset, RWF_DSYNC);
    default:
      return pwritev(operation.fd, pieces, count, offset);
  }
}

int32_t Transfer(Operation* operation) {
  for (;;) {
    const ssize_t moved = MoveOnce(*operation);
    switch (Advance(operation, moved < 0 ? -errno : static_cast<int32_t>(moved))) {
      case Progress::kGoesOn:
        break;
      case Progress::kPutOff:
        if (!WaitBeforeRetry(operation)) return -EAGAIN;
        break;
      case Progress::kOver:
        if (operation->result != 0 || operation->kind != Kind::kWriteThenFlush) return operation->result;
        return fdatasync(operation->fd) == 0 ? 0 : -errno;
    }
  }
}

int CallOnce(const Operation& operation) {
  const off_t offset = static_cast<off_t>(operation.offset);
  const off_t length = static_cast<off_t>(operation.range_length);
  uint64_t range[2] = {operation.offset, operation.range_length};
  switch (operation.kind) {
    case Kind::kFlush:
      return fdatasync(operation.fd);
    case Kind::kPunchHole:
      return fallocate(operation.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);
    case Kind::kZeroRange:
      return fallocate(operation.fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length);
    case Kind::kBlockDiscard:
      return ioctl(operation.fd, BLKDISCARD, range);
    case Kind::kBlockZeroOut:
      return ioctl(operation.fd, BLKZEROOUT, range);
    default:
      errno = EINVAL;
      return -1;
  }
}

int32_t Execute(Operation* operation) {
  if (IsTransfer(operation->kind)) return Transfer(operation);
  while (CallOnce(*operation) != 0) {
    // A flush that was interrupted may have cleared the error it would have reported: only the others go again.
    if (errno == EINTR && operation->kind != Kind::kFlush) continue;
    return -errno;
  }
  return 0;
}

}  // namespace

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> hold(waiting_mutex_);
    stopping_ = true;
  }
  waiting_changed_.notify_all();
  for (uint32_t i = 0; i < thread_count_; i++) pthread_join(threads_[i], nullptr);
  if (event_ >= 0) close(event_);
}

int ThreadPool::Start(uint32_t threads) {
  event_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (event_ < 0) return errno;
  // The process's signals belong to Node's own threads.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int error = 0;
  for (uint32_t i = 0; i < threads && i < kMaxThreads; i++) {
    error = pthread_create(&threads_[thread_count_], nullptr, Main, this);
    if (error != 0) break;
    thread_count_++;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return thread_count_ > 0 ? 0 : error;
}

void ThreadPool::Queue(Operation* operation) {
  operation->next = nullptr;
  operation->delays = 0;
  if (queued_tail_ != nullptr) {
    queued_tail_->next = operation;
  } else {
    queued_head_ = operation;
  }
  queued_tail_ = operation;
  queued_count_++;
}

void ThreadPool::Kick() {
  if (queued_head_ == nullptr) return;
  uint32_t to_wake;
  {
    std::lock_guard<std::mutex> hold(waiting_mutex_);
    if (waiting_tail_ != nullptr) {
      waiting_tail_->next = queued_head_;
    } else {
      waiting_head_ = queued_head_;
    }
    waiting_tail_ = queued_tail_;
    to_wake = idle_ < queued_count_ ? idle_ : queued_count_;
  }
  queued_head_ = queued_tail_ = nullptr;
  queued_count_ = 0;
  while (to_wake-- > 0) waiting_changed_.notify_one();
}

void* ThreadPool::Main(void* pool) {
  pthread_setname_np(pthread_self(), "holdfast-io");
  static_cast<ThreadPool*>(pool)->Work();
  return nullptr;
}

void ThreadPool::Work() {
  for (;;) {
    Operation* operation;
    {
      std::unique_lock<std::mutex> hold(waiting_mutex_);
      idle_++;
      waiting_changed_.wait(hold, [this] { return waiting_head_ != nullptr || stopping_; });
      idle_--;
      if (waiting_head_ == nullptr) return;
      operation = waiting_head_;
      waiting_head_ = operation->next;
      if (waiting_head_ == nullptr) waiting_tail_ = nullptr;
    }
    operation->result = Execute(operation);
    Finish(operation);
  }
}

bool ThreadPool::TryCancel(Operation* operation) {
  {
    std::lock_guard<std::mutex> hold(waiting_mutex_);
    Operation** link = &waiting_head_;
    Operation* before = nullptr;
    while (*link != nullptr && *link != operation) {
      before = *link;
      link = &before->next;
    }
    if (*link == nullptr || operation->done > 0) return false;
    *link = operation->next;
    if (waiting_tail_ == operation) waiting_tail_ = before;
  }
  operation->result = -ECANCELED;
  Finish(operation);
  return true;
}

void ThreadPool::Finish(Operation* operation) {
  operation->next = nullptr;
  std::lock_guard<std::mutex> hold(finished_mutex_);
  if (finished_tail_ != nullptr) {
    finished_tail_->next = operation;
  } else {
    finished_head_ = operation;
  }
  finished_tail_ = operation;
  Signal();
}

void ThreadPool::Poke() {
  std::lock_guard<std::mutex> hold(finished_mutex_);
  signalled_ = false;
  Signal();
}

void ThreadPool::Signal() {
  if (signalled_) return;
  signalled_ = true;
  const uint64_t one = 1;
  // Cannot fail: the counter stays small, since `signalled_` is set until it has been read back.
  (void)!write(event_, &one, sizeof(one));
}

uint32_t ThreadPool::Reap(Result* results, uint32_t limit) {
  uint32_t count = 0;
  std::lock_guard<std::mutex> hold(finished_mutex_);
  while (count < limit && finished_head_ != nullptr) {
    results[count].id = finished_head_->id;
    results[count].value = finished_head_->result;
    count++;
    finished_head_ = finished_head_->next;
  }
  if (finished_head_ == nullptr) {
    finished_tail_ = nullptr;
    if (signalled_) {
      uint64_t counter;
      (void)!read(event_, &counter, sizeof(counter));
      signalled_ = false;
    }
  }
  return count;
}

uint32_t ThreadPool::Descriptors(int* descriptors) const {
  descriptors[0] = event_;
  return 1;
}

}  // namespace holdfast::ring
