// What an engine is: it takes operations, runs them beside the event loop and hands back their results. Nothing in it
// blocks the caller, and nothing in it knows JavaScript.
#pragma once

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
  // Around a series of Reap calls, after a descriptor became readable. EndReaping returns true if something arrived that
  // no descriptor will tell of: then Reap again.
  virtual void BeginReaping() {}
  virtual bool EndReaping() { return false; }
  // Takes up to `limit` results of operations that are over. Never blocks.
  virtual uint32_t Reap(Result* results, uint32_t limit) = 0;
  // Fills in the descriptors that are readable whenever Reap has something to do; returns how many.
  virtual uint32_t Descriptors(int* descriptors) const = 0;

  // True if Kick could not hand over everything for now (the kernel is short of memory): the next Reap tries again.
  virtual bool Stalled() const { return false; }
  // Makes a descriptor readable, so that reaping begins again soon.
  virtual void Poke() = 0;
};

}  // namespace holdfast::ring
