// One-sided commands and their answers as they stand on the wire: lib/checkpoint/command-format.ts has the format, byte
// by byte, and what may stand in each field. Little-endian, as every processor that this is built for.
//
// A connection to a plane begins with a Hello from the client, answered by an Answer of status kOk or kKeyInvalid with
// tag 0 and no data; after it come commands one way, answers the other way, in any order.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace holdfast::plane {

static_assert(std::endian::native == std::endian::little);

using Name = std::array<uint8_t, 16>;    // of a region, a key or a ticket: 128 random bits

constexpr uint8_t kVersion = 1;
constexpr uint32_t kDataMaxBytes = 1 << 20;    // of one command
constexpr uint64_t kNumberLimit = 1ull << 53;
constexpr uint64_t kWordBytes = 8;

enum Operation : uint8_t { kRead = 1, kWrite = 2, kPersist = 3, kCompareAndSwap = 4, kWatch = 5 };

constexpr uint8_t kPersistFlag = 1;
constexpr uint8_t kGuardFlag = 2;

struct Command {
  uint8_t version;
  uint8_t operation;
  uint8_t flags;
  uint8_t reserved;
  uint32_t data_bytes;
  uint64_t tag;
  Name key;
  uint64_t address;
  uint64_t length;
  uint64_t operand_a;
  uint64_t operand_b;
};
static_assert(sizeof(Command) == 64 && offsetof(Command, key) == 16 && offsetof(Command, operand_b) == 56);

enum Status : uint8_t {
  kOk = 0,
  kKeyInvalid = 1,
  kAccess = 2,
  kOutOfRange = 3,
  kFenced = 4,
  kFlushFailed = 5,
};

struct Answer {
  uint8_t version;
  uint8_t status;
  uint16_t reserved;
  uint32_t data_bytes;
  uint64_t tag;
  uint64_t value;
  uint64_t reserved_too;
};
static_assert(sizeof(Answer) == 32 && offsetof(Answer, value) == 16);

struct Hello {
  uint8_t magic[8];
  Name ticket;
  uint64_t reserved;
};
static_assert(sizeof(Hello) == 32);

constexpr uint8_t kHelloMagic[8] = {'H', 'F', 'P', 'L', 'A', 'N', 'E', '1'};

// Whether it can be executed as it stands, but for key, bounds and rights. Whoever sends another one is no client of
// ours, and where its next command would begin is not known.
inline bool IsWellFormed(const Command& command) {
  if (command.version != kVersion || command.reserved != 0 || command.tag >= kNumberLimit) return false;
  if (command.address >= kNumberLimit || command.length >= kNumberLimit) return false;
  if (command.address + command.length >= kNumberLimit) return false;
  if (command.data_bytes != (command.operation == kWrite ? command.length : 0)) return false;
  const bool plain = command.operand_a == 0 && command.operand_b == 0;
  switch (command.operation) {
    case kRead:
      return command.flags == 0 && plain && command.length <= kDataMaxBytes;
    case kWrite:
      if ((command.flags & ~(kPersistFlag | kGuardFlag)) != 0 || command.length > kDataMaxBytes) return false;
      if ((command.flags & kGuardFlag) == 0) return plain;
      return command.operand_b < kNumberLimit - kWordBytes && command.operand_b % kWordBytes == 0;
    case kPersist:
      return command.flags == 0 && plain;
    case kCompareAndSwap:
      return (command.flags & ~kPersistFlag) == 0 && command.length == kWordBytes && command.address % kWordBytes == 0;
    case kWatch:
      return command.flags == 0 && command.length > 0 && command.operand_b == 0;
    default:
      return false;
  }
}

}  // namespace holdfast::plane
