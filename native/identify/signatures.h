// What stands on a device, as `blkid -p` sees it. Knows nothing of Node.
//
// libblkid is loaded at run time: it is on every system with util-linux, and building needs no package of it.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace holdfast::identify {

// Names and values as libblkid gives them (TYPE, USAGE, LABEL, UUID, PTTYPE …): bytes from the device, not to be
// trusted to be text.
using Signature = std::vector<std::pair<std::string, std::string>>;

struct ProbeResult {
  int error = 0;  // an errno; ELIBACC: libblkid is not there, or lacks something
  const char* call = "";
  std::string detail;
  bool ambivalent = false;  // several signatures that contradict each other
  std::vector<Signature> signatures;
};

// Probes `size_bytes` bytes from `offset_bytes` (0: to the end) of the device or file. Blocks; any thread.
ProbeResult ProbeSignatures(const std::string& path, uint64_t offset_bytes, uint64_t size_bytes);

}  // namespace holdfast::identify
