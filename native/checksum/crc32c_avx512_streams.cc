// The kernel for x86-64 with AVX-512 (F, VL) and VPCLMULQDQ, where the CRC32 instruction is as fast as folding: half of
// the bytes are folded (crc32c_avx512_inline.h has the method), half go through eight streams of the instruction
// meanwhile, since the two use different parts of the processor (the idea: Cawley, github.com/corsix/fast-crc32, 2023).
//
// A chunk is 512 bytes to fold, and then eight streams of 64. Nothing is reduced at its end: the folded half is moved
// over the streams to the next chunk, and so are the streams' registers, all eight by one multiplication, which adds
// two of them to each of four lanes. A register stands for the first four bytes of what follows its stream; hence the
// exponents 8·D + 96 (its place in a lane) − 32 (the factor's place in its 64 bits) − 1.
//
// The chunk is small because a processor looks ahead of what it waits for only as far as its queues are long, and the
// instructions of the streams fill them. With chunks of 4 KiB, or without fetching ahead, memory was read half as fast.
// Short sources are fetched ahead too, less far: at most twelve lines beyond the end. Copying is not done this way: with
// stores of eight bytes it was slower than by folding alone.
#include <utility>

#include "checksum/crc32c_avx512_inline.h"
#include "checksum/crc32c_kernels.h"

namespace holdfast::checksum {
namespace {

constexpr size_t kStreams = 8;
constexpr size_t kStreamBytes = 64;
constexpr size_t kFoldedBytes = 2 * kStep;
constexpr size_t kChunk = kFoldedBytes + kStreams * kStreamBytes;
constexpr size_t kNear = 768;

// Moves the streams' registers, two a lane: those of the first to the lane that begins `to` bytes after the chunk's
// begin, those of each further one by `apart` bytes more.
static constexpr Factors MoveStreams(int64_t to, int64_t apart) {
  Factors factors{};
  for (size_t k = 0; k < kStreams; k++) {
    const int64_t end = kFoldedBytes + (k + 1) * kStreamBytes;
    factors.of[k] = Factor(8 * (to + apart * static_cast<int64_t>(k / 2) - end) + 96 - 32 - 1);
  }
  return factors;
}

// Calls `body` with 0 … n − 1 as constants.
template <size_t n, typename Body>
static inline void Repeat(Body body) {
  [&]<size_t... i>(std::index_sequence<i...>) { (body(std::integral_constant<size_t, i>()), ...); }
  (std::make_index_sequence<n>());
}

// The chunk but for its first step, which `step` holds already. Gives the streams' registers.
template <size_t kAhead>
static inline __m512i TakeChunk(Step* step, __m512i step_factors, const Reader& source) {
  constexpr size_t kRounds = kStreamBytes / 8;
  uint64_t regs[kStreams] = {};
  Repeat<kRounds>([&](auto round) {
    if constexpr (round == kRounds / 2) *step = FoldStep(*step, step_factors, source, kStep);
    static_assert(kChunk / kRounds == 2 * kLine);
    Prefetch(source.from, kAhead + round * 2 * kLine);
    Prefetch(source.from, kAhead + round * 2 * kLine + kLine);
    Repeat<kStreams>([&](auto k) {
      const size_t at = kFoldedBytes + k * kStreamBytes + 8 * round;
      regs[k] = CrcQword(regs[k], source.Take<uint64_t>(at));
    });
  });
  const auto reg = [&regs](size_t k) { return static_cast<int64_t>(regs[k]); };
  return _mm512_set_epi64(reg(7), reg(6), reg(5), reg(4), reg(3), reg(2), reg(1), reg(0));
}

// Needs kChunk bytes; leaves less.
static inline uint64_t ExtendChunks(uint32_t reg, Reader* source) {
  static constexpr Factors kNextStep = MoveAll(kStep);
  static constexpr Factors kNextChunk = MoveAll(kChunk - kStep);
  static constexpr Factors kStreamsToNextChunk = MoveStreams(kChunk, kLaneBytes);
  static constexpr Factors kStreamsToEnd = MoveStreams(kChunk - kLaneBytes, 0);
  const __m512i step_factors = kNextStep.Load();
  const __m512i chunk_factors = kNextChunk.Load();
  const __m512i stream_factors = kStreamsToNextChunk.Load();
  const bool far = source->left >= kFarFrom;
  Step step = TakeStep(*source, reg);
  for (;;) {
    const __m512i streams =
        far ? TakeChunk<kFar>(&step, step_factors, *source) : TakeChunk<kNear>(&step, step_factors, *source);
    source->Advance(kChunk);
    if (source->left < kChunk) {
      return RegisterOfSum(Fold(streams, kStreamsToEnd.Load(), SumOfStep<kChunk - kFoldedBytes>(step)));
    }
    step = FoldStep(step, chunk_factors, *source, 0);
    step.a = Fold(streams, stream_factors, step.a);
  }
}

}  // namespace

uint32_t ExtendAvx512Streams(uint32_t reg32, const uint8_t* data, size_t length) {
  Reader source{data, length};
  uint64_t reg = reg32;
  if (source.left >= kChunk) reg = ExtendChunks(reg32, &source);
  return ExtendRest(reg, source);
}

}  // namespace holdfast::checksum
