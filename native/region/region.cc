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

#include "region/mapping.h"
#include "support/napi_support.h"
#include "support/work.h"

namespace holdfast::region {
namespace {

constexpr napi_type_tag kHandleTag = {0x686f6c6466617374, 0x726567696f6e0001};

class Region {
 public:
  // Starts with one user: the handle.
  Region(napi_env env, std::unique_ptr<Mapping> mapping) : env_(env), mapping_(std::move(mapping)) {}

  void Use() { users_++; }

  void LetGo() {
    if (--users_ != 0) return;
    mapping_.reset();
    if (!has_handle_) delete this;
  }

  // The external ArrayBuffer; nullptr with an exception pending if there cannot be one.
  napi_value MakeBuffer() {
    napi_value buffer;
    const napi_status status = napi_create_external_arraybuffer(env_, mapping_->data(), mapping_->size(),
                                                                OnBufferFinalized, this, &buffer);
    if (status == napi_no_external_buffers_allowed) {
      napi_throw_error(env_, "ENOTSUP", "this runtime does not allow memory that it has not allocated");
      return nullptr;
    }
    if (status != napi_ok) {
      support::ThrowPending(env_, "the mapping could not be made an ArrayBuffer");
      return nullptr;
    }
    Use();
    if (napi_create_reference(env_, buffer, 0, &buffer_) != napi_ok) {
      support::ThrowPending(env_, "the ArrayBuffer could not be referred to");
      return nullptr;
    }
    return buffer;
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
  ~Region() {
    if (buffer_ != nullptr) napi_delete_reference(env_, buffer_);
  }

  // The ArrayBuffer that we made, if it is still alive and still has the memory; else nullptr.
  napi_value AttachedBuffer() {
    napi_value buffer = nullptr;
    bool detached = true;
    if (buffer_ == nullptr || napi_get_reference_value(env_, buffer_, &buffer) != napi_ok || buffer == nullptr ||
        napi_is_detached_arraybuffer(env_, buffer, &detached) != napi_ok || detached) {
      return nullptr;
    }
    return buffer;
  }

  void DetachBuffer() {
    napi_value buffer = AttachedBuffer();
    if (buffer != nullptr && napi_detach_arraybuffer(env_, buffer) == napi_ok) detached_by_us_ = true;
  }

  static void OnBufferFinalized(napi_env env, void*, void* hint) {
    Region* region = static_cast<Region*>(hint);
    if (!region->detached_by_us_ && IsEnding(env)) region->mapping_->KeepAddresses();
    region->LetGo();
  }

  // An environment that is ending refuses every call that could run JavaScript.
  static bool IsEnding(napi_env env) {
    napi_handle_scope scope;
    if (napi_open_handle_scope(env, &scope) != napi_ok) return true;
    napi_value object;
    const bool ending = napi_create_object(env, &object) != napi_ok || !support::SetBoolean(env, object, "alive", true);
    napi_close_handle_scope(env, scope);
    return ending;
  }

  napi_env env_;
  std::unique_ptr<Mapping> mapping_;
  int users_ = 1;
  bool has_handle_ = false;
  napi_ref buffer_ = nullptr;
  bool detached_by_us_ = false;
  bool closed_ = false;
};

class OpenWork : public support::Work {
 public:
  explicit OpenWork(Mapping::Options options) : options_(std::move(options)) {}

  void Execute() override {
    const Failure failure = mapping_->Open(options_);
    if (failure.error != 0) Fail(failure.error, failure.call);
  }

  napi_value Result(napi_env env) override {
    const Means means = mapping_->means();
    const double size = static_cast<double>(mapping_->size());
    Region* region = new Region(env, std::move(mapping_));
    napi_value handle, result;
    napi_value buffer = region->MakeBuffer();
    if (buffer == nullptr || napi_create_object(env, &handle) != napi_ok ||
        napi_type_tag_object(env, handle, &kHandleTag) != napi_ok ||
        napi_wrap(env, handle, region, OnHandleFinalized, nullptr, nullptr) != napi_ok) {
      region->DropHandle();
      support::ThrowPending(env, "the region's handle could not be made");
      return nullptr;
    }
    region->SetHandle();
    if (napi_create_object(env, &result) != napi_ok ||
        napi_set_named_property(env, result, "handle", handle) != napi_ok ||
        napi_set_named_property(env, result, "buffer", buffer) != napi_ok ||
        !support::SetNumber(env, result, "sizeBytes", size) ||
        !support::SetString(env, result, "means", means == Means::kMapSync ? "map-sync" : "msync")) {
      support::ThrowPending(env, "the region's description could not be made");
      return nullptr;
    }
    return result;
  }

