// Sixteen lanes of int32 or float32, spelled once for each instruction set; only what the kernels use.
#pragma once
#include "half.h"
#include "isa.h"
#include "simd_neon.h"

namespace MRS_ISA {

#if MRS_ISA_avx512 || MRS_ISA_avx512vnni
using Vf = __m512;
using Vi = __m512i;

INLINE Vf zero_f() { return _mm512_setzero_ps(); }
INLINE Vi zero_i() { return _mm512_setzero_si512(); }
INLINE Vf set_f(float x) { return _mm512_set1_ps(x); }
INLINE Vi set_i(int32_t x) { return _mm512_set1_epi32(x); }
INLINE Vf load_f(const float *p) { return _mm512_loadu_ps(p); }
INLINE void store_f(float *p, Vf x) { _mm512_storeu_ps(p, x); }
INLINE void stream_line(float *p, Vf x) { _mm512_stream_ps(p, x); }
INLINE void end_streaming() { _mm_sfence(); }
INLINE Vi load_i(const void *p) { return _mm512_loadu_si512(p); }
INLINE void store_i(void *p, Vi x) { _mm512_storeu_si512(p, x); }
INLINE Vf load_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
INLINE void store_f16(uint16_t *p, Vf x) {
  _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
INLINE Vf load_bf16(const uint16_t *p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}
INLINE Vi load_s8(const int8_t *p) { return _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)); }
INLINE void store_s8(int8_t *p, Vi x) { _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(x)); }
INLINE void store_low_bytes(uint8_t *p, Vi x) { _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(x)); }
// The lanes in another order: lane i takes lane i ^ STEP. STEP: 1, 2, 4 or 8.
template <int STEP> INLINE Vf exchange(Vf a) {
  if (STEP == 1) return _mm512_permute_ps(a, 0xb1);
  if (STEP == 2) return _mm512_permute_ps(a, 0x4e);
  return STEP == 4 ? _mm512_shuffle_f32x4(a, a, 0xb1) : _mm512_shuffle_f32x4(a, a, 0x4e);
}
INLINE Vf add(Vf a, Vf b) { return _mm512_add_ps(a, b); }
INLINE Vf sub(Vf a, Vf b) { return _mm512_sub_ps(a, b); }
INLINE Vf mul(Vf a, Vf b) { return _mm512_mul_ps(a, b); }
INLINE Vf div(Vf a, Vf b) { return _mm512_div_ps(a, b); }
INLINE Vf fma(Vf a, Vf b, Vf c) { return _mm512_fmadd_ps(a, b, c); }
INLINE Vf subtract_product(Vf x, Vf a, Vf b) { return _mm512_fnmadd_ps(a, b, x); }  // x - a * b, rounded once
INLINE Vf max(Vf a, Vf b) { return _mm512_max_ps(a, b); }
INLINE Vf min(Vf a, Vf b) { return _mm512_min_ps(a, b); }
INLINE Vf abs(Vf a) { return _mm512_abs_ps(a); }
INLINE Vi add(Vi a, Vi b) { return _mm512_add_epi32(a, b); }
INLINE Vi and_(Vi a, Vi b) { return _mm512_and_si512(a, b); }
INLINE Vi or_(Vi a, Vi b) { return _mm512_or_si512(a, b); }
INLINE Vi xor_(Vi a, Vi b) { return _mm512_xor_si512(a, b); }
INLINE Vi select(Vi bits, Vi a, Vi b) { return _mm512_ternarylogic_epi32(bits, a, b, 0xca); }  // a where bits are set, else b
template <int N> INLINE Vi shr(Vi a) { return _mm512_srli_epi32(a, N); }
template <int N> INLINE Vi shl(Vi a) { return _mm512_slli_epi32(a, N); }
INLINE Vi shr(Vi a, int n) { return _mm512_srl_epi32(a, _mm_cvtsi32_si128(n)); }
INLINE Vf to_float(Vi a) { return _mm512_cvtepi32_ps(a); }
INLINE Vi to_int(Vf a) { return _mm512_cvtps_epi32(a); }
INLINE Vf as_float(Vi a) { return _mm512_castsi512_ps(a); }
INLINE Vi as_int(Vf a) { return _mm512_castps_si512(a); }
INLINE float lane_max(Vf a) { return _mm512_reduce_max_ps(a); }
// The largest lane of each of four vectors.
INLINE void lane_max4(const Vf *x, float *out) {
  const Vf ab = max(_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1]));
  const Vf cd = max(_mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3]));
  const __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  const __m512d high = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  const Vf abcd = max(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
  const __m256 half = _mm256_max_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
  _mm_storeu_ps(out, _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}
// The sums of the lanes 8 apart: eight of a, then eight of b.
INLINE Vi fold(Vi a, Vi b) {
  return _mm512_add_epi32(_mm512_shuffle_i64x2(a, b, 0x44), _mm512_shuffle_i64x2(a, b, 0xee));
}
// The largest of each four lanes, in all of them.
INLINE Vf quad_max(Vf a) {
  a = _mm512_max_ps(a, _mm512_permute_ps(a, 0xb1));
  return _mm512_max_ps(a, _mm512_permute_ps(a, 0x4e));
}
// A bit for each lane where a > b.
INLINE unsigned lanes_above(Vf a, Vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
// Lanes where a > b take x, the others y.
INLINE Vf select_above(Vf a, Vf b, Vf x, Vf y) { return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), y, x); }
// The low halves of the lanes of a and then of b, 32 int16.
INLINE Vi pack_words(Vi a, Vi b) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi32_epi16(a)), _mm512_cvtepi32_epi16(b), 1);
}
// Lanes below n keep a, the others take b.
INLINE Vf first(Vf a, int n, Vf b) { return _mm512_mask_blend_ps(__mmask16((1u << n) - 1), b, a); }
// Lanes where a < b become zero.
INLINE Vf zero_below(Vf a, Vf b, Vf x) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_GE_OQ), x); }
INLINE void store_first(float *p, Vf x, int n) { _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), x); }

