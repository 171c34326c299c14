#include <dlfcn.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "ring/statistics.h"
#include "ring/thread_pool.h"
#include "ring/uring.h"
#include "test/check.h"

using namespace holdfast::ring;

// In this program also streams can be read at an offset, which they ignore, as io_uring lets them: nothing else that is
// easily had blocks a read, or puts one off, for as long as a test wants.
extern "C" ssize_t preadv(int fd, const iovec* pieces, int count, off_t offset) {
  const ssize_t got = syscall(SYS_preadv, fd, pieces, count, offset, 0);
  return got < 0 && errno == ESPIPE ? readv(fd, pieces, count) : got;
}

namespace {

bool takes_one_entry = false;
long entries_taken = 0;

}  // namespace

// In this program the kernel can be held to one entry a call, as if it were short of memory for more. Takes the place of
// syscall(2), without its variable arguments: those that are not given are passed on, whatever they are.
extern "C" long HeldSyscall(long number, long a, long b, long c, long d, long e, long f) __asm__("syscall");
long HeldSyscall(long number, long a, long b, long c, long d, long e, long f) {
  static const auto next = reinterpret_cast<decltype(&HeldSyscall)>(dlsym(RTLD_NEXT, "syscall"));
  if (number != SYS_io_uring_enter) return next(number, a, b, c, d, e, f);
  const long taken = next(number, a, takes_one_entry && b > 1 ? 1 : b, c, d, e, f);
  if (taken > 0) entries_taken += taken;
  return taken;
}

namespace {

constexpr uint32_t kCapacity = 64;
constexpr uint32_t kBlock = 4096;
constexpr int32_t kNone = -9999;

// A file that has no name any more, so it goes with the descriptor.
class File {
 public:
  File() {
    const char* parent = getenv("TMPDIR");
    std::string path = std::string(parent != nullptr ? parent : "/tmp") + "/holdfast-ring-XXXXXX";
    fd_ = mkstemp(path.data());
    CHECK(fd_ >= 0);
    unlink(path.c_str());
    CHECK(ftruncate(fd_, kCapacity * kBlock) == 0);
  }
  ~File() { close(fd_); }
  int fd() const { return fd_; }

 private:
  int fd_;
};

// An engine with its operations and a block of memory for each.
struct Bench {
  std::vector<Operation> operations = std::vector<Operation>(kCapacity);
  std::vector<uint8_t> memory = std::vector<uint8_t>(kCapacity * kBlock);
  std::unique_ptr<Engine> engine;
  File file;
  int32_t registered_file = kNotRegistered;
  int32_t registered_memory = kNotRegistered;

  Bench() {
    for (uint32_t i = 0; i < kCapacity; i++) operations[i].id = i;
  }

  uint8_t* Block(uint32_t id) { return memory.data() + id * kBlock; }

  void Queue(uint32_t id, Kind kind, uint64_t offset, uint32_t length) { QueueOn(file.fd(), id, kind, offset, length); }

  void QueueOn(int fd, uint32_t id, Kind kind, uint64_t offset, uint32_t length, std::vector<iovec>* pieces = nullptr) {
    Operation& operation = operations[id];
    operation.kind = kind;
    operation.fd = fd;
    operation.file = registered_file;
    operation.memory = registered_memory;
    operation.data = Block(id);
    operation.pieces = pieces == nullptr ? nullptr : pieces->data();
    operation.piece_count = pieces == nullptr ? 0 : static_cast<uint32_t>(pieces->size());
    operation.offset = offset;
    operation.length = length;
    operation.range_length = length;
    operation.done = 0;
    engine->Queue(&operation);
  }

