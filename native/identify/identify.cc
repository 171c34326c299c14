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

#include "identify/signatures.h"
#include "support/napi_support.h"
#include "support/work.h"

namespace holdfast::identify {
namespace {

class ProbeWork : public support::Work {
 public:
  ProbeWork(const char* path, uint64_t offset_bytes, uint64_t size_bytes)
      : path_(path), offset_bytes_(offset_bytes), size_bytes_(size_bytes) {}

  void Execute() override {
    result_ = ProbeSignatures(path_, offset_bytes_, size_bytes_);
    // A library that is not there is an answer, which says why.
    if (result_.error != 0 && result_.error != ELIBACC) Fail(result_.error, result_.call);
  }

  napi_value Result(napi_env env) override {
    napi_value object, list;
    if (napi_create_object(env, &object) != napi_ok ||
        napi_create_array_with_length(env, result_.signatures.size(), &list) != napi_ok) {
      return nullptr;
    }
    for (uint32_t i = 0; i < result_.signatures.size(); i++) {
      napi_value entry = Values(env, result_.signatures[i]);
      if (entry == nullptr || napi_set_element(env, list, i, entry) != napi_ok) return nullptr;
    }
    if (napi_set_named_property(env, object, "signatures", list) != napi_ok ||
        !support::SetBoolean(env, object, "ambivalent", result_.ambivalent) ||
        !support::SetString(env, object, "libraryMissing", result_.detail.c_str())) {
      return nullptr;
    }
    return object;
  }

 private:
  static napi_value Values(napi_env env, const Signature& signature) {
    napi_value object, text;
    if (napi_create_object(env, &object) != napi_ok) return nullptr;
    for (const auto& [name, value] : signature) {
      if (napi_create_string_utf8(env, value.data(), value.size(), &text) != napi_ok ||
          napi_set_named_property(env, object, name.c_str(), text) != napi_ok) {
        return nullptr;
      }
    }
    return object;
  }

  std::string path_;
  uint64_t offset_bytes_;
  uint64_t size_bytes_;
  ProbeResult result_;
};

// probeSignatures(path, offset, sizeBytes): Promise<{ signatures, ambivalent, libraryMissing }>
napi_value ProbeSignaturesCall(napi_env env, napi_callback_info info) {
  napi_value arguments[3];
  size_t count = 3;
  char path[PATH_MAX];
  uint64_t offset_bytes, size_bytes;
  if (napi_get_cb_info(env, info, &count, arguments, nullptr, nullptr) != napi_ok || count < 3 ||
      !support::GetString(env, arguments[0], path, sizeof path) ||
      !support::GetSize(env, arguments[1], &offset_bytes) || !support::GetSize(env, arguments[2], &size_bytes)) {
    return support::ThrowType(env, "probeSignatures takes a path, an offset and a size");
  }
  return support::Queue(env, "holdfast.identify.probe", std::make_unique<ProbeWork>(path, offset_bytes, size_bytes));
}

bool GetDescriptor(napi_env env, napi_value value, int* fd) {
  int32_t number;
  if (napi_get_value_int32(env, value, &number) != napi_ok || number < 0) return false;
  *fd = number;
  return true;
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
napi_value DeviceGeometryCall(napi_env env, napi_callback_info info) {
  napi_value argument, object;
  size_t count = 1;
  int fd;
  if (napi_get_cb_info(env, info, &count, &argument, nullptr, nullptr) != napi_ok || count < 1 ||
      !GetDescriptor(env, argument, &fd)) {
    return support::ThrowType(env, "deviceGeometry takes a file descriptor");
  }
  struct stat status;
  if (fstat(fd, &status) != 0) return support::ThrowErrno(env, errno, "fstat");
  if (!S_ISBLK(status.st_mode)) return support::ThrowErrno(env, ENOTTY, "fstat");
  BlockGeometry geometry;
  const int error = ReadGeometry(fd, &geometry);
  if (error != 0) return support::ThrowErrno(env, error, "ioctl");
  const bool complete =
      napi_create_object(env, &object) == napi_ok &&
      support::SetNumber(env, object, "sizeBytes", static_cast<double>(geometry.size_bytes)) &&
      support::SetNumber(env, object, "logicalBlockBytes", geometry.logical_block_bytes) &&
      support::SetNumber(env, object, "physicalBlockBytes", geometry.physical_block_bytes) &&
      support::SetNumber(env, object, "minimumIoBytes", geometry.minimum_io_bytes) &&
      support::SetNumber(env, object, "optimalIoBytes", geometry.optimal_io_bytes) &&
      support::SetBoolean(env, object, "rotational", geometry.rotational != 0) &&
      support::SetBoolean(env, object, "readOnly", geometry.read_only != 0) &&
      support::SetNumber(env, object, "major", major(status.st_rdev)) &&
      support::SetNumber(env, object, "minor", minor(status.st_rdev));
  return complete ? object : nullptr;
}

// seekData(fd, offset): number — where the next data at or after offset begin; −1 if there are none up to the end.
// Moves the descriptor's position. File systems that cannot tell call all of a file data.
napi_value SeekDataCall(napi_env env, napi_callback_info info) {
  napi_value arguments[2], result;
  size_t count = 2;
  int fd;
  uint64_t offset;
  if (napi_get_cb_info(env, info, &count, arguments, nullptr, nullptr) != napi_ok || count < 2 ||
      !GetDescriptor(env, arguments[0], &fd) || !support::GetSize(env, arguments[1], &offset)) {
    return support::ThrowType(env, "seekData takes a file descriptor and an offset");
  }
  const off_t position = lseek(fd, static_cast<off_t>(offset), SEEK_DATA);
  if (position < 0 && errno != ENXIO) return support::ThrowErrno(env, errno, "lseek");
  return napi_create_double(env, static_cast<double>(position), &result) == napi_ok ? result : nullptr;
}

}  // namespace

bool Register(napi_env env, napi_value exports) {
  const support::Method methods[] = {
      {"probeSignatures", ProbeSignaturesCall},
      {"deviceGeometry", DeviceGeometryCall},
      {"seekData", SeekDataCall},
  };
  return support::AddMethods(env, exports, methods);
}

}  // namespace holdfast::identify
