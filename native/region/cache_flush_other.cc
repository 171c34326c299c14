// Processors whose way to persistent memory is not known here: a mapping of one goes by msync.
#if !defined(__x86_64__) && !defined(__aarch64__)

#include <cstring>

#include "region/cache_flush.h"

namespace holdfast::region {

const char* CacheFlushInstruction() { return nullptr; }

void FlushCache(const void*, size_t) {}

void CopyAndFlush(void* to, const void* from, size_t length) { memcpy(to, from, length); }

}  // namespace holdfast::region

#endif
