// The client's end of the data plane, and the layout of the memory that it shares with JavaScript. Driven by the event
// loop of its environment: no thread of its own, since to hand an answer from one thread to another costs more than to
// take it from the socket.
//
// Layout, for `capacity` commands (native byte order: it never leaves the process); lib/checkpoint/plane-client.ts has
// the same:
//
//   0                          ClientHeader, 64 bytes
//   64                         ClientEntry[capacity], 80 bytes each, filled from the start, taken all at once
//   64 + 80 × capacity         ClientResult[kResultsMax], 32 bytes each, filled from the start, read all at once
//   … + 32 × kResultsMax       kDataMaxBytes of data to be written, taken with the entries
//   … + kDataMaxBytes          kReceiveBytes of data that was read, good until the call back returns
#pragma once

#include <napi.h>

#include <cstddef>
#include <cstdint>

#include "plane/wire.h"

namespace holdfast::plane {

constexpr uint32_t kReceiveBytes = 256 << 10;
constexpr uint32_t kSessionsMax = 1024;
// Answers have no less than 32 bytes; and what one look at the sockets can add: rests of data, sessions that end.
constexpr uint32_t kResultsMax = kReceiveBytes / sizeof(Answer) + 256;

struct ClientHeader {
  uint32_t entries;    // JavaScript: how many wait; native sets 0 when it has taken them
  uint32_t reaping;    // native: 1 while it calls back and will take the entries itself afterwards
  uint32_t reserved[14];
};
static_assert(sizeof(ClientHeader) == 64);

struct ClientEntry {
  uint32_t session;
  uint32_t id;             // comes back in the result; below `capacity`, not in flight
  uint32_t data_offset;    // of what is written
  uint32_t answer_bytes;   // of data that the answer brings
  Command command;
};
static_assert(sizeof(ClientEntry) == 80 && offsetof(ClientEntry, command) == 16);

struct ClientResult {
  uint32_t id;               // or kSessionEvent
  uint32_t status;           // of a command; of a session: 0 it is greeted, 1 it has ended
  uint32_t last;             // 0: more data of this answer will come
  uint32_t session;
  uint32_t data_offset;      // of the received data
  uint32_t bytes;
  uint64_t value;            // of the answer; of an end: an errno, EACCES if the ticket was not accepted. While data
                             // come: where in the target they belong. Data that were aimed at their target are not told.
};
static_assert(sizeof(ClientResult) == 32 && offsetof(ClientResult, value) == 24);

constexpr uint32_t kSessionEvent = 0xffffffff;

// Adds clientCreate, clientConnect, clientDisconnect, clientAim, clientSubmit and clientClose to `exports`.
void RegisterClient(Napi::Object exports);

}  // namespace holdfast::plane
