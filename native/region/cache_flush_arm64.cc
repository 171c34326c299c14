// Arm's manual (DDI 0487), D7: DC CVAP, of Armv8.2, cleans a line to the point of persistence, which is what the kernel
// does for its own stores to persistent memory; DSB waits until that is done. Without it (HWCAP_DCPOP, the kernel's
// arm64/elf_hwcaps.rst) no instruction is known to reach so far. What the instruction of Armv8.5, DC CVADP, adds is
// needed only where batteries guard the caches.
#if defined(__aarch64__)

#include <sys/auxv.h>

#include <cstdint>
#include <cstring>

#include "region/cache_flush.h"

namespace holdfast::region {
namespace {

constexpr unsigned long kHasDcCvap = 1ul << 16;

bool HasDcCvap() {
  static const bool has = (getauxval(AT_HWCAP) & kHasDcCvap) != 0;
  return has;
}

// The smallest line of all data caches. CTR_EL0.DminLine: the logarithm of its words of 4 bytes.
uintptr_t LineBytes() {
  static const uintptr_t bytes = [] {
    uint64_t cache_type;
    __asm__("mrs %0, ctr_el0" : "=r"(cache_type));
    return static_cast<uintptr_t>(4) << ((cache_type >> 16) & 0xF);
  }();
  return bytes;
}

}  // namespace

const char* CacheFlushInstruction() { return HasDcCvap() ? "dc cvap" : nullptr; }

void FlushCache(const void* data, size_t length) {
  if (length == 0 || !HasDcCvap()) return;
  const uintptr_t line_bytes = LineBytes();
  const uintptr_t start = reinterpret_cast<uintptr_t>(data);
  for (uintptr_t line = start & ~(line_bytes - 1); line < start + length; line += line_bytes) {
    // Its plain encoding, SYS #3, C7, C12, #1: the assembler knows the name only when it is told of Armv8.2.
    __asm__ volatile("sys #3, c7, c12, #1, %0" ::"r"(line) : "memory");
  }
  __asm__ volatile("dsb sy" ::: "memory");
}

void CopyAndFlush(void* to, const void* from, size_t length) {
  memcpy(to, from, length);
  FlushCache(to, length);
}

}  // namespace holdfast::region

#endif
