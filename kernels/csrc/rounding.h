// Rounds rows of float32 to the tiles of activations.h: each row by itself, then the rows of a tile side by side, so that its
// memory is written in order.
#pragma once
#include "activations.h"
#include "plain_tile.h"

#include <cfloat>

namespace MRS_ISA {

constexpr float kLeast = 1e-34f;  // smaller values count as zeros: the inverse of their step would be infinite

// The rows of a tile as int8 values (TOKENS, cols), and their scales (TOKENS, room), where room is a multiple of 16.
struct RoundedRows {
  int8_t *q;
  float *d;
  int64_t cols, room;
};

// The sums of the coarse terms of both halves of 32 columns of a token.
struct CoarseSums {
  int32_t group, t;
  float halves[2];
};

// Writes the largest absolute value of each group, and zeros up to a multiple of 16 of them.
INLINE void find_largest(const float *x, int64_t groups, float *largest) {
  for (int64_t group = 0; group < (groups + 15) / 16 * 16; group += 4) {
    Vf four[4];
    for (int i = 0; i < 4; ++i) {
      const float *from = x + 32 * (group + i);
      four[i] = group + i < groups ? max(abs(load_f(from)), abs(load_f(from + 16))) : zero_f();
    }
    lane_max4(four, largest + group);
  }
}

// The limit above which a quad of a row is an outlier, from the largest values of its groups and zeros up to `room`.
INLINE float outlier_limit(const float *largest, int64_t groups, int64_t room, float outlier_threshold) {
  typedef float Floats __attribute__((vector_size(16)));
  typedef double Doubles __attribute__((vector_size(32)));
  Doubles sums[2] = {};
  for (int64_t group = 0; group < room; group += 8)
    for (int i = 0; i < 2; ++i) {
      Floats four;
      std::memcpy(&four, largest + group + 4 * i, sizeof four);
      sums[i] += __builtin_convertvector(four, Doubles);
    }
  sums[0] += sums[1];
  const double limit = outlier_threshold * (((sums[0][0] + sums[0][1]) + (sums[0][2] + sums[0][3])) / groups);
  return limit < FLT_MAX ? limit > kLeast ? float(limit) : kLeast : INFINITY;
}

// Takes quads with a value above `limit` out of 32 columns of token t, which keep the remainders: writes their coarse terms to `out`
// and returns the place of the next. `sums` become the sums of the coarse terms of both halves.
INLINE Outlier *take_outliers(Vf *x, float limit, int64_t first_quad, int t, Outlier *out, float *sums) {
#if MRS_ISA_avx512 || MRS_ISA_avx512vnni
  const Vf largest[2] = {quad_max(abs(x[0])), quad_max(abs(x[1]))};
  // a quad's four lanes hold the same
  const Vi fours = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 0, 0, 0, 0, 0, 0, 0);
  const __m256 eight = _mm512_castps512_ps256(_mm512_permutex2var_ps(largest[0], fours, largest[1]));
  const __m256 top = _mm256_set1_ps(127.0f);
  const Vf d8 = _mm512_castps256_ps512(_mm256_div_ps(eight, top));
  const Vf inverse8 = _mm512_castps256_ps512(_mm256_div_ps(top, eight));
#pragma GCC unroll 2
  for (int h = 0; h < 2; ++h) {
    const Vi lane = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    const Vi of_half = h ? add(lane, set_i(4)) : lane;
    const Vf d = _mm512_permutexvar_ps(of_half, d8), inverse = _mm512_permutexvar_ps(of_half, inverse8);
    const __mmask16 above = __mmask16(lanes_above(largest[h], set_f(limit)));
    const Vi q = to_int(mul(x[h], inverse));
    x[h] = _mm512_mask_blend_ps(above, x[h], subtract_product(x[h], to_float(q), d));
    // in each four lanes: the place, its four values, its scale, minus their sum
    const Vi values = _mm512_permutexvar_epi32(lane, _mm512_castsi128_si512(_mm512_cvtepi32_epi8(q)));
    const Vi total = dot4<1>(zero_i(), set_i(0x01010101), values);
    Vi terms = add(shl<3>(lane), set_i(int32_t(8 * (first_quad + 4 * h) + t)));
    terms = _mm512_mask_blend_epi32(0x2222, terms, values);
    terms = _mm512_mask_blend_epi32(0x4444, terms, as_int(d));
    terms = _mm512_mask_sub_epi32(terms, 0x8888, zero_i(), total);
    const int lanes = __builtin_popcount(above);
    _mm512_mask_storeu_epi32(out, __mmask16((1u << lanes) - 1), _mm512_maskz_compress_epi32(above, terms));
    out += lanes / 4;
    const Vf parts = _mm512_maskz_mul_ps(above, d, to_float(total));
    const __m128 pair = _mm_add_ss(_mm512_castps512_ps128(parts), _mm512_extractf32x4_ps(parts, 1));
    const __m128 three = _mm_add_ss(pair, _mm512_extractf32x4_ps(parts, 2));
    sums[h] = _mm_cvtss_f32(_mm_add_ss(three, _mm512_extractf32x4_ps(parts, 3)));
  }
#else
  for (int h = 0; h < 2; ++h, ++x) {
    sums[h] = 0;
    const Vf largest = quad_max(abs(*x));
    unsigned lanes = lanes_above(largest, set_f(limit)) & 0x1111;
    if (!lanes) continue;
    const Vf d = div(largest, set_f(127.0f));
    const Vi q = to_int(mul(*x, div(set_f(127.0f), largest)));
    *x = select_above(largest, set_f(limit), subtract_product(*x, to_float(q), d), *x);
    alignas(64) int8_t bytes[16];
    alignas(64) float steps[16];
    store_s8(bytes, q);
    store_f(steps, d);
    for (; lanes; lanes &= lanes - 1) {
      const int i = __builtin_ctz(lanes);
      const int8_t *four = bytes + i;
      const int32_t total = four[0] + four[1] + four[2] + four[3];
      Outlier o = {uint32_t(8 * (first_quad + 4 * h + i / 4) + t), 0, steps[i], -total};
      std::memcpy(&o.q, four, 4);
      *out++ = o;
      sums[h] += o.d * float(total);
    }
  }
#endif
  return out;
}

