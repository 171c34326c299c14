#include "scan/pipeline.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <new>

#include "ring/thread_pool.h"
#include "ring/uring.h"

namespace holdfast::scan {

namespace {

constexpr uint64_t kPageBytes = 4096;
constexpr uint64_t kHugePageBytes = 2 << 20;
// What a rate may make up for after a delay.
constexpr double kBurstNs = 50e6;
// System calls of the thread-pool engine at once, each lane.
constexpr uint32_t kEngineThreads = 8;

double NowNs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) * 1e9 + static_cast<double>(now.tv_nsec);
}

uint64_t DivideUp(uint64_t a, uint64_t b) { return (a + b - 1) / b; }

}  // namespace

// ── A lane ─────────────────────────────────────────────────────────────────────────────────────────────────────────

class Pipeline::Lane {
 public:
  explicit Lane(Pipeline* pipeline) : pipeline_(pipeline), settings_(pipeline->settings_) {}
  ~Lane() {
    if (memory_ != nullptr) munmap(memory_, memory_bytes_);
    if (wake_ >= 0) close(wake_);
  }

  // On the thread that makes it. False if there is no memory.
  bool Prepare() {
    digest_ = digest::MakeDigest(settings_.algorithm);
    wake_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    buffer_bytes_ = DivideUp(pipeline_->piece_bytes_ + 2 * settings_.alignment_bytes, kPageBytes) * kPageBytes;
    memory_bytes_ = DivideUp(buffer_bytes_ * settings_.depth, kHugePageBytes) * kHugePageBytes;
    void* memory = mmap(nullptr, memory_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (digest_ == nullptr || wake_ < 0 || memory == MAP_FAILED) return false;
    memory_ = static_cast<uint8_t*>(memory);
    madvise(memory_, memory_bytes_, MADV_HUGEPAGE);
    operations_.reset(new (std::nothrow) ring::Operation[settings_.depth]());
    pieces_.reset(new (std::nothrow) Piece[settings_.depth]);
    free_.reset(new (std::nothrow) uint32_t[settings_.depth]);
    if (operations_ == nullptr || pieces_ == nullptr || free_ == nullptr) return false;
    for (uint32_t id = 0; id < settings_.depth; id++) free_[id] = settings_.depth - 1 - id;
    free_count_ = settings_.depth;
    return true;
  }

  size_t digest_bytes() const { return digest_->size(); }

  void Wake() const {
    const uint64_t one = 1;
    (void)!write(wake_, &one, sizeof(one));
  }

  static void* Main(void* lane) {
    pthread_setname_np(pthread_self(), "holdfast-scan");
    static_cast<Lane*>(lane)->Run();
    return nullptr;
  }

 private:
  void Run() {
    const int error = StartEngine();
    if (error != 0) {
      pipeline_->Fail({-error, settings_.offset, 0});
    } else {
      bool told = false;
      while (Refill()) {
        engine_->BeginReaping(told);
        told = false;
        bool reaped = ReapAll();
        while (engine_->EndReaping() && ReapAll()) reaped = true;
        if (!reaped) told = Wait();
      }
      engine_.reset();
    }
    pipeline_->LaneOver();
  }

  // In this thread, because a ring belongs to the one that made it. Threads where io_uring is short of something: the
  // device's own ring has told why.
  int StartEngine() {
    if (settings_.engine > 0) {
      auto uring = std::make_unique<ring::Uring>();
      ring::Uring::Failure failure;
      const auto style = static_cast<ring::Uring::Style>(settings_.engine - 1);
      if (uring->Start(settings_.depth, style, operations_.get(), &failure)) {
        engine_ = std::move(uring);
        return 0;
      }
    }
    auto pool = std::make_unique<ring::ThreadPool>();
    const int error = pool->Start(std::min(settings_.depth, kEngineThreads));
    engine_ = std::move(pool);
    return error;
  }

  // Starts what reads it may. False once there is nothing to wait for.
  bool Refill() {
    delay_ms_ = -1;
    Next next = Next::kPiece;
    while (free_count_ > 0 && next == Next::kPiece) {
      const uint32_t id = free_[free_count_ - 1];
      next = pipeline_->TakePiece(&pieces_[id], &delay_ms_);
      if (next != Next::kPiece) break;
      free_count_--;
      Read(id);
    }
    engine_->Kick();
    return next != Next::kNone || free_count_ < settings_.depth;
  }

  // Whole units of the device around the piece.
  void Read(uint32_t id) {
    const Piece& piece = pieces_[id];
    const uint64_t mask = settings_.alignment_bytes - 1;
    ring::Operation& operation = operations_[id];
    operation = ring::Operation{};
    operation.id = id;
    operation.kind = ring::Kind::kRead;
    operation.fd = settings_.fd;
    operation.data = memory_ + id * buffer_bytes_;
    operation.offset = piece.offset & ~mask;
    operation.length = static_cast<uint32_t>(((piece.offset + piece.length + mask) & ~mask) - operation.offset);
    engine_->Queue(&operation);
  }

  // One at a time: its buffer is back at the device before the next one is checksummed.
  bool ReapAll() {
    ring::Result result;
    bool reaped = false;
    while (engine_->Reap(&result, 1) == 1) {
      reaped = true;
      Finish(result.id, result.value);
      free_[free_count_++] = result.id;
      Refill();
    }
    return reaped;
  }

  void Finish(uint32_t id, int32_t result) {
    const Piece& piece = pieces_[id];
    if (result != 0) return pipeline_->Fail({result, piece.offset, piece.length});
    const uint8_t* data = operations_[id].data + (piece.offset & (settings_.alignment_bytes - 1));
    uint8_t* place = pipeline_->PlaceOf(piece.index);
    if (!digest_->Blocks(data, piece.length, settings_.block_bytes, place)) {
      return pipeline_->Fail({kDigestFailed, piece.offset, piece.length});
    }
    pipeline_->PieceDone(piece);
  }

  // Waits until there may be something to do. True if the engine has told of it.
  bool Wait() const {
    pollfd polls[ring::Engine::kMaxDescriptors + 1];
    int descriptors[ring::Engine::kMaxDescriptors];
    const uint32_t count = engine_->Descriptors(descriptors);
    for (uint32_t i = 0; i < count; i++) polls[i] = {descriptors[i], POLLIN, 0};
    polls[count] = {wake_, POLLIN, 0};
    // A kernel that is short of memory tells nobody when it no longer is.
    const int timeout = engine_->Stalled() ? 1 : delay_ms_;
    poll(polls, count + 1, timeout);
    uint64_t counter;
    if ((polls[count].revents & POLLIN) != 0) (void)!read(wake_, &counter, sizeof(counter));
    return std::any_of(polls, polls + count, [](const pollfd& one) { return one.revents != 0; });
  }

  Pipeline* const pipeline_;
  const Settings& settings_;
  std::unique_ptr<digest::Digest> digest_;
  std::unique_ptr<ring::Operation[]> operations_;
  std::unique_ptr<Piece[]> pieces_;       // by operation
  std::unique_ptr<uint32_t[]> free_;      // operations
  std::unique_ptr<ring::Engine> engine_;  // after what it uses, so that it goes first
  uint32_t free_count_ = 0;
  uint8_t* memory_ = nullptr;
  uint64_t memory_bytes_ = 0;
  uint64_t buffer_bytes_ = 0;
  int wake_ = -1;
  int delay_ms_ = -1;
};

// ── The pipeline ───────────────────────────────────────────────────────────────────────────────────────────────────

bool Pipeline::AreValid(const Settings& settings) {
  const auto within = [](uint64_t value, uint64_t highest) { return value >= 1 && value <= highest; };
  constexpr uint64_t kEnd = uint64_t{1} << 53;
  return settings.fd >= 0 && settings.offset < kEnd && within(settings.length, kEnd - settings.offset) &&
         within(settings.block_bytes, kMaxPieceBytes) &&
         within(settings.piece_blocks, kMaxPieceBytes / settings.block_bytes) &&
         within(settings.batch_pieces, kMaxBatchResultBytes / digest::kMaxDigestBytes / settings.piece_blocks) &&
         within(settings.batches, kMaxBatches) && within(settings.depth, kMaxDepth) &&
         within(settings.lanes, kMaxLanes) && within(settings.alignment_bytes, kPageBytes) &&
         (settings.alignment_bytes & (settings.alignment_bytes - 1)) == 0 && settings.engine <= 3 &&
         settings.bytes_per_second > 0;
}

Pipeline::Pipeline(const Settings& settings, OnReady on_ready, void* context)
    : settings_(settings),
      on_ready_(on_ready),
      context_(context),
      piece_bytes_(settings.piece_blocks * settings.block_bytes),
      pieces_(DivideUp(settings.length, piece_bytes_)),
      all_batches_(DivideUp(pieces_, settings.batch_pieces)) {
  SetRate(settings.bytes_per_second);
}

Pipeline::~Pipeline() { Join(); }

void Pipeline::Join() {
  if (joined_) return;
  joined_ = true;
  Cancel();
  for (const pthread_t thread : threads_) pthread_join(thread, nullptr);
  lanes_.clear();
  close(settings_.fd);
}

int Pipeline::Start() {
  for (uint64_t slot = 0; slot < settings_.batches; slot++) pieces_left_.push_back(PiecesOf(slot));
  const auto lanes = static_cast<uint32_t>(std::min<uint64_t>(settings_.lanes, pieces_));
  for (uint32_t i = 0; i < lanes; i++) {
    lanes_.push_back(std::make_unique<Lane>(this));
    if (!lanes_.back()->Prepare()) return ENOMEM;
  }
  digest_bytes_ = lanes_[0]->digest_bytes();
  slot_bytes_ = settings_.batch_pieces * settings_.piece_blocks * digest_bytes_;
  slots_.reset(new (std::nothrow) uint8_t[slot_bytes_ * settings_.batches]);
  if (slots_ == nullptr) return ENOMEM;
  lanes_left_ = lanes;
  // The process's signals belong to Node's own threads.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int error = 0;
  for (const auto& lane : lanes_) {
    pthread_t thread;
    error = pthread_create(&thread, nullptr, Lane::Main, lane.get());
    if (error != 0) break;
    threads_.push_back(thread);
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (threads_.empty()) return error;
  for (size_t i = threads_.size(); i < lanes_.size(); i++) LaneOver();
  return 0;
}

uint64_t Pipeline::PiecesOf(uint64_t batch) const {
  const uint64_t first = batch * settings_.batch_pieces;
  return first >= pieces_ ? 0 : std::min(settings_.batch_pieces, pieces_ - first);
}

uint64_t Pipeline::BlocksOf(uint64_t batch) const {
  const uint64_t batch_blocks = settings_.batch_pieces * settings_.piece_blocks;
  const uint64_t blocks = DivideUp(settings_.length, settings_.block_bytes);
  return std::min(batch_blocks, blocks - batch * batch_blocks);
}

uint8_t* Pipeline::PlaceOf(uint64_t piece) {
  const uint64_t slot = BatchOf(piece) % settings_.batches;
  return slots_.get() + slot * slot_bytes_ + piece % settings_.batch_pieces * settings_.piece_blocks * digest_bytes_;
}

Pipeline::Next Pipeline::TakePiece(Piece* piece, int* delay_ms) {
  const std::lock_guard<std::mutex> hold(mutex_);
  if (stopping_ || next_piece_ == pieces_) return Next::kNone;
  if (BatchOf(next_piece_) >= taken_ + settings_.batches) return Next::kBlocked;
  piece->index = next_piece_;
  piece->offset = settings_.offset + next_piece_ * piece_bytes_;
  piece->length = std::min(piece_bytes_, settings_.length - next_piece_ * piece_bytes_);
  if (nanoseconds_per_byte_ > 0) {
    const double now = NowNs();
    next_start_ns_ = std::max(next_start_ns_, now - kBurstNs);
    if (next_start_ns_ > now) {
      *delay_ms = static_cast<int>(std::min(1000.0, std::ceil((next_start_ns_ - now) / 1e6)));
      return Next::kLater;
    }
    next_start_ns_ += nanoseconds_per_byte_ * static_cast<double>(piece->length);
  }
  next_piece_++;
  return Next::kPiece;
}

void Pipeline::PieceDone(const Piece& piece) {
  done_bytes_.fetch_add(piece.length, std::memory_order_relaxed);
  bool ready;
  {
    const std::lock_guard<std::mutex> hold(mutex_);
    const uint64_t batch = BatchOf(piece.index);
    ready = --pieces_left_[batch % settings_.batches] == 0 && batch == taken_;
  }
  if (!ready) return;
  const std::lock_guard<std::mutex> hold(ready_mutex_);
  on_ready_(context_, false);
}

void Pipeline::Fail(const Failure& failure) {
  {
    const std::lock_guard<std::mutex> hold(mutex_);
    stopping_ = true;
    if (failure_.result == 0 || failure.offset < failure_.offset) failure_ = failure;
  }
  Wake();
}

void Pipeline::LaneOver() {
  bool last;
  {
    const std::lock_guard<std::mutex> hold(mutex_);
    last = --lanes_left_ == 0;
  }
  if (!last) return;
  const std::lock_guard<std::mutex> hold(ready_mutex_);
  on_ready_(context_, true);
}

uint64_t Pipeline::Take(uint8_t* checksums, size_t capacity) {
  uint64_t blocks;
  bool last = false;
  {
    const std::lock_guard<std::mutex> hold(mutex_);
    if (taken_ == all_batches_) return 0;
    blocks = BlocksOf(taken_);
    if (pieces_left_[taken_ % settings_.batches] > 0) {
      blocks = BlocksBeforeFailure();
      last = true;
    }
    if (blocks == 0 || blocks * digest_bytes_ > capacity) return 0;
  }
  // Nobody fills it again before it counts as taken.
  const uint64_t slot = taken_ % settings_.batches;
  memcpy(checksums, slots_.get() + slot * slot_bytes_, blocks * digest_bytes_);
  {
    const std::lock_guard<std::mutex> hold(mutex_);
    pieces_left_[slot] = PiecesOf(taken_ + settings_.batches);
    taken_ = last ? all_batches_ : taken_ + 1;
  }
  Wake();
  return blocks;
}

// Of the batch that it has left unfinished. Pieces are begun in order and none is given up, so once all lanes have ended
// those before the first one that failed are done.
uint64_t Pipeline::BlocksBeforeFailure() const {
  const uint64_t first = settings_.offset + taken_ * settings_.batch_pieces * piece_bytes_;
  if (lanes_left_ > 0 || failure_.result == 0 || failure_.offset <= first) return 0;
  return (failure_.offset - first) / settings_.block_bytes;
}

void Pipeline::SetRate(double bytes_per_second) {
  {
    const std::lock_guard<std::mutex> hold(mutex_);
    nanoseconds_per_byte_ = 1e9 / bytes_per_second;
    next_start_ns_ = 0;
  }
  Wake();
}

void Pipeline::Cancel() {
  {
    const std::lock_guard<std::mutex> hold(mutex_);
    stopping_ = true;
  }
  Wake();
}

void Pipeline::Wake() {
  for (const auto& lane : lanes_) lane->Wake();
}

bool Pipeline::ended() {
  const std::lock_guard<std::mutex> hold(mutex_);
  return lanes_left_ == 0;
}

Failure Pipeline::failure() {
  const std::lock_guard<std::mutex> hold(mutex_);
  return failure_;
}

}  // namespace holdfast::scan
