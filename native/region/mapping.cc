// mmap(2): MAP_SYNC, which is honoured or refused only together with MAP_SHARED_VALIDATE, promises that the file's
// metadata are durable before a page becomes writable, so that stores need no system call.
#include "region/mapping.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "region/cache_flush.h"

// Older C libraries lack them; the values are the kernel's (asm-generic/mman.h).
#ifndef MAP_SHARED_VALIDATE
#define MAP_SHARED_VALIDATE 0x03
#endif
#ifndef MAP_SYNC
#define MAP_SYNC 0x080000
#endif

namespace holdfast::region {
namespace {

constexpr size_t kDirectLimitBytes = 1 << 20;

size_t PageBytes() {
  static const size_t bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

std::string Folder(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

Failure SyncFolder(const std::string& path) {
  const int fd = open(Folder(path).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return {errno, "open folder"};
  const int result = fsync(fd);
  const int error = errno;
  close(fd);
  return result == 0 ? Failure{} : Failure{error, "fsync folder"};
}

}  // namespace

class Mapping::File {
 public:
  explicit File(int fd) : fd_(fd) {}
  // Closing alone would not do: the mapping is a user of the same open file, and the lock lasts as long as that.
  ~File() {
    flock(fd_, LOCK_UN);
    close(fd_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  int fd() const { return fd_; }

 private:
  const int fd_;
};

Mapping::~Mapping() {
  if (data_ == nullptr) return;
  // The pages of a shared file mapping are only dropped from the page table; a later touch brings them back.
  if (keeps_addresses_) {
    madvise(data_, size_, MADV_DONTNEED);
  } else {
    munmap(data_, size_);
  }
}

Failure Mapping::Open(const Options& options) {
  bool created = false;
  int fd = open(options.path.c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0 && errno == ENOENT && options.create) {
    fd = open(options.path.c_str(), O_RDWR | O_CLOEXEC | O_CREAT | O_EXCL, 0600);
    created = fd >= 0;
  }
  if (fd < 0) return {errno, "open"};
  file_ = std::make_shared<File>(fd);
  Failure failure;
  if (flock(fd, LOCK_EX | LOCK_NB) != 0) failure = {errno, "flock"};
  if (failure.error == 0) failure = Size(options, created);
  if (failure.error == 0) failure = Map(options.any_means, options.means);
  if (failure.error != 0 && created) unlink(options.path.c_str());
  return failure;
}

std::unique_ptr<Mapping> Mapping::Successor() const {
  auto successor = std::make_unique<Mapping>();
  successor->file_ = file_;
  successor->syncs_ = syncs_;
  successor->means_ = means_;
  successor->size_ = size_;
  return successor;
}

Failure Mapping::OpenGrown(uint64_t size_bytes, uint64_t size_limit_bytes) {
  struct stat before;
  if (fstat(file_->fd(), &before) != 0) return {errno, "fstat"};
  Options options;
  options.size_bytes = size_bytes;
  options.size_limit_bytes = size_limit_bytes;
  Failure failure = Size(options, false);
  if (failure.error == 0) failure = Map(false, means_);
  if (failure.error != 0 && ftruncate(file_->fd(), before.st_size) != 0) return {errno, "ftruncate"};
  return failure;
}

Failure Mapping::Size(const Options& options, bool created) {
  const int fd = file_->fd();
  struct stat status;
  if (fstat(fd, &status) != 0) return {errno, "fstat"};
  if (!S_ISREG(status.st_mode)) return {ENODEV, "fstat"};
  const uint64_t present = static_cast<uint64_t>(status.st_size);
  const uint64_t wanted = options.size_bytes != 0 ? options.size_bytes : present;
  if (wanted == 0) return {EINVAL, "fstat"};
  if (wanted > options.size_limit_bytes) return {EFBIG, "fstat"};
  const uint64_t rounded = (wanted + PageBytes() - 1) / PageBytes() * PageBytes();
  // Not what a predecessor maps: where the file system cannot do it the C library writes to every block, past stores.
  const uint64_t missing = rounded > size_ ? rounded - size_ : 0;
  const int error =
      missing > 0 ? posix_fallocate(fd, static_cast<off_t>(size_), static_cast<off_t>(missing)) : 0;
  if (error != 0) {
    // What a failed allocation has already added is given back.
    if (ftruncate(fd, status.st_size) != 0) return {errno, "ftruncate"};
    return {error, "fallocate"};
  }
  const Failure failure = SyncFile();
  if (failure.error != 0) return failure;
  size_ = rounded;
  return created ? SyncFolder(options.path) : Failure{};
}

// In turn with Persist: it could be this one that the kernel tells of a page that it has lost.
Failure Mapping::SyncFile() {
  const std::lock_guard<std::mutex> turn(syncs_->mutex);
  if (syncs_->error != 0) return {syncs_->error, "an earlier sync"};
  if (fsync(file_->fd()) == 0) return {};
  syncs_->error = errno;
  return {syncs_->error, "fsync"};
}

Failure Mapping::Map(bool any_means, Means means) {
  constexpr int kProtection = PROT_READ | PROT_WRITE;
  const int fd = file_->fd();
  const bool flushes = CacheFlushInstruction() != nullptr;
  if (!any_means && means != Means::kMsync && !flushes) return {EOPNOTSUPP, "mmap"};
  void* data = MAP_FAILED;
  means_ = means;
  if (flushes && (any_means || means == Means::kMapSync)) {
    data = mmap(nullptr, size_, kProtection, MAP_SHARED_VALIDATE | MAP_SYNC, fd, 0);
    means_ = data != MAP_FAILED ? Means::kMapSync : Means::kMsync;
    if (data == MAP_FAILED && !any_means) return {errno, "mmap"};
  }
  if (data == MAP_FAILED) data = mmap(nullptr, size_, kProtection, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) return {errno, "mmap"};
  data_ = static_cast<uint8_t*>(data);
  return {};
}

bool Mapping::Write(size_t offset, const void* from, size_t length) {
  if (length == 0) return FlushesCaches();
  uint8_t* const to = data_ + offset;
  const uint8_t* const source = static_cast<const uint8_t*>(from);
  const bool overlaps = source < to + length && to < source + length;
  if (FlushesCaches() && !overlaps) {
    CopyAndFlush(to, source, length);
    return true;
  }
  if (!FlushesCaches() && !overlaps) {
    WriteFile(offset, source, length);
    return false;
  }
  memmove(to, source, length);
  if (!FlushesCaches()) return false;
  FlushCache(to, length);
  return true;
}

// The same pages, by the file: a store through the mapping would have each of them made writable first, and the sync
// would have to take that back in all processors at work.
void Mapping::WriteFile(size_t offset, const uint8_t* source, size_t length) {
  size_t done = 0;
  while (done < length) {
    const ssize_t written = pwrite(file_->fd(), source + done, length - done, static_cast<off_t>(offset + done));
    if (written <= 0) break;
    done += static_cast<size_t>(written);
  }
  memcpy(data_ + offset + done, source + done, length - done);
}

bool Mapping::IsDirect(size_t length) const { return FlushesCaches() && length <= kDirectLimitBytes; }

Failure Mapping::Persist(size_t offset, size_t length) {
  if (FlushesCaches()) {
    FlushCache(data_ + offset, length);
    return {};
  }
  const std::lock_guard<std::mutex> turn(syncs_->mutex);
  if (syncs_->error != 0) return {syncs_->error, "an earlier sync"};
  if (length == 0) return {};
  const size_t start = offset / PageBytes() * PageBytes();
  if (msync(data_ + start, offset + length - start, MS_SYNC) == 0) return {};
  syncs_->error = errno;
  return {syncs_->error, "msync"};
}

}  // namespace holdfast::region