  // Results by id, in however small portions.
  std::vector<int32_t> Finish(uint32_t count, uint32_t portion) {
    std::vector<int32_t> values(kCapacity, kNone);
    engine->Kick();
    while (count > 0) {
      pollfd polls[Engine::kMaxDescriptors];
      int descriptors[Engine::kMaxDescriptors];
      const uint32_t open = engine->Descriptors(descriptors);
      for (uint32_t i = 0; i < open; i++) polls[i] = {descriptors[i], POLLIN, 0};
      if (poll(polls, open, 10000) <= 0) {
        CHECK(!"a result is announced");
        return values;
      }
      Result results[kCapacity];
      engine->BeginReaping(true);
      do {
        while (const uint32_t got = engine->Reap(results, portion)) {
          for (uint32_t i = 0; i < got; i++) values[results[i].id] = results[i].value;
          count -= got;
        }
      } while (engine->EndReaping());
    }
    return values;
  }
};

void WithEachEngine(const std::function<void(Bench&)>& body) {
  {
    Bench bench;
    auto pool = std::make_unique<ThreadPool>();
    CHECK(pool->Start(3) == 0);
    bench.engine = std::move(pool);
    body(bench);
  }
  for (const auto style : {Uring::Style::kDeferred, Uring::Style::kCooperative, Uring::Style::kPlain}) {
    Bench bench;
    auto uring = std::make_unique<Uring>();
    Uring::Failure failure;
    if (!uring->Start(kCapacity, style, bench.operations.data(), &failure)) {
      printf("       io_uring is not tested: %s: %s\n", failure.stage, strerror(failure.error));
      return;
    }
    bench.engine = std::move(uring);
    body(bench);
  }
}

// io_uring waits for what can be polled, whatever the descriptor says; only its own flag stops that. It is put into the
// entries that were queued and not yet kicked.
void ForbidWaiting() {
  FILE* maps = fopen("/proc/self/maps", "re");
  char line[512];
  while (fgets(line, sizeof(line), maps) != nullptr) {
    unsigned long from, to, offset;
    if (strstr(line, "[io_uring]") == nullptr || sscanf(line, "%lx-%lx %*s %lx", &from, &to, &offset) != 3) continue;
    if (offset != IORING_OFF_SQES) continue;
    auto* entries = reinterpret_cast<io_uring_sqe*>(from);
    for (size_t i = 0; i < 4 * kCapacity && i < (to - from) / sizeof(io_uring_sqe); i++) {
      if (entries[i].opcode == IORING_OP_READ) entries[i].rw_flags = RWF_NOWAIT;
    }
  }
  fclose(maps);
}

}  // namespace

TEST("what engines write they read back, as many at once as there is room for, in portions of any size") {
  WithEachEngine([](Bench& bench) {
    for (const uint32_t portion : {1u, 7u, kCapacity}) {
      for (uint32_t id = 0; id < kCapacity; id++) {
        memset(bench.Block(id), static_cast<int>(id + portion), kBlock);
        bench.Queue(id, id % 8 == 0 ? Kind::kWriteFua : Kind::kWrite, uint64_t{id} * kBlock, kBlock);
      }
      for (const int32_t value : bench.Finish(kCapacity, portion)) CHECK(value == 0);
      memset(bench.memory.data(), 0, bench.memory.size());
      for (uint32_t id = 0; id < kCapacity; id++) bench.Queue(id, Kind::kRead, uint64_t{id} * kBlock, kBlock);
      for (const int32_t value : bench.Finish(kCapacity, portion)) CHECK(value == 0);
      for (uint32_t id = 0; id < kCapacity; id++) {
        CHECK(bench.Block(id)[0] == static_cast<uint8_t>(id + portion));
        CHECK(bench.Block(id)[kBlock - 1] == static_cast<uint8_t>(id + portion));
      }
    }
  });
}

TEST("a read that goes over the file's end is told from one that is whole") {
  WithEachEngine([](Bench& bench) {
    bench.Queue(0, Kind::kRead, (kCapacity - 1) * kBlock, kBlock);
    bench.Queue(1, Kind::kRead, (kCapacity - 1) * kBlock + 100, kBlock);
    bench.Queue(2, Kind::kRead, kCapacity * kBlock, kBlock);
    const auto values = bench.Finish(3, kCapacity);
    CHECK(values[0] == 0);
    CHECK(values[1] == kEndedEarly);
    CHECK(values[2] == kEndedEarly);
    CHECK(bench.operations[1].done == kBlock - 100);
  });
}

