// A file mapped into memory, shared and writable, whose bytes can be made to survive a power cut. Knows nothing of
// Node.
//
// Invariants:
// - The file is as long as the mapping and all of it is allocated, so that a store cannot meet a full disk (which
//   would be SIGBUS). Its length and, if it is new, its name are durable before Open returns.
// - The file is locked against mappings of it by others from Open to ReleaseFile (flock: advisory). A mapping can have
//   longer successors, which share its lock.
// - A failed sync, also one for a length, is never retried: Persist of the file's mappings fails for ever after it,
//   because the kernel has marked those pages clean.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

namespace holdfast::region {

enum class Means {
  kMapSync,     // DAX with MAP_SYNC: writing the processor's caches back is enough
  kMsync,       // the page cache: msync
  kCacheFlush,  // whoever opens it vouches that this memory survives: the caches are written back
};

struct Failure {
  int error = 0;  // an errno; 0 is success
  const char* call = "";
};

class Mapping {
 public:
  Mapping() = default;
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  struct Options {
    std::string path;
    uint64_t size_bytes = 0;  // rounded up to whole pages; 0: as long as the file is
    uint64_t size_limit_bytes = 0;
    bool create = false;  // if there is no such file
    bool any_means = true;  // kMapSync where the file allows it, else kMsync; false: what `means` says, or an error
    Means means = Means::kMsync;
  };

  // At most once. After a failure only destruction is allowed; a file that it created is removed again.
  Failure Open(const Options& options);

  // A mapping for OpenGrown. This one must not have released its file; it may do so afterwards.
  std::unique_ptr<Mapping> Successor() const;

  // Lengthens the file and maps all of it again, by the same means. At most once, on a Successor. After a failure the
  // file is as it was.
  Failure OpenGrown(uint64_t size_bytes, uint64_t size_limit_bytes);

  // Returns when the range, as stored before the call, survives a power cut. 0 ≤ offset, offset + length ≤ size.
  // Callable from any thread. Syncs take turns: the kernel tells a failure to one of those at work, and calls the others
  // good.
  Failure Persist(size_t offset, size_t length);

  // Copies into the range, which may overlap the source. True if it survives a power cut on return; else Persist makes
  // it durable, and should follow: for stores that are not to be persisted soon a plain copy is better. Not after
  // ReleaseFile.
  bool Write(size_t offset, const void* from, size_t length);

  // True if Persist of so many bytes is done in microseconds, without a system call.
  bool IsDirect(size_t length) const;

  // Closes the file and gives up its lock, unless a successor holds them too; the mapping stays.
  void ReleaseFile() { file_.reset(); }

  // From now on destruction gives the pages back, but never the addresses: someone unknown may still use them.
  void KeepAddresses() { keeps_addresses_ = true; }

  uint8_t* data() const { return data_; }
  size_t size() const { return size_; }
  Means means() const { return means_; }

 private:
  // The open file and its lock.
  class File;
  // What the mappings of one file know of its syncs.
  struct Syncs {
    std::mutex mutex;
    int error = 0;  // under the mutex
  };

  Failure Size(const Options& options, bool created);
  Failure SyncFile();
  void WriteFile(size_t offset, const uint8_t* source, size_t length);
  Failure Map(bool any_means, Means means);
  bool FlushesCaches() const { return means_ != Means::kMsync; }

  std::shared_ptr<File> file_;
  std::shared_ptr<Syncs> syncs_ = std::make_shared<Syncs>();
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
  Means means_ = Means::kMsync;
  bool keeps_addresses_ = false;
};

}  // namespace holdfast::region
