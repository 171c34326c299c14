// Intel's manual, volume 2: CLWB writes a line back and may keep it; CLFLUSHOPT also drops it; CLFLUSH is the old one,
// ordered by itself. The two newer ones are ordered by SFENCE. What has reached the memory controller is in the
// persistence domain of every machine with NVDIMMs (ADR). Volume 1, 10.4.6.2: a non-temporal store goes to memory
// without filling the caches, evicts the line if one of them has it, and is ordered by SFENCE too.
#if defined(__x86_64__)

#include <cpuid.h>
#include <emmintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "region/cache_flush.h"

namespace holdfast::region {
namespace {

enum class Instruction { kClflush, kClflushopt, kClwb };

struct Processor {
  Instruction instruction = Instruction::kClflush;
  uintptr_t line_bytes = 64;

  Processor() {
    uint32_t eax, ebx, ecx, edx;
    if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0) {
      const uintptr_t reported = ((ebx >> 8) & 0xFF) * 8;
      if (reported != 0) line_bytes = reported;
    }
    if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return;
    constexpr uint32_t kClflushoptBit = 1u << 23, kClwbBit = 1u << 24;
    if ((ebx & kClflushoptBit) != 0) instruction = Instruction::kClflushopt;
    if ((ebx & kClwbBit) != 0) instruction = Instruction::kClwb;
  }
};

const Processor& ThisProcessor() {
  static const Processor processor;
  return processor;
}

template <typename Flush>
void ForEachLine(const void* data, size_t length, uintptr_t line_bytes, Flush flush) {
  const uintptr_t start = reinterpret_cast<uintptr_t>(data);
  for (uintptr_t line = start & ~(line_bytes - 1); line < start + length; line += line_bytes) {
    flush(reinterpret_cast<volatile char*>(line));
  }
}

void FlushLines(const void* data, size_t length) {
  if (length == 0) return;
  const Processor& processor = ThisProcessor();
  // Assembler, not intrinsics: those would need this file compiled for processors that have them.
  switch (processor.instruction) {
    case Instruction::kClwb:
      ForEachLine(data, length, processor.line_bytes,
                  [](volatile char* line) { __asm__ volatile("clwb %0" : "+m"(*line)); });
      break;
    case Instruction::kClflushopt:
      ForEachLine(data, length, processor.line_bytes,
                  [](volatile char* line) { __asm__ volatile("clflushopt %0" : "+m"(*line)); });
      break;
    case Instruction::kClflush:
      ForEachLine(data, length, processor.line_bytes,
                  [](volatile char* line) { __asm__ volatile("clflush %0" : "+m"(*line)); });
      break;
  }
}

constexpr size_t kStreamBytes = 64;  // fills a write-combining buffer

}  // namespace

const char* CacheFlushInstruction() {
  switch (ThisProcessor().instruction) {
    case Instruction::kClwb:
      return "clwb";
    case Instruction::kClflushopt:
      return "clflushopt";
    default:
      return "clflush";
  }
}

void FlushCache(const void* data, size_t length) {
  FlushLines(data, length);
  _mm_sfence();
}

void CopyAndFlush(void* to, const void* from, size_t length) {
  char* target = static_cast<char*>(to);
  const char* source = static_cast<const char*>(from);
  const size_t past = reinterpret_cast<uintptr_t>(target) % kStreamBytes;
  const size_t head = std::min(length, past == 0 ? 0 : kStreamBytes - past);
  const size_t streamed = (length - head) / kStreamBytes * kStreamBytes;
  const size_t tail = length - head - streamed;
  memcpy(target, source, head);
  FlushLines(target, head);
  for (size_t at = head; at < head + streamed; at += sizeof(__m128i)) {
    const __m128i piece = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + at));
    _mm_stream_si128(reinterpret_cast<__m128i*>(target + at), piece);
  }
  memcpy(target + length - tail, source + length - tail, tail);
  FlushLines(target + length - tail, tail);
  _mm_sfence();
}

}  // namespace holdfast::region

#endif
