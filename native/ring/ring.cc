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
#include <time.h>
#include <unistd.h>
#include <uv.h>

#include <memory>
#include <new>
#include <optional>
#include <utility>
#include <vector>

#include "ring/file.h"
#include "ring/operation.h"
#include "ring/statistics.h"
#include "ring/thread_pool.h"
#include "ring/uring.h"
#include "support/napi_support.h"

namespace holdfast::ring {

namespace {

constexpr uint32_t kMaxCapacity = 4096;
constexpr uint32_t kMaxFiles = 65536;
constexpr uint32_t kMaxArenas = 65536;
constexpr uint32_t kNoSlot = 0xffffffff;
// Results a callback: small enough that new work reaches the device while the rest is still being answered.
constexpr uint32_t kBatch = 8;
// Batches before the event loop gets its turn.
constexpr uint32_t kRounds = 64;
// With so many in flight the next result is near: to look out for it costs less than to be woken for it, here and at the
// device's end. Each look has its limit, and a drain has one for all of them together; where looks come to take longer
// than being woken costs, so many drains go by before it is tried again.
constexpr uint32_t kLingerDepth = 8;
constexpr uint64_t kLingerNs = 50'000;
constexpr uint64_t kLingerDrainNs = 500'000;
constexpr uint64_t kLingerMeanNs = 15'000;
constexpr uint32_t kLingerPause = 256;
constexpr double kOffsetLimit = 9007199254740992.0;    // 2^53

constexpr napi_type_tag kHandleTag = {0x686f6c6466617374, 0x72696e6700000001};

// Rounds in a row that a hand-over may answer itself, before the event loop gets its turn.
constexpr uint32_t kPolledRounds = 64;
constexpr uint32_t kMaxPollMicroseconds = 1000;

struct Arena {
  uint8_t* base = nullptr;
  uint64_t size = 0;
  int32_t registered = kNotRegistered;
  Napi::ObjectReference reference;
};

struct File {
  int fd = -1;
  int32_t registered = kNotRegistered;
  uint32_t in_flight = 0;
  uint32_t in_flight_max = 0;
  std::unique_ptr<Statistics> statistics;
};

uint64_t NowNs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

class Ring {
 public:
  Ring(Napi::Env env, uint32_t capacity) : env_(env), capacity_(capacity) {}

  bool Start(uint32_t engine, uint32_t threads, uint32_t poll_us, support::Bytes memory, Uring::Failure* failure);
  bool Attach(Napi::Object memory, Napi::Function on_results, Uring::Failure* failure);

  // Takes the entries that JavaScript has written, and hands them to the engine.
  void Submit();
  // The same; if one operation is alone then, sleeps for a while until it is over. Returns how many results stand in the
  // result memory, already counted as over: the caller settles them. Not from inside the call back.
  uint32_t SubmitAndPoll();
  // By id; one that is not in flight is left.
  void Cancel(uint32_t id);
  void BeginClose();
  // One of the two owners (the JavaScript handle, the event loop's handles) lets go.
  void Release();

  // The slot, or a negative errno.
  int32_t AddFile(int given);
  void RemoveFile(uint32_t slot);
  int32_t AddArena(Napi::Object value, support::Bytes bytes);
  void RemoveArena(uint32_t index);
  // Adds up what was counted on a file; on all that ever were, if there is no such slot.
  void AddStatistics(uint32_t slot, double* figures) const;
  File* FileAt(uint32_t slot) { return slot < files_.size() && files_[slot].fd >= 0 ? &files_[slot] : nullptr; }

  bool closing() const { return closing_; }
  uint32_t in_flight() const { return in_flight_; }
  uint32_t in_flight_max() const { return in_flight_max_; }
  uint64_t hand_overs() const { return hand_overs_; }
  uint64_t batches() const { return batches_; }
  uint32_t arenas_registered() const;
  uint32_t arenas_refused() const { return arenas_refused_; }
  int arena_refusal() const { return arena_refusal_; }
  bool registers_files() const { return engine_->RegistersFiles(); }
  uint32_t style() const { return style_; }
  uint32_t threads() const { return threads_; }

 private:
  static void OnPoll(uv_poll_t* poll, int status, int events);
  static void OnClosed(uv_handle_t* handle);
  static void OnEnvironmentEnd(napi_async_cleanup_hook_handle hook, void* ring);

