// mmap(2): MAP_SYNC, which is honoured or refused only together with MAP_SHARED_VALIDATE, promises that the file's
// metadata are durable before a page becomes writable, so that stores need no system call.
#include "region/mapping.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

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

Mapping::~Mapping() {
  ReleaseFile();
  if (data_ == nullptr) return;
  // The pages of a shared file mapping are only dropped from the page table; a later touch brings them back.
  if (keeps_addresses_) {
    madvise(data_, size_, MADV_DONTNEED);
  } else {
    munmap(data_, size_);
  }
}

void Mapping::ReleaseFile() {
  if (fd_ < 0) return;
  // Closing alone would not do: the mapping is a user of the same open file, and the lock lasts as long as that.
  flock(fd_, LOCK_UN);
  close(fd_);
  fd_ = -1;
}

Failure Mapping::Open(const Options& options) {
  bool created = false;
  fd_ = open(options.path.c_str(), O_RDWR | O_CLOEXEC);
  if (fd_ < 0 && errno == ENOENT && options.create) {
    fd_ = open(options.path.c_str(), O_RDWR | O_CLOEXEC | O_CREAT | O_EXCL, 0600);
    created = fd_ >= 0;
  }
  if (fd_ < 0) return {errno, "open"};
  Failure failure;
  if (flock(fd_, LOCK_EX | LOCK_NB) != 0) failure = {errno, "flock"};
  if (failure.error == 0) failure = Size(options, created);
  if (failure.error == 0) failure = Map();
  if (failure.error != 0 && created) unlink(options.path.c_str());
  return failure;
}

Failure Mapping::Size(const Options& options, bool created) {
  struct stat status;
  if (fstat(fd_, &status) != 0) return {errno, "fstat"};
  if (!S_ISREG(status.st_mode)) return {ENODEV, "fstat"};
  const uint64_t present = static_cast<uint64_t>(status.st_size);
  const uint64_t wanted = options.size_bytes != 0 ? options.size_bytes : present;
  if (wanted == 0) return {EINVAL, "fstat"};
  if (wanted > options.size_limit_bytes) return {EFBIG, "fstat"};
  const uint64_t rounded = (wanted + PageBytes() - 1) / PageBytes() * PageBytes();
  const int error = posix_fallocate(fd_, 0, static_cast<off_t>(rounded));
  if (error != 0) {
    // What a failed allocation has already added is given back.
    if (ftruncate(fd_, status.st_size) != 0) return {errno, "ftruncate"};
    return {error, "fallocate"};
  }
  if (fsync(fd_) != 0) return {errno, "fsync"};
  size_ = rounded;
  return created ? SyncFolder(options.path) : Failure{};
}

Failure Mapping::Map() {
  constexpr int kProtection = PROT_READ | PROT_WRITE;
  void* data = MAP_FAILED;
  if (CacheFlushInstruction() != nullptr) {
    data = mmap(nullptr, size_, kProtection, MAP_SHARED_VALIDATE | MAP_SYNC, fd_, 0);
    if (data != MAP_FAILED) means_ = Means::kMapSync;
  }
  if (data == MAP_FAILED) data = mmap(nullptr, size_, kProtection, MAP_SHARED, fd_, 0);
  if (data == MAP_FAILED) return {errno, "mmap"};
  data_ = static_cast<uint8_t*>(data);
  return {};
}

bool Mapping::IsDirect(size_t length) const { return means_ == Means::kMapSync && length <= kDirectLimitBytes; }

Failure Mapping::Persist(size_t offset, size_t length) {
  if (means_ == Means::kMapSync) {
    FlushCache(data_ + offset, length);
    return {};
  }
  const std::lock_guard<std::mutex> turn(sync_mutex_);
  if (sync_error_ != 0) return {sync_error_, "an earlier msync"};
  if (length == 0) return {};
  const size_t start = offset / PageBytes() * PageBytes();
  if (msync(data_ + start, offset + length - start, MS_SYNC) == 0) return {};
  sync_error_ = errno;
  return {sync_error_, "msync"};
}

}  // namespace holdfast::region