// Rounds 32 values. `left` becomes the rounding errors.
INLINE void round_group(const Vf *x, float d, float inverse, int8_t *q, Vf *left) {
  for (int h = 0; h < 2; ++h) {
    const Vi rounded = to_int(mul(x[h], set_f(inverse)));
    store_s8(q + 16 * h, rounded);
    left[h] = subtract_product(x[h], to_float(rounded), set_f(d));
  }
}

// The outliers of a row, while it is rounded.
struct RowOutliers {
  Outlier *terms;     // room for all quads
  float *remainders;  // room for all groups: the 32 values of each group that has outliers
  CoarseSums *sums;   // likewise, and the groups' numbers
  int32_t count;      // outliers
  int32_t groups;     // groups that have outliers
};

// Takes row t's outliers, whose groups' largest values become those of the remainders.
INLINE void take_row_outliers(const float *x, int64_t groups, int64_t room, float outlier_threshold, int t, float *largest,
                              RowOutliers &row) {
  const float limit = outlier_limit(largest, groups, room, outlier_threshold);
  Outlier *next = row.terms;
  for (int64_t from = 0; from < groups; from += 16)
    for (unsigned above = lanes_above(load_f(largest + from), set_f(limit)); above; above &= above - 1) {
      const int64_t group = from + __builtin_ctz(above);
      Vf v[2] = {load_f(x + 32 * group), load_f(x + 32 * group + 16)};
      CoarseSums &sums = row.sums[row.groups];
      sums.group = int32_t(group), sums.t = t;
      next = take_outliers(v, limit, 8 * group, t, next, sums.halves);
      for (int h = 0; h < 2; ++h) store_f(row.remainders + 32 * row.groups + 16 * h, v[h]);
      largest[group] = lane_max(max(abs(v[0]), abs(v[1])));
      ++row.groups;
    }
  row.count = int32_t(next - row.terms);
}

// Gives the 8 groups of each block the largest of their values.
INLINE void spread_largest(float *largest, int64_t groups) {
  for (int64_t from = 0; from < groups; from += 8) {
    float most = 0;
    for (int i = 0; i < 8; ++i) most = largest[from + i] > most ? largest[from + i] : most;
    for (int i = 0; i < 8; ++i) largest[from + i] = most;
  }
}

