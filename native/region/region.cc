// A mapping as an ArrayBuffer that JavaScript reads and writes directly.
//
// The mapping's life. It has users, all on the environment's thread: the handle until it is closed, the ArrayBuffer's
// memory until its finalizer has run, each piece of work in flight. It is unmapped when the last one lets go, never
// before. `close` detaches the ArrayBuffer, so that views that are left have no length instead of no memory. If the
// memory was moved to another ArrayBuffer before (`transfer()`), that one's memory is now the user.
//
// One case needs care. When an environment ends (a worker is terminated), Node runs the finalizers of all external
// memory, although a transferred ArrayBuffer may live on in another thread, and nothing tells whether one does. Memory
// that `close` has not taken back by then keeps its addresses until the process ends (its pages are given back).
#include "region/region.h"

#include <climits>
#include <memory>
#include <utility>

#include "region/mapping.h"
#include "support/napi_support.h"
#include "support/work.h"

namespace holdfast::region {
namespace {

constexpr napi_type_tag kHandleTag = {0x686f6c6466617374, 0x726567696f6e0001};

class Region {
 public:
  // Starts with one user: the handle.
  explicit Region(std::unique_ptr<Mapping> mapping) : mapping_(std::move(mapping)) {}

  void Use() { users_++; }

  void LetGo() {
    if (--users_ != 0) return;
    mapping_.reset();
    if (!has_handle_) delete this;
  }

  // The external ArrayBuffer; empty if there cannot be one.
  Napi::Value MakeBuffer(Napi::Env env) {
    napi_value buffer;
    // The bare call, because its status tells why.
    const napi_status status =
        napi_create_external_arraybuffer(env, mapping_->data(), mapping_->size(), OnBufferFinalized, this, &buffer);
    if (status != napi_ok) {
      const bool forbidden = status == napi_no_external_buffers_allowed;
      Napi::Error error = forbidden
                              ? Napi::Error::New(env, "this runtime does not allow memory that it has not allocated")
                              : Napi::Error::New(env);
      if (forbidden) error.Set("code", "ENOTSUP");
      error.ThrowAsJavaScriptException();
      return Napi::Value();
    }
    Use();
    buffer_ = Napi::Weak(Napi::ArrayBuffer(env, buffer));
    return Napi::Value(env, buffer);
  }

  void Close() {
    if (closed_) return;
    closed_ = true;
    DetachBuffer();
    mapping_->ReleaseFile();
    LetGo();
  }

  void SetHandle() { has_handle_ = true; }

  // The handle was collected, or there never was one. Views may live on.
  void DropHandle() {
    if (!closed_) {
      closed_ = true;
      mapping_->ReleaseFile();
      users_--;
    }
    has_handle_ = false;
    if (users_ == 0) delete this;
  }

  bool closed() const { return closed_; }
  Mapping& mapping() { return *mapping_; }

 private:
  ~Region() = default;

  // Takes the memory back from the ArrayBuffer that we made, if it is still alive and still has it.
  void DetachBuffer() {
    Napi::ArrayBuffer buffer = buffer_.Value();
    if (buffer.IsEmpty() || buffer.IsDetached()) return;
    detached_by_us_ = napi_detach_arraybuffer(buffer.Env(), buffer) == napi_ok;
  }

  static void OnBufferFinalized(napi_env env, void*, void* hint) {
    Region* region = static_cast<Region*>(hint);
    if (!region->detached_by_us_ && IsEnding(env)) region->mapping_->KeepAddresses();
    region->LetGo();
  }

  // An environment that is ending refuses every call that could run JavaScript. The bare call tells; the wrapper would
  // swallow it.
  static bool IsEnding(Napi::Env env) {
    const Napi::HandleScope scope(env);
    const Napi::Object object = Napi::Object::New(env);
    return napi_set_named_property(env, object, "alive", object) != napi_ok;
  }

  std::unique_ptr<Mapping> mapping_;
  int users_ = 1;
  bool has_handle_ = false;
  Napi::Reference<Napi::ArrayBuffer> buffer_;  // weak
  bool detached_by_us_ = false;
  bool closed_ = false;
};

class OpenWork : public support::Work {
 public:
  OpenWork(Napi::Env env, Mapping::Options options)
      : Work(env, "holdfast.region.open"), options_(std::move(options)) {}

  void Execute() override {
    const Failure failure = mapping_->Open(options_);
    if (failure.error != 0) Fail(failure.error, failure.call);
  }

