// The kernels, one instruction set a file, each compiled with its own flags. Only crc32c.cc chooses among them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace holdfast::checksum {

uint32_t ExtendPortable(uint32_t reg, const uint8_t* data, size_t length);
uint32_t CopyPortable(uint32_t reg, uint8_t* to, const uint8_t* from, size_t length);

#if defined(__x86_64__)
// SSE4.2, PCLMULQDQ
uint32_t ExtendSse42(uint32_t reg, const uint8_t* data, size_t length);
uint32_t CopySse42(uint32_t reg, uint8_t* to, const uint8_t* from, size_t length);

// Those, AVX-512 F and VL, VPCLMULQDQ: by folding alone, and by folding beside streams of the CRC32 instruction
uint32_t ExtendAvx512(uint32_t reg, const uint8_t* data, size_t length);
uint32_t CopyAvx512(uint32_t reg, uint8_t* to, const uint8_t* from, size_t length);
uint32_t ExtendAvx512Streams(uint32_t reg, const uint8_t* data, size_t length);
#endif

#if defined(__aarch64__) && defined(__AARCH64EL__)
// CRC32, PMULL
uint32_t ExtendArmv8(uint32_t reg, const uint8_t* data, size_t length);
uint32_t CopyArmv8(uint32_t reg, uint8_t* to, const uint8_t* from, size_t length);
#endif

}  // namespace holdfast::checksum
