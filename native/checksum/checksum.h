// The checksum folder's face to JavaScript.
#pragma once

#include <node_api.h>

namespace holdfast::checksum {

// Adds crc32c, crc32cBy, crc32cBlocks, crc32cCombine, kernels, selectedKernel and selectKernel to `exports`.
bool Register(napi_env env, napi_value exports);

}  // namespace holdfast::checksum
