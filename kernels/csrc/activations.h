// Tiles of activations: rows of float32 rounded to int8 with one scale for each 32 columns.
//
// Tokens are handled in tiles of TOKENS = 1, 2, 4 or 8. Rounding errors are in proportion to a group's largest value, and
// most of a row's error comes from its few groups with large values. A group whose largest value is far above the row's
// average is therefore two-term: a second int8 term, the residual, holds the remainder of the first. If any token of a
// tile has such a group, all tokens of the tile have the residual term for it; it is zero for the others, and adding
// zero changes no bit.
#pragma once
#include "layout.h"
#include "simd.h"

namespace MRS_ISA {

// One int8 term of a tile, in the order in which the micro-kernels read it; TOKENS columns side by side.
struct Term {
  int8_t *q;       // (cols / 4, TOKENS, 4)
  float *d;        // (cols / 32, TOKENS)
  int32_t *sum32;  // (cols / 32, TOKENS) minus the sum of q
  int32_t *sum16;  // (cols / 16, TOKENS) minus the sum of q
  float *fsum32;   // (cols / 32, TOKENS) d * sum of q
  float *fsum16;   // (cols / 16, TOKENS)
};

// The activations of a tile.
struct Acts {
  Term first, residual;
  uint8_t *two_term;  // (cols / 32) not zero: some token has the residual term here
  float *x;           // (cols, TOKENS) or (TOKENS, cols) the plain values, see Needs
};

INLINE bool is_float(int type) { return type == MRS_F32 || type == MRS_F16 || type == MRS_BF16; }

// The forms of its tiles that a product reads. The plain values stand as (cols, TOKENS) for weights that are stored as
// floats, else, where deltas alone read them, as (TOKENS, cols).
struct Needs {
  bool ints, floats, rows;

