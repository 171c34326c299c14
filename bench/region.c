// The plain C side of region.mjs: maps a file and stores into it, durably, for a while.
//
//   region FILE BYTES flush|stream|msync MILLISECONDS → nanoseconds an operation
//
// flush: memcpy, CLWB of each line, SFENCE. stream: non-temporal stores, SFENCE. msync: memcpy, msync of the pages.
#define _GNU_SOURCE
#include <fcntl.h>
#include <immintrin.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1e9 + time.tv_nsec;
}

__attribute__((target("clwb"))) static void flush(char *to, const char *from, size_t bytes) {
  memcpy(to, from, bytes);
  for (size_t i = 0; i < bytes; i += 64) _mm_clwb(to + i);
  _mm_sfence();
}

static void stream(char *to, const char *from, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 16)
    _mm_stream_si128((__m128i *)(to + i), _mm_loadu_si128((const __m128i *)(from + i)));
  _mm_sfence();
}

static void sync_pages(char *to, const char *from, size_t bytes) {
  memcpy(to, from, bytes);
  char *page = (char *)((uintptr_t)to & ~(uintptr_t)4095);
  if (msync(page, to + bytes - page, MS_SYNC) != 0) exit(2);
}

int main(int count, char **arguments) {
  if (count != 5) return 1;
  const int fd = open(arguments[1], O_RDWR);
  const size_t bytes = strtoul(arguments[2], NULL, 10);
  const off_t length = lseek(fd, 0, SEEK_END);
  char *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) return 2;
  void (*store)(char *, const char *, size_t) = arguments[3][0] == 'f'   ? flush
                                               : arguments[3][0] == 's' ? stream
                                                                        : sync_pages;
  char *source = aligned_alloc(64, bytes);
  memset(source, 1, bytes);
  memset(memory, 0, length);
  if (msync(memory, length, MS_SYNC) != 0) return 2;
  const double limit = atof(arguments[4]) * 1e6;
  double spent = 0;
  long done = 0;
  size_t at = 0;
  const double start = now();
  do {
    for (int i = 0; i < 16; i++) {
      source[0] = (char)i;
      store(memory + at, source, bytes);
      at = at + 2 * bytes <= (size_t)length ? at + bytes : 0;
    }
    done += 16;
    spent = now() - start;
  } while (spent < limit);
  printf("%f\n", spent / done);
  return 0;
}
