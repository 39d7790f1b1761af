// Tiles of activations: rows of float32 rounded to int8 with one scale for each 32 columns.
//
// Tokens are handled in tiles of TOKENS = 1, 2, 4 or 8. Rounding errors are in proportion to a group's largest value, and
// most of a row's error comes from few values that stand out, the outliers. A quad, four neighbouring columns, whose
// largest value is above a limit (a threshold times the average of the row's groups' largest values) has therefore an int8
// term of its own, the coarse term, and its remainder takes its place in the group. A threshold of 0 gives all groups a
// residual term instead, a second int8 value for the remainder of the first.
#pragma once
#include "layout.h"
#include "simd.h"

#include <cfloat>

namespace MRS_ISA {

// One int8 term of a tile, in the order in which the micro-kernels read it; TOKENS columns side by side.
struct Term {
  int8_t *q;       // (cols / 4, TOKENS, 4)
  float *d;        // (cols / 32, TOKENS)
  int32_t *sum32;  // (cols / 32, TOKENS) minus the sum of q
  int32_t *sum16;  // (cols / 16, TOKENS) minus the sum of q
  float *fsum32;   // (cols / 32, TOKENS) d * sum of q, with the coarse terms of these columns
  float *fsum16;   // (cols / 16, TOKENS)
};

// The coarse term of a quad. One of zeros changes no sum.
struct Outlier {
  int32_t quad;  // its first column / 4
  int32_t q;     // four int8 values
  float d;
  int32_t sum;  // minus the sum of q
};

// What a tile begins with.
struct TileHead {
  int32_t two_terms;  // not zero: all groups have the residual term
  int32_t outliers;   // of the token that has most
};

// The activations of a tile.
struct Acts {
  TileHead *head;
  Term first, residual;
  Outlier *outliers;  // (head->outliers, TOKENS) each token's in ascending order, then zeros; in the place of `residual`
  float *x;           // (cols, TOKENS) or (TOKENS, cols) the plain values, see Needs
  int32_t *pairs;     // (cols / 2, TOKENS) two columns as bfloat16; behind an odd last one stands a zero
};

INLINE bool is_float(int type) { return type == MRS_F32 || type == MRS_F16 || type == MRS_BF16; }

// Whether products multiply pairs of bfloat16: for weights that are stored so, where the instruction set has it and not
// all activations are wanted exact.
INLINE bool is_paired([[maybe_unused]] int type, [[maybe_unused]] float outlier_threshold) {
#if MRS_ISA_avx512bf16
  return type == MRS_BF16 && outlier_threshold > 0;
#else
  return false;
#endif
}

// The forms of its tiles that a product reads. The plain values stand as (cols, TOKENS) for weights that are stored as
// floats, else, where deltas alone read them, as (TOKENS, cols).
struct Needs {
  bool ints, floats, rows, pairs;

  void add(int type, float outlier_threshold) {
    (is_paired(type, outlier_threshold) ? pairs : is_float(type) ? floats : ints) = true;
  }
};

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
  a.head = (TileHead *)base, base += 64;
  a.first = term_at(base, groups, tokens);
  a.outliers = (Outlier *)base;
  uint8_t *second = base;
  a.residual = term_at(second, groups, tokens);
  a.x = (float *)(base + groups * kOutlierBytes * tokens);
  a.pairs = (int32_t *)(a.x + cols * tokens);
  return a;
}

