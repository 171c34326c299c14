// Spreads one peer's commands so that they keep to a rate, without refusing any: each begins when those before it are
// paid for. The same as lib/checkpoint/pace.ts, which has the source, for commands of all of the peer's connections.
#pragma once

#include <algorithm>
#include <cstdint>

namespace holdfast::plane {

// What each peer may ask for a second, of commands, and of bytes that they read and write. 0: as much as it can.
struct Rates {
  double commands = 0;
  double bytes = 0;

  bool limit() const { return commands > 0 || bytes > 0; }
};

constexpr uint64_t kNever = UINT64_MAX;

class Pace {
 public:
  explicit Pace(const Rates& rates)
      : ns_per_command_(CostNs(rates.commands)), ns_per_byte_(CostNs(rates.bytes)) {}

  // When a command that moves so many bytes begins, not before now. It counts from now on.
  uint64_t Begin(uint64_t now_ns, uint64_t bytes) {
    const auto now = static_cast<double>(now_ns);
    const double begin = std::max(commands_paid_ns_, bytes_paid_ns_) - kBurstNs;
    commands_paid_ns_ = std::max(commands_paid_ns_, now) + ns_per_command_;
    bytes_paid_ns_ = std::max(bytes_paid_ns_, now) + static_cast<double>(bytes) * ns_per_byte_;
    if (begin <= now) return now_ns;
    return begin < kLatestNs ? static_cast<uint64_t>(begin) : kNever;
  }

 private:
  static constexpr double kNsPerSecond = 1e9;
  static constexpr double kBurstNs = 1e8;    // so much of the rate may come at once after a pause
  static constexpr double kLatestNs = 1e19;

  // Finite, so that no bytes cost nothing.
  static double CostNs(double rate) { return rate > 0 ? std::min(kNsPerSecond / rate, 2 * kLatestNs) : 0; }

  double ns_per_command_;
  double ns_per_byte_;
  // When all that has begun is paid for.
  double commands_paid_ns_ = 0;
  double bytes_paid_ns_ = 0;
};

}  // namespace holdfast::plane