TEST("a hole that is punched reads as zeros, and a flush succeeds") {
  WithEachEngine([](Bench& bench) {
    memset(bench.Block(0), 1, kBlock);
    bench.Queue(0, Kind::kWrite, 0, kBlock);
    CHECK(bench.Finish(1, 1)[0] == 0);
    bench.Queue(1, Kind::kPunchHole, 0, kBlock);
    bench.Queue(2, Kind::kFlush, 0, 0);
    const auto values = bench.Finish(2, 1);
    CHECK(values[1] == 0 || values[1] == -EOPNOTSUPP);
    CHECK(values[2] == 0);
    bench.Queue(0, Kind::kRead, 0, kBlock);
    CHECK(bench.Finish(1, 1)[0] == 0);
    CHECK(bench.Block(0)[17] == (values[1] == 0 ? 0 : 1));
  });
}

TEST("errors come back as errnos, and one does not disturb the others") {
  WithEachEngine([](Bench& bench) {
    bench.Queue(0, Kind::kRead, 0, kBlock);
    bench.Queue(1, Kind::kRead, uint64_t{1} << 63, kBlock);
    bench.Queue(2, Kind::kRefused, 0, kBlock);
    bench.Queue(3, Kind::kBlockDiscard, 0, kBlock);
    const auto values = bench.Finish(4, kCapacity);
    CHECK(values[0] == 0);
    CHECK(values[1] == -EINVAL);
    CHECK(values[2] == -EINVAL);
    CHECK(values[3] == -ENOTTY);
  });
}

TEST("a poke announces something although nothing is over") {
  WithEachEngine([](Bench& bench) {
    for (int round = 0; round < 3; round++) {
      bench.engine->Poke();
      int descriptors[Engine::kMaxDescriptors];
      bench.engine->Descriptors(descriptors);
      bool readable = false;
      for (uint32_t i = 0; i < bench.engine->Descriptors(descriptors); i++) {
        pollfd each{descriptors[i], POLLIN, 0};
        readable = readable || poll(&each, 1, 0) == 1;
      }
      CHECK(readable);
      Result results[1];
      bench.engine->BeginReaping(true);
      CHECK(bench.engine->Reap(results, 1) == 0);
      bench.engine->EndReaping();
    }
  });
}

TEST("reads that come in portions go on until all is there, in one piece and in several") {
  // The kernel gives out this file a page or less at a time.
  constexpr const char* kPath = "/proc/kallsyms";
  constexpr uint32_t kLength = 16 * kBlock;
  const int fd = open(kPath, O_RDONLY | O_CLOEXEC);
  CHECK(fd >= 0);
  std::string expected(kLength, ' ');
  CHECK(read(fd, expected.data(), kLength) < static_cast<ssize_t>(kLength));
  for (size_t at = 0; at < kLength;) {
    const ssize_t got = pread(fd, &expected[at], kLength - at, static_cast<off_t>(at));
    CHECK(got > 0);
    at += static_cast<size_t>(got > 0 ? got : kLength);
  }
  WithEachEngine([&](Bench& bench) {
    memset(bench.memory.data(), 0, bench.memory.size());
    std::vector<iovec> pieces;
    uint8_t* at = bench.Block(32);
    for (uint32_t left = kLength, next = 100; left > 0; next = next * 3 + 7) {
      const uint32_t length = next < left ? next : left;
      pieces.push_back({at, length});
      at += length;
      left -= length;
    }
    bench.QueueOn(fd, 0, Kind::kRead, 0, kLength);
    bench.QueueOn(fd, 1, Kind::kRead, 0, kLength, &pieces);
    const auto values = bench.Finish(2, kCapacity);
    CHECK(values[0] == 0);
    CHECK(values[1] == 0);
    CHECK(memcmp(bench.Block(0), expected.data(), kLength) == 0);
    CHECK(memcmp(bench.Block(32), expected.data(), kLength) == 0);
  });
  close(fd);
}