// Rounds row t. residual: null, or the rows of the residual term, and there are no outliers then.
INLINE void round_row(const float *x, float outlier_threshold, bool wide, int t, const RoundedRows &first,
                      const RoundedRows *residual, RowOutliers &row) {
  const int64_t groups = first.cols / 32;
  alignas(64) float largest[first.room], inverse[first.room];
  float *const d = first.d + t * first.room;
  int8_t *const q = first.q + t * first.cols;
  row.count = row.groups = 0;
  find_largest(x, groups, largest);
  if (!residual) take_row_outliers(x, groups, first.room, outlier_threshold, t, largest, row);
  if (wide) spread_largest(largest, groups);
  for (int64_t group = 0; group < groups; group += 16) {
    const Vf m = load_f(largest + group), least = set_f(kLeast);
    store_f(d + group, select_above(m, least, div(m, set_f(127.0f)), zero_f()));
    store_f(inverse + group, select_above(m, least, div(set_f(127.0f), m), zero_f()));
  }
  Vf left[2];
  for (int64_t group = 0; group < groups; ++group) {
    const Vf v[2] = {load_f(x + 32 * group), load_f(x + 32 * group + 16)};
    round_group(v, d[group], inverse[group], q + 32 * group, left);
    if (!residual) continue;
    // rounding left at most half a step: 127 steps of the residual term
    const float step = residual->d[t * residual->room + group] = d[group] / 254.0f;
    round_group(left, step, inverse[group] * 254.0f, residual->q + t * residual->cols + 32 * group, left);
  }
  for (int i = 0; i < row.groups; ++i) {
    const int64_t group = row.sums[i].group;
    const Vf v[2] = {load_f(row.remainders + 32 * i), load_f(row.remainders + 32 * i + 16)};
    round_group(v, d[group], inverse[group], q + 32 * group, left);
  }
}

// The negative of small integers.
INLINE Vi negative(Vi x) { return to_int(sub(zero_f(), to_float(x))); }

// Writes the sums of 8 tokens and `count` groups, up to 8, whose values and scales the term has. halves[group]: their sums
// of 16 columns, twice[group]: their scales, each for 8 tokens and again.
INLINE void fill_sums(const Term &a, int64_t from, int count, const Vi *halves, const float *twice, Needs needs) {
  for (int i = 0; i < count; ++i) {
    const int64_t at = 16 * (from + i);
    if (needs.sum16) store_i(a.sum16 + at, negative(halves[i]));
    if (needs.fsum16) store_f(a.fsum16 + at, add(mul(load_f(twice + 16 * i), to_float(halves[i])), zero_f()));
  }
  for (int i = 0; i < count; i += 2) {
    const int lanes = count - i < 2 ? 8 : 16;
    const int64_t at = 8 * (from + i);
    const Vi sums = fold(halves[i], halves[i + lanes / 16]);
    if (needs.sum32) store_first((float *)a.sum32 + at, as_float(negative(sums)), lanes);
    if (needs.fsum32) store_first(a.fsum32 + at, add(mul(load_f(a.d + at), to_float(sums)), zero_f()), lanes);
  }
}

// Writes a term of 8 tokens from their rows, without coarse terms.
INLINE void fill_eight(const RoundedRows &rows, const Term &a, Needs needs) {
  const int64_t groups = rows.cols / 32;
  const Vi ones = set_i(0x01010101);
  for (int64_t from = 0; from < groups; from += 8) {
    const int count = int(groups - from < 8 ? groups - from : 8);
    alignas(64) float twice[8 * 16];
    transpose8(rows.d + from, rows.room, twice, 16);
    transpose8(rows.d + from, rows.room, twice + 8, 16);
    // what is written here is read as wider vectors further down, when it has left the processor's queue of stores
    for (int i = 0; i < count; ++i)
      transpose8((const float *)(rows.q + 32 * (from + i)), rows.cols / 4, (float *)(a.q + 256 * (from + i)), 8);
    Vi halves[8];
    for (int i = 0; i < count; ++i) {
      const int8_t *q = a.q + 256 * (from + i);  // each 64 bytes: 8 tokens of an even quad, and of the odd one beside it
      const Vi first = dot4<1>(dot4<1>(zero_i(), ones, load_i(q)), ones, load_i(q + 64));
      const Vi second = dot4<1>(dot4<1>(zero_i(), ones, load_i(q + 128)), ones, load_i(q + 192));
      halves[i] = fold(first, second);
      store_first(a.d + 8 * (from + i), load_f(twice + 16 * i), 8);
    }
    fill_sums(a, from, count, halves, twice, needs);
  }
}

