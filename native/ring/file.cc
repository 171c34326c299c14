#include "ring/file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

#include "support/napi_support.h"

namespace holdfast::ring {

namespace {

using support::Bytes;

// statx(2) as of kernel 6.1, laid out here because the C libraries that we build on are older than its last fields.
struct StatxDirect {
  uint32_t mask;
  uint8_t before[148];
  uint32_t memory_alignment;    // stx_dio_mem_align
  uint32_t offset_alignment;    // stx_dio_offset_align
  uint8_t after[96];
};
static_assert(offsetof(StatxDirect, memory_alignment) == 0x98 && sizeof(StatxDirect) == 256);
constexpr uint32_t kStatxDirectAlignment = 0x2000;    // STATX_DIOALIGN

bool GetDescriptor(napi_env env, napi_callback_info info, size_t count, napi_value* values, int* fd) {
  size_t given = count;
  if (napi_get_cb_info(env, info, &given, values, nullptr, nullptr) != napi_ok || given < count ||
      napi_get_value_int32(env, values[0], fd) != napi_ok || *fd < 0) {
    support::ThrowType(env, "expected a file descriptor");
    return false;
  }
  return true;
}

// misalignment(bytes, alignment): the address of the first byte, modulo `alignment`.
napi_value Misalignment(napi_env env, napi_callback_info info) {
  size_t count = 2;
  napi_value values[2];
  Bytes bytes;
  uint64_t alignment;
  if (napi_get_cb_info(env, info, &count, values, nullptr, nullptr) != napi_ok || count < 2 ||
      !support::GetBytes(env, values[0], &bytes) || !support::GetSize(env, values[1], &alignment) || alignment == 0) {
    return support::ThrowType(env, "misalignment(bytes, alignment)");
  }
  napi_value result;
  const double rest = static_cast<double>(reinterpret_cast<uintptr_t>(bytes.data) % alignment);
  return napi_create_double(env, rest, &result) == napi_ok ? result : nullptr;
}

// lockFile(fd, exclusive): an open-file-description lock on the whole file, without waiting. Returns 0 or an errno.
// It belongs to this opening, so that two openings in one process shut each other out too.
napi_value LockFile(napi_env env, napi_callback_info info) {
  napi_value values[2];
  int fd;
  bool exclusive;
  if (!GetDescriptor(env, info, 2, values, &fd)) return nullptr;
  if (napi_get_value_bool(env, values[1], &exclusive) != napi_ok) return support::ThrowType(env, "expected a boolean");
  struct flock lock;
  memset(&lock, 0, sizeof(lock));
  lock.l_type = exclusive ? F_WRLCK : F_RDLCK;
  lock.l_whence = SEEK_SET;
  const int error = fcntl(fd, F_OFD_SETLK, &lock) == 0 ? 0 : errno;
  napi_value result;
  return napi_create_int32(env, error, &result) == napi_ok ? result : nullptr;
}

// directAlignment(fd): {memoryBytes, offsetBytes} that direct I/O on this file needs, as the kernel tells it (statx with
// STATX_DIOALIGN, kernel 6.1); zeros if direct I/O is not supported on it; undefined if the kernel does not tell.
napi_value DirectAlignment(napi_env env, napi_callback_info info) {
  napi_value values[1];
  int fd;
  if (!GetDescriptor(env, info, 1, values, &fd)) return nullptr;
  napi_value result;
  StatxDirect answer;
  memset(&answer, 0, sizeof(answer));
  constexpr int kEmptyPath = 0x1000;    // AT_EMPTY_PATH
  if (syscall(__NR_statx, fd, "", kEmptyPath, kStatxDirectAlignment, &answer) != 0 ||
      (answer.mask & kStatxDirectAlignment) == 0) {
    return napi_get_undefined(env, &result) == napi_ok ? result : nullptr;
  }
  if (napi_create_object(env, &result) != napi_ok ||
      !support::SetNumber(env, result, "memoryBytes", answer.memory_alignment) ||
      !support::SetNumber(env, result, "offsetBytes", answer.offset_alignment)) {
    support::ThrowPending(env, "directAlignment: no result could be made");
    return nullptr;
  }
  return result;
}

}  // namespace

bool RegisterFileFunctions(napi_env env, napi_value exports) {
  const support::Method methods[] = {
      {"misalignment", Misalignment},
      {"lockFile", LockFile},
      {"directAlignment", DirectAlignment},
  };
  return support::AddMethods(env, exports, methods);
}

}  // namespace holdfast::ring
