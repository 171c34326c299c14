// Reads a range of a file once and checksums each block of it, in threads of its own: the next reads are under way
// while a block is checksummed. Knows nothing of Node.
//
// The range is cut into *blocks* (what gets a checksum; the last one may be short), blocks into *pieces* (what is read
// at once), pieces into *batches* (what is handed over at once). Each thread is a *lane* with an engine and buffers of
// its own; it takes the next piece of the range whenever one of its buffers is free.
//
// Invariants:
// - Memory is bounded: lanes × depth buffers, and the results of `batches` batches. Who does not take batches stops the
//   reading.
// - Batches are handed over in order, each one whole. After a failure come the batches before it and, shorter, what its
//   own batch has before the piece that failed.
// - A buffer is touched by the kernel only between Queue and the result, and no thread ends before its last read has.
#pragma once

#include <pthread.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "digest/algorithms.h"
#include "ring/engine.h"

namespace holdfast::scan {

struct Settings {
  int fd = -1;    // the pipeline's own: closed with it
  uint64_t offset = 0;
  uint64_t length = 0;
  uint64_t block_bytes = 0;
  uint64_t piece_blocks = 0;     // in a piece
  uint64_t batch_pieces = 0;     // in a batch
  uint32_t batches = 0;          // finished ones that may wait
  uint32_t depth = 0;            // reads in flight, each lane
  uint32_t lanes = 0;
  uint32_t alignment_bytes = 1;  // of offsets and lengths on the device; a power of two
  uint32_t engine = 0;           // 0 is the thread pool, 1 + the best style to try is io_uring
  double bytes_per_second = 0;   // infinite: as fast as it goes
  digest::Algorithm algorithm;
};

constexpr int32_t kDigestFailed = 2;

struct Failure {
  int32_t result = 0;   // negative: errno; or ring::kEndedEarly, or kDigestFailed
  uint64_t offset = 0;  // of the piece
  uint64_t length = 0;
};

class Pipeline {
 public:
  // Called on lanes' threads, never twice at once: a batch can be taken. The last call comes when the last lane has
  // ended, with `ended`.
  using OnReady = void (*)(void* context, bool ended);

  static constexpr uint32_t kMaxLanes = 64;
  static constexpr uint32_t kMaxDepth = 256;
  static constexpr uint32_t kMaxBatches = 64;
  static constexpr uint64_t kMaxPieceBytes = uint64_t{32} << 20;
  static constexpr uint64_t kMaxBatchResultBytes = uint64_t{16} << 20;

  Pipeline(const Settings& settings, OnReady on_ready, void* context);
  ~Pipeline();
  Pipeline(const Pipeline&) = delete;
  Pipeline& operator=(const Pipeline&) = delete;

  // False if the settings are out of their bounds; nothing is begun then.
  static bool AreValid(const Settings& settings);
  // Returns 0, or an errno if not one thread could be started or there is no memory; OnReady is never called then.
  int Start();
  // Copies the checksums of the next batch and returns how many blocks it has; 0 if it is not finished, or does not fit.
  uint64_t Take(uint8_t* checksums, size_t capacity);
  void SetRate(double bytes_per_second);
  // No further reads. Those in flight end.
  void Cancel();

  uint64_t done_bytes() const { return done_bytes_.load(std::memory_order_relaxed); }
  // The last lane has ended: no further batch will come.
  bool ended();
  // What failed first, in the order of the range. `result` is 0 as long as nothing has.
  Failure failure();
  // Cancels, waits for the threads, closes the file. Batches that are finished can still be taken.
  void Join();

 private:
  struct Piece {
    uint64_t index;
    uint64_t offset;
    uint64_t length;
  };
  enum class Next { kPiece, kLater, kBlocked, kNone };
  class Lane;

  Next TakePiece(Piece* piece, int* delay_ms);
  // Checksums are in their place.
  void PieceDone(const Piece& piece);
  void Fail(const Failure& failure);
  void LaneOver();
  void Wake();

  uint64_t BatchOf(uint64_t piece) const { return piece / settings_.batch_pieces; }
  uint64_t PiecesOf(uint64_t batch) const;
  uint64_t BlocksOf(uint64_t batch) const;
  uint64_t BlocksBeforeFailure() const;
  // Where the checksums of a piece go.
  uint8_t* PlaceOf(uint64_t piece);

  const Settings settings_;
  const OnReady on_ready_;
  void* const context_;
  const uint64_t piece_bytes_;
  const uint64_t pieces_;
  const uint64_t all_batches_;
  bool joined_ = false;
  size_t digest_bytes_ = 0;
  size_t slot_bytes_ = 0;
  std::vector<std::unique_ptr<Lane>> lanes_;
  std::vector<pthread_t> threads_;
  std::unique_ptr<uint8_t[]> slots_;    // a batch's checksums each; batch b is in slot b % batches
  std::atomic<uint64_t> done_bytes_{0};

  std::mutex ready_mutex_;    // around on_ready_
  std::mutex mutex_;          // guards what follows
  std::vector<uint64_t> pieces_left_;    // by slot
  uint64_t next_piece_ = 0;
  uint64_t taken_ = 0;    // batches
  uint32_t lanes_left_ = 0;
  bool stopping_ = false;
  Failure failure_;
  double nanoseconds_per_byte_ = 0;
  double next_start_ns_ = 0;    // the rate allows the next piece from then on
};

}  // namespace holdfast::scan