// Writes 32 columns of 2 or 4 rows, `stride` bytes apart, by quads: (8, TOKENS, 4). `sums` become those of 16 columns each.
template <int TOKENS> INLINE void side_by_side(const int8_t *rows, int64_t stride, int8_t *out, int32_t (*sums)[TOKENS]) {
#if MRS_ISA_avx512 || MRS_ISA_avx512vnni
  const auto two = [&](int t) {
    const __m256i first = _mm256_loadu_si256((const __m256i *)(rows + t * stride));
    return _mm512_inserti64x4(_mm512_castsi256_si512(first), _mm256_loadu_si256((const __m256i *)(rows + (t + 1) * stride)), 1);
  };
  const Vi ones = set_i(0x01010101);
  if constexpr (TOKENS == 4) {
    const Vi quads = _mm512_setr_epi32(0, 8, 16, 24, 1, 9, 17, 25, 2, 10, 18, 26, 3, 11, 19, 27);
    const Vi low = two(0), high = two(2);
    for (int h = 0; h < 2; ++h) {
      const Vi four = _mm512_permutex2var_epi32(low, add(quads, set_i(4 * h)), high);
      store_i(out + 64 * h, four);
      const Vi each = dot4<1>(zero_i(), ones, four);
      const __m256i pairs = _mm256_add_epi32(_mm512_castsi512_si256(each), _mm512_extracti64x4_epi64(each, 1));
      _mm_storeu_si128((__m128i *)sums[h], _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1)));
    }
  } else {
    const Vi all = _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15), two(0));
    store_i(out, all);
    const Vi each = dot4<1>(zero_i(), ones, all);
    for (int h = 0; h < 2; ++h) {
      const __m256i half = h ? _mm512_extracti64x4_epi64(each, 1) : _mm512_castsi512_si256(each);
      const __m128i pairs = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
      _mm_storel_epi64((__m128i *)sums[h], _mm_add_epi32(pairs, _mm_unpackhi_epi64(pairs, pairs)));
    }
  }
#else
  for (int t = 0; t < TOKENS; ++t) {
    const int8_t *q = rows + t * stride;
    for (int l = 0; l < 8; ++l) std::memcpy(out + (l * TOKENS + t) * 4, q + 4 * l, 4);
    for (int h = 0; h < 2; ++h) sums[h][t] = byte_sum(q + 16 * h);
  }
#endif
}

// The same for one token.
INLINE void fill_one(const RoundedRows &rows, const Term &a) {
  const int64_t groups = rows.cols / 32;
  std::memcpy(a.q, rows.q, rows.cols);
  std::memcpy(a.d, rows.d, groups * sizeof(float));
  for (int64_t group = 0; group < groups; ++group) {
    const float d = rows.d[group];
    int32_t sum[2];
    for (int h = 0; h < 2; ++h) {
      sum[h] = byte_sum(rows.q + 32 * group + 16 * h);
      a.sum16[group * 2 + h] = -sum[h];
      a.fsum16[group * 2 + h] = d * float(sum[h]) + 0.0f;
    }
    a.sum32[group] = -(sum[0] + sum[1]);
    a.fsum32[group] = d * float(sum[0] + sum[1]) + 0.0f;
  }
}

