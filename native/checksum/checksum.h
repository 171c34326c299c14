// The checksum folder's face to JavaScript.
#pragma once

#include <napi.h>

namespace holdfast::checksum {

// Adds crc32c, crc32cCopy, crc32cBy, crc32cBlocks, crc32cCombine, kernels, selectedKernel and selectKernel to
// `exports`.
void Register(Napi::Object exports);

}  // namespace holdfast::checksum
