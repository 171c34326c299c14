// The peer of bench/scan.mjs: reads a device or file by io_uring (liburing), several reads at once, and checksums each block
// by Holdfast's own CRC-32C kernel, with nothing else around it.
//
//   scan-peer PATH BLOCK_BYTES PIECE_BYTES DEPTH
//
// Prints the nanoseconds that it took, without opening the file, and the CRC-32C of all checksums.
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <fcntl.h>
#include <liburing.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

#include "checksum/crc32c.h"

static void Fail(const char* what, int error) {
  fprintf(stderr, "scan-peer: %s: %s\n", what, strerror(error));
  exit(1);
}

static uint64_t NowNs(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * UINT64_C(1000000000) + now.tv_nsec;
}

int main(int count, char** arguments) {
  if (count != 5) Fail("scan-peer PATH BLOCK_BYTES PIECE_BYTES DEPTH", EINVAL);
  const uint64_t block = strtoull(arguments[2], NULL, 10);
  const uint64_t piece = strtoull(arguments[3], NULL, 10);
  const unsigned depth = (unsigned)strtoul(arguments[4], NULL, 10);
  const int fd = open(arguments[1], O_RDONLY | O_DIRECT);
  if (fd < 0) Fail("open", errno);
  struct stat found;
  uint64_t size = 0;
  if (fstat(fd, &found) != 0) Fail("fstat", errno);
  if (S_ISREG(found.st_mode)) size = found.st_size;
  else if (ioctl(fd, BLKGETSIZE64, &size) != 0) Fail("BLKGETSIZE64", errno);
  if (block == 0 || piece % block != 0 || size % block != 0 || depth == 0) Fail("sizes", EINVAL);
  uint32_t* checksums = (uint32_t*)malloc(size / block * sizeof(uint32_t));

  const uint64_t start = NowNs();
  struct io_uring ring;
  struct io_uring_params parameters;
  memset(&parameters, 0, sizeof parameters);
  parameters.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN;
  int error = io_uring_queue_init_params(depth, &ring, &parameters);
  if (error == -EINVAL) error = io_uring_queue_init(depth, &ring, 0);
  if (error != 0) Fail("io_uring_queue_init", -error);
  uint8_t* memory =
      (uint8_t*)mmap(NULL, piece * depth, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) Fail("mmap", errno);
  madvise(memory, piece * depth, MADV_HUGEPAGE);
  uint64_t* offsets = (uint64_t*)malloc(depth * sizeof(uint64_t));
  uint64_t next = 0, in_flight = 0;
  const auto read_next = [&](unsigned slot) {
    if (next >= size) return;
    offsets[slot] = next;
    const uint64_t length = size - next < piece ? size - next : piece;
    struct io_uring_sqe* entry = io_uring_get_sqe(&ring);
    io_uring_prep_read(entry, fd, memory + slot * piece, (unsigned)length, next);
    entry->user_data = slot;
    next += length;
    in_flight++;
  };
  for (unsigned slot = 0; slot < depth; slot++) read_next(slot);
  io_uring_submit(&ring);
  while (in_flight > 0) {
    struct io_uring_cqe* completion;
    error = io_uring_wait_cqe(&ring, &completion);
    if (error == -EINTR) continue;
    if (error != 0) Fail("io_uring_wait_cqe", -error);
    const unsigned slot = (unsigned)completion->user_data;
    const uint64_t offset = offsets[slot];
    const uint64_t length = size - offset < piece ? size - offset : piece;
    if (completion->res != (int)length) Fail("read", completion->res < 0 ? -completion->res : EIO);
    io_uring_cqe_seen(&ring, completion);
    for (uint64_t done = 0; done < length; done += block) {
      checksums[(offset + done) / block] = holdfast::checksum::Crc32c(0, memory + slot * piece + done, block);
    }
    in_flight--;
    read_next(slot);
    io_uring_submit(&ring);
  }
  io_uring_queue_exit(&ring);
  munmap(memory, piece * depth);
  const uint64_t took = NowNs() - start;
  const auto* bytes = (const uint8_t*)checksums;
  printf("%llu %u\n", (unsigned long long)took, holdfast::checksum::Crc32c(0, bytes, size / block * sizeof(uint32_t)));
  return 0;
}
