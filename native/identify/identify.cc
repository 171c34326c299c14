#include "identify/identify.h"

#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <memory>
#include <string>
#include <utility>

#include "identify/signatures.h"
#include "support/napi_support.h"
#include "support/work.h"

namespace holdfast::identify {
namespace {

class ProbeWork : public support::Work {
 public:
  ProbeWork(Napi::Env env, std::string path, uint64_t offset_bytes, uint64_t size_bytes)
      : Work(env, "holdfast.identify.probe"),
        path_(std::move(path)),
        offset_bytes_(offset_bytes),
        size_bytes_(size_bytes) {}

  void Execute() override {
    result_ = ProbeSignatures(path_, offset_bytes_, size_bytes_);
    // A library that is not there is an answer, which says why.
    if (result_.error != 0 && result_.error != ELIBACC) Fail(result_.error, result_.call);
  }

  Napi::Value Result(Napi::Env env) override {
    Napi::Array list = Napi::Array::New(env, result_.signatures.size());
    for (uint32_t i = 0; i < result_.signatures.size(); i++) {
      Napi::Object values = Napi::Object::New(env);
      for (const auto& [name, value] : result_.signatures[i]) values.Set(name, value);
      list.Set(i, values);
    }
    Napi::Object object = Napi::Object::New(env);
    object.Set("signatures", list);
    object.Set("ambivalent", result_.ambivalent);
    object.Set("libraryMissing", result_.detail);
    return object;
  }

 private:
  std::string path_;
  uint64_t offset_bytes_;
  uint64_t size_bytes_;
  ProbeResult result_;
};

// probeSignatures(path, offset, sizeBytes): Promise<{ signatures, ambivalent, libraryMissing }>
Napi::Value ProbeSignaturesCall(const Napi::CallbackInfo& info) {
  std::string path;
  uint64_t offset_bytes, size_bytes;
  if (!support::GetString(info[0], PATH_MAX, &path) || !support::GetSize(info[1], &offset_bytes) ||
      !support::GetSize(info[2], &size_bytes)) {
    return support::ThrowType(info.Env(), "probeSignatures takes a path, an offset and a size");
  }
  return support::Work::Start(std::make_unique<ProbeWork>(info.Env(), std::move(path), offset_bytes, size_bytes));
}

struct BlockGeometry {
  uint64_t size_bytes = 0;
  int logical_block_bytes = 0;
  unsigned physical_block_bytes = 0;
  unsigned minimum_io_bytes = 0;
  unsigned optimal_io_bytes = 0;
  unsigned short rotational = 0;
  int read_only = 0;
};

// 0 or an errno.
int ReadGeometry(int fd, BlockGeometry* geometry) {
  const bool complete = ioctl(fd, BLKGETSIZE64, &geometry->size_bytes) == 0 &&
                        ioctl(fd, BLKSSZGET, &geometry->logical_block_bytes) == 0 &&
                        ioctl(fd, BLKPBSZGET, &geometry->physical_block_bytes) == 0 &&
                        ioctl(fd, BLKIOMIN, &geometry->minimum_io_bytes) == 0 &&
                        ioctl(fd, BLKIOOPT, &geometry->optimal_io_bytes) == 0 &&
                        ioctl(fd, BLKROTATIONAL, &geometry->rotational) == 0 &&
                        ioctl(fd, BLKROGET, &geometry->read_only) == 0;
  return complete ? 0 : errno;
}

// deviceGeometry(fd): the geometry of a block device, or an error (ENOTTY: it is none)
Napi::Value DeviceGeometryCall(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  int fd;
  if (!support::GetDescriptor(info[0], &fd)) return support::ThrowType(env, "deviceGeometry takes a file descriptor");
  struct stat status;
  if (fstat(fd, &status) != 0) return support::ThrowErrno(env, errno, "fstat");
  if (!S_ISBLK(status.st_mode)) return support::ThrowErrno(env, ENOTTY, "fstat");
  BlockGeometry geometry;
  const int error = ReadGeometry(fd, &geometry);
  if (error != 0) return support::ThrowErrno(env, error, "ioctl");
  Napi::Object object = Napi::Object::New(env);
  object.Set("sizeBytes", geometry.size_bytes);
  object.Set("logicalBlockBytes", geometry.logical_block_bytes);
  object.Set("physicalBlockBytes", geometry.physical_block_bytes);
  object.Set("minimumIoBytes", geometry.minimum_io_bytes);
  object.Set("optimalIoBytes", geometry.optimal_io_bytes);
  object.Set("rotational", geometry.rotational != 0);
  object.Set("readOnly", geometry.read_only != 0);
  object.Set("major", major(status.st_rdev));
  object.Set("minor", minor(status.st_rdev));
  return object;
}

// seekData(fd, offset): number — where the next data at or after offset begin; −1 if there are none up to the end.
// Moves the descriptor's position. File systems that cannot tell call all of a file data.
Napi::Value SeekDataCall(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  int fd;
  uint64_t offset;
  if (!support::GetDescriptor(info[0], &fd) || !support::GetSize(info[1], &offset)) {
    return support::ThrowType(env, "seekData takes a file descriptor and an offset");
  }
  const off_t position = lseek(fd, static_cast<off_t>(offset), SEEK_DATA);
  if (position < 0 && errno != ENXIO) return support::ThrowErrno(env, errno, "lseek");
  return Napi::Number::New(env, static_cast<double>(position));
}

}  // namespace

void Register(Napi::Object exports) {
  support::AddFunction<ProbeSignaturesCall>(exports, "probeSignatures");
  support::AddFunction<DeviceGeometryCall>(exports, "deviceGeometry");
  support::AddFunction<SeekDataCall>(exports, "seekData");
}

}  // namespace holdfast::identify
