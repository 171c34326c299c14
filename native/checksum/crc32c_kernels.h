// The kernels, one instruction set a file, each compiled with its own flags. Only crc32c.cc chooses among them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace holdfast::checksum {

uint32_t ExtendPortable(uint32_t reg, const uint8_t* data, size_t length);

#if defined(__x86_64__)
uint32_t ExtendSse42(uint32_t reg, const uint8_t* data, size_t length);   // SSE4.2, PCLMULQDQ
uint32_t ExtendAvx512(uint32_t reg, const uint8_t* data, size_t length);  // those, AVX-512 F and VL, VPCLMULQDQ
#endif

}  // namespace holdfast::checksum
