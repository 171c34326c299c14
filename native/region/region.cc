// A mapping as an ArrayBuffer that JavaScript reads and writes directly.
//
// The mapping's life. It has users, all on the environment's thread: the handle until it is closed, the ArrayBuffer's
// memory until its finalizer has run, each piece of work in flight, each lease. It is unmapped when the last one lets go, never
// before. `close` detaches the ArrayBuffer, so that views that are left have no length instead of no memory. If the
// memory was moved to another ArrayBuffer before (`transfer()`), that one's memory is now the user. A region that grows
// gets a new mapping with a handle and an ArrayBuffer of its own; the old one lives on until it is closed.
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

  void AddLease() {
    Use();
    leases_++;
  }

  void EndLease() {
    if (--leases_ == 0 && closed_) mapping_->ReleaseFile();
    LetGo();
  }

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
    if (leases_ == 0) mapping_->ReleaseFile();
    LetGo();
  }

  void SetHandle() { has_handle_ = true; }

  // The handle was collected, or there never was one. Views may live on.
  void DropHandle() {
    if (!closed_) {
      closed_ = true;
      if (leases_ == 0) mapping_->ReleaseFile();
      users_--;
    }
    has_handle_ = false;
    if (users_ == 0) delete this;
  }

  bool closed() const { return closed_; }
  Mapping& mapping() const { return *mapping_; }

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
  int leases_ = 0;
  bool has_handle_ = false;
  Napi::Reference<Napi::ArrayBuffer> buffer_;  // weak
  bool detached_by_us_ = false;
  bool closed_ = false;
};

class RegionLease final : public Lease {
 public:
  explicit RegionLease(Region* region) : region_(region) { region_->AddLease(); }
  ~RegionLease() override { region_->EndLease(); }
  RegionLease(const RegionLease&) = delete;
  RegionLease& operator=(const RegionLease&) = delete;

  Mapping* mapping() const override { return &region_->mapping(); }

 private:
  Region* const region_;
};

const char* NameOf(Means means) {
  switch (means) {
    case Means::kMapSync:
      return "map-sync";
    case Means::kCacheFlush:
      return "cache-flush";
    default:
      return "msync";
  }
}

// Makes { handle, buffer, sizeBytes, means }, or leaves an exception pending.
Napi::Value MakeRegion(Napi::Env env, std::unique_ptr<Mapping> mapping) {
  const Means means = mapping->means();
  const size_t size = mapping->size();
  Region* region = new Region(std::move(mapping));
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
  result.Set("means", NameOf(means));
  return result;
}

class OpenWork : public support::Work {
 public:
  OpenWork(Napi::Env env, Mapping::Options options)
      : Work(env, "holdfast.region.open"), options_(std::move(options)) {}

  void Execute() override {
    const Failure failure = mapping_->Open(options_);
    if (failure.error != 0) Fail(failure.error, failure.call);
  }

  Napi::Value Result(Napi::Env env) override { return MakeRegion(env, std::move(mapping_)); }

 private:
  Mapping::Options options_;
  std::unique_ptr<Mapping> mapping_ = std::make_unique<Mapping>();
};

class GrowWork : public support::Work {
 public:
  GrowWork(Napi::Env env, const Region& region, uint64_t size_bytes, uint64_t size_limit_bytes)
      : Work(env, "holdfast.region.grow"),
        mapping_(region.mapping().Successor()),
        size_bytes_(size_bytes),
        size_limit_bytes_(size_limit_bytes) {}

  void Execute() override {
    const Failure failure = mapping_->OpenGrown(size_bytes_, size_limit_bytes_);
    if (failure.error != 0) Fail(failure.error, failure.call);
  }

  Napi::Value Result(Napi::Env env) override { return MakeRegion(env, std::move(mapping_)); }

 private:
  std::unique_ptr<Mapping> mapping_;
  uint64_t size_bytes_;
  uint64_t size_limit_bytes_;
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

bool GetMeans(Napi::Value value, Mapping::Options* options) {
  std::string name;
  if (!support::GetString(value, 16, &name)) return false;
  options->any_means = name == "auto";
  if (options->any_means) return true;
  for (const Means means : {Means::kMapSync, Means::kMsync, Means::kCacheFlush}) {
    options->means = means;
    if (name == NameOf(means)) return true;
  }
  return false;
}

// open(path, sizeBytes, sizeLimitBytes, create, means): Promise<{ handle, buffer, sizeBytes, means }>
Napi::Value OpenCall(const Napi::CallbackInfo& info) {
  Mapping::Options options;
  if (!support::GetString(info[0], PATH_MAX, &options.path) || !support::GetSize(info[1], &options.size_bytes) ||
      !support::GetSize(info[2], &options.size_limit_bytes) || !info[3].IsBoolean() || !GetMeans(info[4], &options)) {
    return support::ThrowType(info.Env(), "open takes a path, a size, a limit of sizes, a boolean and means");
  }
  options.create = info[3].As<Napi::Boolean>().Value();
  return support::Work::Start(std::make_unique<OpenWork>(info.Env(), std::move(options)));
}

// grow(handle, sizeBytes, sizeLimitBytes): Promise<{ handle, buffer, sizeBytes, means }>, of a mapping beside this one
Napi::Value GrowCall(const Napi::CallbackInfo& info) {
  const Region* region = support::GetHandle<Region>(info[0], kHandleTag);
  uint64_t size_bytes, size_limit_bytes;
  if (region == nullptr || region->closed() || !support::GetSize(info[1], &size_bytes) ||
      !support::GetSize(info[2], &size_limit_bytes) || size_bytes < region->mapping().size()) {
    return support::ThrowType(info.Env(), "grow takes the handle of an open region, a larger size and a limit");
  }
  return support::Work::Start(std::make_unique<GrowWork>(info.Env(), *region, size_bytes, size_limit_bytes));
}

// write(handle, offset, bytes): boolean — true if it is durable already; else `persist` makes it
Napi::Value WriteCall(const Napi::CallbackInfo& info) {
  const Region* region = support::GetHandle<Region>(info[0], kHandleTag);
  uint64_t offset;
  support::Bytes bytes;
  if (region == nullptr || region->closed() || !support::GetSize(info[1], &offset) ||
      !support::GetBytes(info.Env(), info[2], &bytes) || offset + bytes.length > region->mapping().size()) {
    return support::ThrowType(info.Env(), "write takes the handle of an open region, an offset and bytes inside of it");
  }
  return Napi::Boolean::New(info.Env(), region->mapping().Write(offset, bytes.data, bytes.length));
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

std::unique_ptr<Lease> Lease::Take(Napi::Value handle) {
  Region* region = support::GetHandle<Region>(handle, kHandleTag);
  if (region == nullptr || region->closed()) return nullptr;
  return std::make_unique<RegionLease>(region);
}

void Register(Napi::Object exports) {
  support::AddFunction<OpenCall>(exports, "open");
  support::AddFunction<GrowCall>(exports, "grow");
  support::AddFunction<WriteCall>(exports, "write");
  support::AddFunction<PersistCall>(exports, "persist");
  support::AddFunction<PersistDirectCall>(exports, "persistDirect");
  support::AddFunction<CloseCall>(exports, "close");
}

}  // namespace holdfast::region
