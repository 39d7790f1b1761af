// Unpacks the weights of each storage type from a panel (layout.h): for every group of 32 columns eight vectors of
// unsigned bytes, and for every sub-block a scale and, where the type has minima, an addend:
//   weight = scale * (byte - OFFSET) + addend
// The addend of a K type is a small integer, the minimum, times a scale of the block.
// A block is walked as OUTER x INNER groups; INNER is unrolled so that shifts are constants.
//
// unpack_scales(scales, quants, s) unpacks a block's scales, scale(scales, quants, j) one of them, and line<J>(quants, n, q) vector
// q of the group n * INNER + J; line(quants, n, j, q) is the same for a j that varies, where INNER is not 1. The groups of one n
// share cache lines.
#pragma once
#include "layout.h"
#include "simd.h"

namespace MRS_ISA {

INLINE int32_t load32(const void *p) {
  int32_t x;
  std::memcpy(&x, p, 4);
  return x;
}

INLINE Vi nibble_low(Vi x) { return and_(x, set_i(0x0f0f0f0f)); }
INLINE Vi nibble_high(Vi x) { return and_(shr<4>(x), set_i(0x0f0f0f0f)); }
INLINE Vi byte_of(Vi x, int j) { return and_(shr(x, 8 * j), set_i(255)); }
// bit `n` of every byte, moved to bit TO
template <int TO> INLINE Vi bit(Vi x, int n) { return shl<TO>(and_(shr(x, n), set_i(0x01010101))); }

struct Scales {
  Vf d[16];
  Vf m;          // the addend, or of a K type the scale of the minima
  Vi minima[8];  // of a K type: two int16 in each lane
};

// Whether 256 columns, a block, share a scale of the activations (activations.h): for the K types.
template <class F> constexpr bool is_wide = F::OUTER * F::INNER == 8;

// Vectors of minima of a block: each has those of two sub-blocks.
template <class F> constexpr int kMinima = is_wide<F> && F::MINS ? 128 / F::SUB : 0;

// Sub-block j's addend, or zeros.
template <class F> INLINE Vf addend_of(const Scales &s, int j) {
  if constexpr (!F::MINS) return zero_f();
  if constexpr (!kMinima<F>) return s.m;
  const Vi words = shr(s.minima[j / 4 * 2 + j % 2], j % 4 / 2 * 16);
  return mul(s.m, to_float(and_(words, set_i(0xffff))));
}

// Writes two vectors of minima, from a byte for each of four sub-blocks: those of the sub-blocks 0 and 2, and of 1 and 3.
INLINE void unpack_minima(Vi bytes, Vi *minima) {
  const Vi words = set_i(0x00ff00ff);
  minima[0] = and_(bytes, words), minima[1] = and_(shr<8>(bytes), words);
}

template <int TYPE> struct Format;

template <int TYPE, int BITS_, int OFFSET_LOG2_, bool MINS_> struct Block32 {
  static constexpr int type = TYPE, BITS = BITS_, OFFSET_LOG2 = OFFSET_LOG2_, SUB = 32, OUTER = 1, INNER = 1;
  static constexpr bool MINS = MINS_;
  INLINE void unpack_scales(const uint8_t *scales, const uint8_t *, Scales &s) {
    s.d[0] = load_f16((const uint16_t *)scales);
    if constexpr (MINS) s.m = load_f16((const uint16_t *)scales + 16);
  }
  INLINE Vf scale(const uint8_t *scales, const uint8_t *, int) { return load_f16((const uint16_t *)scales); }
};

template <> struct Format<MRS_Q4_0> : Block32<MRS_Q4_0, 4, 3, false> {
  template <int> INLINE Vi line(const uint8_t *quants, int, int q) {
    const Vi x = load_i(quants + 64 * (q & 3));
    return q < 4 ? nibble_low(x) : nibble_high(x);
  }
};
template <> struct Format<MRS_Q4_1> : Block32<MRS_Q4_1, 4, 0, true> {
  template <int J> INLINE Vi line(const uint8_t *quants, int n, int q) { return Format<MRS_Q4_0>::line<J>(quants, n, q); }
};
template <> struct Format<MRS_Q5_0> : Block32<MRS_Q5_0, 5, 4, false> {
  template <int J> INLINE Vi line(const uint8_t *quants, int n, int q) {
    return or_(Format<MRS_Q4_0>::line<J>(quants + 64, n, q), bit<4>(load_i(quants), q));
  }
};
template <> struct Format<MRS_Q5_1> : Block32<MRS_Q5_1, 5, 0, true> {
  template <int J> INLINE Vi line(const uint8_t *quants, int n, int q) { return Format<MRS_Q5_0>::line<J>(quants, n, q); }
};
template <> struct Format<MRS_Q8_0> : Block32<MRS_Q8_0, 8, 7, false> {
  template <int> INLINE Vi line(const uint8_t *quants, int, int q) { return load_i(quants + 64 * q); }
};

template <> struct Format<MRS_I8> {
  static constexpr int type = MRS_I8, BITS = 8, OFFSET_LOG2 = 7, SUB = 16, OUTER = 1, INNER = 1;
  static constexpr bool MINS = false;
  INLINE void unpack_scales(const uint8_t *scales, const uint8_t *, Scales &s) {
    s.d[0] = load_f((const float *)scales);
    s.d[1] = load_f((const float *)scales + 16);
  }
  INLINE Vf scale(const uint8_t *scales, const uint8_t *, int j) { return load_f((const float *)scales + 16 * j); }
  template <int J> INLINE Vi line(const uint8_t *quants, int n, int q) { return Format<MRS_Q8_0>::line<J>(quants, n, q); }
};

template <> struct Format<MRS_Q2_K> {
  static constexpr int type = MRS_Q2_K, BITS = 2, OFFSET_LOG2 = 0, SUB = 16, OUTER = 2, INNER = 4;
  static constexpr bool MINS = true;
  INLINE void unpack_scales(const uint8_t *scales, const uint8_t *, Scales &s) {
    Vf d = load_f16((const uint16_t *)scales);
    s.m = sub(zero_f(), load_f16((const uint16_t *)scales + 16));
    for (int j = 0; j < 16; ++j) s.d[j] = mul(d, to_float(and_(byte_of(load_i(scales + 64 + 64 * (j / 4)), j % 4), set_i(15))));
    for (int i = 0; i < 4; ++i) unpack_minima(nibble_high(load_i(scales + 64 + 64 * i)), s.minima + 2 * i);
  }
  INLINE Vf scale(const uint8_t *scales, const uint8_t *, int j) {
    const Vi both = byte_of(load_i(scales + 64 + 64 * (j / 4)), j % 4);
    return mul(load_f16((const uint16_t *)scales), to_float(and_(both, set_i(15))));
  }
  template <int J> INLINE Vi line(const uint8_t *quants, int n, int q) {
    return and_(shr<2 * J>(load_i(quants + 512 * n + 64 * q)), set_i(0x03030303));
  }
  INLINE Vi line(const uint8_t *quants, int n, int j, int q) {
    return and_(shr(load_i(quants + 512 * n + 64 * q), 2 * j), set_i(0x03030303));
  }
};

template <> struct Format<MRS_Q3_K> {
  static constexpr int type = MRS_Q3_K, BITS = 3, OFFSET_LOG2 = 2, SUB = 16, OUTER = 2, INNER = 4;
  static constexpr bool MINS = false;
  INLINE void unpack_scales(const uint8_t *scales, const uint8_t *, Scales &s) {
    Vf d = load_f16((const uint16_t *)scales);
    Vi a0 = load_i(scales + 32), a1 = load_i(scales + 96), high = load_i(scales + 160), two = set_i(0x03030303);
    Vi packed[4] = {or_(nibble_low(a0), shl<4>(and_(high, two))), or_(nibble_low(a1), shl<4>(and_(shr<2>(high), two))),
                    or_(nibble_high(a0), shl<4>(and_(shr<4>(high), two))),
                    or_(nibble_high(a1), shl<4>(and_(shr<6>(high), two)))};
    for (int j = 0; j < 16; ++j) s.d[j] = mul(d, to_float(add(byte_of(packed[j / 4], j % 4), set_i(-32))));
  }
  INLINE Vf scale(const uint8_t *scales, const uint8_t *, int j) {
    const Vi four = and_(shr(load_i(scales + 32 + 64 * (j / 4 % 2)), j / 8 * 4), set_i(0x0f0f0f0f));
    const Vi high = and_(shr(load_i(scales + 160), j / 4 * 2), set_i(0x03030303));
    return mul(load_f16((const uint16_t *)scales), to_float(add(byte_of(or_(four, shl<4>(high)), j % 4), set_i(-32))));
  }
  template <int J> INLINE Vi line(const uint8_t *quants, int n, int q) {
    const Vi low = and_(shr<2 * J>(load_i(quants + 512 + 512 * n + 64 * q)), set_i(0x03030303));
    return or_(low, bit<2>(load_i(quants + 64 * q), 4 * n + J));
  }
  INLINE Vi line(const uint8_t *quants, int n, int j, int q) {
    return or_(Format<MRS_Q2_K>::line(quants + 512, n, j, q), bit<2>(load_i(quants + 64 * q), 4 * n + j));
  }
};

template <> struct Format<MRS_Q4_K> {
  static constexpr int type = MRS_Q4_K, BITS = 4, OFFSET_LOG2 = 0, SUB = 32, OUTER = 4, INNER = 2;
  static constexpr bool MINS = true;
  INLINE void unpack_scales(const uint8_t *scales, const uint8_t *, Scales &s) {
    Vf d = load_f16((const uint16_t *)scales);
    s.m = sub(zero_f(), load_f16((const uint16_t *)scales + 16));
    Vi u0 = load_i(scales + 64), u1 = load_i(scales + 128), u2 = load_i(scales + 192);
    Vi six = set_i(0x3f3f3f3f), top = set_i(0x30303030);
    Vi sc[2] = {and_(u0, six), or_(nibble_low(u2), and_(shr<2>(u0), top))};
    Vi mn[2] = {and_(u1, six), or_(nibble_high(u2), and_(shr<2>(u1), top))};
    for (int j = 0; j < 8; ++j) s.d[j] = mul(d, to_float(byte_of(sc[j / 4], j % 4)));
    for (int i = 0; i < 2; ++i) unpack_minima(mn[i], s.minima + 2 * i);
  }
  INLINE Vf scale(const uint8_t *scales, const uint8_t *, int j) {
    const Vi first = byte_of(load_i(scales + 64), j % 4), third = byte_of(load_i(scales + 192), j % 4);
    const Vi late = or_(and_(third, set_i(15)), and_(shr<2>(first), set_i(0x30)));
    const Vi six = select(set_i(-(j / 4)), late, and_(first, set_i(63)));
    return mul(load_f16((const uint16_t *)scales), to_float(six));
  }
  template <int J> INLINE Vi line(const uint8_t *quants, int n, int q) {
    const Vi x = load_i(quants + 512 * n + 64 * q);
    return J ? nibble_high(x) : nibble_low(x);
  }
  INLINE Vi line(const uint8_t *quants, int n, int j, int q) { return nibble_low(shr(load_i(quants + 512 * n + 64 * q), 4 * j)); }
};

template <> struct Format<MRS_Q5_K> {
  static constexpr int type = MRS_Q5_K, BITS = 5, OFFSET_LOG2 = 0, SUB = 32, OUTER = 4, INNER = 2;
  static constexpr bool MINS = true;
  INLINE void unpack_scales(const uint8_t *scales, const uint8_t *quants, Scales &s) { Format<MRS_Q4_K>::unpack_scales(scales, quants, s); }
  INLINE Vf scale(const uint8_t *scales, const uint8_t *quants, int j) { return Format<MRS_Q4_K>::scale(scales, quants, j); }
  template <int J> INLINE Vi line(const uint8_t *quants, int n, int q) {
    return or_(Format<MRS_Q4_K>::line<J>(quants + 512, n, q), bit<4>(load_i(quants + 64 * q), 2 * n + J));
  }
  INLINE Vi line(const uint8_t *quants, int n, int j, int q) {
    return or_(Format<MRS_Q4_K>::line(quants + 512, n, j, q), bit<4>(load_i(quants + 64 * q), 2 * n + j));
  }
};

template <> struct Format<MRS_Q6_K> {
  static constexpr int type = MRS_Q6_K, BITS = 6, OFFSET_LOG2 = 5, SUB = 16, OUTER = 2, INNER = 4;
  static constexpr bool MINS = false;
  INLINE void unpack_scales(const uint8_t *scales, const uint8_t *quants, Scales &s) {
    Vf d = load_f16((const uint16_t *)scales);
    for (int j = 0; j < 16; ++j) s.d[j] = mul(d, to_float(load_s8((const int8_t *)quants + 16 * j)));
  }
  INLINE Vf scale(const uint8_t *scales, const uint8_t *quants, int j) {
    return mul(load_f16((const uint16_t *)scales), to_float(load_s8((const int8_t *)quants + 16 * j)));
  }
  template <int J> INLINE Vi line(const uint8_t *quants, int n, int q) {
    const uint8_t *lines = quants + 256 + 192 * (8 * n + q);
    const Vi x = load_i(lines + 64 + 64 * (J & 1));
    Vi h = load_i(lines);
    if constexpr (J == 0) h = shl<4>(h);
    if constexpr (J == 1) h = shl<2>(h);
    if constexpr (J == 3) h = shr<2>(h);
    return or_(J < 2 ? nibble_low(x) : nibble_high(x), and_(h, set_i(0x30303030)));
  }
  INLINE Vi line(const uint8_t *quants, int n, int j, int q) {
    const uint8_t *lines = quants + 256 + 192 * (8 * n + q);
    const Vi x = nibble_low(shr(load_i(lines + 64 + 64 * (j & 1)), j / 2 * 4));
    return or_(x, and_(shl<4>(shr(load_i(lines), 2 * j)), set_i(0x30303030)));
  }
};

template <int TYPE> INLINE Vf load_weight(const uint8_t *p) {
  if constexpr (TYPE == MRS_F32) return load_f((const float *)p);
  if constexpr (TYPE == MRS_F16) return load_f16((const uint16_t *)p);
  if constexpr (TYPE == MRS_BF16) return load_bf16((const uint16_t *)p);
}

// Calls f.run<Format>() or f.run_float<TYPE>() for a type known at run time.
template <class Visitor> INLINE void visit_type(int type, Visitor &&f) {
  switch (type) {
    case MRS_F32: f.template run_float<MRS_F32>(); break;
    case MRS_F16: f.template run_float<MRS_F16>(); break;
    case MRS_BF16: f.template run_float<MRS_BF16>(); break;
    case MRS_Q4_0: f.template run<Format<MRS_Q4_0>>(); break;
    case MRS_Q4_1: f.template run<Format<MRS_Q4_1>>(); break;
    case MRS_Q5_0: f.template run<Format<MRS_Q5_0>>(); break;
    case MRS_Q5_1: f.template run<Format<MRS_Q5_1>>(); break;
    case MRS_Q8_0: f.template run<Format<MRS_Q8_0>>(); break;
    case MRS_I8: f.template run<Format<MRS_I8>>(); break;
    case MRS_Q2_K: f.template run<Format<MRS_Q2_K>>(); break;
    case MRS_Q3_K: f.template run<Format<MRS_Q3_K>>(); break;
    case MRS_Q4_K: f.template run<Format<MRS_Q4_K>>(); break;
    case MRS_Q5_K: f.template run<Format<MRS_Q5_K>>(); break;
    case MRS_Q6_K: f.template run<Format<MRS_Q6_K>>(); break;
    default: break;  // packing has refused other types
  }
}

}  // namespace MRS_ISA
