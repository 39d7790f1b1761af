// IEEE half precision in plain integers, for code that may not use the processor's conversion instructions.
#pragma once
#include <cstdint>
#include <cstring>

static inline float half_to_float(uint16_t h) {
  uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 0x3ff, bits;
  if (exponent == 31) {
    bits = sign | 0x7f800000 | mantissa << 13;
  } else if (exponent) {
    bits = sign | (exponent + 112) << 23 | mantissa << 13;
  } else {
    float value = float(mantissa) * 5.9604644775390625e-8f;  // 2^-24
    std::memcpy(&bits, &value, 4);
    bits |= sign;
  }
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Rounds to nearest, ties to even.
static inline uint16_t float_to_half(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  uint16_t sign = uint16_t(bits >> 16 & 0x8000);
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return sign | 0x7e00;
  if (bits >= 0x477ff000) return sign | 0x7c00;
  if (bits < 0x38800000) {  // subnormal half: let the float adder round at 2^-24
    float magnitude, magic = 0.5f;
    std::memcpy(&magnitude, &bits, 4);
    magnitude += magic;
    uint32_t rounded, base;
    std::memcpy(&rounded, &magnitude, 4);
    std::memcpy(&base, &magic, 4);
    return sign | uint16_t(rounded - base);
  }
  bits += 0xc8000fff + (bits >> 13 & 1);  // rebias the exponent and round
  return sign | uint16_t(bits >> 13);
}
