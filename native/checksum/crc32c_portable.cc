// Slicing-by-16: sixteen table look-ups take in sixteen bytes at once (Kounavis and Berry, "A Systematic Approach to
// Building High Performance Software-Based CRC Generators", 2005). For any processor.
#include <array>
#include <bit>

#include "checksum/crc32c_kernels.h"
#include "checksum/polynomial.h"
#include "checksum/source_inline.h"

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

template <typename Source>
inline uint32_t TakeWord(const Source& source, size_t at) {
  const uint32_t word = source.template Take<uint32_t>(at);
  return std::endian::native == std::endian::little ? word : __builtin_bswap32(word);
}

// The contribution of four bytes that `following` more bytes of the same step follow.
inline uint32_t Slice(uint32_t word, size_t following) {
  return kTables[following + 3][word & 0xFF] ^ kTables[following + 2][(word >> 8) & 0xFF] ^
         kTables[following + 1][(word >> 16) & 0xFF] ^ kTables[following][word >> 24];
}

template <typename Source>
uint32_t Extend(uint32_t reg, Source source) {
  for (; source.left >= kSlices; source.Advance(kSlices)) {
    reg = Slice(reg ^ TakeWord(source, 0), 12) ^ Slice(TakeWord(source, 4), 8) ^ Slice(TakeWord(source, 8), 4) ^
          Slice(TakeWord(source, 12), 0);
  }
  for (; source.left != 0; source.Advance(1)) {
    reg = (reg >> 8) ^ kTables[0][(reg ^ source.template Take<uint8_t>(0)) & 0xFF];
  }
  return reg;
}

}  // namespace

uint32_t ExtendPortable(uint32_t reg, const uint8_t* data, size_t length) { return Extend(reg, Reader{data, length}); }

uint32_t CopyPortable(uint32_t reg, uint8_t* to, const uint8_t* from, size_t length) {
  return Extend(reg, Copier{from, length, to});
}

}  // namespace holdfast::checksum
