#include <algorithm>
#include <new>

#include "checksum/crc32c.h"
#include "digest/algorithms.h"
#include "digest/openssl.h"

namespace holdfast::digest {

namespace {

class Crc32cDigest final : public Digest {
 public:
  size_t size() const override { return 4; }
  bool Blocks(const uint8_t* data, size_t length, size_t block_bytes, uint8_t* results) override {
    // All processors that Holdfast runs on are little-endian.
    checksum::Crc32cBlocks(data, length, block_bytes, reinterpret_cast<uint32_t*>(results));
    return true;
  }

 protected:
  bool One(const uint8_t* data, size_t length, uint8_t* result) override {
    return Blocks(data, length, length, result);
  }
};

}  // namespace

bool Digest::Blocks(const uint8_t* data, size_t length, size_t block_bytes, uint8_t* results) {
  for (size_t done = 0; done < length; done += block_bytes) {
    if (!One(data + done, std::min(block_bytes, length - done), results)) return false;
    results += size();
  }
  return true;
}

std::unique_ptr<Digest> MakeDigest(const Algorithm& algorithm) {
  if (algorithm.name != "crc32c") return MakeOpenSslDigest(algorithm.name, algorithm.key, algorithm.key_length);
  return std::unique_ptr<Digest>(algorithm.key_length == 0 ? new (std::nothrow) Crc32cDigest : nullptr);
}

}  // namespace holdfast::digest