  void add(int type) { (is_float(type) ? floats : ints) = true; }
};

// Bytes of a term of one column: 32 and 28 of sums for each group.
INLINE int64_t term_bytes(int64_t cols) { return (cols + 31) / 32 * 60; }

// Bytes of a tile of 8.
INLINE int64_t bytes_of_tile(int64_t cols, Needs needs) {
  return (16 * term_bytes(cols) + (cols + 31) / 32 + 3 + (needs.floats || needs.rows ? 32 * cols : 0) + 63) / 64 * 64;
}

INLINE Term term_at(uint8_t *&p, int64_t groups, int tokens) {
  Term a;
  a.q = (int8_t *)p, p += groups * 32 * tokens;
  a.d = (float *)p, p += groups * 4 * tokens;
  a.sum32 = (int32_t *)p, p += groups * 4 * tokens;
  a.fsum32 = (float *)p, p += groups * 4 * tokens;
  a.sum16 = (int32_t *)p, p += groups * 8 * tokens;
  a.fsum16 = (float *)p, p += groups * 8 * tokens;
  return a;
}

INLINE Acts acts_at(uint8_t *base, int64_t cols, int tokens) {
  const int64_t groups = (cols + 31) / 32;
  Acts a;
  a.first = term_at(base, groups, tokens);
  a.residual = term_at(base, groups, tokens);
  a.two_term = base, base += (groups + 3) / 4 * 4;
  a.x = (float *)base;
  return a;
}

struct Tile {
  int64_t first;  // row of the first token
  int count;      // tokens that it holds
  int tokens;     // TOKENS of its micro-kernel: 1, 2, 4 or 8, of which those past `count` are zeros
  uint8_t *base;
};

INLINE Tile tile_of(int64_t first, int64_t left, uint8_t *base) {
  const int count = int(left < 8 ? left : 8);
  return {first, count, count > 4 ? 8 : count > 2 ? 4 : count, base};
}

// Writes column t of a term from 32 values: int8, scale, sums. `residual` becomes the rounding errors.
INLINE void quantize_group(Vf lo, Vf hi, float d, float inverse, const Term &a, int64_t group, int tokens, int t,
                           Vf *residual) {
  Vi qlo = to_int(mul(lo, set_f(inverse))), qhi = to_int(mul(hi, set_f(inverse)));
  alignas(16) int8_t bytes[32];
  store_s8(bytes, qlo);
  store_s8(bytes + 16, qhi);
  for (int l = 0; l < 8; ++l) std::memcpy(a.q + ((group * 8 + l) * tokens + t) * 4, bytes + 4 * l, 4);
  // NaN becomes the least integer, and sums of these wrap
  const int32_t s0 = lane_sum(qlo), s1 = lane_sum(qhi), both = int32_t(uint32_t(s0) + uint32_t(s1));
  a.d[group * tokens + t] = d;
  a.sum32[group * tokens + t] = int32_t(-uint32_t(both));
  a.sum16[group * 2 * tokens + t] = int32_t(-uint32_t(s0));
  a.sum16[(group * 2 + 1) * tokens + t] = int32_t(-uint32_t(s1));
  a.fsum32[group * tokens + t] = d * float(both);
  a.fsum16[group * 2 * tokens + t] = d * float(s0);
  a.fsum16[(group * 2 + 1) * tokens + t] = d * float(s1);
  residual[0] = fma(to_float(qlo), set_f(-d), lo);
  residual[1] = fma(to_float(qhi), set_f(-d), hi);
}

// Makes all columns of a group zero.
INLINE void clear_group(const Term &a, int64_t group, int tokens) {
  std::memset(a.q + group * 32 * tokens, 0, 32 * tokens);
  std::memset(a.d + group * tokens, 0, 4 * tokens);
  std::memset(a.sum32 + group * tokens, 0, 4 * tokens);
  std::memset(a.fsum32 + group * tokens, 0, 4 * tokens);
  std::memset(a.sum16 + group * 2 * tokens, 0, 8 * tokens);
  std::memset(a.fsum16 + group * 2 * tokens, 0, 8 * tokens);
}

// Fills column t of a tile whose `two_term` and dead columns are zero. Groups above `outlier_threshold` times the average
// become two-term.
INLINE void quantize(const float *x, int64_t cols, float outlier_threshold, const Acts &a, int tokens, int t) {
  const int64_t groups = cols / 32;
  float largest[groups];
  double total = 0;
  for (int64_t group = 0; group < groups; ++group) {
    float amax = lane_max(max(abs(load_f(x + 32 * group)), abs(load_f(x + 32 * group + 16))));
    // below this the inverse of a residual's step would be infinite; taking it for zero costs no precision
    total += largest[group] = amax > 1e-34f ? amax : 0;
  }
  const double limit = outlier_threshold * (total / groups);
  for (int64_t group = 0; group < groups; ++group) {
    Vf residual[2];
    const float amax = largest[group], d = amax / 127.0f, inverse = amax > 0 ? 127.0f / amax : 0.0f;
    quantize_group(load_f(x + 32 * group), load_f(x + 32 * group + 16), d, inverse, a.first, group, tokens, t, residual);
    if (!(amax > limit)) continue;
    if (!a.two_term[group]) a.two_term[group] = 1, clear_group(a.residual, group, tokens);
    // rounding left at most half a step: 127 steps of the residual term
    quantize_group(residual[0], residual[1], d / 254.0f, inverse * 254.0f, a.residual, group, tokens, t, residual);
  }
}

// Fills a tile; row(t) gives token t's values.
template <class RowOf>
INLINE void prepare_tile(const Tile &tile, int64_t cols, float outlier_threshold, Needs needs, RowOf &&row) {
  const int tokens = tile.tokens;
  Acts a = acts_at(tile.base, cols, tokens);
  if (needs.ints) {
    std::memset(a.two_term, 0, cols / 32);
    for (int64_t group = 0; tile.count < tokens && group < cols / 32; ++group) clear_group(a.first, group, tokens);
  }
  for (int t = 0; t < tile.count; ++t) {
    const float *x = row(t);
    if (needs.ints) quantize(x, cols, outlier_threshold, a, tokens, t);
    for (int64_t k = 0; needs.floats && k < cols; ++k) a.x[k * tokens + t] = x[k];
    if (needs.rows) std::memcpy(a.x + t * cols, x, cols * sizeof(float));
  }
  for (int t = tile.count; needs.floats && t < tokens; ++t)
    for (int64_t k = 0; k < cols; ++k) a.x[k * tokens + t] = 0;
}

}  // namespace MRS_ISA
