// What the ring carries: entries that JavaScript writes, operations that an engine runs, results that JavaScript reads.
//
// Layout of the memory that JavaScript allocates for a ring of `capacity` operations (native byte order: it never leaves
// the process):
//
//   0                    Header, 64 bytes
//   64                   Entry[capacity], 32 bytes each, filled from the start, taken all at once
//   64 + 32 × capacity   Result[capacity], 8 bytes each, filled from the start, read all at once
//
// lib/storage/ring.ts writes the same layout; both sides check the total size when a ring is made.
#pragma once

#include <cstddef>
#include <cstdint>

namespace holdfast::ring {

enum class Kind : uint32_t {
  kRead = 1,
  kWrite = 2,
  kWriteFua = 3,    // resolved only when the data is durable (RWF_DSYNC)
  kFlush = 4,       // fdatasync
  kPunchHole = 5,   // fallocate: the range reads as zeros, its space may be given back
  kZeroRange = 6,   // fallocate: the range reads as zeros, its space stays
  kBlockDiscard = 7,   // ioctl BLKDISCARD
  kBlockZeroOut = 8,   // ioctl BLKZEROOUT
  kRefused = 9,    // an entry that failed its checks: ends with EINVAL like any other
};

struct Header {
  uint32_t entries;    // JavaScript: how many entries wait; native sets 0 when it has taken them
  uint32_t reaping;    // native: 1 while it calls back and will take the entries itself afterwards
  uint32_t reserved[14];
};
static_assert(sizeof(Header) == 64);

struct Entry {
  uint32_t kind;
  uint32_t slot;    // of the file
  union {
    struct {
      uint32_t arena;
      uint32_t arena_offset;
    } memory;               // kRead, kWrite, kWriteFua
    double range_length;    // kPunchHole … kBlockZeroOut
  };
  double offset;      // on the device
  uint32_t length;    // kRead, kWrite, kWriteFua
  uint32_t id;        // which operation record; comes back in the result
};
static_assert(sizeof(Entry) == 32 && offsetof(Entry, offset) == 16);

struct Result {
  uint32_t id;
  int32_t value;    // 0: all of it done; negative: errno; kEndedEarly: the device ended before the length was reached
};
static_assert(sizeof(Result) == 8);

constexpr int32_t kEndedEarly = 1;

// One operation in flight. It stays at its address (a table, by id) from submission to result.
struct Operation {
  Operation* next;    // in an engine's lists
  Kind kind;
  uint32_t id;
  int fd;
  uint32_t length;
  uint32_t done;    // bytes already moved: a short completion goes on from here
  int32_t result;
  bool busy;
  uint8_t* data;
  uint64_t offset;
  uint64_t range_length;
};

inline bool IsRange(Kind kind) { return kind >= Kind::kPunchHole; }

}  // namespace holdfast::ring
