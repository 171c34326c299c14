#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "ring/thread_pool.h"
#include "ring/uring.h"
#include "test/check.h"

using namespace holdfast::ring;

namespace {

constexpr uint32_t kCapacity = 64;
constexpr uint32_t kBlock = 4096;

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

  Bench() {
    for (uint32_t i = 0; i < kCapacity; i++) operations[i].id = i;
  }

  uint8_t* Block(uint32_t id) { return memory.data() + id * kBlock; }

  void Queue(uint32_t id, Kind kind, uint64_t offset, uint32_t length) {
    Operation& operation = operations[id];
    operation.kind = kind;
    operation.fd = file.fd();
    operation.data = Block(id);
    operation.offset = offset;
    operation.length = length;
    operation.range_length = length;
    operation.done = 0;
    engine->Queue(&operation);
  }

  // Results by id, in however small portions.
  std::vector<int32_t> Finish(uint32_t count, uint32_t portion) {
    std::vector<int32_t> values(kCapacity, -9999);
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
      engine->BeginReaping();
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
      bench.engine->BeginReaping();
      CHECK(bench.engine->Reap(results, 1) == 0);
      bench.engine->EndReaping();
    }
  });
}
