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

Napi::Value ThrowNoDescriptor(Napi::Env env) { return support::ThrowType(env, "expected a file descriptor"); }

// misalignment(bytes, alignment): the address of the first byte, modulo `alignment`.
Napi::Value Misalignment(const Napi::CallbackInfo& info) {
  Bytes bytes;
  uint64_t alignment;
  if (!support::GetBytes(info.Env(), info[0], &bytes) || !support::GetSize(info[1], &alignment) || alignment == 0) {
    return support::ThrowType(info.Env(), "misalignment(bytes, alignment)");
  }
  return Napi::Number::New(info.Env(), static_cast<double>(reinterpret_cast<uintptr_t>(bytes.data) % alignment));
}

// lockFile(fd, exclusive): an open-file-description lock on the whole file, without waiting. Returns 0 or an errno.
// It belongs to this opening, so that two openings in one process shut each other out too.
Napi::Value LockFile(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  int fd;
  if (!support::GetDescriptor(info[0], &fd)) return ThrowNoDescriptor(env);
  if (!info[1].IsBoolean()) return support::ThrowType(env, "expected a boolean");
  struct flock lock;
  memset(&lock, 0, sizeof(lock));
  lock.l_type = info[1].As<Napi::Boolean>().Value() ? F_WRLCK : F_RDLCK;
  lock.l_whence = SEEK_SET;
  return Napi::Number::New(env, fcntl(fd, F_OFD_SETLK, &lock) == 0 ? 0 : errno);
}

// directAlignment(fd): {memoryBytes, offsetBytes} that direct I/O on this file needs, as the kernel tells it (statx with
// STATX_DIOALIGN, kernel 6.1); zeros if direct I/O is not supported on it; undefined if the kernel does not tell.
Napi::Value DirectAlignment(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  int fd;
  if (!support::GetDescriptor(info[0], &fd)) return ThrowNoDescriptor(env);
  StatxDirect answer;
  memset(&answer, 0, sizeof(answer));
  constexpr int kEmptyPath = 0x1000;    // AT_EMPTY_PATH
  if (syscall(__NR_statx, fd, "", kEmptyPath, kStatxDirectAlignment, &answer) != 0 ||
      (answer.mask & kStatxDirectAlignment) == 0) {
    return env.Undefined();
  }
  Napi::Object result = Napi::Object::New(env);
  result.Set("memoryBytes", answer.memory_alignment);
  result.Set("offsetBytes", answer.offset_alignment);
  return result;
}

}  // namespace

void RegisterFileFunctions(Napi::Object exports) {
  support::AddFunction<Misalignment>(exports, "misalignment");
  support::AddFunction<LockFile>(exports, "lockFile");
  support::AddFunction<DirectAlignment>(exports, "directAlignment");
}

}  // namespace holdfast::ring
