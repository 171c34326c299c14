// Copies that the kernel or a disk does by itself. Knows nothing of Node.
//
// All calls block, and may be made from any thread. Offsets and lengths are bytes; failures are errnos.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace holdfast::copy {

struct Failure {
  int error = 0;  // an errno; 0 is success
  const char* call = "";
};

struct Range {
  int source_fd = -1;
  uint64_t source_offset = 0;
  int target_fd = -1;
  uint64_t target_offset = 0;
  uint64_t length = 0;
};

// Lets the target share the source's blocks (FICLONERANGE): all of the range or nothing.
Failure CloneRange(const Range& range);

// As far as the kernel goes in one call (copy_file_range); `copied` may be short, and 0.
Failure CopyFileRange(const Range& range, uint64_t* copied);

// Writes the cached pages of the range to the device and drops them, so that a disk that copies by itself works on, and
// later readers see, what is on it.
Failure DropCache(int fd, uint64_t offset, uint64_t length);

// One SCSI command through SG_IO.
struct ScsiCommand {
  std::vector<uint8_t> cdb;   // 6 to 16 bytes
  std::vector<uint8_t> data;  // sent, or room for what comes
  bool reads = false;         // the device sends
  uint32_t timeout_ms = 0;
  // What came of it. `data` is as long as what was moved.
  uint8_t status = 0;         // the device's
  uint16_t host_status = 0;   // the adapter's; not 0: the command's outcome is not known
  uint16_t driver_status = 0;
  std::vector<uint8_t> sense;
};

constexpr size_t kCdbBytesMax = 16;
constexpr size_t kScsiDataBytesMax = 64 * 1024;

Failure RunScsi(int fd, ScsiCommand* command);

}  // namespace holdfast::copy
