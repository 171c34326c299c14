// The io_uring engine, on raw system calls and the kernel's own header (io_uring(7), io_uring_setup(2),
// io_uring_enter(2), io_uring_register(2)). Reads, writes and flushes go through the ring; range operations (discard,
// zeroing) go to a small thread pool, because the oldest kernel that we serve has no ring operation for all of them.
//
// Files and memory are registered where the kernel lets us, so that it need not look them up, nor pin the memory, for
// each operation. What the kernel puts off (EAGAIN) goes to the small thread pool too, whose threads can wait.
//
// Invariants: the submission ring has room for twice the capacity (a write and its flush are two entries) and the
// completion ring for twice that, so neither can overflow. Only the event loop's thread calls in (IORING_SETUP_SINGLE_ISSUER). Never IORING_SETUP_SQPOLL: a
// library does not burn a processor that it was not given.
#pragma once

#include <linux/io_uring.h>

#include "ring/engine.h"
#include "ring/thread_pool.h"

namespace holdfast::ring {

class Uring final : public Engine {
 public:
  Uring() = default;
  ~Uring() override;
  Uring(const Uring&) = delete;
  Uring& operator=(const Uring&) = delete;

  // Where it stopped, if it did: for the reason told to the user.
  struct Failure {
    int error = 0;    // errno
    const char* stage = "";
  };
  // How completions come in, best first.
  enum class Style : uint32_t {
    kDeferred = 0,       // worked off when we ask for them (kernel 6.1)
    kCooperative = 1,    // at our next system call (5.19)
    kPlain = 2,          // by interrupting us
  };
  // `best` is tried first, then what follows it.
  bool Start(uint32_t capacity, Style best, Operation* operations, Failure* failure);

  void Queue(Operation* operation) override;
  void Kick() override { Submit(nullptr); }
  void KickAndWait(uint64_t nanoseconds) override;
  void Cancel(Operation* operation) override;
  bool RegistersFiles() const override { return files_ > 0; }
  int RegisterFile(uint32_t index, int fd) override;
  int RegisterMemory(uint32_t index, void* base, size_t size) override;
  void UnregisterFile(uint32_t index) override;
  void UnregisterMemory(uint32_t index) override;
  uint32_t Reap(Result* results, uint32_t limit) override;
  uint32_t Descriptors(int* descriptors) const override;
  Style style() const { return style_; }
  bool Stalled() const override { return pending_ > 0; }
  void Poke() override { ranges_.Poke(); }
  void BeginReaping(bool told) override;
  bool EndReaping() override;
  bool Ready() const override;

 private:
  bool Setup(uint32_t capacity, Style best, Failure* failure);
  bool Map(Failure* failure);
  bool Probe(Failure* failure);
  void RegisterTables();
  bool FilesGoAtOnce() const;
  int SetFile(uint32_t index, int fd) const;
  int SetMemory(uint32_t index, void* base, size_t size) const;
  io_uring_sqe* NextEntry();
  void Prepare(Operation* operation);
  void PrepareFlush(Operation* operation);
  // One completion, or a refusal to take an entry, by the entry's mark. Returns the operation if it is over.
  Operation* Complete(uint64_t mark, int32_t value);
  Operation* CompleteBoth(Operation* operation);
  Operation* GoOn(Operation* operation, Progress progress);
  // With a limit it waits for the first completion too.
  void Submit(const timespec* limit);
  void NoteApart();
  void FailPending(int32_t error);
  void Quiet(bool quiet);
  bool MoreToDo() const;
  int Enter(uint32_t to_submit, uint32_t min_complete, uint32_t flags, const timespec* limit = nullptr) const;

  int ring_ = -1;
  int enter_ring_ = -1;    // what io_uring_enter is given: the descriptor, or the index under which it is registered
  uint32_t enter_flags_ = 0;
  uint32_t files_ = 0;    // places in the table of registered files
  uint32_t memories_ = 0;
  Style style_ = Style::kPlain;
  io_uring_params params_{};
  void* rings_ = nullptr;
  size_t rings_size_ = 0;
  void* completion_ring_ = nullptr;    // a mapping of its own only on kernels without IORING_FEAT_SINGLE_MMAP
  size_t completion_ring_size_ = 0;
  io_uring_sqe* entries_ = nullptr;
  size_t entries_size_ = 0;
  uint32_t* submission_tail_ = nullptr;
  const uint32_t* submission_flags_ = nullptr;
  uint32_t* completion_flags_ = nullptr;
  uint32_t* completion_head_ = nullptr;
  uint32_t* completion_tail_ = nullptr;
  io_uring_cqe* completions_ = nullptr;
  uint32_t submission_mask_ = 0;
  uint32_t completion_mask_ = 0;
  uint32_t tail_ = 0;    // ours; published by Kick
  uint32_t pending_ = 0;    // published or about to be, and not yet taken by the kernel
  Operation* operations_ = nullptr;
  Operation* failed_ = nullptr;    // never reached the kernel
  ThreadPool ranges_;
};

}  // namespace holdfast::ring