// acc + u8 x s8 summed over the four bytes of each lane; u8 values below 1 << BITS.
template <int BITS> INLINE Vi dot4(Vi acc, Vi u, Vi s) {
#if MRS_ISA_avx512vnni
  return _mm512_dpbusd_epi32(acc, u, s);
#else
  if (BITS <= 7) return _mm512_add_epi32(acc, _mm512_madd_epi16(_mm512_maddubs_epi16(u, s), _mm512_set1_epi16(1)));
  const Vi low = _mm512_set1_epi16(0x00ff);
  Vi even = _mm512_madd_epi16(_mm512_and_si512(u, low), _mm512_srai_epi16(_mm512_slli_epi16(s, 8), 8));
  Vi odd = _mm512_madd_epi16(_mm512_srli_epi16(u, 8), _mm512_srai_epi16(s, 8));
  return _mm512_add_epi32(acc, _mm512_add_epi32(even, odd));
#endif
}
// acc + the products of both int16 of each lane.
INLINE Vi dot2_words(Vi acc, Vi a, Vi b) {
#if MRS_ISA_avx512vnni
  return _mm512_dpwssd_epi32(acc, a, b);
#else
  return _mm512_add_epi32(acc, _mm512_madd_epi16(a, b));
#endif
}

#elif MRS_ISA_avx2 || MRS_ISA_avxvnni
struct Vf { __m256 a, b; };
struct Vi { __m256i a, b; };