  Napi::Value Result(Napi::Env env) override {
    const Means means = mapping_->means();
    const size_t size = mapping_->size();
    Region* region = new Region(std::move(mapping_));
    const Napi::Value buffer = region->MakeBuffer(env);
    if (buffer.IsEmpty()) {
      region->DropHandle();
      return buffer;
    }
    const auto on_finalized = [](Napi::Env, Region* finalized) { finalized->DropHandle(); };
    const auto handle = Napi::External<Region>::New(env, region, on_finalized);
    if (handle.IsEmpty()) {
      region->DropHandle();
      return handle;
    }
    region->SetHandle();
    handle.TypeTag(&kHandleTag);
    Napi::Object result = Napi::Object::New(env);
    result.Set("handle", handle);
    result.Set("buffer", buffer);
    result.Set("sizeBytes", size);
    result.Set("means", means == Means::kMapSync ? "map-sync" : "msync");
    return result;
  }

 private:
  Mapping::Options options_;
  std::unique_ptr<Mapping> mapping_ = std::make_unique<Mapping>();
};

class PersistWork : public support::Work {
 public:
  PersistWork(Napi::Env env, Region* region, size_t offset, size_t length)
      : Work(env, "holdfast.region.persist"), region_(region), offset_(offset), length_(length) {
    region_->Use();
  }
  ~PersistWork() override { region_->LetGo(); }

  void Execute() override {
    const Failure failure = region_->mapping().Persist(offset_, length_);
    if (failure.error != 0) Fail(failure.error, failure.call);
  }

  Napi::Value Result(Napi::Env env) override { return env.Undefined(); }

 private:
  Region* region_;
  size_t offset_;
  size_t length_;
};

// open(path, sizeBytes, sizeLimitBytes, create): Promise<{ handle, buffer, sizeBytes, means }>
Napi::Value OpenCall(const Napi::CallbackInfo& info) {
  Mapping::Options options;
  if (!support::GetString(info[0], PATH_MAX, &options.path) || !support::GetSize(info[1], &options.size_bytes) ||
      !support::GetSize(info[2], &options.size_limit_bytes) || !info[3].IsBoolean()) {
    return support::ThrowType(info.Env(), "open takes a path, a size, a limit of sizes and a boolean");
  }
  options.create = info[3].As<Napi::Boolean>().Value();
  return support::Work::Start(std::make_unique<OpenWork>(info.Env(), std::move(options)));
}

struct PersistArguments {
  Region* region;
  uint64_t offset;
  uint64_t length;
};

bool GetPersistArguments(const Napi::CallbackInfo& info, PersistArguments* result) {
  result->region = support::GetHandle<Region>(info[0], kHandleTag);
  if (result->region == nullptr || result->region->closed() || !support::GetSize(info[1], &result->offset) ||
      !support::GetSize(info[2], &result->length) ||
      result->offset + result->length > result->region->mapping().size()) {
    support::ThrowType(info.Env(), "persist takes the handle of an open region, an offset and a length inside of it");
    return false;
  }
  return true;
}

// persist(handle, offset, length): Promise<void>
Napi::Value PersistCall(const Napi::CallbackInfo& info) {
  PersistArguments arguments;
  if (!GetPersistArguments(info, &arguments)) return info.Env().Undefined();
  return support::Work::Start(
      std::make_unique<PersistWork>(info.Env(), arguments.region, arguments.offset, arguments.length));
}

// persistDirect(handle, offset, length): boolean — false if it would block; then nothing has been done
Napi::Value PersistDirectCall(const Napi::CallbackInfo& info) {
  PersistArguments arguments;
  if (!GetPersistArguments(info, &arguments)) return info.Env().Undefined();
  Mapping& mapping = arguments.region->mapping();
  const bool direct = mapping.IsDirect(arguments.length);
  if (direct) mapping.Persist(arguments.offset, arguments.length);
  return Napi::Boolean::New(info.Env(), direct);
}

// close(handle): void — idempotent
void CloseCall(const Napi::CallbackInfo& info) {
  Region* region = support::GetHandle<Region>(info[0], kHandleTag);
  if (region == nullptr) {
    support::ThrowType(info.Env(), "close takes the handle of a region");
    return;
  }
  region->Close();
}

}  // namespace

void Register(Napi::Object exports) {
  support::AddFunction<OpenCall>(exports, "open");
  support::AddFunction<PersistCall>(exports, "persist");
  support::AddFunction<PersistDirectCall>(exports, "persistDirect");
  support::AddFunction<CloseCall>(exports, "close");
}

}  // namespace holdfast::region
