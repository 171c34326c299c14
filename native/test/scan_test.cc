#include <stdlib.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <limits>
#include <mutex>
#include <string>
#include <vector>

#include "checksum/crc32c.h"
#include "ring/engine.h"
#include "scan/pipeline.h"
#include "test/check.h"

using namespace holdfast;
using namespace holdfast::scan;

namespace {

constexpr uint64_t kSize = 3 * 1024 * 1024 + 512;

std::vector<uint8_t> Content() {
  std::vector<uint8_t> content(kSize);
  uint32_t state = 1;
  for (uint8_t& byte : content) byte = static_cast<uint8_t>((state = state * 1664525 + 1013904223) >> 24);
  return content;
}

// A file without a name, with that content.
int OpenFile() {
  const char* parent = getenv("TMPDIR");
  std::string path = std::string(parent != nullptr ? parent : "/tmp") + "/holdfast-scan-XXXXXX";
  const int fd = mkstemp(path.data());
  CHECK(fd >= 0);
  unlink(path.c_str());
  const std::vector<uint8_t> content = Content();
  CHECK(write(fd, content.data(), content.size()) == static_cast<ssize_t>(content.size()));
  return fd;
}

// What lanes tell, to be waited for.
struct Ear {
  std::mutex mutex;
  std::condition_variable changed;
  uint64_t calls = 0;
  bool ended = false;

  static void OnReady(void* context, bool ended) {
    auto* ear = static_cast<Ear*>(context);
    const std::lock_guard<std::mutex> hold(ear->mutex);
    CHECK(!ear->ended);
    ear->calls++;
    ear->ended = ended;
    ear->changed.notify_all();
  }

  void WaitFor(uint64_t number) {
    std::unique_lock<std::mutex> hold(mutex);
    CHECK(changed.wait_for(hold, std::chrono::seconds(20), [&] { return calls >= number || ended; }));
  }

  void WaitForEnd() {
    std::unique_lock<std::mutex> hold(mutex);
    CHECK(changed.wait_for(hold, std::chrono::seconds(20), [&] { return ended; }));
  }
};

Settings Plan(uint32_t engine, uint32_t lanes) {
  Settings settings;
  settings.fd = OpenFile();
  settings.length = kSize;
  settings.block_bytes = 4096;
  settings.piece_blocks = 4;
  settings.batch_pieces = 8;
  settings.batches = 2;
  settings.depth = 4;
  settings.lanes = lanes;
  settings.alignment_bytes = 512;
  settings.engine = engine;
  settings.bytes_per_second = std::numeric_limits<double>::infinity();
  settings.algorithm.name = "crc32c";
  CHECK(Pipeline::AreValid(settings));
  return settings;
}

std::vector<uint8_t> TakeAll(Pipeline& pipeline, Ear& ear) {
  std::vector<uint8_t> all;
  std::vector<uint8_t> batch(32 * 4);
  for (uint64_t call = 1;; call++) {
    const bool ended = pipeline.ended();
    while (const uint64_t blocks = pipeline.Take(batch.data(), batch.size())) {
      all.insert(all.end(), batch.begin(), batch.begin() + static_cast<ptrdiff_t>(4 * blocks));
    }
    if (ended) return all;
    ear.WaitFor(call);
  }
}

std::vector<uint8_t> Expected(uint64_t offset, uint64_t length, uint64_t block_bytes) {
  const std::vector<uint8_t> content = Content();
  std::vector<uint8_t> all;
  for (uint64_t done = 0; done < length; done += block_bytes) {
    const uint64_t rest = length - done < block_bytes ? length - done : block_bytes;
    const uint32_t checksum = checksum::Crc32c(0, content.data() + offset + done, rest);
    for (int i = 0; i < 4; i++) all.push_back(static_cast<uint8_t>(checksum >> (8 * i)));
  }
  return all;
}

constexpr uint32_t kEngines[] = {0, 1, 2, 3};

}  // namespace

