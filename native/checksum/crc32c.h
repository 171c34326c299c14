// CRC-32C (Castagnoli; RFC 3720, 12.1): polynomial 0x1EDC6F41, reflected, register starts as all ones and is inverted
// at the end. Knows nothing of Node.
//
// Invariants:
// - A *kernel* maps a raw register (not inverted) and bytes to the next raw register. All kernels compute the same
//   function for every length and alignment. Its `copy` also copies the bytes, which it loads only once.
// - A kernel is called only where the processor and the operating system support it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace holdfast::checksum {

struct Kernel {
  const char* name;
  uint32_t (*extend)(uint32_t reg, const uint8_t* data, size_t length);
  // The two ranges must not overlap.
  uint32_t (*copy)(uint32_t reg, uint8_t* to, const uint8_t* from, size_t length);
  bool supported;
};

// All kernels compiled into this binary, slowest first. The array lives as long as the process.
const Kernel* Kernels(size_t* count);

// The kernel in use: the fastest supported one, until another is selected.
const Kernel& SelectedKernel();

// Selects a kernel for the whole process. False if there is no supported kernel of this name.
bool SelectKernel(const char* name);

// The checksum of `data`, continued from `seed`, the checksum of what came before (0 for nothing).
uint32_t Crc32c(uint32_t seed, const uint8_t* data, size_t length);

// Copies `length` bytes and gives their checksum, continued from `seed`. It is the checksum of the copy, even if
// somebody writes to `from` meanwhile. The two ranges may overlap, as for memmove; then it takes two passes.
uint32_t Crc32cCopy(uint32_t seed, uint8_t* to, const uint8_t* from, size_t length);

// The checksum of each block of `block_bytes` (not 0) bytes, into as many entries. The last block may be short.
void Crc32cBlocks(const uint8_t* data, size_t length, size_t block_bytes, uint32_t* checksums);

// The checksum of A followed by B, from those of A and B and the length of B.
uint32_t Crc32cCombine(uint32_t crc_a, uint32_t crc_b, uint64_t length_b);

}  // namespace holdfast::checksum
