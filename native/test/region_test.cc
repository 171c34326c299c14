#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "region/cache_flush.h"
#include "region/mapping.h"
#include "test/check.h"

using namespace holdfast::region;

namespace {

int fsync_error = 0;

}  // namespace

// In this program fsync can be told to fail: no disk that is easily had does.
extern "C" int fsync(int fd) {
  errno = fsync_error;
  return fsync_error == 0 ? static_cast<int>(syscall(SYS_fsync, fd)) : -1;
}

namespace {

// A folder that goes when the test ends.
class Folder {
 public:
  Folder() {
    const char* parent = getenv("TMPDIR");
    path_ = std::string(parent != nullptr ? parent : "/tmp") + "/holdfast-region-XXXXXX";
    CHECK(mkdtemp(path_.data()) != nullptr);
  }
  ~Folder() {
    unlink(File().c_str());
    rmdir(path_.c_str());
  }
  std::string File() const { return path_ + "/region"; }

 private:
  std::string path_;
};

Mapping::Options OfSize(const Folder& folder, uint64_t size_bytes) {
  return {.path = folder.File(), .size_bytes = size_bytes, .size_limit_bytes = 1 << 30, .create = true};
}

}  // namespace

TEST("what is stored in a mapping is in the next mapping of the file") {
  Folder folder;
  {
    Mapping mapping;
    CHECK(mapping.Open(OfSize(folder, 5000)).error == 0);
    CHECK(mapping.size() % 4096 == 0 && mapping.size() >= 5000);
    memset(mapping.data(), 7, mapping.size());
    CHECK(mapping.Persist(0, mapping.size()).error == 0);
    CHECK(mapping.Persist(mapping.size(), 0).error == 0);
    CHECK(mapping.Persist(4095, 2).error == 0);
  }
  Mapping again;
  CHECK(again.Open({.path = folder.File(), .size_bytes = 0, .size_limit_bytes = 1 << 30, .create = false}).error == 0);
  CHECK(again.data()[0] == 7 && again.data()[again.size() - 1] == 7);
}

TEST("a mapped file cannot be mapped again until it is released") {
  Folder folder;
  Mapping first;
  CHECK(first.Open(OfSize(folder, 4096)).error == 0);
  {
    Mapping second;
    CHECK(second.Open(OfSize(folder, 4096)).error == EAGAIN);
  }
  first.ReleaseFile();
  Mapping third;
  CHECK(third.Open(OfSize(folder, 4096)).error == 0);
  first.data()[0] = 9;
  CHECK(third.data()[0] == 9);
}

TEST("a mapping that cannot be made leaves no file") {
  Folder folder;
  Mapping::Options options = OfSize(folder, 1 << 20);
  options.size_limit_bytes = 4096;
  Mapping mapping;
  CHECK(mapping.Open(options).error == EFBIG);
  struct stat status;
  CHECK(stat(folder.File().c_str(), &status) != 0);
}

TEST("memory that is kept after its mapping can still be used") {
  Folder folder;
  uint8_t* data;
  size_t size;
  {
    Mapping mapping;
    CHECK(mapping.Open(OfSize(folder, 4096)).error == 0);
    data = mapping.data();
    size = mapping.size();
    data[1] = 5;
    mapping.KeepAddresses();
  }
  CHECK(data[1] == 5);
  data[size - 1] = 6;
  CHECK(data[size - 1] == 6);
}

TEST("a successor has the lock, the bytes and the failure of the mapping before it") {
  Folder folder;
  auto first = std::make_unique<Mapping>();
  CHECK(first->Open(OfSize(folder, 4096)).error == 0);
  first->data()[5] = 5;
  const std::unique_ptr<Mapping> second = first->Successor();
  CHECK(second->OpenGrown(3 * 4096, 1 << 30).error == 0);
  CHECK(second->size() == 3 * 4096 && second->means() == first->means());
  first->data()[6] = 6;
  CHECK(second->data()[5] == 5 && second->data()[6] == 6 && second->data()[3 * 4096 - 1] == 0);
  first.reset();
  CHECK(second->data()[5] == 5 && second->Persist(0, second->size()).error == 0);
  {
    Mapping other;
    CHECK(other.Open(OfSize(folder, 4096)).error == EAGAIN);
  }
  second->ReleaseFile();
  Mapping other;
  CHECK(other.Open(OfSize(folder, 4096)).error == 0);
}