TEST("what is scattered is written as one and read back scattered otherwise") {
  WithEachEngine([](Bench& bench) {
    for (uint32_t i = 0; i < 3 * kBlock; i++) bench.memory[i] = static_cast<uint8_t>(i * 7 / 5);
    std::vector<iovec> from = {{bench.Block(2), kBlock}, {bench.Block(0), 1}, {bench.Block(0) + 1, 2 * kBlock - 1}};
    std::vector<iovec> to = {{bench.Block(8), 2 * kBlock - 5}, {bench.Block(16), kBlock + 5}};
    bench.QueueOn(bench.file.fd(), 0, Kind::kWriteThenFlush, 512, 3 * kBlock, &from);
    CHECK(bench.Finish(1, 1)[0] == 0);
    bench.QueueOn(bench.file.fd(), 1, Kind::kRead, 512, 3 * kBlock, &to);
    CHECK(bench.Finish(1, 1)[1] == 0);
    std::vector<uint8_t> all(bench.Block(8), bench.Block(8) + 2 * kBlock - 5);
    all.insert(all.end(), bench.Block(16), bench.Block(16) + kBlock + 5);
    CHECK(memcmp(all.data(), bench.Block(2), kBlock) == 0);
    CHECK(memcmp(all.data() + kBlock, bench.Block(0), 2 * kBlock) == 0);
  });
}

TEST("what the kernel puts off is tried again, and for a bounded time") {
  WithEachEngine([](Bench& bench) {
    const int later = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    const int never = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    bench.QueueOn(later, 0, Kind::kRead, 0, 8);
    bench.QueueOn(never, 1, Kind::kRead, 0, 8);
    ForbidWaiting();
    bench.engine->Kick();
    usleep(5000);
    CHECK(write(later, "12345678", 8) == 8);
    const auto values = bench.Finish(2, kCapacity);
    CHECK(values[0] == 0);
    CHECK(values[1] == -EAGAIN);
    CHECK(memcmp(bench.Block(0), "12345678", 8) == 0);
    close(later);
    close(never);
  });
}

TEST("what has not begun can be cancelled; what is over or unknown to the engine is left") {
  WithEachEngine([](Bench& bench) {
    // Three threads, and as many reads that wait for something to come.
    const int gate = eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE);
    for (uint32_t id = 0; id < 4; id++) bench.QueueOn(gate, id, Kind::kRead, 0, 8);
    bench.engine->Kick();
    usleep(20000);
    bench.engine->Cancel(&bench.operations[3]);
    const auto cancelled = bench.Finish(1, kCapacity);
    CHECK(cancelled[3] == -ECANCELED);
    for (uint32_t id = 0; id < 3; id++) CHECK(cancelled[id] == kNone);
    bench.Queue(4, Kind::kWrite, 0, kBlock);
    const uint64_t three = 3;
    CHECK(write(gate, &three, sizeof(three)) == sizeof(three));
    for (const int32_t value : bench.Finish(4, kCapacity)) CHECK(value == 0 || value == kNone);
    bench.engine->Cancel(&bench.operations[0]);
    bench.Queue(5, Kind::kRead, 0, kBlock);
    CHECK(bench.Finish(1, kCapacity)[5] == 0);
    close(gate);
  });
}

TEST("one operation is waited for until it is over, or for the time given; what comes later is announced") {
  WithEachEngine([](Bench& bench) {
    Result result{};
    const int gate = eventfd(0, EFD_CLOEXEC);
    bench.QueueOn(gate, 0, Kind::kRead, 0, 8);
    bench.engine->BeginReaping(false);
    bench.engine->KickAndWait(1'000'000);
    CHECK(bench.engine->Reap(&result, 1) == 0);
    bench.engine->EndReaping();
    CHECK(write(gate, "12345678", 8) == 8);
    CHECK(bench.Finish(1, 1)[0] == 0);

    bench.engine->BeginReaping(false);
    bench.Queue(1, Kind::kWrite, 0, kBlock);
    uint32_t count = 0;
    // A machine may be so busy that nothing happens within the time.
    for (bench.engine->KickAndWait(900'000'000); count == 0;) count = bench.engine->Reap(&result, 1);
    CHECK(result.id == 1 && result.value == 0);
    bench.engine->EndReaping();
    close(gate);
  });
}

