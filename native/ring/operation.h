// What the ring carries: entries that JavaScript writes, operations that an engine runs, results that JavaScript reads.
//
// Layout of the memory that JavaScript allocates for a ring of `capacity` operations (native byte order: it never leaves
// the process):
//
//   0                    Header, 64 bytes
//   64                   Entry[capacity], 32 bytes each, filled from the start, taken all at once
//   64 + 32 × capacity   Piece[PieceCount(capacity)], 16 bytes each, filled from the start, taken with the entries
//   …                    Result[capacity], 8 bytes each, filled from the start, read all at once
//
// lib/storage/ring.ts writes the same layout; both sides check the total size when a ring is made.
#pragma once

#include <errno.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>

namespace holdfast::ring {

enum class Kind : uint32_t {
  kRead = 1,
  kWrite = 2,
  kWriteFua = 3,          // resolved only when the data is durable (RWF_DSYNC)
  kWriteThenFlush = 4,    // the same where the file has no such write: a flush follows each write
  kFlush = 5,             // fdatasync
  kPunchHole = 6,         // fallocate: the range reads as zeros, its space may be given back
  kZeroRange = 7,         // fallocate: the range reads as zeros, its space stays
  kBlockDiscard = 8,      // ioctl BLKDISCARD
  kBlockZeroOut = 9,      // ioctl BLKZEROOUT
  kRefused = 10,          // an entry that failed its checks: ends with EINVAL like any other
};

inline bool IsTransfer(Kind kind) { return kind >= Kind::kRead && kind <= Kind::kWriteThenFlush; }
inline bool IsRange(Kind kind) { return kind >= Kind::kPunchHole; }

struct Header {
  uint32_t entries;    // JavaScript: how many entries wait; native sets 0 when it has taken them
  uint32_t reaping;    // native: 1 while it calls back and will take the entries itself afterwards
  uint32_t pieces;     // JavaScript: how many pieces are filled; native sets 0 with the entries
  uint32_t reserved[13];
};
static_assert(sizeof(Header) == 64);

struct Entry {
  uint32_t kind;
  uint32_t slot;    // of the file
  union {
    struct {
      uint32_t arena;           // or kInPieces
      uint32_t arena_offset;    // in pieces: the index of the first
    } memory;                   // transfers
    double range_length;        // kPunchHole … kBlockZeroOut
  };
  double offset;      // on the device
  uint32_t length;    // transfers; in pieces: how many
  uint32_t id;        // which operation record; comes back in the result
};
static_assert(sizeof(Entry) == 32 && offsetof(Entry, offset) == 16);

// Memory of a transfer that is scattered.
struct Piece {
  uint32_t arena;
  uint32_t arena_offset;
  uint32_t length;
  uint32_t reserved;
};
static_assert(sizeof(Piece) == 16);

constexpr uint32_t kInPieces = 0xffffffff;
constexpr uint32_t kMaxPieces = 64;    // of one transfer

constexpr uint32_t PieceCount(uint32_t capacity) { return kMaxPieces + 4 * capacity; }

struct Result {
  uint32_t id;
  int32_t value;    // 0: all of it done; negative: errno; kEndedEarly: the device ended before the length was reached
};
static_assert(sizeof(Result) == 8);

constexpr int32_t kEndedEarly = 1;

constexpr int32_t kNotRegistered = -1;

// One operation in flight. It stays at its address (a table, by id) from submission to result.
struct Operation {
  Operation* next = nullptr;    // in an engine's lists
  Kind kind = Kind::kRefused;
  uint32_t id = 0;
  int fd = -1;
  int32_t file = kNotRegistered;      // as the engine registered it; else by `fd`
  int32_t memory = kNotRegistered;    // as the engine registered it; else by address
  uint32_t length = 0;
  uint32_t done = 0;    // bytes already moved: a short completion goes on from here
  int32_t result = 0;
  bool busy = false;
  // Of a write with a flush behind it, in an engine's hands: completions still to come, whether the flush may have begun
  // before the write was done, and the completions that are here.
  uint8_t parts = 0;
  bool apart = false;
  int32_t write_result = 0;
  int32_t flush_result = 0;
  uint32_t delays = 0;    // how often the kernel has put it off
  uint32_t slot = 0;      // of the file, for the statistics
  uint8_t* data = nullptr;
  iovec* pieces = nullptr;    // in place of `data`: what is left of them. They are changed on the way.
  uint32_t piece_count = 0;
  uint64_t offset = 0;    // on the device
  uint64_t range_length = 0;
  uint64_t begun_ns = 0;
};

// How a transfer goes on after the kernel moved `moved` bytes, or refused with a negative errno.
enum class Progress { kOver, kGoesOn, kPutOff };

// Counts what was moved and leaves in the operation what remains; `result` is set when it is over. An interrupted
// transfer goes on, one that is put off (EAGAIN) must not be tried again at once, and one that is cancelled half-way
// goes on to its end: only what has not begun can be cancelled.
inline Progress Advance(Operation* operation, int32_t moved) {
  if (moved == -EINTR || (moved == -ECANCELED && operation->done > 0)) return Progress::kGoesOn;
  if (moved == -EAGAIN) return Progress::kPutOff;
  if (moved <= 0) {
    operation->result = moved < 0 ? moved : kEndedEarly;
    return Progress::kOver;
  }
  operation->done += static_cast<uint32_t>(moved);
  if (operation->done >= operation->length) {
    operation->result = 0;
    return Progress::kOver;
  }
  if (operation->pieces == nullptr) return Progress::kGoesOn;
  size_t rest = static_cast<size_t>(moved);
  while (rest >= operation->pieces->iov_len) {
    rest -= operation->pieces->iov_len;
    operation->pieces++;
    operation->piece_count--;
  }
  operation->pieces->iov_base = static_cast<uint8_t*>(operation->pieces->iov_base) + rest;
  operation->pieces->iov_len -= rest;
  return Progress::kGoesOn;
}

}  // namespace holdfast::ring
