// exp for floats that are not positive: Cephes' polynomial (<https://www.netlib.org/cephes/>), 2 ulp on [-87, 0], 0 below,
// NaN stays NaN. The C library's differs between machines.
#pragma once

#include <cstdint>
#include <cstring>

#define INLINE inline __attribute__((always_inline))

namespace {

INLINE float exp_nonpositive(float x) {
  const float clamped = x < -87.33f ? -87.33f : x;
  const float shifted = clamped * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: rounds to nearest integer
  const float n = shifted - 12582912.0f;
  const float r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  int32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = static_cast<int32_t>((static_cast<uint32_t>(bits) + 127u) << 23);  // the low bits of `shifted` are n
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return x < -87.33f ? 0.0f : p * power;
}

}  // namespace
