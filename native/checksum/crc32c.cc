#include "checksum/crc32c.h"

#include <atomic>
#include <cstring>

#include "checksum/crc32c_kernels.h"
#include "checksum/polynomial.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace holdfast::checksum {
namespace {

#if defined(__x86_64__)

// The parts of the register file that the operating system saves and restores (XCR0).
uint64_t SavedState() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

struct Processor {
  bool sse42 = false;   // with PCLMULQDQ
  bool avx512 = false;  // F, VL and VPCLMULQDQ, saved by the operating system
  // Two CRC32 instructions a cycle take in as much as folding does: measured on AMD's Zen 5. Others have one a cycle by
  // the published tables, Intel's fold twice as fast besides, and folding would wait for the streams.
  bool fast_streams = false;

  Processor() {
    uint32_t eax, ebx, ecx, edx;
    if (__get_cpuid(0, &eax, &ebx, &ecx, &edx) == 0) return;
    const bool amd = ebx == signature_AMD_ebx && ecx == signature_AMD_ecx && edx == signature_AMD_edx;
    if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0) return;
    constexpr uint32_t kZen5 = 0x1A;
    const uint32_t family = ((eax >> 8) & 0xF) + ((eax >> 20) & 0xFF);
    fast_streams = amd && family >= kZen5;
    sse42 = (ecx & bit_SSE4_2) != 0 && (ecx & bit_PCLMUL) != 0;
    if (!sse42 || (ecx & bit_OSXSAVE) == 0) return;
    constexpr uint64_t kWideState = 0xE6;  // XMM, YMM, opmask, upper halves of ZMM0–15, ZMM16–31
    if ((SavedState() & kWideState) != kWideState) return;
    if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return;
    constexpr uint32_t kAvx512F = 1u << 16, kAvx512VL = 1u << 31, kVpclmulqdq = 1u << 10;
    avx512 = (ebx & kAvx512F) != 0 && (ebx & kAvx512VL) != 0 && (ecx & kVpclmulqdq) != 0;
  }
};

const Kernel* AllKernels(size_t* count) {
  static const Processor processor;
  static const Kernel folding = {"avx512", ExtendAvx512, CopyAvx512, processor.avx512};
  static const Kernel streams = {"avx512-streams", ExtendAvx512Streams, CopyAvx512, processor.avx512};
  static const Kernel kernels[] = {{"portable", ExtendPortable, CopyPortable, true},
                                   {"sse42", ExtendSse42, CopySse42, processor.sse42},
                                   processor.fast_streams ? folding : streams,
                                   processor.fast_streams ? streams : folding};
  *count = sizeof kernels / sizeof kernels[0];
  return kernels;
}

#elif defined(__aarch64__) && defined(__AARCH64EL__)

const Kernel* AllKernels(size_t* count) {
  constexpr unsigned long kNeeded = HWCAP_CRC32 | HWCAP_PMULL;
  static const Kernel kernels[] = {{"portable", ExtendPortable, CopyPortable, true},
                                   {"armv8", ExtendArmv8, CopyArmv8, (getauxval(AT_HWCAP) & kNeeded) == kNeeded}};
  *count = sizeof kernels / sizeof kernels[0];
  return kernels;
}

#else

const Kernel* AllKernels(size_t* count) {
  static const Kernel kernels[] = {{"portable", ExtendPortable, CopyPortable, true}};
  *count = sizeof kernels / sizeof kernels[0];
  return kernels;
}

#endif

const Kernel* FastestKernel() {
  size_t count;
  const Kernel* kernels = AllKernels(&count);
  while (!kernels[count - 1].supported) count--;
  return &kernels[count - 1];
}

// Released and acquired: the table behind it is filled in by whichever thread comes first.
std::atomic<const Kernel*> selected_kernel{nullptr};

}  // namespace

const Kernel* Kernels(size_t* count) { return AllKernels(count); }

const Kernel& SelectedKernel() {
  const Kernel* kernel = selected_kernel.load(std::memory_order_acquire);
  if (kernel != nullptr) return *kernel;
  // Not a plain store: a selection made at the same time by another thread must win.
  const Kernel* fastest = FastestKernel();
  if (selected_kernel.compare_exchange_strong(kernel, fastest, std::memory_order_acq_rel)) return *fastest;
  return *kernel;
}

bool SelectKernel(const char* name) {
  size_t count;
  const Kernel* kernels = AllKernels(&count);
  for (size_t i = 0; i < count; i++) {
    if (strcmp(kernels[i].name, name) != 0 || !kernels[i].supported) continue;
    selected_kernel.store(&kernels[i], std::memory_order_release);
    return true;
  }
  return false;
}

uint32_t Crc32c(uint32_t seed, const uint8_t* data, size_t length) {
  return ~SelectedKernel().extend(~seed, data, length);
}

uint32_t Crc32cCopy(uint32_t seed, uint8_t* to, const uint8_t* from, size_t length) {
  const uintptr_t target = reinterpret_cast<uintptr_t>(to), source = reinterpret_cast<uintptr_t>(from);
  if (length <= target - source && length <= source - target) {
    return ~SelectedKernel().copy(~seed, to, from, length);
  }
  memmove(to, from, length);
  return Crc32c(seed, to, length);
}

void Crc32cBlocks(const uint8_t* data, size_t length, size_t block_bytes, uint32_t* checksums) {
  const Kernel& kernel = SelectedKernel();
  for (; length > block_bytes; data += block_bytes, length -= block_bytes) {
    *checksums++ = ~kernel.extend(~0u, data, block_bytes);
  }
  if (length != 0) *checksums = ~kernel.extend(~0u, data, length);
}

// The inversions before and after cancel out in the sum, so that the plain shift of A's checksum is right.
uint32_t Crc32cCombine(uint32_t crc_a, uint32_t crc_b, uint64_t length_b) {
  return MultiplyModulo(crc_a, PowerOfX(8 * length_b)) ^ crc_b;
}

}  // namespace holdfast::checksum
