// libblkid's low-level probing interface (its reference manual, "Low-level probing"): a prober, whose chains
// (superblocks, partition tables) are enabled one by one. The safe probe accepts a result only if it is the only one in
// its chain; what contradicts itself is reported as ambivalent, and is then listed one signature at a time.
#include "identify/signatures.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

namespace holdfast::identify {
namespace {

struct ProbeStruct;
using Probe = ProbeStruct*;

// The library's results.
constexpr int kFound = 0;
constexpr int kNothing = 1;
constexpr int kAmbivalent = -2;

// BLKID_SUBLKS_… of blkid.h.
constexpr int kSuperblockLabel = 1 << 1;
constexpr int kSuperblockUuid = 1 << 3;
constexpr int kSuperblockType = 1 << 5;
constexpr int kSuperblockUsage = 1 << 7;
constexpr int kSuperblockVersion = 1 << 8;

constexpr size_t kSignaturesMax = 64;
constexpr size_t kValueBytesMax = 512;

struct Library {
  std::string missing;  // why it cannot be used; empty if it can
  Probe (*new_probe)() = nullptr;
  void (*free_probe)(Probe) = nullptr;
  int (*set_device)(Probe, int fd, int64_t offset, int64_t size) = nullptr;
  void (*reset_probe)(Probe) = nullptr;
  int (*enable_superblocks)(Probe, int enable) = nullptr;
  int (*set_superblocks_flags)(Probe, int flags) = nullptr;
  int (*enable_partitions)(Probe, int enable) = nullptr;
  int (*do_safeprobe)(Probe) = nullptr;
  int (*do_probe)(Probe) = nullptr;
  int (*numof_values)(Probe) = nullptr;
  int (*get_value)(Probe, int number, const char** name, const char** data, size_t* length) = nullptr;

  Library() {
    void* handle = dlopen("libblkid.so.1", RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
      missing = dlerror();
      return;
    }
    Find(handle, "blkid_new_probe", &new_probe);
    Find(handle, "blkid_free_probe", &free_probe);
    Find(handle, "blkid_probe_set_device", &set_device);
    Find(handle, "blkid_reset_probe", &reset_probe);
    Find(handle, "blkid_probe_enable_superblocks", &enable_superblocks);
    Find(handle, "blkid_probe_set_superblocks_flags", &set_superblocks_flags);
    Find(handle, "blkid_probe_enable_partitions", &enable_partitions);
    Find(handle, "blkid_do_safeprobe", &do_safeprobe);
    Find(handle, "blkid_do_probe", &do_probe);
    Find(handle, "blkid_probe_numof_values", &numof_values);
    Find(handle, "blkid_probe_get_value", &get_value);
  }

 private:
  template <typename Function>
  void Find(void* handle, const char* name, Function* function) {
    *function = reinterpret_cast<Function>(dlsym(handle, name));
    if (*function == nullptr && missing.empty()) missing = std::string("libblkid.so.1 lacks ") + name;
  }
};

// Loaded at first use, for the life of the process.
const Library& Blkid() {
  static const Library library;
  return library;
}

Signature Values(const Library& blkid, Probe probe) {
  Signature signature;
  const int count = blkid.numof_values(probe);
  for (int i = 0; i < count; i++) {
    const char* name = nullptr;
    const char* data = nullptr;
    size_t length = 0;
    if (blkid.get_value(probe, i, &name, &data, &length) != 0 || name == nullptr || data == nullptr) continue;
    if (length > 0 && data[length - 1] == 0) length--;
    signature.emplace_back(name, std::string(data, length < kValueBytesMax ? length : kValueBytesMax));
  }
  return signature;
}

void Run(const Library& blkid, Probe probe, ProbeResult* result) {
  blkid.enable_superblocks(probe, 1);
  blkid.set_superblocks_flags(
      probe, kSuperblockLabel | kSuperblockUuid | kSuperblockType | kSuperblockUsage | kSuperblockVersion);
  blkid.enable_partitions(probe, 1);
  errno = 0;
  switch (blkid.do_safeprobe(probe)) {
    case kFound:
      result->signatures.push_back(Values(blkid, probe));
      return;
    case kNothing:
      return;
    case kAmbivalent:
      result->ambivalent = true;
      blkid.reset_probe(probe);
      while (result->signatures.size() < kSignaturesMax && blkid.do_probe(probe) == kFound) {
        result->signatures.push_back(Values(blkid, probe));
      }
      return;
    default:
      result->error = errno != 0 ? errno : EIO;
      result->call = "blkid_do_safeprobe";
  }
}

}  // namespace

ProbeResult ProbeSignatures(const std::string& path, uint64_t offset_bytes, uint64_t size_bytes) {
  ProbeResult result;
  const Library& blkid = Blkid();
  if (!blkid.missing.empty()) {
    result.error = ELIBACC;
    result.call = "dlopen";
    result.detail = blkid.missing;
    return result;
  }
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    result.error = errno;
    result.call = "open";
    return result;
  }
  Probe probe = blkid.new_probe();
  errno = 0;
  if (probe == nullptr) {
    result.error = ENOMEM;
    result.call = "blkid_new_probe";
  } else if (blkid.set_device(probe, fd, static_cast<int64_t>(offset_bytes), static_cast<int64_t>(size_bytes)) != 0) {
    result.error = errno != 0 ? errno : EINVAL;
    result.call = "blkid_probe_set_device";
  } else {
    Run(blkid, probe, &result);
  }
  if (probe != nullptr) blkid.free_probe(probe);
  close(fd);
  return result;
}

}  // namespace holdfast::identify
