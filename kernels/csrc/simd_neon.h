// simd.h for aarch64: four registers a vector. With i8mm unsigned bytes are multiplied with signed ones; without it
// both are signed.
#pragma once
#include "isa.h"

#if MRS_ISA_neon_i8mm || MRS_ISA_neon_dotprod
#include <arm_neon.h>

namespace MRS_ISA {

struct Vf { float32x4_t v[4]; };
struct Vi { int32x4_t v[4]; };
#define EACH _Pragma("GCC unroll 4") for (int i = 0; i < 4; ++i)

INLINE Vf set_f(float x) { return {vdupq_n_f32(x), vdupq_n_f32(x), vdupq_n_f32(x), vdupq_n_f32(x)}; }
INLINE Vi set_i(int32_t x) { return {vdupq_n_s32(x), vdupq_n_s32(x), vdupq_n_s32(x), vdupq_n_s32(x)}; }
INLINE Vf zero_f() { return set_f(0); }
INLINE Vi zero_i() { return set_i(0); }
INLINE Vf load_f(const float *p) { return {vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}; }
INLINE void store_f(float *p, Vf x) { EACH vst1q_f32(p + 4 * i, x.v[i]); }
INLINE void stream_line(float *p, Vf x) { store_f(p, x); }
INLINE void end_streaming() {}
INLINE Vi load_i(const void *p) {
  Vi r;
  EACH r.v[i] = vreinterpretq_s32_u8(vld1q_u8((const uint8_t *)p + 16 * i));
  return r;
}
INLINE void store_i(void *p, Vi x) { EACH vst1q_u8((uint8_t *)p + 16 * i, vreinterpretq_u8_s32(x.v[i])); }
INLINE Vf load_f16(const uint16_t *p) {
  Vf r;
  EACH r.v[i] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i)));
  return r;
}
INLINE void store_f16(uint16_t *p, Vf x) { EACH vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(x.v[i]))); }
INLINE Vf load_bf16(const uint16_t *p) {
  Vf r;
  EACH r.v[i] = vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16));
  return r;
}
INLINE Vi load_s8(const int8_t *p) {
  const int8x16_t x = vld1q_s8(p);
  const int16x8_t low = vmovl_s8(vget_low_s8(x)), high = vmovl_s8(vget_high_s8(x));
  return {vmovl_s16(vget_low_s16(low)), vmovl_s16(vget_high_s16(low)), vmovl_s16(vget_low_s16(high)),
          vmovl_s16(vget_high_s16(high))};
}
INLINE void store_s8(int8_t *p, Vi x) {
  const int16x8_t low = vcombine_s16(vmovn_s32(x.v[0]), vmovn_s32(x.v[1]));
  const int16x8_t high = vcombine_s16(vmovn_s32(x.v[2]), vmovn_s32(x.v[3]));
  vst1q_s8(p, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
}
INLINE void store_low_bytes(uint8_t *p, Vi x) { store_s8((int8_t *)p, x); }
template <int STEP> INLINE Vf exchange(Vf a) {
  Vf r;
  EACH {
    if (STEP == 1) r.v[i] = vrev64q_f32(a.v[i]);
    if (STEP == 2) r.v[i] = vextq_f32(a.v[i], a.v[i], 2);
    if (STEP >= 4) r.v[i] = a.v[i ^ (STEP / 4)];
  }
  return r;
}
INLINE Vf add(Vf a, Vf b) { EACH a.v[i] = vaddq_f32(a.v[i], b.v[i]); return a; }
INLINE Vf sub(Vf a, Vf b) { EACH a.v[i] = vsubq_f32(a.v[i], b.v[i]); return a; }
INLINE Vf mul(Vf a, Vf b) { EACH a.v[i] = vmulq_f32(a.v[i], b.v[i]); return a; }
INLINE Vf div(Vf a, Vf b) { EACH a.v[i] = vdivq_f32(a.v[i], b.v[i]); return a; }
INLINE Vf fma(Vf a, Vf b, Vf c) { EACH c.v[i] = vfmaq_f32(c.v[i], a.v[i], b.v[i]); return c; }
INLINE Vf subtract_product(Vf x, Vf a, Vf b) { EACH x.v[i] = vfmsq_f32(x.v[i], a.v[i], b.v[i]); return x; }
// The second operand where either is NaN, as on x86-64.
INLINE Vf max(Vf a, Vf b) { EACH a.v[i] = vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]); return a; }
INLINE Vf min(Vf a, Vf b) { EACH a.v[i] = vbslq_f32(vcltq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]); return a; }
INLINE Vf abs(Vf a) { EACH a.v[i] = vabsq_f32(a.v[i]); return a; }
INLINE Vi add(Vi a, Vi b) { EACH a.v[i] = vaddq_s32(a.v[i], b.v[i]); return a; }
INLINE Vi and_(Vi a, Vi b) { EACH a.v[i] = vandq_s32(a.v[i], b.v[i]); return a; }
INLINE Vi or_(Vi a, Vi b) { EACH a.v[i] = vorrq_s32(a.v[i], b.v[i]); return a; }
INLINE Vi xor_(Vi a, Vi b) { EACH a.v[i] = veorq_s32(a.v[i], b.v[i]); return a; }
INLINE Vi select(Vi bits, Vi a, Vi b) {
  EACH b.v[i] = vbslq_s32(vreinterpretq_u32_s32(bits.v[i]), a.v[i], b.v[i]);
  return b;
}
INLINE int32x4_t shift(int32x4_t a, int left) {
  return vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a), vdupq_n_s32(left)));
}
INLINE Vi shr(Vi a, int n) { EACH a.v[i] = shift(a.v[i], -n); return a; }
template <int N> INLINE Vi shr(Vi a) {
  EACH a.v[i] = N ? vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(a.v[i]), N ? N : 1)) : a.v[i];
  return a;
}
template <int N> INLINE Vi shl(Vi a) { EACH a.v[i] = vshlq_n_s32(a.v[i], N); return a; }
INLINE Vf to_float(Vi a) {
  Vf r;
  EACH r.v[i] = vcvtq_f32_s32(a.v[i]);
  return r;
}
// NaN and values beyond an int32 become the least int32, as on x86-64.
INLINE Vi to_int(Vf a) {
  Vi r;
  EACH {
    const uint32x4_t fits = vandq_u32(vcgeq_f32(a.v[i], vdupq_n_f32(-2147483648.0f)), vcltq_f32(a.v[i], vdupq_n_f32(2147483648.0f)));
    r.v[i] = vbslq_s32(fits, vcvtnq_s32_f32(a.v[i]), vdupq_n_s32(INT32_MIN));
  }
  return r;
}
INLINE Vf as_float(Vi a) {
  Vf r;
  EACH r.v[i] = vreinterpretq_f32_s32(a.v[i]);
  return r;
}
INLINE float lane_max(Vf a) {
  float t[16];
  store_f(t, a);
  float m = t[0];
  for (int i = 1; i < 16; ++i) m = t[i] > m ? t[i] : m;
  return m;
}
INLINE Vi as_int(Vf a) {
  Vi r;
  EACH r.v[i] = vreinterpretq_s32_f32(a.v[i]);
  return r;
}
INLINE void lane_max4(const Vf *x, float *out) {
  for (int i = 0; i < 4; ++i) out[i] = lane_max(x[i]);
}
INLINE Vi fold(Vi a, Vi b) {
  return {vaddq_s32(a.v[0], a.v[2]), vaddq_s32(a.v[1], a.v[3]), vaddq_s32(b.v[0], b.v[2]), vaddq_s32(b.v[1], b.v[3])};
}
INLINE Vf quad_max(Vf a) { EACH a.v[i] = vdupq_n_f32(vmaxvq_f32(a.v[i])); return a; }
INLINE unsigned lanes_above(Vf a, Vf b) {
  const uint32_t bits[4] = {1, 2, 4, 8};
  unsigned r = 0;
  EACH r |= vaddvq_u32(vandq_u32(vcgtq_f32(a.v[i], b.v[i]), vld1q_u32(bits))) << (4 * i);
  return r;
}
INLINE Vf select_above(Vf a, Vf b, Vf x, Vf y) {
  EACH y.v[i] = vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), x.v[i], y.v[i]);
  return y;
}
INLINE int32x4_t low_words(int32x4_t a, int32x4_t b) {
  return vreinterpretq_s32_s16(vcombine_s16(vmovn_s32(a), vmovn_s32(b)));
}
INLINE Vi pack_words(Vi a, Vi b) {
  return {low_words(a.v[0], a.v[1]), low_words(a.v[2], a.v[3]), low_words(b.v[0], b.v[1]), low_words(b.v[2], b.v[3])};
}
INLINE Vf first(Vf a, int n, Vf b) {
  const int32_t lanes[4] = {0, 1, 2, 3};
  EACH a.v[i] = vbslq_f32(vcgtq_s32(vdupq_n_s32(n - 4 * i), vld1q_s32(lanes)), a.v[i], b.v[i]);
  return a;
}
INLINE Vf zero_below(Vf a, Vf b, Vf x) {
  EACH x.v[i] = vreinterpretq_f32_u32(vandq_u32(vcgeq_f32(a.v[i], b.v[i]), vreinterpretq_u32_f32(x.v[i])));
  return x;
}
INLINE void store_first(float *p, Vf x, int n) {
  float t[16];
  store_f(t, x);
  for (int i = 0; i < n; ++i) p[i] = t[i];
}