  void Drain();
  bool Linger();
  bool LingerPays();
  bool ReapOnce();
  uint32_t Collect();
  void TakeEntries(uint64_t wait_ns = 0);
  bool Fill(const Entry& entry, Operation* operation);
  bool FillPieces(const Entry& entry, Operation* operation);
  const Arena* ArenaWith(uint32_t index, uint32_t offset, uint32_t length) const;
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
  Piece* pieces_ = nullptr;
  Result* results_ = nullptr;
  std::unique_ptr<Operation[]> operations_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<iovec[]> vectors_;    // kMaxPieces for each operation, from the first scattered one on
  std::vector<File> files_;
  std::vector<Arena> arenas_;
  Statistics removed_files_;
  uint32_t in_flight_ = 0;
  uint32_t in_flight_max_ = 0;
  uint64_t hand_overs_ = 0;
  uint64_t batches_ = 0;
  uint64_t poll_ns_ = 0;
  uint32_t polled_rounds_ = 0;
  uint64_t drain_begun_ns_ = 0;
  uint64_t linger_mean_ns_ = 0;
  uint32_t linger_pause_ = 0;
  uint32_t arenas_refused_ = 0;
  int arena_refusal_ = 0;
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
  return sizeof(Header) + capacity * (sizeof(Entry) + sizeof(Result)) + PieceCount(capacity) * sizeof(Piece);
}

bool Ring::Start(uint32_t engine, uint32_t threads, uint32_t poll_us, support::Bytes memory,
                 Uring::Failure* failure) {
  poll_ns_ = uint64_t{poll_us} * 1000;
  header_ = reinterpret_cast<Header*>(memory.data);
  entries_ = reinterpret_cast<Entry*>(memory.data + sizeof(Header));
  pieces_ = reinterpret_cast<Piece*>(entries_ + capacity_);
  results_ = reinterpret_cast<Result*>(pieces_ + PieceCount(capacity_));
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

// Only while one operation is in flight: with more, the time is better spent on preparing the next.
uint32_t Ring::SubmitAndPoll() {
  if (closing_) return 0;
  const bool alone = in_flight_ + header_->entries == 1;
  const bool waits = poll_ns_ > 0 && alone && !draining_ && polled_rounds_ < kPolledRounds;
  if (!waits) {
    Submit();
    return 0;
  }
  polled_rounds_++;
  engine_->BeginReaping(false);
  TakeEntries(poll_ns_);
  const uint32_t count = Collect();
  if (engine_->EndReaping()) engine_->Poke();
  KeepLoopAlive();
  return count;
}

void Ring::Cancel(uint32_t id) {
  if (closing_ || id >= capacity_ || !operations_[id].busy) return;
  engine_->Cancel(&operations_[id]);
}

void Ring::Drain() {
  if (draining_) return;
  draining_ = true;
  drain_begun_ns_ = NowNs();
  polled_rounds_ = 0;
  engine_->BeginReaping(true);
  uint32_t round = 0;
  // What EndReaping sees may be stale: the kernel can raise its flag for work that an earlier round has already done.
  // So the last look decides, and it comes after the event is armed again: what it misses, the event tells.
  do {
    while (round < kRounds && (ReapOnce() || (Linger() && ReapOnce()))) round++;
  } while (engine_->EndReaping() && round++ < kRounds && ReapOnce());
  draining_ = false;
  if (round >= kRounds || engine_->Stalled()) engine_->Poke();
  KeepLoopAlive();
  if (closing_ && in_flight_ == 0) CloseHandles();
}

// Looks out for a result for a moment, if one is likely.
bool Ring::Linger() {
  if (in_flight_ < kLingerDepth || closing_ || !LingerPays()) return false;
  const uint64_t begun_ns = NowNs();
  const uint64_t until_ns = std::min(begun_ns + kLingerNs, drain_begun_ns_ + kLingerDrainNs);
  uint64_t now_ns = begun_ns;
  bool ready = engine_->Ready();
  for (; !ready && now_ns < until_ns; now_ns = NowNs()) ready = engine_->Ready();
  linger_mean_ns_ = (7 * linger_mean_ns_ + now_ns - begun_ns) / 8;
  return ready;
}

bool Ring::LingerPays() {
  if (linger_mean_ns_ <= kLingerMeanNs) return true;
  if (++linger_pause_ < kLingerPause) return false;
  linger_pause_ = 0;
  linger_mean_ns_ = 0;
  return true;
}

// False if there was nothing.
bool Ring::ReapOnce() {
  const uint32_t count = Collect();
  if (count == 0) return false;
  if (!closing_) Deliver(count);
  if (!closing_) TakeEntries();
  return true;
}

// Takes a batch of results and counts them.
uint32_t Ring::Collect() {
  const uint32_t count = engine_->Reap(results_, capacity_ < kBatch ? capacity_ : kBatch);
  if (count == 0) return 0;
  const uint64_t now_ns = NowNs();
  in_flight_ -= count;
  batches_++;
  for (uint32_t i = 0; i < count; i++) {
    Operation& operation = operations_[results_[i].id];
    operation.busy = false;
    File* file = FileAt(operation.slot);
    if (file == nullptr) continue;
    file->in_flight--;
    file->statistics->Record(operation, results_[i].value, now_ns);
  }
  return count;
}

void Ring::TakeEntries(uint64_t wait_ns) {
  const uint32_t count = header_->entries;
  if (count == 0) return;
  header_->entries = 0;
  header_->pieces = 0;
  if (count > capacity_) napi_fatal_error("holdfast ring", NAPI_AUTO_LENGTH, "too many entries", NAPI_AUTO_LENGTH);
  const uint64_t now_ns = NowNs();
  for (uint32_t i = 0; i < count; i++) {
    const Entry& entry = entries_[i];
    if (entry.id >= capacity_ || operations_[entry.id].busy) {
      napi_fatal_error("holdfast ring", NAPI_AUTO_LENGTH, "an operation id was used twice", NAPI_AUTO_LENGTH);
    }
    Operation* operation = &operations_[entry.id];
    operation->busy = true;
    operation->done = 0;
    operation->result = 0;
    operation->slot = kNoSlot;
    operation->begun_ns = now_ns;
    operation->pieces = nullptr;
    if (!Fill(entry, operation)) operation->kind = Kind::kRefused;
    if (File* file = FileAt(entry.slot)) {
      operation->slot = entry.slot;
      if (++file->in_flight > file->in_flight_max) file->in_flight_max = file->in_flight;
    }
    engine_->Queue(operation);
  }
  in_flight_ += count;
  if (in_flight_ > in_flight_max_) in_flight_max_ = in_flight_;
  hand_overs_++;
  if (wait_ns > 0) {
    engine_->KickAndWait(wait_ns);
  } else {
    engine_->Kick();
  }
  if (engine_->Stalled()) engine_->Poke();
}

// Checks everything that could make an engine touch what it must not.
bool Ring::Fill(const Entry& entry, Operation* operation) {
  operation->kind = static_cast<Kind>(entry.kind);
  if (entry.kind < static_cast<uint32_t>(Kind::kRead) || entry.kind >= static_cast<uint32_t>(Kind::kRefused)) return false;
  const File* file = FileAt(entry.slot);
  if (file == nullptr || !(entry.offset >= 0 && entry.offset < kOffsetLimit)) return false;
  operation->fd = file->fd;
  operation->file = file->registered;
  operation->offset = static_cast<uint64_t>(entry.offset);
  if (operation->kind == Kind::kFlush) {
    operation->length = 0;
    return true;
  }
  if (IsRange(operation->kind)) {
    if (!(entry.range_length > 0 && entry.range_length < kOffsetLimit)) return false;
    operation->range_length = static_cast<uint64_t>(entry.range_length);
    return true;
  }
  if (entry.memory.arena == kInPieces) return FillPieces(entry, operation);
  const Arena* arena = ArenaWith(entry.memory.arena, entry.memory.arena_offset, entry.length);
  if (arena == nullptr) return false;
  operation->memory = arena->registered;
  operation->data = arena->base + entry.memory.arena_offset;
  operation->length = entry.length;
  return true;
}

bool Ring::FillPieces(const Entry& entry, Operation* operation) {
  const uint32_t first = entry.memory.arena_offset;
  const uint32_t count = entry.length;
  if (count < 1 || count > kMaxPieces || first > PieceCount(capacity_) - count) return false;
  if (vectors_ == nullptr) vectors_.reset(new (std::nothrow) iovec[size_t{capacity_} * kMaxPieces]);
  if (vectors_ == nullptr) return false;
  iovec* vector = &vectors_[size_t{entry.id} * kMaxPieces];
  uint64_t total = 0;
  for (uint32_t i = 0; i < count; i++) {
    const Piece& piece = pieces_[first + i];
    const Arena* arena = ArenaWith(piece.arena, piece.arena_offset, piece.length);
    if (arena == nullptr) return false;
    vector[i] = {arena->base + piece.arena_offset, piece.length};
    total += piece.length;
  }
  if (total > UINT32_MAX) return false;
  operation->pieces = vector;
  operation->piece_count = count;
  operation->memory = kNotRegistered;
  operation->length = static_cast<uint32_t>(total);
  return true;
}

// Null unless all of it lies in one arena.
const Arena* Ring::ArenaWith(uint32_t index, uint32_t offset, uint32_t length) const {
  if (index >= arenas_.size() || length == 0) return nullptr;
  const Arena& arena = arenas_[index];
  if (arena.base == nullptr || uint64_t{offset} + length > arena.size) return nullptr;
  return &arena;
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
  uint32_t slot = 0;
  while (slot < files_.size() && files_[slot].fd >= 0) slot++;
  if (slot >= kMaxFiles) return -EMFILE;
  File file;
  file.statistics.reset(new (std::nothrow) Statistics());
  if (file.statistics == nullptr) return -ENOMEM;
  file.fd = fcntl(given, F_DUPFD_CLOEXEC, 0);
  if (file.fd < 0) return -errno;
  if (engine_->RegisterFile(slot, file.fd) == 0) file.registered = static_cast<int32_t>(slot);
  if (slot == files_.size()) files_.emplace_back();
  files_[slot] = std::move(file);
  return static_cast<int32_t>(slot);
}

void Ring::RemoveFile(uint32_t slot) {
  File* file = FileAt(slot);
  if (file == nullptr) return;
  if (file->registered != kNotRegistered && engine_ != nullptr) engine_->UnregisterFile(slot);
  close(file->fd);
  removed_files_.Add(*file->statistics);
  *file = File{};
}

int32_t Ring::AddArena(Napi::Object value, support::Bytes bytes) {
  size_t index = 0;
  while (index < arenas_.size() && arenas_[index].base != nullptr) index++;
  if (index >= kMaxArenas) return -1;
  Arena arena{bytes.data, bytes.length, kNotRegistered, Napi::Persistent(value)};
  if (arena.reference.IsEmpty()) return -1;
  const int refusal = engine_->RegisterMemory(static_cast<uint32_t>(index), bytes.data, bytes.length);
  if (refusal == 0) {
    arena.registered = static_cast<int32_t>(index);
  } else {
    arenas_refused_++;
    arena_refusal_ = refusal;
  }
  if (index == arenas_.size()) arenas_.emplace_back();
  arenas_[index] = std::move(arena);
  return static_cast<int32_t>(index);
}

void Ring::RemoveArena(uint32_t index) {
  if (index >= arenas_.size()) return;
  if (arenas_[index].registered != kNotRegistered && engine_ != nullptr) engine_->UnregisterMemory(index);
  arenas_[index] = Arena{};
}

uint32_t Ring::arenas_registered() const {
  uint32_t count = 0;
  for (const Arena& arena : arenas_) count += arena.registered != kNotRegistered ? 1 : 0;
  return count;
}

void Ring::AddStatistics(uint32_t slot, double* figures) const {
  if (slot < files_.size()) {
    if (files_[slot].statistics != nullptr) files_[slot].statistics->AddTo(figures);
    return;
  }
  removed_files_.AddTo(figures);
  for (const File& file : files_) {
    if (file.statistics != nullptr) file.statistics->AddTo(figures);
  }
}

// ── Binding ────────────────────────────────────────────────────────────────────────────────────────────────────────

Napi::Value MakeFailure(Napi::Env env, const Uring::Failure& failure) {
  Napi::Object result = Napi::Object::New(env);
  result.Set("error", failure.error);
  result.Set("stage", failure.stage);
  return result;
}

// create(memory, capacity, engine, threads, pollMicroseconds, onResults): {handle, style, threads} or {error, stage}.
// `engine` is 0 for the thread pool, 1 + the best style to try for io_uring.
Napi::Value Create(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  support::Bytes memory;
  uint32_t capacity, engine, threads, poll_us;
  if (!support::GetBytes(env, info[0], &memory) || !support::GetUint32(info[1], &capacity) ||
      !support::GetUint32(info[2], &engine) || !support::GetUint32(info[3], &threads) ||
      !support::GetUint32(info[4], &poll_us) || !info[5].IsFunction()) {
    return support::ThrowType(env, "create(memory, capacity, engine, threads, pollMicroseconds, onResults)");
  }
  if (capacity < 1 || capacity > kMaxCapacity || memory.length != MemorySize(capacity) || engine > 3 || threads < 1 ||
      threads > ThreadPool::kMaxThreads || poll_us > kMaxPollMicroseconds || reinterpret_cast<uintptr_t>(memory.data) % alignof(Entry) != 0) {
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
  if (!ring->Start(engine, threads, poll_us, memory, &failure) ||
      !ring->Attach(info[0].As<Napi::Object>(), info[5].As<Napi::Function>(), &failure)) {
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
  result.Set("registersFiles", ring->registers_files());
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
// submit, 297 ns instead of 162 on a busy machine). Null, with an exception pending, if there is no open ring.
Ring* GetRingToSubmit(napi_env env, napi_callback_info info) {
  napi_value handle;
  size_t count = 1;
  void* data = nullptr;
  bool is_ring = false;
  if (napi_get_cb_info(env, info, &count, &handle, nullptr, nullptr) != napi_ok ||
      napi_get_value_external(env, handle, &data) != napi_ok ||
      napi_check_object_type_tag(env, handle, &kHandleTag, &is_ring) != napi_ok || !is_ring) {
    support::ThrowType(env, "expected a ring");
    return nullptr;
  }
  auto* ring = static_cast<Ring*>(data);
  if (!ring->closing()) return ring;
  ThrowClosed(env);
  return nullptr;
}

napi_value Submit(napi_env env, napi_callback_info info) {
  Ring* ring = GetRingToSubmit(env, info);
  if (ring != nullptr) ring->Submit();
  return nullptr;
}

napi_value SubmitAndPoll(napi_env env, napi_callback_info info) {
  Ring* ring = GetRingToSubmit(env, info);
  napi_value count = nullptr;
  if (ring != nullptr) napi_create_uint32(env, ring->SubmitAndPoll(), &count);
  return count;
}

void Cancel(const Napi::CallbackInfo& info) {
  Ring* ring = GetOpenRing(info);
  uint32_t id;
  if (ring != nullptr && support::GetUint32(info[1], &id)) ring->Cancel(id);
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

// statistics(ring, slot, figures): adds up what was counted (statistics.h) in a Float64Array of statisticsFigures
// entries; a slot that there is not: of the whole ring.
void AddStatistics(const Napi::CallbackInfo& info) {
  Ring* ring = GetRing(info);
  uint32_t slot;
  if (ring == nullptr) return;
  if (!support::GetUint32(info[1], &slot) || !info[2].IsTypedArray() ||
      info[2].As<Napi::TypedArray>().TypedArrayType() != napi_float64_array ||
      info[2].As<Napi::TypedArray>().ElementLength() != kFigures) {
    support::ThrowType(info.Env(), "statistics(ring, slot, figures)");
    return;
  }
  ring->AddStatistics(slot, info[2].As<Napi::Float64Array>().Data());
}

// state(ring, slot): {inFlight, inFlightMax, registered} of a file; of the whole ring, with its own counts, if there is
// no such slot.
Napi::Value State(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Ring* ring = GetRing(info);
  uint32_t slot;
  if (ring == nullptr || !support::GetUint32(info[1], &slot)) return env.Undefined();
  Napi::Object result = Napi::Object::New(env);
  if (const File* file = ring->FileAt(slot)) {
    result.Set("inFlight", file->in_flight);
    result.Set("inFlightMax", file->in_flight_max);
    return result;
  }
  result.Set("inFlight", ring->in_flight());
  result.Set("inFlightMax", ring->in_flight_max());
  result.Set("handOvers", static_cast<double>(ring->hand_overs()));
  result.Set("batches", static_cast<double>(ring->batches()));
  result.Set("arenasRegistered", ring->arenas_registered());
  result.Set("arenasRefused", ring->arenas_refused());
  result.Set("arenaRefusal", ring->arena_refusal());
  return result;
}

void Close(const Napi::CallbackInfo& info) {
  Ring* ring = GetRing(info);
  if (ring != nullptr) ring->BeginClose();
}

}  // namespace

void Register(Napi::Object exports) {
  support::AddFunction<Create>(exports, "create");
  support::AddBareFunction(exports, "submit", Submit);
  support::AddBareFunction(exports, "submitAndPoll", SubmitAndPoll);
  support::AddFunction<Cancel>(exports, "cancel");
  support::AddFunction<AddFile>(exports, "addFile");
  support::AddFunction<RemoveFile>(exports, "removeFile");
  support::AddFunction<AddArena>(exports, "addArena");
  support::AddFunction<RemoveArena>(exports, "removeArena");
  support::AddFunction<AddStatistics>(exports, "statistics");
  support::AddFunction<State>(exports, "state");
  support::AddFunction<Close>(exports, "close");
  RegisterFileFunctions(exports);
}

}  // namespace holdfast::ring
