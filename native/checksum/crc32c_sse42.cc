// The kernel for x86-64 with SSE4.2 and PCLMULQDQ (crc32c_streams_inline.h has the method).
#include "checksum/crc32c_kernels.h"
#include "checksum/crc32c_sse42_inline.h"

namespace holdfast::checksum {

uint32_t ExtendSse42(uint32_t reg, const uint8_t* data, size_t length) {
  return ExtendByStreams(reg, Reader{data, length});
}

uint32_t CopySse42(uint32_t reg, uint8_t* to, const uint8_t* from, size_t length) {
  return ExtendByStreams(reg, Copier{from, length, to});
}

}  // namespace holdfast::checksum