// Bytes of a tile of 8.
INLINE int64_t bytes_of_tile(int64_t cols, Needs needs) {
  const int64_t plain = needs.floats || needs.rows || needs.pairs ? 32 * cols : 0, pairs = needs.pairs ? 16 * (cols + 1) : 0;
  return (activation_bytes(cols) + plain + pairs + 63) / 64 * 64;
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

// The scale of int8 values up to `largest`, and its inverse. The inverse of a step that is a 254th would be infinite for
// much smaller values than 1e-34; taking these for zeros costs no precision.
struct Step {
  float d, inverse;
};

INLINE Step step_of(float largest) { return largest > 1e-34f ? Step{largest / 127.0f, 127.0f / largest} : Step{0, 0}; }

// Writes column t of a term from 32 values: int8, scale, sums. `coarse`: the sums of the coarse terms of both halves.
// `left` becomes the rounding errors.
INLINE void quantize_group(const Vf *x, Step step, const Term &a, int64_t group, int tokens, int t, const float *coarse,
                           Vf *left) {
  float fsum[2];
  int32_t sum[2];
  for (int h = 0; h < 2; ++h) {
    const Vi q = to_int(mul(x[h], set_f(step.inverse)));
    alignas(16) int8_t bytes[16];
    store_s8(bytes, q);
    for (int l = 0; l < 4; ++l) std::memcpy(a.q + ((group * 8 + 4 * h + l) * tokens + t) * 4, bytes + 4 * l, 4);
    sum[h] = byte_sum(q);
    fsum[h] = step.d * float(sum[h]);
    a.sum16[(group * 2 + h) * tokens + t] = -sum[h];
    a.fsum16[(group * 2 + h) * tokens + t] = fsum[h] + coarse[h];
    left[h] = subtract_product(x[h], to_float(q), set_f(step.d));
  }
  a.d[group * tokens + t] = step.d;
  a.sum32[group * tokens + t] = -(sum[0] + sum[1]);
  a.fsum32[group * tokens + t] = step.d * float(sum[0] + sum[1]) + (coarse[0] + coarse[1]);
}

// Takes quads with a value above `limit` out of 16 columns, which keep the remainders: writes their coarse terms to `out`,
// `tokens` apart, and returns the place of the next. `sum` becomes the sum of the coarse terms.
INLINE Outlier *take_outliers(Vf *x, float limit, int64_t first_quad, Outlier *out, int tokens, float *sum) {
  const Vf largest = quad_max(abs(*x)), d = div(largest, set_f(127.0f));
  const Vi q = to_int(mul(*x, div(set_f(127.0f), largest)));
  const unsigned lanes = lanes_above(largest, set_f(limit));
  *x = select_above(largest, set_f(limit), subtract_product(*x, to_float(q), d), *x);
  alignas(64) int8_t bytes[16];
  alignas(64) float steps[16];
  store_s8(bytes, q);
  store_f(steps, d);
  *sum = 0;
  for (int i = 0; i < 4; ++i) {
    if (!(lanes >> 4 * i & 1)) continue;
    const int8_t *four = bytes + 4 * i;
    const int32_t total = four[0] + four[1] + four[2] + four[3];
    Outlier o = {int32_t(first_quad + i), 0, steps[4 * i], -total};
    std::memcpy(&o.q, four, 4);
    *out = o, out += tokens;
    *sum += o.d * float(total);
  }
  return out;
}

// The limit above which a quad of a row is an outlier, from the largest values of its groups.
INLINE float outlier_limit(const float *largest, int64_t groups, float outlier_threshold) {
  double total = 0;
  for (int64_t group = 0; group < groups; ++group) total += largest[group];
  const double limit = outlier_threshold * (total / groups);
  return limit < FLT_MAX ? limit > 1e-34 ? float(limit) : 1e-34f : INFINITY;
}

// Fills column t of a tile and of its outliers, of which it returns the number.
INLINE int32_t quantize(const float *x, int64_t cols, float outlier_threshold, const Acts &a, int tokens, int t) {
  const int64_t groups = cols / 32;
  float largest[groups];
  for (int64_t group = 0; group < groups; ++group) {
    const float amax = lane_max(max(abs(load_f(x + 32 * group)), abs(load_f(x + 32 * group + 16))));
    largest[group] = amax > 1e-34f ? amax : 0;
  }
  const float limit = a.head->two_terms ? INFINITY : outlier_limit(largest, groups, outlier_threshold);
  Outlier *next = a.outliers + t;
  const float none[2] = {0, 0};
  for (int64_t group = 0; group < groups; ++group) {
    Vf v[2] = {load_f(x + 32 * group), load_f(x + 32 * group + 16)}, left[2];
    if (largest[group] > limit) {
      float coarse[2];
      for (int h = 0; h < 2; ++h) next = take_outliers(v + h, limit, 8 * group + 4 * h, next, tokens, coarse + h);
      const Step step = step_of(lane_max(max(abs(v[0]), abs(v[1]))));
      quantize_group(v, step, a.first, group, tokens, t, coarse, left);
      continue;
    }
    const Step step = step_of(largest[group]);
    quantize_group(v, step, a.first, group, tokens, t, none, left);
    // rounding left at most half a step: 127 steps of the residual term
    if (a.head->two_terms)
      quantize_group(left, {step.d / 254.0f, step.inverse * 254.0f}, a.residual, group, tokens, t, none, left);
  }
  return int32_t((next - a.outliers) / tokens);
}

// Writes the pairs of column t of a tile.
INLINE void pair_columns([[maybe_unused]] const float *x, [[maybe_unused]] int64_t cols, [[maybe_unused]] const Acts &a,
                         [[maybe_unused]] int tokens, [[maybe_unused]] int t) {
#if MRS_ISA_avx512bf16
  for (int64_t k = 0; k < cols; k += 32) {
    const int64_t live = cols - k < 32 ? cols - k : 32;
    alignas(64) float last[32] = {0};
    if (live < 32) std::memcpy(last, x + k, live * sizeof(float));
    const float *from = live < 32 ? last : x + k;
    alignas(64) int32_t pairs[16];
    store_i(pairs, pack_bf16(load_f(from), load_f(from + 16)));
    for (int64_t i = 0; i < (live + 1) / 2; ++i) a.pairs[(k / 2 + i) * tokens + t] = pairs[i];
  }
#endif
}

// Fills a tile; row(t) gives token t's values.
template <class RowOf>
INLINE void prepare_tile(const Tile &tile, int64_t cols, float outlier_threshold, Needs needs, RowOf &&row) {
  const int tokens = tile.tokens;
  Acts a = acts_at(tile.base, cols, tokens);
  a.head->two_terms = outlier_threshold <= 0;
  if (needs.ints && tile.count < tokens)
    std::memset(a.first.q, 0, (a.head->two_terms ? 2 : 1) * (cols / 32) * kTermBytes * tokens);
  int32_t counts[8] = {0}, most = 0;
  for (int t = 0; t < tile.count; ++t) {
    const float *x = row(t);
    if (needs.ints) counts[t] = quantize(x, cols, outlier_threshold, a, tokens, t);
    most = counts[t] > most ? counts[t] : most;
    for (int64_t k = 0; needs.floats && k < cols; ++k) a.x[k * tokens + t] = x[k];
    if (needs.pairs) pair_columns(x, cols, a, tokens, t);
    if (needs.rows) std::memcpy(a.x + t * cols, x, cols * sizeof(float));
  }
  a.head->outliers = most;
  for (int t = 0; t < tokens; ++t)
    for (int32_t i = counts[t]; i < most; ++i) a.outliers[i * tokens + t] = {0, 0, 0, 0};
  for (int t = tile.count; needs.floats && t < tokens; ++t)
    for (int64_t k = 0; k < cols; ++k) a.x[k * tokens + t] = 0;
  for (int64_t k = 0; needs.pairs && k < (cols + 1) / 2; ++k)
    for (int t = tile.count; t < tokens; ++t) a.pairs[k * tokens + t] = 0;
}

}  // namespace MRS_ISA
