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
  // Writes size() bytes to `result`. False if the library below failed.
  virtual bool Compute(const uint8_t* data, size_t length, uint8_t* result) = 0;
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
