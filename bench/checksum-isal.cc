// The measured half of checksum-isal.mjs: the kernel in use (native/checksum) and ISA-L's crc32_iscsi in one process.
//
// Each line on standard input, `WAY BYTES SPAN RUN_MS`, asks for one measurement: passes over the first SPAN bytes of the
// memory, in pieces of BYTES, until RUN_MS have gone. The answer is one line, gigabytes a second.
#include <isa-l/crc.h>

#include <chrono>
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

uint8_t* memory;
uint8_t* copy;

uint32_t IsaL(const uint8_t* data, size_t length) {
  return ~crc32_iscsi(const_cast<uint8_t*>(data), static_cast<int>(length), ~0u);
}

uint32_t Holdfast(const uint8_t* data, size_t length) { return Crc32c(0, data, length); }

uint32_t HoldfastCopy(const uint8_t* data, size_t length) { return Crc32cCopy(0, copy, data, length); }

uint32_t CopyThenIsaL(const uint8_t* data, size_t length) {
  memcpy(copy, data, length);
  return IsaL(copy, length);
}

constexpr struct {
  const char* name;
  uint32_t (*checksum)(const uint8_t*, size_t);
} kWays[] = {{"isal", IsaL}, {"holdfast", Holdfast}, {"holdfast-copy", HoldfastCopy}, {"memcpy-isal", CopyThenIsaL}};

double GigabytesPerSecond(uint32_t (*checksum)(const uint8_t*, size_t), size_t bytes, size_t span, double run_ms) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start = Clock::now();
  size_t done = 0;
  double elapsed_ns;
  static volatile uint32_t sink;
  do {
    for (size_t at = 0; at + bytes <= span; at += bytes) sink = checksum(memory + at, bytes);
    done += span / bytes * bytes;
    elapsed_ns = std::chrono::duration<double, std::nano>(Clock::now() - start).count();
  } while (elapsed_ns < run_ms * 1e6);
  return static_cast<double>(done) / elapsed_ns;
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
  for (size_t length : {0, 1, 100, 4096, 65536, 1 << 20}) {
    for (const auto& way : kWays) {
      if (way.checksum(memory, length) == IsaL(memory, length)) continue;
      fprintf(stderr, "%s and ISA-L disagree at %zu bytes\n", way.name, length);
      return 1;
    }
  }
  char line[128], name[32];
  size_t bytes, span;
  double run_ms;
  while (fgets(line, sizeof line, stdin) != nullptr) {
    if (sscanf(line, "%31s %zu %zu %lf", name, &bytes, &span, &run_ms) != 4) return 1;
    if (bytes == 0 || bytes > kCopyBytes || span < bytes || span > kMemoryBytes) return 1;
    for (const auto& way : kWays) {
      if (strcmp(way.name, name) == 0) printf("%f\n", GigabytesPerSecond(way.checksum, bytes, span, run_ms));
    }
    fflush(stdout);
  }
}