INLINE Vf zero_f() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
INLINE Vi zero_i() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
INLINE Vf set_f(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
INLINE Vi set_i(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
INLINE Vf load_f(const float *p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
INLINE void store_f(float *p, Vf x) { _mm256_storeu_ps(p, x.a), _mm256_storeu_ps(p + 8, x.b); }
INLINE void stream_line(float *p, Vf x) { _mm256_stream_ps(p, x.a), _mm256_stream_ps(p + 8, x.b); }
INLINE void end_streaming() { _mm_sfence(); }
INLINE Vi load_i(const void *p) {
  return {_mm256_loadu_si256((const __m256i *)p), _mm256_loadu_si256((const __m256i *)p + 1)};
}
INLINE void store_i(void *p, Vi x) {
  _mm256_storeu_si256((__m256i *)p, x.a), _mm256_storeu_si256((__m256i *)p + 1, x.b);
}
INLINE Vf load_f16(const uint16_t *p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p + 1))};
}
INLINE void store_f16(uint16_t *p, Vf x) {
  _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  _mm_storeu_si128((__m128i *)p + 1, _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
INLINE __m256 bf16_half(const uint16_t *p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}
INLINE Vf load_bf16(const uint16_t *p) { return {bf16_half(p), bf16_half(p + 8)}; }
INLINE Vi load_s8(const int8_t *p) {
  __m128i x = _mm_loadu_si128((const __m128i *)p);
  return {_mm256_cvtepi8_epi32(x), _mm256_cvtepi8_epi32(_mm_srli_si128(x, 8))};
}
INLINE __m128i to_s8(Vi x) {
  // packs interleaves 128-bit halves: words are a0 b0 a1 b1, and the permute restores their order
  __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8);
  return _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}
INLINE void store_s8(int8_t *p, Vi x) { _mm_storeu_si128((__m128i *)p, to_s8(x)); }
INLINE void store_low_bytes(uint8_t *p, Vi x) {
  const __m256i byte = _mm256_set1_epi32(0xff);
  const __m256i words = _mm256_packs_epi32(_mm256_and_si256(x.a, byte), _mm256_and_si256(x.b, byte));
  const __m256i ordered = _mm256_permute4x64_epi64(words, 0xd8);
  _mm_storeu_si128((__m128i *)p, _mm_packus_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1)));
}
template <int STEP> INLINE __m256 exchange_half(__m256 x) {
  if (STEP == 1) return _mm256_permute_ps(x, 0xb1);
  return STEP == 2 ? _mm256_permute_ps(x, 0x4e) : _mm256_permute2f128_ps(x, x, 1);
}
template <int STEP> INLINE Vf exchange(Vf x) {
  if (STEP == 8) return {x.b, x.a};
  return {exchange_half<STEP>(x.a), exchange_half<STEP>(x.b)};
}
INLINE Vf add(Vf x, Vf y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
INLINE Vf sub(Vf x, Vf y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
INLINE Vf mul(Vf x, Vf y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
INLINE Vf div(Vf x, Vf y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
INLINE Vf fma(Vf x, Vf y, Vf z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
INLINE Vf subtract_product(Vf x, Vf y, Vf z) { return {_mm256_fnmadd_ps(y.a, z.a, x.a), _mm256_fnmadd_ps(y.b, z.b, x.b)}; }
INLINE Vf max(Vf x, Vf y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
INLINE Vf min(Vf x, Vf y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
INLINE Vf abs(Vf x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
INLINE Vi add(Vi x, Vi y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
INLINE Vi and_(Vi x, Vi y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
INLINE Vi or_(Vi x, Vi y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
INLINE Vi xor_(Vi x, Vi y) { return {_mm256_xor_si256(x.a, y.a), _mm256_xor_si256(x.b, y.b)}; }
INLINE Vi select(Vi bits, Vi x, Vi y) { return or_(and_(bits, x), {_mm256_andnot_si256(bits.a, y.a), _mm256_andnot_si256(bits.b, y.b)}); }
template <int N> INLINE Vi shr(Vi x) { return {_mm256_srli_epi32(x.a, N), _mm256_srli_epi32(x.b, N)}; }
template <int N> INLINE Vi shl(Vi x) { return {_mm256_slli_epi32(x.a, N), _mm256_slli_epi32(x.b, N)}; }
INLINE Vi shr(Vi x, int n) {
  __m128i c = _mm_cvtsi32_si128(n);
  return {_mm256_srl_epi32(x.a, c), _mm256_srl_epi32(x.b, c)};
}
INLINE Vf to_float(Vi x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
INLINE Vi to_int(Vf x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
INLINE Vf as_float(Vi x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
INLINE Vi as_int(Vf x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
INLINE float lane_max(Vf x) {
  alignas(32) float t[8];
  _mm256_store_ps(t, _mm256_max_ps(x.a, x.b));
  float m = t[0];
  for (int i = 1; i < 8; ++i) m = t[i] > m ? t[i] : m;
  return m;
}
INLINE void lane_max4(const Vf *x, float *out) {
  __m256 m[4];
  for (int i = 0; i < 4; ++i) m[i] = _mm256_max_ps(x[i].a, x[i].b);
  const __m256 ab = _mm256_max_ps(_mm256_unpacklo_ps(m[0], m[1]), _mm256_unpackhi_ps(m[0], m[1]));
  const __m256 cd = _mm256_max_ps(_mm256_unpacklo_ps(m[2], m[3]), _mm256_unpackhi_ps(m[2], m[3]));
  const __m256d low = _mm256_unpacklo_pd(_mm256_castps_pd(ab), _mm256_castps_pd(cd));
  const __m256d high = _mm256_unpackhi_pd(_mm256_castps_pd(ab), _mm256_castps_pd(cd));
  const __m256 abcd = _mm256_max_ps(_mm256_castpd_ps(low), _mm256_castpd_ps(high));
  _mm_storeu_ps(out, _mm_max_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1)));
}
INLINE Vi fold(Vi x, Vi y) { return {_mm256_add_epi32(x.a, x.b), _mm256_add_epi32(y.a, y.b)}; }
INLINE __m256 max_of_fours(__m256 x) {
  x = _mm256_max_ps(x, _mm256_permute_ps(x, 0xb1));
  return _mm256_max_ps(x, _mm256_permute_ps(x, 0x4e));
}
INLINE Vf quad_max(Vf x) { return {max_of_fours(x.a), max_of_fours(x.b)}; }
INLINE unsigned lanes_above(Vf x, Vf y) {
  return unsigned(_mm256_movemask_ps(_mm256_cmp_ps(x.a, y.a, _CMP_GT_OQ))) |
         unsigned(_mm256_movemask_ps(_mm256_cmp_ps(x.b, y.b, _CMP_GT_OQ))) << 8;
}
INLINE Vf select_above(Vf a, Vf b, Vf x, Vf y) {
  return {_mm256_blendv_ps(y.a, x.a, _mm256_cmp_ps(a.a, b.a, _CMP_GT_OQ)),
          _mm256_blendv_ps(y.b, x.b, _mm256_cmp_ps(a.b, b.b, _CMP_GT_OQ))};
}
INLINE __m256i low_words(__m256i x, __m256i y) {
  const __m256i mask = _mm256_set1_epi32(0xffff);
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(_mm256_and_si256(x, mask), _mm256_and_si256(y, mask)), 0xd8);
}
INLINE Vi pack_words(Vi x, Vi y) { return {low_words(x.a, x.b), low_words(y.a, y.b)}; }
INLINE Vf first(Vf x, int n, Vf y) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  __m256 ma = _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane));
  __m256 mb = _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n - 8), lane));
  return {_mm256_blendv_ps(y.a, x.a, ma), _mm256_blendv_ps(y.b, x.b, mb)};
}
INLINE Vf zero_below(Vf a, Vf b, Vf x) {
  return {_mm256_and_ps(_mm256_cmp_ps(a.a, b.a, _CMP_GE_OQ), x.a), _mm256_and_ps(_mm256_cmp_ps(a.b, b.b, _CMP_GE_OQ), x.b)};
}
INLINE void store_first(float *p, Vf x, int n) {
  alignas(32) float t[16];
  store_f(t, x);
  for (int i = 0; i < n; ++i) p[i] = t[i];
}
INLINE __m256i dot_half(__m256i acc, __m256i u, __m256i s, [[maybe_unused]] bool narrow) {
#if MRS_ISA_avxvnni
  return _mm256_dpbusd_avx_epi32(acc, u, s);
#else
  if (narrow) return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(u, s), _mm256_set1_epi16(1)));
  // even and odd bytes as words, because maddubs would saturate
  __m256i even = _mm256_madd_epi16(_mm256_and_si256(u, _mm256_set1_epi16(0xff)), _mm256_srai_epi16(_mm256_slli_epi16(s, 8), 8));
  __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(u, 8), _mm256_srai_epi16(s, 8));
  return _mm256_add_epi32(acc, _mm256_add_epi32(even, odd));
#endif
}
template <int BITS> INLINE Vi dot4(Vi acc, Vi u, Vi s) {
  return {dot_half(acc.a, u.a, s.a, BITS <= 7), dot_half(acc.b, u.b, s.b, BITS <= 7)};
}
INLINE Vi dot2_words(Vi acc, Vi x, Vi y) {
  return {_mm256_add_epi32(acc.a, _mm256_madd_epi16(x.a, y.a)), _mm256_add_epi32(acc.b, _mm256_madd_epi16(x.b, y.b))};
}

#elif !MRS_ISA_neon_i8mm && !MRS_ISA_neon_dotprod  // portable
struct Vf { float v[16]; };
struct Vi { int32_t v[16]; };
#define EACH for (int i = 0; i < 16; ++i)

INLINE Vf zero_f() { Vf r; EACH r.v[i] = 0; return r; }
INLINE Vi zero_i() { Vi r; EACH r.v[i] = 0; return r; }
INLINE Vf set_f(float x) { Vf r; EACH r.v[i] = x; return r; }
INLINE Vi set_i(int32_t x) { Vi r; EACH r.v[i] = x; return r; }
INLINE Vf load_f(const float *p) { Vf r; EACH r.v[i] = p[i]; return r; }
INLINE void store_f(float *p, Vf x) { EACH p[i] = x.v[i]; }
INLINE void stream_line(float *p, Vf x) { store_f(p, x); }
INLINE void end_streaming() {}
INLINE Vi load_i(const void *p) { Vi r; std::memcpy(r.v, p, 64); return r; }
INLINE void store_i(void *p, Vi x) { std::memcpy(p, x.v, 64); }
INLINE Vf load_f16(const uint16_t *p) { Vf r; EACH r.v[i] = half_to_float(p[i]); return r; }
INLINE void store_f16(uint16_t *p, Vf x) { EACH p[i] = float_to_half(x.v[i]); }
INLINE Vf load_bf16(const uint16_t *p) {
  Vf r;
  EACH { uint32_t bits = uint32_t(p[i]) << 16; std::memcpy(&r.v[i], &bits, 4); }
  return r;
}
INLINE Vi load_s8(const int8_t *p) { Vi r; EACH r.v[i] = p[i]; return r; }
INLINE void store_s8(int8_t *p, Vi x) { EACH p[i] = int8_t(x.v[i]); }
INLINE void store_low_bytes(uint8_t *p, Vi x) { EACH p[i] = uint8_t(x.v[i]); }
template <int STEP> INLINE Vf exchange(Vf a) { Vf r; EACH r.v[i] = a.v[i ^ STEP]; return r; }
INLINE Vf add(Vf a, Vf b) { EACH a.v[i] += b.v[i]; return a; }
INLINE Vf sub(Vf a, Vf b) { EACH a.v[i] -= b.v[i]; return a; }
INLINE Vf mul(Vf a, Vf b) { EACH a.v[i] *= b.v[i]; return a; }
INLINE Vf div(Vf a, Vf b) { EACH a.v[i] /= b.v[i]; return a; }
INLINE Vf fma(Vf a, Vf b, Vf c) { EACH c.v[i] += a.v[i] * b.v[i]; return c; }
// The product is exact in double, and the difference where it is small.
INLINE Vf subtract_product(Vf x, Vf a, Vf b) { EACH x.v[i] = float(x.v[i] - double(a.v[i]) * b.v[i]); return x; }
INLINE Vf max(Vf a, Vf b) { EACH a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i]; return a; }
INLINE Vf min(Vf a, Vf b) { EACH a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i]; return a; }
INLINE Vf abs(Vf a) { EACH a.v[i] = a.v[i] < 0 ? -a.v[i] : a.v[i]; return a; }
INLINE Vi add(Vi a, Vi b) { EACH a.v[i] = int32_t(uint32_t(a.v[i]) + uint32_t(b.v[i])); return a; }
INLINE Vi and_(Vi a, Vi b) { EACH a.v[i] &= b.v[i]; return a; }
INLINE Vi or_(Vi a, Vi b) { EACH a.v[i] |= b.v[i]; return a; }
INLINE Vi xor_(Vi a, Vi b) { EACH a.v[i] ^= b.v[i]; return a; }
INLINE Vi select(Vi bits, Vi a, Vi b) { EACH b.v[i] = (bits.v[i] & a.v[i]) | (~bits.v[i] & b.v[i]); return b; }
template <int N> INLINE Vi shr(Vi a) { EACH a.v[i] = int32_t(uint32_t(a.v[i]) >> N); return a; }
template <int N> INLINE Vi shl(Vi a) { EACH a.v[i] = int32_t(uint32_t(a.v[i]) << N); return a; }
INLINE Vi shr(Vi a, int n) { EACH a.v[i] = int32_t(uint32_t(a.v[i]) >> n); return a; }
INLINE Vf to_float(Vi a) { Vf r; EACH r.v[i] = float(a.v[i]); return r; }
// NaN and values beyond an int32 become the least int32, as with the other sets' instructions.
INLINE Vi to_int(Vf a) {
  Vi r;
  EACH {
    float x = std::nearbyintf(a.v[i]);
    r.v[i] = x >= -2147483648.0f && x < 2147483648.0f ? int32_t(x) : INT32_MIN;
  }
  return r;
}
INLINE Vf as_float(Vi a) { Vf r; std::memcpy(&r, &a, sizeof r); return r; }
INLINE Vi as_int(Vf a) { Vi r; std::memcpy(&r, &a, sizeof r); return r; }
INLINE float lane_max(Vf a) { float m = a.v[0]; EACH m = a.v[i] > m ? a.v[i] : m; return m; }
INLINE void lane_max4(const Vf *x, float *out) {
  for (int i = 0; i < 4; ++i) out[i] = lane_max(x[i]);
}
INLINE Vi fold(Vi a, Vi b) {
  Vi r;
  EACH r.v[i] = i < 8 ? a.v[i] + a.v[i + 8] : b.v[i - 8] + b.v[i];
  return r;
}
INLINE Vf quad_max(Vf a) {
  Vf r;
  EACH {
    const float *four = a.v + i / 4 * 4;
    float m = four[0];
    for (int j = 1; j < 4; ++j) m = four[j] > m ? four[j] : m;
    r.v[i] = m;
  }
  return r;
}
INLINE unsigned lanes_above(Vf a, Vf b) { unsigned r = 0; EACH r |= unsigned(a.v[i] > b.v[i]) << i; return r; }
INLINE Vf select_above(Vf a, Vf b, Vf x, Vf y) { EACH y.v[i] = a.v[i] > b.v[i] ? x.v[i] : y.v[i]; return y; }
INLINE Vi pack_words(Vi a, Vi b) {
  Vi r;
  EACH {
    const Vi &from = i < 8 ? a : b;
    const int j = 2 * (i % 8);
    r.v[i] = int32_t((uint32_t(from.v[j]) & 0xffff) | uint32_t(from.v[j + 1]) << 16);
  }
  return r;
}
INLINE Vf first(Vf a, int n, Vf b) { EACH if (i >= n) a.v[i] = b.v[i]; return a; }
INLINE Vf zero_below(Vf a, Vf b, Vf x) { EACH if (!(a.v[i] >= b.v[i])) x.v[i] = 0; return x; }
INLINE void store_first(float *p, Vf x, int n) { for (int i = 0; i < n; ++i) p[i] = x.v[i]; }
template <int BITS> INLINE Vi dot4(Vi acc, Vi u, Vi s) {
  uint8_t ub[64];
  int8_t sb[64];
  std::memcpy(ub, u.v, 64);
  std::memcpy(sb, s.v, 64);
  EACH {
    int32_t sum = 0;
    for (int j = 0; j < 4; ++j) sum += int32_t(ub[4 * i + j]) * sb[4 * i + j];
    acc.v[i] = int32_t(uint32_t(acc.v[i]) + uint32_t(sum));
  }
  return acc;
}
INLINE Vi dot2_words(Vi acc, Vi a, Vi b) {
  int16_t words[32], others[32];
  std::memcpy(words, a.v, 64);
  std::memcpy(others, b.v, 64);
  EACH acc.v[i] += int32_t(words[2 * i]) * others[2 * i] + int32_t(words[2 * i + 1]) * others[2 * i + 1];
  return acc;
}
#undef EACH
#endif

// dot4 with the four bytes at p in every lane of s.
template <int BITS> INLINE Vi dot4_at(Vi acc, Vi u, const void *p) {
#if MRS_ISA_avx512vnni
  // gcc 12 would load them into a register first, with an instruction of its own
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(u), "m"(*(const int32_t *)p));
  return acc;
#else
  int32_t four;
  std::memcpy(&four, p, 4);
  return dot4<BITS>(acc, u, set_i(four));
#endif
}

