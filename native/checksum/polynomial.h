// Arithmetic in GF(2)[x] modulo the Castagnoli polynomial, so that every constant of the kernels is computed here at
// compile time and none is copied from anywhere.
//
// Polynomials of degree < 32 are kept reflected: the coefficient of x^i is bit 31 − i.
#pragma once

#include <array>
#include <cstdint>

namespace holdfast::checksum {

inline constexpr uint32_t kPolynomial = 0x82F63B78;  // 0x1EDC6F41, reflected

constexpr uint32_t TimesX(uint32_t a) { return (a >> 1) ^ ((a & 1) != 0 ? kPolynomial : 0); }

constexpr uint32_t MultiplyModulo(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (uint32_t bit = 0x80000000; bit != 0; bit >>= 1) {
    if ((a & bit) != 0) product ^= b;
    b = TimesX(b);
  }
  return product;
}

inline constexpr uint32_t kOne = 0x80000000;

// x^(2^i) for every i that a 64-bit exponent can need.
inline constexpr std::array<uint32_t, 64> kPowersOfPowers = [] {
  std::array<uint32_t, 64> powers{};
  uint32_t power = kOne >> 1;
  for (auto& entry : powers) {
    entry = power;
    power = MultiplyModulo(power, power);
  }
  return powers;
}();

// x^exponent modulo the polynomial.
constexpr uint32_t PowerOfX(uint64_t exponent) {
  uint32_t power = kOne;
  for (unsigned i = 0; exponent != 0; i++, exponent >>= 1) {
    if ((exponent & 1) != 0) power = MultiplyModulo(power, kPowersOfPowers[i]);
  }
  return power;
}

}  // namespace holdfast::checksum