// The same for 2 or 4.
template <int TOKENS> INLINE void fill_few(const RoundedRows &rows, const Term &a) {
  for (int64_t group = 0; group < rows.cols / 32; ++group) {
    int32_t sums[2][TOKENS], ints[3][TOKENS];
    float d[TOKENS], floats[3][TOKENS];
    side_by_side<TOKENS>(rows.q + 32 * group, rows.cols, a.q + group * 32 * TOKENS, sums);
    for (int t = 0; t < TOKENS; ++t) d[t] = rows.d[t * rows.room + group];
    for (int t = 0; t < TOKENS; ++t) {
      const int32_t of[3] = {sums[0][t], sums[1][t], sums[0][t] + sums[1][t]};
      for (int i = 0; i < 3; ++i) ints[i][t] = -of[i], floats[i][t] = d[t] * float(of[i]) + 0.0f;
    }
    std::memcpy(a.d + group * TOKENS, d, sizeof d);
    std::memcpy(a.sum16 + group * 2 * TOKENS, ints, 2 * sizeof ints[0]);
    std::memcpy(a.fsum16 + group * 2 * TOKENS, floats, 2 * sizeof floats[0]);
    std::memcpy(a.sum32 + group * TOKENS, ints[2], sizeof ints[2]);
    std::memcpy(a.fsum32 + group * TOKENS, floats[2], sizeof floats[2]);
  }
}

// Writes a tile's sums as pairs: `count` rows of TOKENS, from four neighbouring rows two of pairs. `steps` become the tokens'
// units.
template <int TOKENS> INLINE void round_sums(const float *sums, int64_t count, int32_t *pairs, float *steps) {
  const int64_t size = count * TOKENS, whole = size / 16 * 16;
  alignas(64) float last[16] = {0}, most[16], inverse[16];
  std::memcpy(last, sums + whole, (size - whole) * sizeof(float));
  Vf largest = abs(load_f(last));
  for (int64_t i = 0; i < whole; i += 16) largest = max(largest, abs(load_f(sums + i)));
  store_f(most, largest);
  for (int i = TOKENS; i < 16; ++i) most[i % TOKENS] = most[i] > most[i % TOKENS] ? most[i] : most[i % TOKENS];
  for (int i = 0; i < 16; ++i) inverse[i] = most[i % TOKENS] > kLeast ? 32767.0f / most[i % TOKENS] : 0;
  for (int t = 0; t < TOKENS; ++t) steps[t] = most[t] > kLeast ? most[t] / 32767.0f : 0;

  const auto rounded = [&](int64_t i) { return to_int(mul(load_f(i < whole ? sums + i : last), load_f(inverse))); };
  if constexpr (TOKENS == 8) {
    for (int64_t i = 0; i < size; i += 32, pairs += 16)
      store_i(pairs, or_(and_(rounded(i), set_i(0xffff)), shl<16>(rounded(i + 16))));
  } else {
    alignas(64) int32_t words[whole + 16];
    for (int64_t i = 0; i < size; i += 16) store_i(words + i, rounded(i));
    for (int64_t i = 0; i < size; i += 4 * TOKENS)
      for (int u = 0; u < 2 * TOKENS; ++u)
        *pairs++ = int32_t((uint32_t(words[i + u]) & 0xffff) | uint32_t(words[i + 2 * TOKENS + u]) << 16);
  }
}

// Writes the pairs of all terms of a tile.
INLINE void round_sums_of(const Acts &a, int64_t cols, int tokens, Needs needs) {
  const auto pair = [&](const float *sums, int64_t count, int32_t *pairs, float *steps) {
    if (tokens == 8) round_sums<8>(sums, count, pairs, steps);
    if (tokens == 4) round_sums<4>(sums, count, pairs, steps);
    if (tokens == 2) round_sums<2>(sums, count, pairs, steps);
    if (tokens == 1) round_sums<1>(sums, count, pairs, steps);
  };
  for (int term = 0; term < 1 + (a.head->two_terms != 0); ++term) {
    const Term &of = term ? a.residual : a.first;
    if (needs.words32) pair(of.fsum32, cols / 32, of.words32, a.head->steps32[term]);
    if (needs.words16) pair(of.fsum16, cols / 16, of.words16, a.head->steps16[term]);
  }
}