// As in simd.h. Signed bytes hold u below 128. Of larger ones u - 128 is multiplied, and -128 * s subtracted.
template <int BITS> INLINE Vi dot4(Vi acc, Vi u, Vi s) {
#if MRS_ISA_neon_i8mm
  EACH acc.v[i] = vusdotq_s32(acc.v[i], vreinterpretq_u8_s32(u.v[i]), vreinterpretq_s8_s32(s.v[i]));
#else
  EACH {
    const int8x16_t bytes = vreinterpretq_s8_s32(u.v[i]), columns = vreinterpretq_s8_s32(s.v[i]);
    if constexpr (BITS <= 7) {
      acc.v[i] = vdotq_s32(acc.v[i], bytes, columns);
    } else {
      const int8x16_t offset = vdupq_n_s8(-128);
      acc.v[i] = vdotq_s32(vsubq_s32(acc.v[i], vdotq_s32(vdupq_n_s32(0), offset, columns)), veorq_s8(bytes, offset), columns);
    }
  }
#endif
  return acc;
}
INLINE Vi dot2_words(Vi acc, Vi a, Vi b) {
  EACH {
    const int16x8_t words = vreinterpretq_s16_s32(a.v[i]), others = vreinterpretq_s16_s32(b.v[i]);
    const int32x4_t first = vmull_s16(vget_low_s16(words), vget_low_s16(others));
    acc.v[i] = vaddq_s32(acc.v[i], vpaddq_s32(first, vmull_high_s16(words, others)));
  }
  return acc;
}
#undef EACH

}  // namespace MRS_ISA
#endif
