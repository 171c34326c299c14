// The measured half of checksum-isal.mjs: the kernel in use (native/checksum) and ISA-L's crc32_iscsi in one process.
//
// Each line on standard input, `WAY BYTES FROM SPAN RUN_MS`, asks for one measurement: passes over the SPAN bytes of the
// memory that begin at FROM, in pieces of BYTES, at least one and until RUN_MS have gone. The answer is one line:
// gigabytes a second of processor time.
#include <isa-l/crc.h>
#include <time.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "checksum/crc32c.h"

namespace {

using holdfast::checksum::Crc32c;
using holdfast::checksum::Crc32cCopy;

constexpr size_t kMemoryBytes = 512u << 20;
constexpr size_t kCopyBytes = 1u << 20;
constexpr size_t kBetweenTimes = 8u << 20;

uint8_t* memory;
uint8_t* copy;

uint32_t IsaL(const uint8_t* data, size_t length) {
  return ~crc32_iscsi(const_cast<uint8_t*>(data), static_cast<int>(length), ~0u);
}

uint32_t Holdfast(const uint8_t* data, size_t length) { return Crc32c(0, data, length); }

uint32_t CopyThenIsaL(const uint8_t* data, size_t length) {
  memcpy(copy, data, length);
  return IsaL(copy, length);
}

uint32_t HoldfastCopy(const uint8_t* data, size_t length) { return Crc32cCopy(0, copy, data, length); }

constexpr struct Way {
  const char* name;
  uint32_t (*checksum)(const uint8_t*, size_t);
} kWays[] = {{"isal", IsaL}, {"holdfast", Holdfast}, {"copy-then-isal", CopyThenIsaL}, {"holdfast-copy", HoldfastCopy}};

double NowNs() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) * 1e9 + static_cast<double>(now.tv_nsec);
}

// As many passes as make asking for the time cheap beside them. Gives the bytes.
size_t Pass(const Way& way, size_t bytes, size_t from, size_t span) {
  static volatile uint32_t sink = 0;
  const size_t passes = span < kBetweenTimes ? kBetweenTimes / span : 1;
  for (size_t pass = 0; pass < passes; pass++) {
    for (size_t at = 0; at + bytes <= span; at += bytes) {
      sink = sink + way.checksum(memory + from + at, bytes);
    }
  }
  return passes * (span / bytes * bytes);
}

double GigabytesPerSecond(const Way& way, size_t bytes, size_t from, size_t span, double run_ms) {
  const double start = NowNs();
  size_t done = 0;
  do {
    done += Pass(way, bytes, from, span);
  } while (NowNs() - start < run_ms * 1e6);
  return static_cast<double>(done) / (NowNs() - start);
}

bool Agree() {
  constexpr size_t kLengths[] = {0, 1, 100, 4096, 5000, 65536, kCopyBytes};
  for (const size_t length : kLengths) {
    for (const Way& way : kWays) {
      if (way.checksum(memory, length) == IsaL(memory, length)) continue;
      fprintf(stderr, "%s and ISA-L disagree at %zu bytes\n", way.name, length);
      return false;
    }
  }
  return true;
}

}  // namespace

int main() {
  memory = static_cast<uint8_t*>(aligned_alloc(4096, kMemoryBytes));
  copy = static_cast<uint8_t*>(aligned_alloc(4096, kCopyBytes));
  if (memory == nullptr || copy == nullptr) return 1;
  uint64_t state = 1;
  for (size_t at = 0; at < kMemoryBytes; at += sizeof state) {
    state = state * 6364136223846793005 + 1442695040888963407;
    memcpy(memory + at, &state, sizeof state);
  }
  if (!Agree()) return 1;
  char line[128], name[32];
  size_t bytes, from, span;
  double run_ms;
  while (fgets(line, sizeof line, stdin) != nullptr) {
    if (sscanf(line, "%31s %zu %zu %zu %lf", name, &bytes, &from, &span, &run_ms) != 5) return 1;
    if (bytes == 0 || bytes > kCopyBytes || span < bytes || span > kMemoryBytes) return 1;
    if (from > kMemoryBytes - span) return 1;
    for (const Way& way : kWays) {
      if (strcmp(way.name, name) == 0) printf("%f\n", GigabytesPerSecond(way, bytes, from, span, run_ms));
    }
    fflush(stdout);
  }
}
