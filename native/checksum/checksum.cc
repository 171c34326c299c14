#include "checksum/checksum.h"

#include <cstring>

#include "checksum/crc32c.h"
#include "support/napi_support.h"

namespace holdfast::checksum {
namespace {

using support::Bytes;

constexpr size_t kKernelNameCapacity = 32;

napi_value Number(napi_env env, uint32_t value) {
  napi_value result;
  return napi_create_uint32(env, value, &result) == napi_ok ? result : nullptr;
}

// crc32c(bytes, seed): number
napi_value Crc32cCall(napi_env env, napi_callback_info info) {
  napi_value arguments[2];
  size_t count = 2;
  Bytes bytes;
  uint32_t seed;
  if (napi_get_cb_info(env, info, &count, arguments, nullptr, nullptr) != napi_ok || count < 2 ||
      !support::GetBytes(env, arguments[0], &bytes) ||
      napi_get_value_uint32(env, arguments[1], &seed) != napi_ok) {
    return support::ThrowType(env, "crc32c takes a Uint8Array and a number");
  }
  return Number(env, Crc32c(seed, bytes.data, bytes.length));
}

const Kernel* FindKernel(napi_env env, napi_value value) {
  char name[kKernelNameCapacity];
  if (!support::GetString(env, value, name, sizeof name)) return nullptr;
  size_t count;
  const Kernel* kernels = Kernels(&count);
  for (size_t i = 0; i < count; i++) {
    if (kernels[i].supported && strcmp(kernels[i].name, name) == 0) return &kernels[i];
  }
  return nullptr;
}

// crc32cBy(kernel, bytes, seed): number — by a named kernel, whatever is selected
napi_value Crc32cByCall(napi_env env, napi_callback_info info) {
  napi_value arguments[3];
  size_t count = 3;
  Bytes bytes;
  uint32_t seed;
  if (napi_get_cb_info(env, info, &count, arguments, nullptr, nullptr) != napi_ok || count < 3 ||
      !support::GetBytes(env, arguments[1], &bytes) ||
      napi_get_value_uint32(env, arguments[2], &seed) != napi_ok) {
    return support::ThrowType(env, "crc32cBy takes the name of a kernel, a Uint8Array and a number");
  }
  const Kernel* kernel = FindKernel(env, arguments[0]);
  if (kernel == nullptr) return support::ThrowType(env, "there is no such kernel on this processor");
  return Number(env, ~kernel->extend(~seed, bytes.data, bytes.length));
}

// crc32cBlocks(bytes, blockBytes, checksums: Uint32Array): void — the last block may be short
napi_value Crc32cBlocksCall(napi_env env, napi_callback_info info) {
  napi_value arguments[3];
  size_t count = 3;
  Bytes bytes;
  uint64_t block_bytes;
  napi_typedarray_type type;
  size_t capacity;
  void* checksums;
  if (napi_get_cb_info(env, info, &count, arguments, nullptr, nullptr) != napi_ok || count < 3 ||
      !support::GetBytes(env, arguments[0], &bytes) || !support::GetSize(env, arguments[1], &block_bytes) ||
      block_bytes == 0 ||
      napi_get_typedarray_info(env, arguments[2], &type, &capacity, &checksums, nullptr, nullptr) != napi_ok ||
      type != napi_uint32_array || capacity < (bytes.length + block_bytes - 1) / block_bytes) {
    return support::ThrowType(env, "crc32cBlocks takes a Uint8Array, the bytes of a block, and a Uint32Array with room");
  }
  const Kernel& kernel = SelectedKernel();
  uint32_t* checksum = static_cast<uint32_t*>(checksums);
  for (size_t offset = 0; offset < bytes.length; offset += block_bytes) {
    const size_t left = bytes.length - offset;
    *checksum++ = ~kernel.extend(~0u, bytes.data + offset, left < block_bytes ? left : block_bytes);
  }
  return nullptr;
}

// crc32cCombine(crcA, crcB, lengthB): number
napi_value Crc32cCombineCall(napi_env env, napi_callback_info info) {
  napi_value arguments[3];
  size_t count = 3;
  uint32_t crc_a, crc_b;
  uint64_t length_b;
  if (napi_get_cb_info(env, info, &count, arguments, nullptr, nullptr) != napi_ok || count < 3 ||
      napi_get_value_uint32(env, arguments[0], &crc_a) != napi_ok ||
      napi_get_value_uint32(env, arguments[1], &crc_b) != napi_ok ||
      !support::GetSize(env, arguments[2], &length_b)) {
    return support::ThrowType(env, "crc32cCombine takes three numbers");
  }
  return Number(env, Crc32cCombine(crc_a, crc_b, length_b));
}

// kernels(): { name, supported }[]
napi_value KernelsCall(napi_env env, napi_callback_info) {
  size_t count;
  const Kernel* kernels = Kernels(&count);
  napi_value list;
  if (napi_create_array_with_length(env, count, &list) != napi_ok) return nullptr;
  for (uint32_t i = 0; i < count; i++) {
    napi_value entry;
    if (napi_create_object(env, &entry) != napi_ok || !support::SetString(env, entry, "name", kernels[i].name) ||
        !support::SetBoolean(env, entry, "supported", kernels[i].supported) ||
        napi_set_element(env, list, i, entry) != napi_ok) {
      return nullptr;
    }
  }
  return list;
}

// selectedKernel(): string
napi_value SelectedKernelCall(napi_env env, napi_callback_info) {
  napi_value name;
  return napi_create_string_utf8(env, SelectedKernel().name, NAPI_AUTO_LENGTH, &name) == napi_ok ? name : nullptr;
}

// selectKernel(name): boolean
napi_value SelectKernelCall(napi_env env, napi_callback_info info) {
  napi_value argument, result;
  size_t count = 1;
  if (napi_get_cb_info(env, info, &count, &argument, nullptr, nullptr) != napi_ok || count < 1) {
    return support::ThrowType(env, "selectKernel takes the name of a kernel");
  }
  char name[kKernelNameCapacity];
  const bool selected = support::GetString(env, argument, name, sizeof name) && SelectKernel(name);
  return napi_get_boolean(env, selected, &result) == napi_ok ? result : nullptr;
}

}  // namespace

bool Register(napi_env env, napi_value exports) {
  const support::Method methods[] = {
      {"crc32c", Crc32cCall},
      {"crc32cBy", Crc32cByCall},
      {"crc32cBlocks", Crc32cBlocksCall},
      {"crc32cCombine", Crc32cCombineCall},
      {"kernels", KernelsCall},
      {"selectedKernel", SelectedKernelCall},
      {"selectKernel", SelectKernelCall},
  };
  return support::AddMethods(env, exports, methods);
}

}  // namespace holdfast::checksum
