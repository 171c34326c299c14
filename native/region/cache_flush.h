// Writes processor caches back to persistent memory. Knows nothing of Node.
#pragma once

#include <cstddef>

namespace holdfast::region {

// The instruction in use: "clwb", "clflushopt" or "clflush"; nullptr where this processor's kind is not served (then
// a mapping must not rely on the caches at all).
const char* CacheFlushInstruction();

// Returns when every cache line of the range, as stored before the call, is on its way to the persistence
// domain and ordered before every later store.
void FlushCache(const void* data, size_t length);

}  // namespace holdfast::region
