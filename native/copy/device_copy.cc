// ioctl_ficlonerange(2), copy_file_range(2), sync_file_range(2), and the kernel's scsi/sg.h (version 3 of its interface).
#include "copy/device_copy.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <scsi/sg.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdio>

namespace holdfast::copy {
namespace {

constexpr uint8_t kSenseBytesMax = 252;  // SPC-4, 4.5.1

}  // namespace

Failure CloneRange(const Range& range) {
  // To the kernel it would mean: to the end of the file.
  if (range.length == 0) return {EINVAL, "ioctl FICLONERANGE"};
  file_clone_range argument = {};
  argument.src_fd = range.source_fd;
  argument.src_offset = range.source_offset;
  argument.src_length = range.length;
  argument.dest_offset = range.target_offset;
  while (ioctl(range.target_fd, FICLONERANGE, &argument) != 0) {
    if (errno != EINTR) return {errno, "ioctl FICLONERANGE"};
  }
  return {};
}

Failure CopyFileRange(const Range& range, uint64_t* copied) {
  loff_t from = static_cast<loff_t>(range.source_offset);
  loff_t to = static_cast<loff_t>(range.target_offset);
  const size_t length = static_cast<size_t>(std::min<uint64_t>(range.length, SSIZE_MAX));
  for (;;) {
    const ssize_t result = copy_file_range(range.source_fd, &from, range.target_fd, &to, length, 0);
    if (result >= 0) {
      *copied = static_cast<uint64_t>(result);
      return {};
    }
    if (errno != EINTR) return {errno, "copy_file_range"};
  }
}

// By an opening of its own: the kernel tells of a page that was lost once for each, and the next flush of the device
// must still hear of it.
Failure DropCache(int fd, uint64_t offset, uint64_t length) {
  constexpr unsigned kAll = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
  const off_t from = static_cast<off_t>(offset), bytes = static_cast<off_t>(length);
  char path[32];
  snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
  const int own = open(path, O_RDONLY | O_CLOEXEC);
  if (own < 0) return {errno, "open"};
  Failure failure = {};
  if (sync_file_range(own, from, bytes, kAll) != 0) {
    failure = {errno, "sync_file_range"};
  } else {
    failure = {posix_fadvise(own, from, bytes, POSIX_FADV_DONTNEED), "posix_fadvise"};
  }
  close(own);
  return failure;
}

Failure RunScsi(int fd, ScsiCommand* command) {
  const auto bytes = static_cast<unsigned>(command->data.size());
  const int direction = command->reads ? SG_DXFER_FROM_DEV : SG_DXFER_TO_DEV;
  command->sense.assign(kSenseBytesMax, 0);
  sg_io_hdr header = {};
  header.interface_id = 'S';
  header.dxfer_direction = bytes == 0 ? SG_DXFER_NONE : direction;
  header.cmd_len = static_cast<unsigned char>(command->cdb.size());
  header.cmdp = command->cdb.data();
  header.mx_sb_len = kSenseBytesMax;
  header.sbp = command->sense.data();
  header.dxfer_len = bytes;
  header.dxferp = command->data.data();
  header.timeout = command->timeout_ms;
  // Not again after EINTR: the command may have been carried out.
  if (ioctl(fd, SG_IO, &header) != 0) return {errno, "ioctl SG_IO"};
  command->status = header.status;
  command->host_status = header.host_status;
  command->driver_status = header.driver_status;
  command->sense.resize(std::min(header.sb_len_wr, kSenseBytesMax));
  const unsigned missing = header.resid > 0 ? std::min(static_cast<unsigned>(header.resid), bytes) : 0;
  command->data.resize(bytes - missing);
  return {};
}

}  // namespace holdfast::copy
