#include "identify/signatures.h"

#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <string>
#include <vector>

#include "test/check.h"

using namespace holdfast::identify;

namespace {

std::string ImageFile(const std::vector<uint8_t>& image) {
  std::string path = "/tmp/holdfast-image-XXXXXX";
  const int fd = mkstemp(path.data());
  CHECK(fd >= 0 && write(fd, image.data(), image.size()) == static_cast<ssize_t>(image.size()));
  close(fd);
  return path;
}

}  // namespace

TEST("a missing file is an error with its errno") {
  const ProbeResult result = ProbeSignatures("/nonexistent", 0, 0);
  CHECK(result.error == ENOENT || result.error == ELIBACC);
}

TEST("hostile superblocks are probed without harm") {
  if (ProbeSignatures("/dev/null", 0, 0).error == ELIBACC) {
    printf("       libblkid is not here\n");
    return;
  }
  // Superblocks of many kinds begin with these, in a sea of ones: lengths and offsets in them are all absurd.
  std::vector<uint8_t> image(1 << 20, 0xFF);
  const auto put = [&image](size_t offset, const std::string& text) {
    for (size_t i = 0; i < text.size(); i++) image[offset + i] = static_cast<uint8_t>(text[i]);
  };
  for (const char* magic : {"XFSB", "LUKS\xba\xbe", "EFI PART", "hsqs", "LABELONE"}) {
    put(0, magic);
    put(512, magic);
    put(1024 + 56, "\x53\xef");
    put(0x10040, "_BHRfS_M");
    put(4096, "\xfc\x4e\x2b\xa9");
    put(510, "\x55\xaa");
    const std::string path = ImageFile(image);
    const ProbeResult result = ProbeSignatures(path, 0, 0);
    CHECK(result.error == 0 || result.error == EIO);
    unlink(path.c_str());
  }
}
