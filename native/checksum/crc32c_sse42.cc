// The kernel for x86-64 with SSE4.2 and PCLMULQDQ (crc32c_sse42_inline.h has the method).
#include "checksum/crc32c_kernels.h"
#include "checksum/crc32c_sse42_inline.h"

namespace holdfast::checksum {

uint32_t ExtendSse42(uint32_t reg32, const uint8_t* data, size_t length) {
  uint64_t reg = reg32;
  ExtendWhilePossible<4096>(&reg, &data, &length);
  ExtendWhilePossible<512>(&reg, &data, &length);
  ExtendWhilePossible<64>(&reg, &data, &length);
  return ExtendOneStream(reg, data, length);
}

}  // namespace holdfast::checksum
