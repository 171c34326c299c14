// Checksums and digests of blocks, by name, for who computes one per block in a thread of its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace holdfast::digest {

constexpr size_t kMaxDigestBytes = 32;

// Used by one thread at a time.
class Digest {
 public:
  virtual ~Digest() = default;
  // Bytes of a result, at most kMaxDigestBytes.
  virtual size_t size() const = 0;
  // Writes size() bytes for each block of `block_bytes` (not 0) to `results`, which are aligned for 32-bit numbers. The
  // last block may be short. False if the library below failed.
  virtual bool Blocks(const uint8_t* data, size_t length, size_t block_bytes, uint8_t* results);

 protected:
  // Writes size() bytes to `result`.
  virtual bool One(const uint8_t* data, size_t length, uint8_t* result) = 0;
};

constexpr size_t kKeyBytes = 32;

struct Algorithm {
  std::string name;
  uint8_t key[kKeyBytes] = {};
  size_t key_length = 0;
};

// `crc32c` (4 bytes, little-endian), or what MakeOpenSslDigest knows. Null for any other name, for a key of the wrong
// length, or where OpenSSL is missing.
std::unique_ptr<Digest> MakeDigest(const Algorithm& algorithm);

}  // namespace holdfast::digest
