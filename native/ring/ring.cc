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

struct Arena {
  uint8_t* base = nullptr;
  uint64_t size = 0;
  napi_ref reference = nullptr;
};

class Ring {
 public:
  Ring(napi_env env, uint32_t capacity) : env_(env), capacity_(capacity) {}

  bool Start(uint32_t engine, uint32_t threads, support::Bytes memory, Uring::Failure* failure);
  bool Attach(napi_value memory, napi_value on_results, Uring::Failure* failure);

  // Takes the entries that JavaScript has written, and hands them to the engine.
  void Submit();
  void BeginClose();
  // One of the two owners (the JavaScript handle, the event loop's handles) lets go.
  void Release();

  // The slot, or a negative errno.
  int32_t AddFile(int given);
  void RemoveFile(uint32_t slot);
  int32_t AddArena(napi_value value, support::Bytes bytes);
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
  void DeleteReference(napi_ref* reference);

  napi_env env_;
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
  napi_ref memory_ = nullptr;
  napi_ref on_results_ = nullptr;
  napi_async_context context_ = nullptr;
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

bool Ring::Attach(napi_value memory, napi_value on_results, Uring::Failure* failure) {
  failure->stage = "node-api";
  failure->error = EIO;
  napi_value name;
  uv_loop_t* loop = nullptr;
  if (napi_create_string_utf8(env_, "holdfast.ring", NAPI_AUTO_LENGTH, &name) != napi_ok ||
      napi_async_init(env_, nullptr, name, &context_) != napi_ok ||
      napi_create_reference(env_, memory, 1, &memory_) != napi_ok ||
      napi_create_reference(env_, on_results, 1, &on_results_) != napi_ok ||
      napi_get_uv_event_loop(env_, &loop) != napi_ok ||
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
  do {
    while (round < kRounds && ReapOnce()) round++;
  } while (engine_->EndReaping() && round < kRounds);
  draining_ = false;
  if (round == kRounds || engine_->Stalled()) engine_->Poke();
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
// they asked for stands in the entries.
void Ring::Deliver(uint32_t count) {
  napi_handle_scope scope;
  if (napi_open_handle_scope(env_, &scope) != napi_ok) return;
  napi_value global;
  napi_value on_results;
  napi_value argument;
  if (napi_get_global(env_, &global) == napi_ok &&
      napi_get_reference_value(env_, on_results_, &on_results) == napi_ok &&
      napi_create_uint32(env_, count, &argument) == napi_ok) {
    header_->reaping = 1;
    const napi_status status = napi_make_callback(env_, context_, global, on_results, 1, &argument, nullptr);
    header_->reaping = 0;
    bool pending = false;
    if (status != napi_ok && napi_is_exception_pending(env_, &pending) == napi_ok && pending) {
      napi_value error;
      if (napi_get_and_clear_last_exception(env_, &error) == napi_ok) napi_fatal_exception(env_, error);
    }
  }
  napi_close_handle_scope(env_, scope);
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

void Ring::DeleteReference(napi_ref* reference) {
  if (*reference != nullptr) napi_delete_reference(env_, *reference);
  *reference = nullptr;
}

void Ring::Finish() {
  engine_.reset();
  for (uint32_t slot = 0; slot < files_.size(); slot++) RemoveFile(slot);
  for (Arena& arena : arenas_) DeleteReference(&arena.reference);
  arenas_.clear();
  DeleteReference(&on_results_);
  DeleteReference(&memory_);
  if (context_ != nullptr) napi_async_destroy(env_, context_);
  context_ = nullptr;
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

int32_t Ring::AddArena(napi_value value, support::Bytes bytes) {
  size_t index = 0;
  while (index < arenas_.size() && arenas_[index].base != nullptr) index++;
  if (index >= kMaxArenas) return -1;
  Arena arena;
  arena.base = bytes.data;
  arena.size = bytes.length;
  if (napi_create_reference(env_, value, 1, &arena.reference) != napi_ok) return -1;
  if (index == arenas_.size()) {
    arenas_.push_back(arena);
  } else {
    arenas_[index] = arena;
  }
  return static_cast<int32_t>(index);
}

void Ring::RemoveArena(uint32_t index) {
  if (index >= arenas_.size()) return;
  DeleteReference(&arenas_[index].reference);
  arenas_[index] = Arena{};
}

// ── Binding ────────────────────────────────────────────────────────────────────────────────────────────────────────

napi_value MakeFailure(napi_env env, const Uring::Failure& failure) {
  napi_value result;
  if (napi_create_object(env, &result) != napi_ok || !support::SetNumber(env, result, "error", failure.error) ||
      !support::SetString(env, result, "stage", failure.stage)) {
    support::ThrowPending(env, "ring: no result could be made");
    return nullptr;
  }
  return result;
}

// create(memory, capacity, engine, threads, onResults): {handle, style, threads} or {error, stage}. `engine` is 0 for the
// thread pool, 1 + the best style to try for io_uring.
napi_value Create(napi_env env, napi_callback_info info) {
  size_t count = 5;
  napi_value values[5];
  support::Bytes memory;
  uint32_t capacity, engine, threads;
  napi_valuetype type;
  if (napi_get_cb_info(env, info, &count, values, nullptr, nullptr) != napi_ok || count < 5 ||
      !support::GetBytes(env, values[0], &memory) || napi_get_value_uint32(env, values[1], &capacity) != napi_ok ||
      napi_get_value_uint32(env, values[2], &engine) != napi_ok ||
      napi_get_value_uint32(env, values[3], &threads) != napi_ok ||
      napi_typeof(env, values[4], &type) != napi_ok || type != napi_function) {
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
  napi_value handle;
  const bool started = ring->Start(engine, threads, memory, &failure) && ring->Attach(values[0], values[4], &failure);
  if (!started) {
    ring->BeginClose();
    ring->Release();
    return MakeFailure(env, failure);
  }
  const auto finalize = [](napi_env, void* data, void*) {
    auto* self = static_cast<Ring*>(data);
    self->BeginClose();
    self->Release();
  };
  napi_value result;
  if (napi_create_external(env, ring, finalize, nullptr, &handle) != napi_ok) {
    ring->BeginClose();
    ring->Release();
    support::ThrowPending(env, "ring: no handle could be made");
    return nullptr;
  }
  if (napi_create_object(env, &result) != napi_ok || napi_set_named_property(env, result, "handle", handle) != napi_ok ||
      !support::SetNumber(env, result, "style", ring->style()) ||
      !support::SetNumber(env, result, "threads", ring->threads())) {
    support::ThrowPending(env, "ring: no result could be made");
    return nullptr;
  }
  return result;
}

// Reads the handle and up to two further arguments. Null, with an exception pending, if that fails.
Ring* GetRing(napi_env env, napi_callback_info info, size_t count, napi_value* values) {
  size_t given = count;
  void* data = nullptr;
  if (napi_get_cb_info(env, info, &given, values, nullptr, nullptr) != napi_ok || given < count ||
      napi_get_value_external(env, values[0], &data) != napi_ok) {
    support::ThrowType(env, "expected a ring");
    return nullptr;
  }
  return static_cast<Ring*>(data);
}

Ring* GetOpenRing(napi_env env, napi_callback_info info, size_t count, napi_value* values) {
  Ring* ring = GetRing(env, info, count, values);
  if (ring == nullptr || !ring->closing()) return ring;
  napi_throw_error(env, nullptr, "the ring is closed");
  return nullptr;
}

napi_value Submit(napi_env env, napi_callback_info info) {
  napi_value values[1];
  Ring* ring = GetOpenRing(env, info, 1, values);
  if (ring != nullptr) ring->Submit();
  return nullptr;
}

napi_value AddFile(napi_env env, napi_callback_info info) {
  napi_value values[2];
  Ring* ring = GetOpenRing(env, info, 2, values);
  if (ring == nullptr) return nullptr;
  int fd;
  if (napi_get_value_int32(env, values[1], &fd) != napi_ok || fd < 0) {
    return support::ThrowType(env, "expected a file descriptor");
  }
  napi_value result;
  return napi_create_int32(env, ring->AddFile(fd), &result) == napi_ok ? result : nullptr;
}

napi_value RemoveFile(napi_env env, napi_callback_info info) {
  napi_value values[2];
  Ring* ring = GetRing(env, info, 2, values);
  uint32_t slot;
  if (ring != nullptr && napi_get_value_uint32(env, values[1], &slot) == napi_ok) ring->RemoveFile(slot);
  return nullptr;
}

napi_value AddArena(napi_env env, napi_callback_info info) {
  napi_value values[2];
  Ring* ring = GetOpenRing(env, info, 2, values);
  if (ring == nullptr) return nullptr;
  support::Bytes bytes;
  if (!support::GetBytes(env, values[1], &bytes) || bytes.length == 0 || bytes.length > UINT32_MAX) {
    return support::ThrowType(env, "expected a Uint8Array of up to 4 GiB");
  }
  napi_value result;
  return napi_create_int32(env, ring->AddArena(values[1], bytes), &result) == napi_ok ? result : nullptr;
}

napi_value RemoveArena(napi_env env, napi_callback_info info) {
  napi_value values[2];
  Ring* ring = GetRing(env, info, 2, values);
  uint32_t index;
  if (ring != nullptr && napi_get_value_uint32(env, values[1], &index) == napi_ok) ring->RemoveArena(index);
  return nullptr;
}

napi_value Close(napi_env env, napi_callback_info info) {
  napi_value values[1];
  Ring* ring = GetRing(env, info, 1, values);
  if (ring != nullptr) ring->BeginClose();
  return nullptr;
}

}  // namespace

bool Register(napi_env env, napi_value exports) {
  const support::Method methods[] = {
      {"create", Create},         {"submit", Submit},     {"addFile", AddFile},
      {"removeFile", RemoveFile}, {"addArena", AddArena}, {"removeArena", RemoveArena},
      {"close", Close},
  };
  return support::AddMethods(env, exports, methods) && RegisterFileFunctions(env, exports);
}

}  // namespace holdfast::ring