TEST("a mapping that cannot grow leaves the file as it was") {
  Folder folder;
  Mapping mapping;
  CHECK(mapping.Open(OfSize(folder, 4096)).error == 0);
  CHECK(mapping.Successor()->OpenGrown(1 << 20, 8192).error == EFBIG);
  struct stat status;
  CHECK(stat(folder.File().c_str(), &status) == 0 && status.st_size == 4096);
  mapping.data()[4095] = 1;
  CHECK(mapping.Persist(0, 4096).error == 0);
}

TEST("a page that is found lost while a mapping grows is not persisted by a later call") {
  Folder folder;
  Mapping::Options options = OfSize(folder, 4096);
  options.any_means = false;
  Mapping mapping;
  CHECK(mapping.Open(options).error == 0);
  mapping.data()[0] = 1;
  fsync_error = EIO;
  CHECK(mapping.Successor()->OpenGrown(8192, 1 << 30).error == EIO);
  fsync_error = 0;
  CHECK(mapping.Persist(0, 4096).error == EIO);
  CHECK(mapping.Successor()->OpenGrown(8192, 1 << 30).error == EIO);
}

TEST("a mapping goes by the means that it is told, or is refused") {
  Folder folder;
  Mapping::Options options = OfSize(folder, 4096);
  options.any_means = false;
  options.means = Means::kMsync;
  {
    Mapping mapping;
    CHECK(mapping.Open(options).error == 0 && mapping.means() == Means::kMsync && !mapping.IsDirect(1));
    const uint8_t bytes[3] = {1, 2, 3};
    CHECK(!mapping.Write(7, bytes, 3) && mapping.data()[9] == 3);
  }
  options.means = Means::kCacheFlush;
  Mapping mapping;
  const int error = mapping.Open(options).error;
  CHECK(error == (CacheFlushInstruction() == nullptr ? EOPNOTSUPP : 0));
  if (error == 0) CHECK(mapping.Write(4096, nullptr, 0) && mapping.IsDirect(1) && mapping.data()[9] == 3);
}

TEST("ranges are persisted from several threads at once") {
  Folder folder;
  Mapping mapping;
  CHECK(mapping.Open(OfSize(folder, 1 << 20)).error == 0);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < 4; i++) {
    threads.emplace_back([&mapping, i] {
      for (size_t round = 0; round < 20; round++) {
        mapping.data()[i * 100000 + round] = static_cast<uint8_t>(round);
        if (mapping.Persist(i * 100000, 100000).error != 0) abort();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST("caches are written back for exactly the range, of any alignment, with the data unchanged") {
  for (size_t length = 0; length < 300; length++) {
    std::unique_ptr<uint8_t[]> block(new uint8_t[length]);
    if (length > 0) memset(block.get(), 3, length);
    FlushCache(block.get(), length);
    bool unchanged = true;
    for (size_t i = 0; i < length; i++) unchanged = unchanged && block[i] == 3;
    CHECK(unchanged);
  }
}

TEST("a copy past the caches has every byte, at every alignment, and touches none beside") {
  std::vector<uint8_t> source(500), target(700);
  for (size_t i = 0; i < source.size(); i++) source[i] = static_cast<uint8_t>(i * 31 + 1);
  for (size_t length : {0, 1, 15, 16, 63, 64, 65, 127, 128, 191, 300, 400}) {
    for (size_t at = 0; at < 130; at++) {
      memset(target.data(), 0xEE, target.size());
      CopyAndFlush(target.data() + at, source.data() + at % 17, length);
      bool right = memcmp(target.data() + at, source.data() + at % 17, length) == 0;
      for (size_t i = 0; i < target.size(); i++) right = right && (target[i] == 0xEE || (i >= at && i < at + length));
      CHECK(right);
    }
  }
}
