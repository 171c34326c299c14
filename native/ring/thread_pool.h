// The thread-pool engine: a fixed number of threads that run the plain system calls. It serves where io_uring is denied,
// and runs the range operations (discard, zeroing) for both engines.
//
// Invariants: an operation is in exactly one of: the waiting list, a thread's hands, the finished list. Both lists are
// bounded by the ring's capacity, since they link the ring's own records.
#pragma once

#include <pthread.h>

#include <condition_variable>
#include <mutex>

#include "ring/engine.h"

namespace holdfast::ring {

class ThreadPool final : public Engine {
 public:
  static constexpr uint32_t kMaxThreads = 256;

  ThreadPool() = default;
  ~ThreadPool() override;
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  // Returns 0 or an errno.
  int Start(uint32_t threads);

  void Queue(Operation* operation) override;
  void Kick() override;
  void Cancel(Operation* operation) override { TryCancel(operation); }
  uint32_t Reap(Result* results, uint32_t limit) override;
  uint32_t Descriptors(int* descriptors) const override;
  void Poke() override;

  // False if no thread was still to take it up.
  bool TryCancel(Operation* operation);

  uint32_t threads() const { return thread_count_; }
  int event() const { return event_; }

 private:
  static void* Main(void* pool);
  void Work();
  void Finish(Operation* operation);
  void Signal();    // holding finished_mutex_

  std::mutex waiting_mutex_;
  std::condition_variable waiting_changed_;
  Operation* waiting_head_ = nullptr;
  Operation* waiting_tail_ = nullptr;
  uint32_t idle_ = 0;
  bool stopping_ = false;

  std::mutex finished_mutex_;
  Operation* finished_head_ = nullptr;
  Operation* finished_tail_ = nullptr;
  bool signalled_ = false;

  // Queued and not yet kicked: touched by the event loop's thread only.
  Operation* queued_head_ = nullptr;
  Operation* queued_tail_ = nullptr;
  uint32_t queued_count_ = 0;

  int event_ = -1;
  uint32_t thread_count_ = 0;
  pthread_t threads_[kMaxThreads];
};

}  // namespace holdfast::ring
