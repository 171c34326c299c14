// Writes processor caches back to persistent memory. Knows nothing of Node. One file an instruction set:
// cache_flush_x64.cc, cache_flush_arm64.cc; cache_flush_other.cc has none.
#pragma once

#include <cstddef>

namespace holdfast::region {

// The instruction in use: "clwb", "clflushopt", "clflush" or "dc cvap"; nullptr where this processor has none that
// reaches persistent memory (then a mapping must not rely on the caches at all).
const char* CacheFlushInstruction();

// Returns when every cache line of the range, as stored before the call, is on its way to the persistence
// domain and ordered before every later store.
void FlushCache(const void* data, size_t length);

// Copies, and returns as FlushCache of the destination would. The ranges do not overlap. Whole lines go past the cache
// where the processor can do that: nothing has to be read for them, and nothing is pushed out.
void CopyAndFlush(void* to, const void* from, size_t length);

}  // namespace holdfast::region
