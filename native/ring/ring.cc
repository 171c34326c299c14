// The ring's binding: memory, entries, results and the life of its handles. One native call hands over all entries of a
// tick; one call back hands over a batch of results, and takes the entries that were written meanwhile.
//
// Invariants:
// - Memory that the kernel or a thread may touch stays alive: the ring holds references to its own memory and to each
//   arena, and neither a close nor the end of the environment goes on before the last operation is over.
// - `in_flight_` counts the operations between TakeEntries and Settle. The handles keep the event loop alive only while
//   it is not zero.
// - At the end of an environment (a worker is terminated): the async clean-up hook stops the intake, the event loop is
//   still run until the last result is in, then the handles close, and only then the hook is removed. A live handle
//   would abort the process.
#include "ring/ring.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>
#include <uv.h>

#include <memory>
#include <new>
#include <optional>
#include <utility>
#include <vector>

#include "ring/file.h"
#include "ring/operation.h"
#include "ring/thread_pool.h"
#include "ring/uring.h"
#include "support/napi_support.h"

namespace holdfast::ring {

namespace {

constexpr uint32_t kMaxCapacity = 4096;
constexpr uint32_t kMaxFiles = 65536;
constexpr uint32_t kMaxArenas = 65536;
// Results a callback: small enough that new work reaches the device while the rest is still being answered.
constexpr uint32_t kBatch = 16;
// Batches before the event loop gets its turn.
constexpr uint32_t kRounds = 64;
constexpr double kOffsetLimit = 9007199254740992.0;    // 2^53

constexpr napi_type_tag kHandleTag = {0x686f6c6466617374, 0x72696e6700000001};

struct Arena {
  uint8_t* base = nullptr;
  uint64_t size = 0;
  Napi::ObjectReference reference;
};

class Ring {
 public:
  Ring(Napi::Env env, uint32_t capacity) : env_(env), capacity_(capacity) {}

  bool Start(uint32_t engine, uint32_t threads, support::Bytes memory, Uring::Failure* failure);
  bool Attach(Napi::Object memory, Napi::Function on_results, Uring::Failure* failure);

  // Takes the entries that JavaScript has written, and hands them to the engine.
  void Submit();
  void BeginClose();
  // One of the two owners (the JavaScript handle, the event loop's handles) lets go.
  void Release();

  // The slot, or a negative errno.
  int32_t AddFile(int given);
  void RemoveFile(uint32_t slot);
  int32_t AddArena(Napi::Object value, support::Bytes bytes);
  void RemoveArena(uint32_t index);

  bool closing() const { return closing_; }
  uint32_t style() const { return style_; }
  uint32_t threads() const { return threads_; }

 private:
  static void OnPoll(uv_poll_t* poll, int status, int events);
  static void OnClosed(uv_handle_t* handle);
  static void OnEnvironmentEnd(napi_async_cleanup_hook_handle hook, void* ring);

  void Drain();
  bool ReapOnce();
  void TakeEntries();
  bool Fill(const Entry& entry, Operation* operation) const;
  void Deliver(uint32_t count);
  void KeepLoopAlive();
  void CloseHandles();
  void Finish();