TEST("a write that is cut short with a flush behind it ends with the reason, and a whole one is flushed") {
  rlimit before;
  CHECK(getrlimit(RLIMIT_FSIZE, &before) == 0);
  const auto handler = signal(SIGXFSZ, SIG_IGN);
  WithEachEngine([&](Bench& bench) {
    const rlimit limit{kCapacity * kBlock, before.rlim_max};
    CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    bench.Queue(0, Kind::kWriteThenFlush, (kCapacity - 1) * kBlock, 2 * kBlock);
    bench.Queue(2, Kind::kWriteThenFlush, 0, 2 * kBlock);
    const auto values = bench.Finish(2, 1);
    CHECK(setrlimit(RLIMIT_FSIZE, &before) == 0);
    CHECK(values[0] == -EFBIG);
    CHECK(bench.operations[0].done == kBlock);
    CHECK(values[2] == 0);
  });
  signal(SIGXFSZ, handler);
}

TEST("a flush that the kernel has taken apart from its write goes again") {
  WithEachEngine([](Bench& bench) {
    for (const bool apart : {false, true}) {
      bench.Queue(0, Kind::kWriteThenFlush, 0, kBlock);
      takes_one_entry = apart;
      entries_taken = 0;
      const auto values = bench.Finish(1, 1);
      takes_one_entry = false;
      CHECK(values[0] == 0);
      CHECK(entries_taken == 0 || entries_taken == (apart ? 3 : 2));
    }
  });
}

TEST("registered files and memory serve like others, and a file that is taken out is let go of at once") {
  WithEachEngine([](Bench& bench) {
    if (!bench.engine->RegistersFiles()) return;
    CHECK(bench.engine->RegisterFile(3, bench.file.fd()) == 0);
    CHECK(bench.engine->RegisterFile(1 << 20, bench.file.fd()) != 0);
    const bool memory = bench.engine->RegisterMemory(7, bench.memory.data(), bench.memory.size()) == 0;
    bench.registered_file = 3;
    bench.registered_memory = memory ? 7 : kNotRegistered;
    const Kind kinds[] = {Kind::kWrite, Kind::kWriteFua, Kind::kWriteThenFlush};
    for (uint32_t id = 0; id < 3; id++) {
      memset(bench.Block(id), static_cast<int>(id + 1), kBlock);
      // The number that the operation would have without registration is no file's.
      bench.QueueOn(-1, id, kinds[id], uint64_t{id} * kBlock, kBlock);
    }
    bench.QueueOn(-1, 3, Kind::kFlush, 0, 0);
    for (const int32_t value : bench.Finish(4, 1)) CHECK(value == 0 || value == kNone);
    for (uint32_t id = 0; id < 3; id++) bench.QueueOn(-1, 8 + id, Kind::kRead, uint64_t{id} * kBlock, kBlock);
    bench.Finish(3, 1);
    for (uint32_t id = 0; id < 3; id++) CHECK(memcmp(bench.Block(id), bench.Block(8 + id), kBlock) == 0);

    int ends[2];
    CHECK(pipe(ends) == 0);
    CHECK(bench.engine->RegisterFile(5, ends[1]) == 0);
    close(ends[1]);
    bench.engine->UnregisterFile(5);
    pollfd reading{ends[0], POLLIN, 0};
    CHECK(poll(&reading, 1, 0) == 1 && (reading.revents & POLLHUP) != 0);
    close(ends[0]);
    bench.engine->UnregisterMemory(7);
  });
}

TEST("times go into buckets that hold them, none more than an eighth too wide") {
  uint64_t lowest = 0;
  uint32_t last = 0;
  for (uint64_t value = 0; value < uint64_t{1} << 37; value += value / 64 + 1) {
    const uint32_t bucket = TimeBucket(value);
    CHECK(bucket == last || bucket == last + 1);
    if (bucket != last) lowest = value;
    if (value < uint64_t{1} << 36) CHECK((value - lowest) * 8 <= lowest);
    last = bucket;
  }
  CHECK(last == kTimeBuckets - 1);
}
