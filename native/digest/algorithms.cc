#include <new>

#include "checksum/crc32c.h"
#include "digest/algorithms.h"
#include "digest/openssl.h"

namespace holdfast::digest {

namespace {

class Crc32cDigest final : public Digest {
 public:
  size_t size() const override { return 4; }
  bool Compute(const uint8_t* data, size_t length, uint8_t* result) override {
    const uint32_t checksum = checksum::Crc32c(0, data, length);
    for (int i = 0; i < 4; i++) result[i] = static_cast<uint8_t>(checksum >> (8 * i));
    return true;
  }
};

}  // namespace

std::unique_ptr<Digest> MakeDigest(const Algorithm& algorithm) {
  if (algorithm.name != "crc32c") return MakeOpenSslDigest(algorithm.name, algorithm.key, algorithm.key_length);
  return std::unique_ptr<Digest>(algorithm.key_length == 0 ? new (std::nothrow) Crc32cDigest : nullptr);
}

}  // namespace holdfast::digest