// The sum of 16 bytes.
INLINE int32_t byte_sum(const int8_t *p) {
#if defined(__x86_64__)
  const __m128i bytes = _mm_xor_si128(_mm_loadu_si128((const __m128i *)p), _mm_set1_epi8(-128));
  const __m128i sums = _mm_sad_epu8(bytes, _mm_setzero_si128());
  return _mm_cvtsi128_si32(sums) + _mm_cvtsi128_si32(_mm_srli_si128(sums, 8)) - 16 * 128;
#else
  int32_t sum = 0;
  for (int i = 0; i < 16; ++i) sum += p[i];
  return sum;
#endif
}

// Transposes eight rows of eight dwords; `stride` and `out_stride`: dwords from one row to the next.
INLINE void transpose8(const float *rows, int64_t stride, float *out, int64_t out_stride) {
#if defined(__AVX2__)
  __m256 x[8], y[8];
  for (int i = 0; i < 8; ++i) x[i] = _mm256_loadu_ps(rows + i * stride);
  for (int i = 0; i < 8; i += 2) {
    y[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
    y[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
  }
  // x[4 * i + j] of every 128 bits: column j (and 4 + j) of rows 4 * i to 4 * i + 3
  for (int i = 0; i < 8; i += 4) {
    x[i] = _mm256_shuffle_ps(y[i], y[i + 2], 0x44);
    x[i + 1] = _mm256_shuffle_ps(y[i], y[i + 2], 0xee);
    x[i + 2] = _mm256_shuffle_ps(y[i + 1], y[i + 3], 0x44);
    x[i + 3] = _mm256_shuffle_ps(y[i + 1], y[i + 3], 0xee);
  }
  for (int j = 0; j < 4; ++j) {
    _mm256_storeu_ps(out + j * out_stride, _mm256_permute2f128_ps(x[j], x[4 + j], 0x20));
    _mm256_storeu_ps(out + (4 + j) * out_stride, _mm256_permute2f128_ps(x[j], x[4 + j], 0x31));
  }
#else
  for (int j = 0; j < 8; ++j)
    for (int i = 0; i < 8; ++i) std::memcpy(out + j * out_stride + i, rows + i * stride + j, 4);
#endif
}

// The sum of the lanes in one fixed order: halves, quarters, pairs.
INLINE float lane_sum(Vf x) {
#if MRS_ISA_avx512 || MRS_ISA_avx512vnni
  const __mmask16 all = 0xffff;  // gcc 12 warns about its own header where there is none
  x = add(x, _mm512_maskz_shuffle_f32x4(all, x, x, 0x4e));
  x = add(x, _mm512_maskz_shuffle_f32x4(all, x, x, 0xb1));
  x = add(x, _mm512_maskz_permute_ps(all, x, 0x4e));
  return _mm512_cvtss_f32(add(x, _mm512_maskz_permute_ps(all, x, 0xb1)));
#else
  float t[16];
  store_f(t, x);
  for (int n = 8; n; n /= 2)
    for (int i = 0; i < n; ++i) t[i] += t[i + n];
  return t[0];
#endif
}

// Lanes i and i + STEP become their sum and their difference, for each i without the bit STEP.
template <int STEP> INLINE Vf butterfly(Vf a) {
  alignas(64) float signs[16];
  for (int i = 0; i < 16; ++i) signs[i] = i & STEP ? -1.0f : 1.0f;
  return add(exchange<STEP>(a), mul(a, load_f(signs)));
}

// 2^x, relative error about 2e-7; exactly 1 at 0 and exactly 0 below -126.
INLINE Vf exp2(Vf x) {
  Vf low = set_f(-126.0f);
  Vf clamped = min(max(x, low), set_f(126.0f));
  Vi n = to_int(clamped);
  Vf r = sub(clamped, to_float(n));  // [-0.5, 0.5]
  // Taylor coefficients of 2^r, ln(2)^k / k!
  Vf p = set_f(1.5403530e-4f);
  p = fma(p, r, set_f(1.3333558e-3f));
  p = fma(p, r, set_f(9.6181291e-3f));
  p = fma(p, r, set_f(5.5504109e-2f));
  p = fma(p, r, set_f(2.4022651e-1f));
  p = fma(p, r, set_f(6.9314718e-1f));
  p = fma(p, r, set_f(1.0f));
  return zero_below(x, low, mul(p, as_float(shl<23>(add(n, set_i(127))))));
}

#if MRS_ISA_avx512bf16
// acc + the products of both bfloat16 values of each lane.
INLINE Vf dot2(Vf acc, Vi a, Vi b) { return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b); }
// The values of a and then of b as 32 bfloat16, rounded to the nearest.
INLINE Vi pack_bf16(Vf a, Vf b) { return (Vi)_mm512_cvtne2ps_pbh(b, a); }
// Each lane of 16 values and of the 16 behind them, as pairs; `both`: else the second ones are zeros.
INLINE Vi load_pairs(const uint8_t *p, bool both) {
  const Vi lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const Vi order = _mm512_or_si512(lane, _mm512_slli_epi32(_mm512_add_epi32(lane, set_i(16)), 16));
  return _mm512_permutexvar_epi16(order, _mm512_maskz_loadu_epi16(both ? 0xffffffffu : 0xffffu, p));
}
#else
INLINE Vf dot2(Vf acc, Vi a, Vi b) {
  const Vi high = set_i(int32_t(0xffff0000));
  acc = fma(as_float(and_(a, high)), as_float(and_(b, high)), acc);
  return fma(as_float(shl<16>(a)), as_float(shl<16>(b)), acc);
}
INLINE Vi round_bf16(Vf a) {
  const Vi bits = as_int(a);
  return shr<16>(add(add(bits, set_i(0x7fff)), and_(shr<16>(bits), set_i(1))));
}
INLINE Vi pack_bf16(Vf a, Vf b) { return pack_words(round_bf16(a), round_bf16(b)); }
#endif

// 2^x for weights that are then rounded to bfloat16, relative error about 3e-6; 1 at 0 and 0 at minus infinity.
INLINE Vf exp2_rough(Vf x) {
#if MRS_ISA_avx512 || MRS_ISA_avx512vnni
  const Vf r = _mm512_reduce_ps(x, 0);  // what rounding to an integer leaves, [-0.5, 0.5]
  // the best fit of 2^r that is 1 at 0
  Vf p = set_f(9.5828300e-3f);
  p = fma(p, r, set_f(5.5906400e-2f));
  p = fma(p, r, set_f(2.4024099e-1f));
  p = fma(p, r, set_f(6.9312420e-1f));
  p = fma(p, r, set_f(1.0f));
  return _mm512_scalef_ps(p, sub(x, r));
#else
  return exp2(x);
#endif
}

// lines[q] gets dword q of the 16 bytes at `at` of each of 16 rows, in the order of the rows.
// bytes_apart(x): the first bytes of all lanes, then the second ones, and so on.
#if MRS_ISA_avx512 || MRS_ISA_avx512vnni
// The 16 bytes of rows r, r + 4, r + 8 and r + 12.
INLINE Vi load_quarters(const uint8_t *const *rows, int r, int64_t at) {
  const auto load = [&](int row) { return _mm_loadu_si128((const __m128i *)(rows[row] + at)); };
  Vi x = _mm512_castsi128_si512(load(r));
  x = _mm512_mask_broadcast_i32x4(x, 0x00f0, load(r + 4));
  x = _mm512_mask_broadcast_i32x4(x, 0x0f00, load(r + 8));
  return _mm512_mask_broadcast_i32x4(x, 0xf000, load(r + 12));
}
INLINE void transpose4(const uint8_t *const *rows, int64_t at, Vi *lines) {
  const Vi a = load_quarters(rows, 0, at), b = load_quarters(rows, 1, at);
  const Vi c = load_quarters(rows, 2, at), d = load_quarters(rows, 3, at);
  const Vi ab = _mm512_unpacklo_epi32(a, b), cd = _mm512_unpacklo_epi32(c, d);
  const Vi ab2 = _mm512_unpackhi_epi32(a, b), cd2 = _mm512_unpackhi_epi32(c, d);
  lines[0] = _mm512_unpacklo_epi64(ab, cd), lines[1] = _mm512_unpackhi_epi64(ab, cd);
  lines[2] = _mm512_unpacklo_epi64(ab2, cd2), lines[3] = _mm512_unpackhi_epi64(ab2, cd2);
}
INLINE Vi bytes_apart(Vi x) {
  const Vi in_four = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  const Vi fours = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(fours, _mm512_shuffle_epi8(x, in_four));
}
#elif MRS_ISA_avx2 || MRS_ISA_avxvnni
INLINE __m256i load_halves(const uint8_t *const *rows, int r, int64_t at) {
  const __m128i low = _mm_loadu_si128((const __m128i *)(rows[r] + at));
  return _mm256_inserti128_si256(_mm256_castsi128_si256(low), _mm_loadu_si128((const __m128i *)(rows[r + 4] + at)), 1);
}
INLINE void transpose4(const uint8_t *const *rows, int64_t at, Vi *lines) {
  for (int half = 0; half < 2; ++half) {
    const int r = 8 * half;
    const __m256i a = load_halves(rows, r, at), b = load_halves(rows, r + 1, at);
    const __m256i c = load_halves(rows, r + 2, at), d = load_halves(rows, r + 3, at);
    const __m256i ab = _mm256_unpacklo_epi32(a, b), cd = _mm256_unpacklo_epi32(c, d);
    const __m256i ab2 = _mm256_unpackhi_epi32(a, b), cd2 = _mm256_unpackhi_epi32(c, d);
    const __m256i out[4] = {_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd),
                            _mm256_unpacklo_epi64(ab2, cd2), _mm256_unpackhi_epi64(ab2, cd2)};
    for (int q = 0; q < 4; ++q) (half ? lines[q].b : lines[q].a) = out[q];
  }
}
#else
INLINE void transpose4(const uint8_t *const *rows, int64_t at, Vi *lines) {
  uint8_t bytes[4][64];
  for (int q = 0; q < 4; ++q)
    for (int row = 0; row < 16; ++row) std::memcpy(bytes[q] + 4 * row, rows[row] + at + 4 * q, 4);
  for (int q = 0; q < 4; ++q) lines[q] = load_i(bytes[q]);
}
#endif
#if !MRS_ISA_avx512 && !MRS_ISA_avx512vnni
INLINE Vi bytes_apart(Vi x) {
  uint8_t from[64], to[64];
  store_i(from, x);
  for (int i = 0; i < 64; ++i) to[i % 4 * 16 + i / 4] = from[i];
  return load_i(to);
}
#endif

// Stores 16 values. Where `streams` is set and p begins a cache line, the store is non-temporal: it goes past the caches, and the line
// is not fetched from a core that holds it. Other threads see the values after end_streaming().
INLINE void store_line(float *p, Vf x, bool streams) {
  if (streams && (uintptr_t)p % 64 == 0)
    stream_line(p, x);
  else
    store_f(p, x);
}

}  // namespace MRS_ISA
