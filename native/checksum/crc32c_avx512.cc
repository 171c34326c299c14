// The kernel for x86-64 with AVX-512 (F, VL) and VPCLMULQDQ: folding, four registers wide (crc32c_avx512_inline.h has
// the method).
#include "checksum/crc32c_avx512_inline.h"
#include "checksum/crc32c_kernels.h"

namespace holdfast::checksum {

uint32_t ExtendAvx512(uint32_t reg, const uint8_t* data, size_t length) {
  return ExtendRest(reg, Reader{data, length});
}

uint32_t CopyAvx512(uint32_t reg, uint8_t* to, const uint8_t* from, size_t length) {
  return ExtendRest(reg, Copier{from, length, to});
}

}  // namespace holdfast::checksum
