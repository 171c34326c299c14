// Slicing-by-16: sixteen table look-ups take in sixteen bytes at once (Kounavis and Berry, "A Systematic Approach to
// Building High Performance Software-Based CRC Generators", 2005). For any processor.
#include <array>
#include <bit>
#include <cstring>

#include "checksum/crc32c_kernels.h"
#include "checksum/polynomial.h"

namespace holdfast::checksum {
namespace {

constexpr size_t kSlices = 16;

// kTables[k][b]: what byte b contributes when k more bytes follow it.
constexpr auto kTables = [] {
  std::array<std::array<uint32_t, 256>, kSlices> tables{};
  for (uint32_t byte = 0; byte < 256; byte++) {
    uint32_t reg = byte;
    for (int bit = 0; bit < 8; bit++) reg = TimesX(reg);
    tables[0][byte] = reg;
  }
  for (size_t slice = 1; slice < kSlices; slice++) {
    for (uint32_t byte = 0; byte < 256; byte++) {
      const uint32_t previous = tables[slice - 1][byte];
      tables[slice][byte] = (previous >> 8) ^ tables[0][previous & 0xFF];
    }
  }
  return tables;
}();

inline uint32_t LoadWord(const uint8_t* data) {
  if constexpr (std::endian::native == std::endian::little) {
    uint32_t word;
    memcpy(&word, data, sizeof word);
    return word;
  }
  return static_cast<uint32_t>(data[0]) | static_cast<uint32_t>(data[1]) << 8 |
         static_cast<uint32_t>(data[2]) << 16 | static_cast<uint32_t>(data[3]) << 24;
}

// The contribution of four bytes that `following` more bytes of the same step follow.
inline uint32_t Slice(uint32_t word, size_t following) {
  return kTables[following + 3][word & 0xFF] ^ kTables[following + 2][(word >> 8) & 0xFF] ^
         kTables[following + 1][(word >> 16) & 0xFF] ^ kTables[following][word >> 24];
}

}  // namespace

uint32_t ExtendPortable(uint32_t reg, const uint8_t* data, size_t length) {
  for (; length >= kSlices; data += kSlices, length -= kSlices) {
    reg = Slice(reg ^ LoadWord(data), 12) ^ Slice(LoadWord(data + 4), 8) ^ Slice(LoadWord(data + 8), 4) ^
          Slice(LoadWord(data + 12), 0);
  }
  for (; length != 0; data++, length--) reg = (reg >> 8) ^ kTables[0][(reg ^ *data) & 0xFF];
  return reg;
}

}  // namespace holdfast::checksum
