// Each piece of work has descriptors of its own, so that it never meets another file under the number of a closed one,
// whatever becomes of the environment that asked.
#include "copy/copy.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <utility>

#include "copy/device_copy.h"
#include "support/napi_support.h"
#include "support/work.h"

namespace holdfast::copy {
namespace {

class OwnDescriptor {
 public:
  explicit OwnDescriptor(int fd) : fd_(fcntl(fd, F_DUPFD_CLOEXEC, 0)), error_(fd_ < 0 ? errno : 0) {}
  ~OwnDescriptor() {
    if (fd_ >= 0) close(fd_);
  }
  OwnDescriptor(const OwnDescriptor&) = delete;
  OwnDescriptor& operator=(const OwnDescriptor&) = delete;

  int fd() const { return fd_; }
  int error() const { return error_; }

 private:
  const int fd_;
  const int error_;
};

class RangeWork : public support::Work {
 public:
  RangeWork(Napi::Env env, const Range& range, bool clones)
      : Work(env, "holdfast.copy.range"),
        range_(range),
        source_(range.source_fd),
        target_(range.target_fd),
        clones_(clones) {}

  void Execute() override {
    if (source_.error() != 0 || target_.error() != 0) return Fail(EBADF, "dup");
    range_.source_fd = source_.fd();
    range_.target_fd = target_.fd();
    const Failure failure = clones_ ? CloneRange(range_) : CopyFileRange(range_, &copied_);
    if (failure.error != 0) return Fail(failure.error, failure.call);
    if (clones_) copied_ = range_.length;
  }

  Napi::Value Result(Napi::Env env) override { return Napi::Number::New(env, static_cast<double>(copied_)); }

 private:
  Range range_;
  OwnDescriptor source_;
  OwnDescriptor target_;
  const bool clones_;
  uint64_t copied_ = 0;
};

class DropWork : public support::Work {
 public:
  DropWork(Napi::Env env, int fd, uint64_t offset, uint64_t length)
      : Work(env, "holdfast.copy.drop"), file_(fd), offset_(offset), length_(length) {}

  void Execute() override {
    if (file_.error() != 0) return Fail(file_.error(), "dup");
    const Failure failure = DropCache(file_.fd(), offset_, length_);
    if (failure.error != 0) Fail(failure.error, failure.call);
  }

  Napi::Value Result(Napi::Env env) override { return env.Undefined(); }

 private:
  OwnDescriptor file_;
  const uint64_t offset_;
  const uint64_t length_;
};

class ScsiWork : public support::Work {
 public:
  ScsiWork(Napi::Env env, int fd, ScsiCommand command)
      : Work(env, "holdfast.copy.scsi"), file_(fd), command_(std::move(command)) {}

  void Execute() override {
    if (file_.error() != 0) return Fail(file_.error(), "dup");
    const Failure failure = RunScsi(file_.fd(), &command_);
    if (failure.error != 0) Fail(failure.error, failure.call);
  }

  Napi::Value Result(Napi::Env env) override {
    Napi::Object result = Napi::Object::New(env);
    result.Set("status", command_.status);
    result.Set("hostStatus", command_.host_status);
    result.Set("driverStatus", command_.driver_status);
    result.Set("sense", Napi::Buffer<uint8_t>::Copy(env, command_.sense.data(), command_.sense.size()));
    const size_t received = command_.reads ? command_.data.size() : 0;
    result.Set("data", Napi::Buffer<uint8_t>::Copy(env, command_.data.data(), received));
    return result;
  }

 private:
  OwnDescriptor file_;
  ScsiCommand command_;
};

// (sourceFd, sourceOffset, targetFd, targetOffset, length): Promise<number> — how many bytes were copied
template <bool clones>
Napi::Value RangeCall(const Napi::CallbackInfo& info) {
  Range range;
  if (!support::GetDescriptor(info[0], &range.source_fd) || !support::GetSize(info[1], &range.source_offset) ||
      !support::GetDescriptor(info[2], &range.target_fd) || !support::GetSize(info[3], &range.target_offset) ||
      !support::GetSize(info[4], &range.length)) {
    return support::ThrowType(info.Env(), "a copy takes two descriptors, each with an offset, and a length");
  }
  return support::Work::Start(std::make_unique<RangeWork>(info.Env(), range, clones));
}

// dropCache(fd, offset, length): Promise<void>
Napi::Value DropCacheCall(const Napi::CallbackInfo& info) {
  int fd;
  uint64_t offset, length;
  if (!support::GetDescriptor(info[0], &fd) || !support::GetSize(info[1], &offset) ||
      !support::GetSize(info[2], &length)) {
    return support::ThrowType(info.Env(), "dropCache takes a descriptor, an offset and a length");
  }
  return support::Work::Start(std::make_unique<DropWork>(info.Env(), fd, offset, length));
}

// scsi(fd, cdb, dataToSend, bytesToReceive, timeoutMs): Promise<{ status, hostStatus, driverStatus, sense, data }>
Napi::Value ScsiCall(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  int fd;
  support::Bytes cdb, data;
  uint64_t received_bytes, timeout_ms;
  if (!support::GetDescriptor(info[0], &fd) || !support::GetBytes(env, info[1], &cdb) ||
      !support::GetBytes(env, info[2], &data) || !support::GetSize(info[3], &received_bytes) ||
      !support::GetSize(info[4], &timeout_ms) || cdb.length < 6 || cdb.length > kCdbBytesMax ||
      data.length > kScsiDataBytesMax || received_bytes > kScsiDataBytesMax || timeout_ms > UINT32_MAX ||
      (data.length != 0 && received_bytes != 0)) {
    return support::ThrowType(env, "scsi takes a descriptor, a command, data one way of at most 64 KiB, and a time");
  }
  ScsiCommand command;
  command.cdb.assign(cdb.data, cdb.data + cdb.length);
  command.reads = received_bytes != 0;
  command.timeout_ms = static_cast<uint32_t>(timeout_ms);
  if (command.reads) {
    command.data.resize(received_bytes);
  } else if (data.length != 0) {
    command.data.assign(data.data, data.data + data.length);
  }
  return support::Work::Start(std::make_unique<ScsiWork>(env, fd, std::move(command)));
}

}  // namespace

void Register(Napi::Object exports) {
  support::AddFunction<RangeCall<true>>(exports, "cloneRange");
  support::AddFunction<RangeCall<false>>(exports, "copyFileRange");
  support::AddFunction<DropCacheCall>(exports, "dropCache");
  support::AddFunction<ScsiCall>(exports, "scsi");
}

}  // namespace holdfast::copy
