#include "digest/digest.h"

#include <errno.h>
#include <string.h>

#include <memory>
#include <new>
#include <utility>

#include "support/napi_support.h"
#include "support/work.h"

namespace holdfast::digest {

namespace {

constexpr size_t kNameCapacity = 32;

// Works on memory that JavaScript owns and vouches for: it is shared, so that nobody can transfer it away.
class BlocksWork final : public support::Work {
 public:
  BlocksWork(Napi::Env env, std::unique_ptr<Digest> digest, Napi::Object owner, support::Bytes bytes,
             uint64_t block_bytes)
      : Work(env, "holdfast.digest"),
        digest_(std::move(digest)),
        owner_(Napi::Persistent(owner)),
        bytes_(bytes),
        block_bytes_(block_bytes),
        result_size_((bytes.length + block_bytes - 1) / block_bytes * digest_->size()),
        result_(new (std::nothrow) uint8_t[result_size_]) {}

  bool has_memory() const { return result_ != nullptr; }

  void Execute() override {
    if (!digest_->Blocks(bytes_.data, bytes_.length, block_bytes_, result_.get())) Fail(EIO, "OpenSSL");
  }

  Napi::Value Result(Napi::Env env) override {
    Napi::Uint8Array result = Napi::Uint8Array::New(env, result_size_);
    if (!result.IsEmpty() && result_size_ > 0) memcpy(result.Data(), result_.get(), result_size_);
    return result;
  }

 private:
  std::unique_ptr<Digest> digest_;
  Napi::ObjectReference owner_;
  support::Bytes bytes_;
  size_t block_bytes_;
  size_t result_size_;
  std::unique_ptr<uint8_t[]> result_;
};

// digestBlocks(algorithm, key, bytes, blockBytes): Promise<Uint8Array> — one result after the other; the last block may
// be short. `bytes` are over shared memory.
Napi::Value DigestBlocks(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Algorithm algorithm;
  support::Bytes bytes;
  uint64_t block_bytes;
  if (!GetAlgorithm(info[0], info[1], &algorithm) || !support::GetBytes(env, info[2], &bytes) ||
      !support::GetSize(info[3], &block_bytes) || block_bytes == 0) {
    return support::ThrowType(env, "digestBlocks(algorithm, key, bytes, blockBytes)");
  }
  if (info[2].As<Napi::TypedArray>().ArrayBuffer().IsArrayBuffer()) {
    return support::ThrowType(env, "digestBlocks: the bytes must be over shared memory");
  }
  std::unique_ptr<Digest> digest = MakeDigest(algorithm);
  if (digest == nullptr) return support::ThrowErrno(env, EOPNOTSUPP, "digestBlocks");
  auto work = std::make_unique<BlocksWork>(env, std::move(digest), info[2].As<Napi::Object>(), bytes, block_bytes);
  if (!work->has_memory()) return support::ThrowErrno(env, ENOMEM, "digestBlocks");
  return support::Work::Start(std::move(work));
}

// isAvailable(algorithm, key): boolean
Napi::Value IsAvailable(const Napi::CallbackInfo& info) {
  Algorithm algorithm;
  const bool available = GetAlgorithm(info[0], info[1], &algorithm) && MakeDigest(algorithm) != nullptr;
  return Napi::Boolean::New(info.Env(), available);
}

}  // namespace

bool GetAlgorithm(Napi::Value name, Napi::Value key, Algorithm* algorithm) {
  if (!support::GetString(name, kNameCapacity, &algorithm->name)) return false;
  if (key.IsUndefined()) return true;
  support::Bytes bytes;
  if (!support::GetBytes(key.Env(), key, &bytes) || bytes.length > kKeyBytes) return false;
  algorithm->key_length = bytes.length;
  if (bytes.length > 0) memcpy(algorithm->key, bytes.data, bytes.length);
  return true;
}

void Register(Napi::Object exports) {
  support::AddFunction<DigestBlocks>(exports, "digestBlocks");
  support::AddFunction<IsAvailable>(exports, "isAvailable");
}

}  // namespace holdfast::digest