// Puts `count` outliers, which stand token by token, in the order of their strips.
INLINE void sort_outliers(const Acts &a, int64_t count, int64_t cols, int tokens) {
  const int64_t strips = num_strips(cols, tokens);
  const auto strip = [&](const Outlier &o) { return strip_of(a.head->in_rows ? 0 : o.quad() / 64, tokens, o.token()); };
  Outlier found[count + 1];
  int32_t next[strips];
  std::memcpy(found, a.outliers, count * sizeof(Outlier));
  std::memset(a.starts, 0, (strips + 1) * sizeof(int32_t));
  for (int64_t i = 0; i < count; ++i) ++a.starts[strip(found[i]) + 1];
  for (int64_t i = 0; i < strips; ++i) next[i] = a.starts[i], a.starts[i + 1] += a.starts[i];
  for (int64_t i = 0; i < count; ++i) a.outliers[next[strip(found[i])]++] = found[i];
}

// Fills the int8 terms of a tile; row(t) gives token t's values, and used(t, x) gets them.
template <class RowOf, class Used>
INLINE void round_tile(const Tile &tile, const Acts &a, int64_t cols, float outlier_threshold, Needs needs, RowOf &&row,
                       Used &&used) {
  const int tokens = tile.tokens;
  const bool two_terms = a.head->two_terms;
  const int64_t room = (cols / 32 + 15) / 16 * 16, bytes = tokens * cols;
  alignas(64) int8_t q[(two_terms ? 2 : 1) * bytes];
  alignas(64) float d[(two_terms ? 2 : 1) * tokens * room];
  const RoundedRows first = {q, d, cols, room}, residual = {q + bytes, d + tokens * room, cols, room};
  CoarseSums sums[cols / 32 * tokens], *last = sums;
  alignas(64) float remainders[two_terms ? 1 : cols];
  int64_t count = 0;  // outliers of all tokens
  for (int t = 0; t < tile.count; ++t) {
    for (int64_t i = 0; tokens == 8 && i < cols; i += 64) prefetch_written(a.first.q + t * cols + i);
    const float *x = row(t);
    RowOutliers outliers = {a.outliers + count, remainders, last, 0, 0};
    round_row(x, outlier_threshold, needs.wide, t, first, two_terms ? &residual : nullptr, outliers);
    last += outliers.groups, count += outliers.count;
    used(t, x);
  }
  for (const RoundedRows *rows = &first; rows; rows = rows == &first && two_terms ? &residual : nullptr) {
    const int64_t spare = tokens - tile.count;
    std::memset(rows->q + tile.count * cols, 0, spare * cols);
    std::memset(rows->d + tile.count * room, 0, spare * room * sizeof(float));
    const Term &term = rows == &first ? a.first : a.residual;
    if (tokens == 8) fill_eight(*rows, term, needs);
    if (tokens == 4) fill_few<4>(*rows, term);
    if (tokens == 2) fill_few<2>(*rows, term);
    if (tokens == 1) fill_one(*rows, term);
  }
  for (const CoarseSums *s = sums; s < last; ++s) {
    for (int h = 0; needs.fsum16 && h < 2; ++h) a.first.fsum16[(s->group * 2 + h) * tokens + s->t] += s->halves[h];
    if (needs.fsum32) a.first.fsum32[s->group * tokens + s->t] += s->halves[0] + s->halves[1];
  }
  if (needs.words32 || needs.words16) round_sums_of(a, cols, tokens, needs);
  a.head->in_rows = tokens == 8 && !needs.wide;
  sort_outliers(a, count, cols, tokens);
}

// Fills a tile; row(t) gives token t's values, which stay until the next call.
template <class RowOf>
INLINE void prepare_tile(const Tile &tile, int64_t cols, float outlier_threshold, Needs needs, RowOf &&row) {
  const int tokens = tile.tokens;
  const Acts a = acts_at(tile.base, cols, tokens);
  a.head->two_terms = outlier_threshold <= 0;
  PlainTile plain(tile, a, cols, needs);
  const auto copy = [&](int t, const float *x) {
    plain.add(t, x);
    if (needs.rows) std::memcpy(a.x + t * cols, x, cols * sizeof(float));
  };
  if (needs.ints)
    round_tile(tile, a, cols, outlier_threshold, needs, row, copy);
  else
    for (int t = 0; t < tile.count; ++t) copy(t, row(t));
  plain.finish();
}

}  // namespace MRS_ISA
