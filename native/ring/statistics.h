// What is counted of the operations on one file: how many, how many bytes, how long. Times go into log-linear buckets,
// eight to a power of two, so a reported time is at most an eighth too high (the idea of HdrHistogram, Gil Tene).
//
// Written out as doubles for JavaScript, all classes one after the other, each: operations, errors, bytes, sum and
// maximum of the times in nanoseconds, then the buckets. lib/storage/io-statistics.ts reads the same layout.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "ring/operation.h"

namespace holdfast::ring {

// Above 2^36 ns (a minute) a time counts as that.
constexpr uint32_t kTimeBits = 36;
constexpr uint32_t kTimeBuckets = (kTimeBits - 2) * 8;
constexpr uint32_t kFiguresPerClass = 5 + kTimeBuckets;
enum class OperationClass : uint32_t { kRead = 0, kWrite = 1, kFlush = 2, kRange = 3 };
constexpr uint32_t kOperationClasses = 4;
constexpr uint32_t kFigures = kOperationClasses * kFiguresPerClass;

inline OperationClass ClassOf(Kind kind) {
  if (kind == Kind::kRead) return OperationClass::kRead;
  if (IsTransfer(kind)) return OperationClass::kWrite;
  return kind == Kind::kFlush ? OperationClass::kFlush : OperationClass::kRange;
}

// 0 … 15 each have a bucket of their own; then the power of two and the three bits after its first one choose.
inline uint32_t TimeBucket(uint64_t nanoseconds) {
  if (nanoseconds < 16) return static_cast<uint32_t>(nanoseconds);
  if (nanoseconds >= uint64_t{1} << kTimeBits) return kTimeBuckets - 1;
  const uint32_t shift = static_cast<uint32_t>(std::bit_width(nanoseconds)) - 4;
  return shift * 8 + static_cast<uint32_t>(nanoseconds >> shift);
}

class Statistics {
 public:
  void Record(const Operation& operation, int32_t result, uint64_t now_ns) {
    Class& counted = classes_[static_cast<uint32_t>(ClassOf(operation.kind))];
    counted.operations++;
    if (result == 0) {
      counted.bytes += IsRange(operation.kind) ? operation.range_length : operation.length;
    } else {
      counted.errors++;
    }
    const uint64_t taken = now_ns > operation.begun_ns ? now_ns - operation.begun_ns : 0;
    counted.time_sum += taken;
    if (taken > counted.time_max) counted.time_max = taken;
    counted.times[TimeBucket(taken)]++;
  }

  void Add(const Statistics& other) {
    for (uint32_t i = 0; i < kOperationClasses; i++) {
      Class& mine = classes_[i];
      const Class& more = other.classes_[i];
      mine.operations += more.operations;
      mine.errors += more.errors;
      mine.bytes += more.bytes;
      mine.time_sum += more.time_sum;
      if (mine.time_max < more.time_max) mine.time_max = more.time_max;
      for (uint32_t bucket = 0; bucket < kTimeBuckets; bucket++) mine.times[bucket] += more.times[bucket];
    }
  }

  // Adds what is counted here to `figures`, kFigures of them.
  void AddTo(double* figures) const {
    for (const Class& counted : classes_) {
      figures[0] += static_cast<double>(counted.operations);
      figures[1] += static_cast<double>(counted.errors);
      figures[2] += static_cast<double>(counted.bytes);
      figures[3] += static_cast<double>(counted.time_sum);
      if (figures[4] < static_cast<double>(counted.time_max)) figures[4] = static_cast<double>(counted.time_max);
      for (uint32_t i = 0; i < kTimeBuckets; i++) figures[5 + i] += static_cast<double>(counted.times[i]);
      figures += kFiguresPerClass;
    }
  }

 private:
  struct Class {
    uint64_t operations = 0;
    uint64_t errors = 0;
    uint64_t bytes = 0;
    uint64_t time_sum = 0;
    uint64_t time_max = 0;
    uint64_t times[kTimeBuckets] = {};
  };
  Class classes_[kOperationClasses];
};

}  // namespace holdfast::ring
