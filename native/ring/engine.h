// What an engine is: it takes operations, runs them beside the event loop and hands back their results. Nothing in it
// blocks the caller, and nothing in it knows JavaScript.
#pragma once

#include <errno.h>
#include <poll.h>
#include <time.h>

#include <cstddef>
#include <cstdint>

#include "ring/operation.h"

namespace holdfast::ring {

class Engine {
 public:
  static constexpr uint32_t kMaxDescriptors = 2;

  virtual ~Engine() = default;

  // Queues one operation. The caller never has more than the ring's capacity between Queue and Reap.
  virtual void Queue(Operation* operation) = 0;
  // Hands everything queued to the kernel or the threads.
  virtual void Kick() = 0;
  // The same; then sleeps until Reap has something to do, at most so long. For one operation alone, between BeginReaping
  // and EndReaping.
  virtual void KickAndWait(uint64_t nanoseconds) {
    Kick();
    WaitOnDescriptors(nanoseconds);
  }
  // Asks that an operation which was kicked but has not begun is not begun: it then ends with -ECANCELED. One that has
  // begun ends as ever. Its result comes in any case.
  virtual void Cancel(Operation* operation) = 0;

  // Make a file, or a piece of memory, known in advance under a number of the caller's choice, which operations may then
  // carry (Operation::file, memory). Return 0, or the errno for which it cannot be: the operations then do without.
  virtual bool RegistersFiles() const { return false; }
  virtual int RegisterFile(uint32_t, int) { return ENOTSUP; }
  virtual int RegisterMemory(uint32_t, void*, size_t) { return ENOTSUP; }
  // Nothing that carries it may be in flight.
  virtual void UnregisterFile(uint32_t) {}
  virtual void UnregisterMemory(uint32_t) {}

  // Around a series of Reap calls; `told` if a descriptor became readable. EndReaping returns true if something arrived
  // that no descriptor will tell of: then Reap again.
  virtual void BeginReaping(bool) {}
  virtual bool EndReaping() { return false; }
  // Whether Reap would find something, as far as a look at shared memory tells: cheap enough to be asked in a loop.
  virtual bool Ready() const { return false; }
  // Takes up to `limit` results of operations that are over. Never blocks.
  virtual uint32_t Reap(Result* results, uint32_t limit) = 0;
  // Fills in the descriptors that are readable whenever Reap has something to do; returns how many.
  virtual uint32_t Descriptors(int* descriptors) const = 0;

  // True if Kick could not hand over everything for now (the kernel is short of memory): the next Reap tries again.
  virtual bool Stalled() const { return false; }
  // Makes a descriptor readable, so that reaping begins again soon.
  virtual void Poke() = 0;

 protected:
  void WaitOnDescriptors(uint64_t nanoseconds) const {
    int descriptors[kMaxDescriptors];
    pollfd polls[kMaxDescriptors];
    const uint32_t count = Descriptors(descriptors);
    for (uint32_t i = 0; i < count; i++) polls[i] = {descriptors[i], POLLIN, 0};
    const timespec limit{0, static_cast<long>(nanoseconds)};
    ppoll(polls, count, &limit, nullptr);
  }
};

}  // namespace holdfast::ring
