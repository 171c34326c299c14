// A lock that is given in the order in which it was asked for. Whoever serves a busy connection takes it again and again
// with hardly a pause, and a plain mutex would leave the others waiting for ever.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>

namespace holdfast::plane {

class Turns {
 public:
  void lock() {
    std::unique_lock<std::mutex> guard(mutex_);
    const uint64_t turn = next_++;
    changed_.wait(guard, [&] { return turn == current_; });
  }
  void unlock() {
    {
      const std::lock_guard<std::mutex> guard(mutex_);
      current_++;
      if (current_ == next_) return;
    }
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  uint64_t next_ = 0;
  uint64_t current_ = 0;
};

}  // namespace holdfast::plane
