// The kernel for arm64 with the CRC32 and PMULL instructions (crc32c_streams_inline.h has the method).
#include <arm_acle.h>
#include <arm_neon.h>

#include <cstdint>

#include "checksum/crc32c_kernels.h"

namespace holdfast::checksum {
namespace {

static inline uint64_t CrcQword(uint64_t reg, uint64_t word) { return __crc32cd(static_cast<uint32_t>(reg), word); }
static inline uint32_t CrcDword(uint32_t reg, uint32_t word) { return __crc32cw(reg, word); }
static inline uint32_t CrcWord(uint32_t reg, uint16_t word) { return __crc32ch(reg, word); }
static inline uint32_t CrcByte(uint32_t reg, uint8_t byte) { return __crc32cb(reg, byte); }

static inline uint64_t Product(uint64_t a, uint32_t b) {
  return vgetq_lane_u64(vreinterpretq_u64_p128(vmull_p64(static_cast<poly64_t>(a), static_cast<poly64_t>(b))), 0);
}

}  // namespace
}  // namespace holdfast::checksum

#include "checksum/crc32c_streams_inline.h"

namespace holdfast::checksum {

uint32_t ExtendArmv8(uint32_t reg, const uint8_t* data, size_t length) {
  return ExtendByStreams(reg, Reader{data, length});
}

uint32_t CopyArmv8(uint32_t reg, uint8_t* to, const uint8_t* from, size_t length) {
  return ExtendByStreams(reg, Copier{from, length, to});
}

}  // namespace holdfast::checksum
