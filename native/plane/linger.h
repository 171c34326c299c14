// Whether it pays to look out for what comes next before sleeping: to be woken costs more than a short look, most of all
// where the processor has gone to rest meanwhile. Where other work waits for the processors a look costs somebody else
// his turn, maybe the very one who is waited for; it shows by a look that takes longer than it was meant to.
#pragma once

#include <time.h>

#include <cstdint>

namespace holdfast::plane {

inline uint64_t NowNs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

class Linger {
 public:
  // Asked before each sleep. Where looks have come to take too long on the mean, some sleeps go by before the next try.
  bool Pays() {
    if (crowded_ > 0) crowded_--;
    if (mean_ns_ <= (crowded_ > 0 ? kCrowdedMeanNs : kMeanNs)) return true;
    if (++pause_ < kPause) return false;
    pause_ = 0;
    mean_ns_ = 0;
    return true;
  }

  // Of a look that was to end at `until_ns`.
  void Note(uint64_t begun_ns, uint64_t until_ns, uint64_t now_ns) {
    if (now_ns > until_ns + kPutAsideNs) crowded_ = kCrowded;
    mean_ns_ = (7 * mean_ns_ + now_ns - begun_ns) / 8;
  }

 private:
  static constexpr uint64_t kMeanNs = 40'000;
  static constexpr uint64_t kCrowdedMeanNs = 15'000;
  static constexpr uint64_t kPutAsideNs = 20'000;
  static constexpr uint32_t kPause = 256;
  static constexpr uint32_t kCrowded = 4096;

  uint64_t mean_ns_ = 0;
  uint32_t pause_ = 0;
  uint32_t crowded_ = 0;
};

}  // namespace holdfast::plane