 private:
  static void OnHandleFinalized(napi_env, void* data, void*) { static_cast<Region*>(data)->DropHandle(); }

  Mapping::Options options_;
  std::unique_ptr<Mapping> mapping_ = std::make_unique<Mapping>();
};

class PersistWork : public support::Work {
 public:
  PersistWork(Region* region, size_t offset, size_t length) : region_(region), offset_(offset), length_(length) {
    region_->Use();
  }
  ~PersistWork() override { region_->LetGo(); }

  void Execute() override {
    const Failure failure = region_->mapping().Persist(offset_, length_);
    if (failure.error != 0) Fail(failure.error, failure.call);
  }

  napi_value Result(napi_env env) override {
    napi_value undefined;
    return napi_get_undefined(env, &undefined) == napi_ok ? undefined : nullptr;
  }

 private:
  Region* region_;
  size_t offset_;
  size_t length_;
};

// open(path, sizeBytes, sizeLimitBytes, create): Promise<{ handle, buffer, sizeBytes, means }>
napi_value OpenCall(napi_env env, napi_callback_info info) {
  napi_value arguments[4];
  size_t count = 4;
  char path[PATH_MAX];
  Mapping::Options options;
  if (napi_get_cb_info(env, info, &count, arguments, nullptr, nullptr) != napi_ok || count < 4 ||
      !support::GetString(env, arguments[0], path, sizeof path) ||
      !support::GetSize(env, arguments[1], &options.size_bytes) ||
      !support::GetSize(env, arguments[2], &options.size_limit_bytes) ||
      napi_get_value_bool(env, arguments[3], &options.create) != napi_ok) {
    return support::ThrowType(env, "open takes a path, a size, a limit of sizes and a boolean");
  }
  options.path = path;
  return support::Queue(env, "holdfast.region.open", std::make_unique<OpenWork>(std::move(options)));
}

Region* GetRegion(napi_env env, napi_value handle) {
  bool is_handle = false;
  void* region = nullptr;
  if (napi_check_object_type_tag(env, handle, &kHandleTag, &is_handle) != napi_ok || !is_handle ||
      napi_unwrap(env, handle, &region) != napi_ok) {
    return nullptr;
  }
  return static_cast<Region*>(region);
}

struct PersistArguments {
  Region* region;
  uint64_t offset;
  uint64_t length;
};

bool GetPersistArguments(napi_env env, napi_callback_info info, PersistArguments* result) {
  napi_value arguments[3];
  size_t count = 3;
  if (napi_get_cb_info(env, info, &count, arguments, nullptr, nullptr) != napi_ok || count < 3 ||
      (result->region = GetRegion(env, arguments[0])) == nullptr || result->region->closed() ||
      !support::GetSize(env, arguments[1], &result->offset) ||
      !support::GetSize(env, arguments[2], &result->length) ||
      result->offset + result->length > result->region->mapping().size()) {
    support::ThrowType(env, "persist takes the handle of an open region, an offset and a length inside of it");
    return false;
  }
  return true;
}

// persist(handle, offset, length): Promise<void>
napi_value PersistCall(napi_env env, napi_callback_info info) {
  PersistArguments arguments;
  if (!GetPersistArguments(env, info, &arguments)) return nullptr;
  return support::Queue(env, "holdfast.region.persist",
                        std::make_unique<PersistWork>(arguments.region, arguments.offset, arguments.length));
}

// persistDirect(handle, offset, length): boolean — false if it would block; then nothing has been done
napi_value PersistDirectCall(napi_env env, napi_callback_info info) {
  PersistArguments arguments;
  if (!GetPersistArguments(env, info, &arguments)) return nullptr;
  Mapping& mapping = arguments.region->mapping();
  const bool direct = mapping.IsDirect(arguments.length);
  if (direct) mapping.Persist(arguments.offset, arguments.length);
  napi_value result;
  return napi_get_boolean(env, direct, &result) == napi_ok ? result : nullptr;
}

// close(handle): void — idempotent
napi_value CloseCall(napi_env env, napi_callback_info info) {
  napi_value argument;
  size_t count = 1;
  Region* region;
  if (napi_get_cb_info(env, info, &count, &argument, nullptr, nullptr) != napi_ok || count < 1 ||
      (region = GetRegion(env, argument)) == nullptr) {
    return support::ThrowType(env, "close takes the handle of a region");
  }
  region->Close();
  return nullptr;
}

}  // namespace

bool Register(napi_env env, napi_value exports) {
  const support::Method methods[] = {
      {"open", OpenCall},
      {"persist", PersistCall},
      {"persistDirect", PersistDirectCall},
      {"close", CloseCall},
  };
  return support::AddMethods(env, exports, methods);
}

}  // namespace holdfast::region
