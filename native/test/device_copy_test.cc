#include "copy/device_copy.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "test/check.h"

using namespace holdfast::copy;

namespace {

// An open file without a name.
class File {
 public:
  File() {
    const char* parent = getenv("TMPDIR");
    std::string path = std::string(parent != nullptr ? parent : "/tmp") + "/holdfast-copy-XXXXXX";
    fd_ = mkstemp(path.data());
    CHECK(fd_ >= 0);
    unlink(path.c_str());
  }
  ~File() { close(fd_); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  void Fill(size_t length) {
    std::vector<uint8_t> bytes(length);
    for (size_t i = 0; i < length; i++) bytes[i] = static_cast<uint8_t>(i * 7 + 1);
    CHECK(pwrite(fd_, bytes.data(), length, 0) == static_cast<ssize_t>(length));
  }

  std::vector<uint8_t> Read(size_t offset, size_t length) const {
    std::vector<uint8_t> bytes(length);
    const ssize_t read = pread(fd_, bytes.data(), length, static_cast<off_t>(offset));
    bytes.resize(static_cast<size_t>(std::max<ssize_t>(0, read)));
    return bytes;
  }

  int fd() const { return fd_; }

 private:
  int fd_;
};

}  // namespace

TEST("the kernel copies a range, and no more than the source has") {
  File source, target;
  source.Fill(20000);
  uint64_t copied = 0;
  Range range = {source.fd(), 4096, target.fd(), 8192, 4096};
  const Failure failure = CopyFileRange(range, &copied);
  if (failure.error == EXDEV || failure.error == EOPNOTSUPP) return;  // a file system that cannot
  CHECK(failure.error == 0 && copied > 0 && copied <= 4096);
  CHECK(target.Read(8192, copied) == source.Read(4096, copied));
  range.source_offset = 20000;
  CHECK(CopyFileRange(range, &copied).error == 0 && copied == 0);
}

TEST("what the kernel refuses has the errno") {
  const File source, target;
  uint64_t copied;
  CHECK(CopyFileRange({-1, 0, target.fd(), 0, 1}, &copied).error == EBADF);
  CHECK(CloneRange({-1, 0, target.fd(), 0, 4096}).error != 0);
  CHECK(DropCache(-1, 0, 1).error == ENOENT);
  CHECK(CloneRange({source.fd(), 0, target.fd(), 0, 0}).error == EINVAL);
  CHECK(DropCache(target.fd(), 0, 4096).error == 0);
  ScsiCommand command;
  command.cdb = {0x12, 0, 0, 0, 36, 0};
  command.data.resize(36);
  command.reads = true;
  CHECK(RunScsi(source.fd(), &command).error == ENOTTY);
}