TEST("every engine and number of lanes gives every block's checksum in order") {
  for (const uint32_t engine : kEngines) {
    for (const uint32_t lanes : {1u, 3u}) {
      Ear ear;
      Pipeline pipeline(Plan(engine, lanes), Ear::OnReady, &ear);
      CHECK(pipeline.Start() == 0);
      CHECK(TakeAll(pipeline, ear) == Expected(0, kSize, 4096));
      CHECK(pipeline.done_bytes() == kSize);
      CHECK(pipeline.failure().result == 0);
    }
  }
}

TEST("blocks and ends that are not whole units of the device") {
  Settings settings = Plan(0, 2);
  settings.offset = 777;
  settings.length = 1000001;
  settings.block_bytes = 1000;
  Ear ear;
  Pipeline pipeline(settings, Ear::OnReady, &ear);
  CHECK(pipeline.Start() == 0);
  CHECK(TakeAll(pipeline, ear) == Expected(777, 1000001, 1000));
}

TEST("what is before a failure can be taken, and nothing else") {
  for (const uint32_t engine : kEngines) {
    Settings settings = Plan(engine, 2);
    constexpr uint64_t kLeft = 1024 * 1024 + 3 * 4 * 4096;    // in the middle of a batch
    CHECK(ftruncate(settings.fd, kLeft) == 0);
    Ear ear;
    Pipeline pipeline(settings, Ear::OnReady, &ear);
    CHECK(pipeline.Start() == 0);
    CHECK(TakeAll(pipeline, ear) == Expected(0, kLeft, 4096));
    const Failure failure = pipeline.failure();
    CHECK(failure.result == ring::kEndedEarly && failure.offset == kLeft && failure.length == 4 * 4096);
  }
}

TEST("nobody takes: no more is read than the batches that may wait, and cancelling ends it") {
  for (const uint32_t engine : kEngines) {
    Ear ear;
    Pipeline pipeline(Plan(engine, 2), Ear::OnReady, &ear);
    CHECK(pipeline.Start() == 0);
    ear.WaitFor(1);
    pipeline.Cancel();
    ear.WaitForEnd();
    CHECK(pipeline.ended());
    CHECK(pipeline.done_bytes() <= 2 * 8 * 4 * 4096);
    pipeline.Join();
    std::vector<uint8_t> batch(32 * 4);
    CHECK(pipeline.Take(batch.data(), batch.size()) == 32);
  }
}

TEST("cancelling does not wait for a rate") {
  Settings settings = Plan(1, 2);
  settings.bytes_per_second = 1;
  Ear ear;
  Pipeline pipeline(settings, Ear::OnReady, &ear);
  CHECK(pipeline.Start() == 0);
  pipeline.Cancel();
  ear.WaitForEnd();
  CHECK(pipeline.done_bytes() <= 4 * 4096);
}

TEST("settings out of bounds are refused") {
  const Settings good = Plan(0, 1);
  const auto refused = [&](auto change) {
    Settings settings = good;
    change(settings);
    CHECK(!Pipeline::AreValid(settings));
  };
  refused([](Settings& s) { s.length = 0; });
  refused([](Settings& s) { s.offset = uint64_t{1} << 53; });
  refused([](Settings& s) { s.block_bytes = 0; });
  refused([](Settings& s) { s.block_bytes = Pipeline::kMaxPieceBytes + 1; });
  refused([](Settings& s) { s.piece_blocks = Pipeline::kMaxPieceBytes / 4096 + 1; });
  refused([](Settings& s) { s.batch_pieces = uint64_t{1} << 40; });
  refused([](Settings& s) { s.batches = 0; });
  refused([](Settings& s) { s.depth = Pipeline::kMaxDepth + 1; });
  refused([](Settings& s) { s.lanes = 0; });
  refused([](Settings& s) { s.alignment_bytes = 513; });
  refused([](Settings& s) { s.engine = 4; });
  refused([](Settings& s) { s.bytes_per_second = 0; });
  refused([](Settings& s) { s.bytes_per_second = std::numeric_limits<double>::quiet_NaN(); });
  close(good.fd);
}
