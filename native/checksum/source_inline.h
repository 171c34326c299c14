// Where a kernel takes its bytes from: memory, or memory that it copies elsewhere in the same pass. A kernel is one
// function template over the two.
//
// Invariant: a Copier loads each byte once. What it stores is what is checksummed, even if somebody writes to the
// source meanwhile.
//
// In a namespace without a name, because the linker must not replace one file's copy, compiled for one instruction
// set, by another's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace holdfast::checksum {
namespace {

// Hides from the compiler where a value came from, so that it cannot load it a second time.
template <typename Word>
static inline void Keep(Word& word) {
  if constexpr (std::is_integral_v<Word>) {
    __asm__("" : "+r"(word));
  } else {
#if defined(__x86_64__)
    __asm__("" : "+v"(word));
#else
    __asm__("" : "+w"(word));
#endif
  }
}

struct Reader {
  const uint8_t* from;
  size_t left;

  template <typename Word>
  Word Take(size_t at) const {
    Word word;
    memcpy(&word, from + at, sizeof word);
    return word;
  }

  void Advance(size_t bytes) {
    from += bytes;
    left -= bytes;
  }
};

// The two ranges must not overlap.
struct Copier {
  const uint8_t* from;
  size_t left;
  uint8_t* to;

  template <typename Word>
  Word Take(size_t at) const {
    Word word;
    memcpy(&word, from + at, sizeof word);
    Keep(word);
    memcpy(to + at, &word, sizeof word);
    return word;
  }

  void Advance(size_t bytes) {
    from += bytes;
    to += bytes;
    left -= bytes;
  }
};

}  // namespace
}  // namespace holdfast::checksum