  Napi::Env env_;
  uint32_t capacity_;
  uint32_t threads_ = 0;
  uint32_t style_ = 0;
  Header* header_ = nullptr;
  Entry* entries_ = nullptr;
  Result* results_ = nullptr;
  std::unique_ptr<Operation[]> operations_;
  std::unique_ptr<Engine> engine_;
  std::vector<int> files_;
  std::vector<Arena> arenas_;
  uint32_t in_flight_ = 0;
  bool loop_kept_alive_ = true;
  bool draining_ = false;
  bool closing_ = false;
  uint32_t owners_ = 1;
  Napi::ObjectReference memory_;
  Napi::FunctionReference on_results_;
  std::optional<Napi::AsyncContext> context_;
  napi_async_cleanup_hook_handle hook_ = nullptr;
  uv_poll_t polls_[Engine::kMaxDescriptors];
  uint32_t polls_open_ = 0;
};

size_t MemorySize(uint32_t capacity) {
  return sizeof(Header) + capacity * (sizeof(Entry) + sizeof(Result));
}

bool Ring::Start(uint32_t engine, uint32_t threads, support::Bytes memory, Uring::Failure* failure) {
  header_ = reinterpret_cast<Header*>(memory.data);
  entries_ = reinterpret_cast<Entry*>(memory.data + sizeof(Header));
  results_ = reinterpret_cast<Result*>(entries_ + capacity_);
  operations_.reset(new (std::nothrow) Operation[capacity_]());
  if (operations_ == nullptr) {
    failure->error = ENOMEM;
    failure->stage = "allocation";
    return false;
  }
  for (uint32_t i = 0; i < capacity_; i++) operations_[i].id = i;
  if (engine > 0) {
    auto uring = std::make_unique<Uring>();
    if (!uring->Start(capacity_, static_cast<Uring::Style>(engine - 1), operations_.get(), failure)) return false;
    style_ = static_cast<uint32_t>(uring->style());
    engine_ = std::move(uring);
    return true;
  }
  auto pool = std::make_unique<ThreadPool>();
  failure->stage = "pthread_create";
  failure->error = pool->Start(threads);
  threads_ = pool->threads();
  engine_ = std::move(pool);
  return failure->error == 0;
}

bool Ring::Attach(Napi::Object memory, Napi::Function on_results, Uring::Failure* failure) {
  failure->stage = "node-api";
  failure->error = EIO;
  memory_ = Napi::Persistent(memory);
  on_results_ = Napi::Persistent(on_results);
  context_.emplace(env_, "holdfast.ring");
  uv_loop_t* loop = nullptr;
  // node-addon-api has clean-up hooks that must be done when they return, and this one must wait.
  if (env_.IsExceptionPending() || napi_get_uv_event_loop(env_, &loop) != napi_ok ||
      napi_add_async_cleanup_hook(env_, OnEnvironmentEnd, this, &hook_) != napi_ok) {
    return false;
  }
  int descriptors[Engine::kMaxDescriptors];
  const uint32_t count = engine_->Descriptors(descriptors);
  failure->stage = "uv_poll";
  for (uint32_t i = 0; i < count; i++) {
    int error = uv_poll_init(loop, &polls_[i], descriptors[i]);
    if (error == 0) {
      polls_[i].data = this;
      if (polls_open_++ == 0) owners_++;
      error = uv_poll_start(&polls_[i], UV_READABLE, OnPoll);
    }
    if (error != 0) {
      failure->error = -error;
      return false;
    }
  }
  KeepLoopAlive();
  return true;
}

void Ring::OnPoll(uv_poll_t* poll, int, int) { static_cast<Ring*>(poll->data)->Drain(); }

void Ring::Submit() {
  if (closing_) return;
  TakeEntries();
  KeepLoopAlive();
}

void Ring::Drain() {
  if (draining_) return;
  draining_ = true;
  engine_->BeginReaping();
  uint32_t round = 0;
  // What EndReaping sees may be stale: the kernel can raise its flag for work that an earlier round has already done.
  // So the last look decides, and it comes after the event is armed again: what it misses, the event tells.
  do {
    while (round < kRounds && ReapOnce()) round++;
  } while (engine_->EndReaping() && round++ < kRounds && ReapOnce());
  draining_ = false;
  if (round >= kRounds || engine_->Stalled()) engine_->Poke();
  KeepLoopAlive();
  if (closing_ && in_flight_ == 0) CloseHandles();
}

// False if there was nothing.
bool Ring::ReapOnce() {
  const uint32_t count = engine_->Reap(results_, capacity_ < kBatch ? capacity_ : kBatch);
  if (count == 0) return false;
  in_flight_ -= count;
  for (uint32_t i = 0; i < count; i++) operations_[results_[i].id].busy = false;
  if (!closing_) Deliver(count);
  if (!closing_) TakeEntries();
  return true;
}

void Ring::TakeEntries() {
  const uint32_t count = header_->entries;
  if (count == 0) return;
  header_->entries = 0;
  if (count > capacity_) napi_fatal_error("holdfast ring", NAPI_AUTO_LENGTH, "too many entries", NAPI_AUTO_LENGTH);
  for (uint32_t i = 0; i < count; i++) {
    const Entry& entry = entries_[i];
    if (entry.id >= capacity_ || operations_[entry.id].busy) {
      napi_fatal_error("holdfast ring", NAPI_AUTO_LENGTH, "an operation id was used twice", NAPI_AUTO_LENGTH);
    }
    Operation* operation = &operations_[entry.id];
    operation->busy = true;
    operation->done = 0;
    operation->result = 0;
    if (!Fill(entry, operation)) operation->kind = Kind::kRefused;
    engine_->Queue(operation);
  }
  in_flight_ += count;
  engine_->Kick();
  if (engine_->Stalled()) engine_->Poke();
}

// Checks everything that could make an engine touch what it must not.
bool Ring::Fill(const Entry& entry, Operation* operation) const {
  operation->kind = static_cast<Kind>(entry.kind);
  if (entry.kind < static_cast<uint32_t>(Kind::kRead) || entry.kind >= static_cast<uint32_t>(Kind::kRefused)) return false;
  if (entry.slot >= files_.size() || files_[entry.slot] < 0) return false;
  if (!(entry.offset >= 0 && entry.offset < kOffsetLimit)) return false;
  operation->fd = files_[entry.slot];
  operation->offset = static_cast<uint64_t>(entry.offset);
  if (operation->kind == Kind::kFlush) return true;
  if (IsRange(operation->kind)) {
    if (!(entry.range_length > 0 && entry.range_length < kOffsetLimit)) return false;
    operation->range_length = static_cast<uint64_t>(entry.range_length);
    return true;
  }
  if (entry.memory.arena >= arenas_.size()) return false;
  const Arena& arena = arenas_[entry.memory.arena];
  if (arena.base == nullptr || entry.length == 0) return false;
  if (uint64_t{entry.memory.arena_offset} + entry.length > arena.size) return false;
  operation->data = arena.base + entry.memory.arena_offset;
  operation->length = entry.length;
  return true;
}

// Calls back into JavaScript. The promises that it settles have run their continuations when this returns, so what
// they asked for stands in the entries. The call is bare, because an exception is told from an environment that ends by
// its status.
void Ring::Deliver(uint32_t count) {
  const Napi::HandleScope scope(env_);
  const napi_value argument = Napi::Number::New(env_, count);
  header_->reaping = 1;
  const napi_status status =
      napi_make_callback(env_, *context_, env_.Global(), on_results_.Value(), 1, &argument, nullptr);
  header_->reaping = 0;
  if (status == napi_ok || !env_.IsExceptionPending()) return;
  napi_fatal_exception(env_, env_.GetAndClearPendingException().Value());
}

void Ring::KeepLoopAlive() {
  const bool wanted = in_flight_ > 0;
  if (wanted == loop_kept_alive_) return;
  loop_kept_alive_ = wanted;
  for (uint32_t i = 0; i < polls_open_; i++) {
    auto* handle = reinterpret_cast<uv_handle_t*>(&polls_[i]);
    if (wanted) {
      uv_ref(handle);
    } else {
      uv_unref(handle);
    }
  }
}

void Ring::OnEnvironmentEnd(napi_async_cleanup_hook_handle hook, void* ring) {
  auto* self = static_cast<Ring*>(ring);
  self->hook_ = hook;
  self->BeginClose();
}

void Ring::BeginClose() {
  if (closing_) return;
  closing_ = true;
  if (in_flight_ == 0 && !draining_) CloseHandles();
}

void Ring::CloseHandles() {
  if (polls_open_ == 0) return Finish();
  for (uint32_t i = 0; i < polls_open_; i++) {
    uv_poll_stop(&polls_[i]);
    uv_close(reinterpret_cast<uv_handle_t*>(&polls_[i]), OnClosed);
  }
}

void Ring::OnClosed(uv_handle_t* handle) {
  auto* self = static_cast<Ring*>(handle->data);
  if (--self->polls_open_ > 0) return;
  self->Finish();
  self->Release();
}

void Ring::Finish() {
  engine_.reset();
  for (uint32_t slot = 0; slot < files_.size(); slot++) RemoveFile(slot);
  arenas_.clear();
  on_results_.Reset();
  memory_.Reset();
  context_.reset();
  if (hook_ != nullptr) napi_remove_async_cleanup_hook(hook_);
  hook_ = nullptr;
}

void Ring::Release() {
  if (--owners_ == 0) delete this;
}

// The ring has a descriptor of its own for the file: when an environment ends, Node closes its own ones first, and a
// number that is free again may be another file's before the last operation is over.
int32_t Ring::AddFile(int given) {
  if (files_.size() >= kMaxFiles) return -EMFILE;
  const int fd = fcntl(given, F_DUPFD_CLOEXEC, 0);
  if (fd < 0) return -errno;
  for (size_t i = 0; i < files_.size(); i++) {
    if (files_[i] >= 0) continue;
    files_[i] = fd;
    return static_cast<int32_t>(i);
  }
  files_.push_back(fd);
  return static_cast<int32_t>(files_.size() - 1);
}

void Ring::RemoveFile(uint32_t slot) {
  if (slot >= files_.size() || files_[slot] < 0) return;
  close(files_[slot]);
  files_[slot] = -1;
}

int32_t Ring::AddArena(Napi::Object value, support::Bytes bytes) {
  size_t index = 0;
  while (index < arenas_.size() && arenas_[index].base != nullptr) index++;
  if (index >= kMaxArenas) return -1;
  Arena arena{bytes.data, bytes.length, Napi::Persistent(value)};
  if (arena.reference.IsEmpty()) return -1;
  if (index == arenas_.size()) {
    arenas_.push_back(std::move(arena));
  } else {
    arenas_[index] = std::move(arena);
  }
  return static_cast<int32_t>(index);
}

void Ring::RemoveArena(uint32_t index) {
  if (index >= arenas_.size()) return;
  arenas_[index] = Arena{};
}

// ── Binding ────────────────────────────────────────────────────────────────────────────────────────────────────────

Napi::Value MakeFailure(Napi::Env env, const Uring::Failure& failure) {
  Napi::Object result = Napi::Object::New(env);
  result.Set("error", failure.error);
  result.Set("stage", failure.stage);
  return result;
}

// create(memory, capacity, engine, threads, onResults): {handle, style, threads} or {error, stage}. `engine` is 0 for the
// thread pool, 1 + the best style to try for io_uring.
Napi::Value Create(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  support::Bytes memory;
  uint32_t capacity, engine, threads;
  if (!support::GetBytes(env, info[0], &memory) || !support::GetUint32(info[1], &capacity) ||
      !support::GetUint32(info[2], &engine) || !support::GetUint32(info[3], &threads) || !info[4].IsFunction()) {
    return support::ThrowType(env, "create(memory, capacity, engine, threads, onResults)");
  }
  if (capacity < 1 || capacity > kMaxCapacity || memory.length != MemorySize(capacity) || engine > 3 || threads < 1 ||
      threads > ThreadPool::kMaxThreads || reinterpret_cast<uintptr_t>(memory.data) % alignof(Entry) != 0) {
    return support::ThrowType(env, "create: capacity, engine, threads or the memory's size is out of range");
  }
  auto* ring = new (std::nothrow) Ring(env, capacity);
  Uring::Failure failure;
  failure.error = ENOMEM;
  if (ring == nullptr) return MakeFailure(env, failure);
  const auto let_go = [](Napi::Env, Ring* owned) {
    owned->BeginClose();
    owned->Release();
  };
  if (!ring->Start(engine, threads, memory, &failure) ||
      !ring->Attach(info[0].As<Napi::Object>(), info[4].As<Napi::Function>(), &failure)) {
    let_go(env, ring);
    return MakeFailure(env, failure);
  }
  const auto handle = Napi::External<Ring>::New(env, ring, let_go);
  if (handle.IsEmpty()) {
    let_go(env, ring);
    return handle;
  }
  handle.TypeTag(&kHandleTag);
  Napi::Object result = Napi::Object::New(env);
  result.Set("handle", handle);
  result.Set("style", ring->style());
  result.Set("threads", ring->threads());
  return result;
}

// Null, with an exception pending, if the first argument is no ring.
Ring* GetRing(const Napi::CallbackInfo& info) {
  Ring* ring = support::GetHandle<Ring>(info[0], kHandleTag);
  if (ring == nullptr) support::ThrowType(info.Env(), "expected a ring");
  return ring;
}

Napi::Value ThrowClosed(Napi::Env env) {
  Napi::Error::New(env, "the ring is closed").ThrowAsJavaScriptException();
  return env.Undefined();
}

// Null, with an exception pending, if the first argument is no open ring.
Ring* GetOpenRing(const Napi::CallbackInfo& info) {
  Ring* ring = GetRing(info);
  if (ring == nullptr || !ring->closing()) return ring;
  ThrowClosed(info.Env());
  return nullptr;
}

// Bare, because a request at depth 1 pays for a call of its own: wrapped, it took 1.8 times as long (with nothing to
// submit, 297 ns instead of 162 on a busy machine).
napi_value Submit(napi_env env, napi_callback_info info) {
  napi_value handle;
  size_t count = 1;
  void* data = nullptr;
  bool is_ring = false;
  if (napi_get_cb_info(env, info, &count, &handle, nullptr, nullptr) != napi_ok ||
      napi_get_value_external(env, handle, &data) != napi_ok ||
      napi_check_object_type_tag(env, handle, &kHandleTag, &is_ring) != napi_ok || !is_ring) {
    return support::ThrowType(env, "expected a ring");
  }
  auto* ring = static_cast<Ring*>(data);
  if (ring->closing()) return ThrowClosed(env);
  ring->Submit();
  return nullptr;
}

Napi::Value AddFile(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Ring* ring = GetOpenRing(info);
  if (ring == nullptr) return env.Undefined();
  int fd;
  if (!support::GetDescriptor(info[1], &fd)) return support::ThrowType(env, "expected a file descriptor");
  return Napi::Number::New(env, ring->AddFile(fd));
}

void RemoveFile(const Napi::CallbackInfo& info) {
  Ring* ring = GetRing(info);
  uint32_t slot;
  if (ring != nullptr && support::GetUint32(info[1], &slot)) ring->RemoveFile(slot);
}

Napi::Value AddArena(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Ring* ring = GetOpenRing(info);
  if (ring == nullptr) return env.Undefined();
  support::Bytes bytes;
  if (!support::GetBytes(env, info[1], &bytes) || bytes.length == 0 || bytes.length > UINT32_MAX) {
    return support::ThrowType(env, "expected a Uint8Array of up to 4 GiB");
  }
  return Napi::Number::New(env, ring->AddArena(info[1].As<Napi::Object>(), bytes));
}

void RemoveArena(const Napi::CallbackInfo& info) {
  Ring* ring = GetRing(info);
  uint32_t index;
  if (ring != nullptr && support::GetUint32(info[1], &index)) ring->RemoveArena(index);
}

void Close(const Napi::CallbackInfo& info) {
  Ring* ring = GetRing(info);
  if (ring != nullptr) ring->BeginClose();
}

}  // namespace

void Register(Napi::Object exports) {
  support::AddFunction<Create>(exports, "create");
  support::AddBareFunction(exports, "submit", Submit);
  support::AddFunction<AddFile>(exports, "addFile");
  support::AddFunction<RemoveFile>(exports, "removeFile");
  support::AddFunction<AddArena>(exports, "addArena");
  support::AddFunction<RemoveArena>(exports, "removeArena");
  support::AddFunction<Close>(exports, "close");
  RegisterFileFunctions(exports);
}

}  // namespace holdfast::ring
