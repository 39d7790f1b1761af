// What all micro-kernels share: a panel and its memory, and the product of one group of 32 columns with one int8 term.
#pragma once
#include "activations.h"
#include "formats.h"

namespace MRS_ISA {

// Memory that will be read soon.
class Ahead {
  struct Piece {
    const uint8_t *at;
    int64_t lines;
  };
  Piece pieces[32];  // those beyond them are read without notice
  int count = 0, next = 0;
  int64_t left = 0;  // lines of all

 public:
  void add(const uint8_t *at, int64_t bytes) {
    if (count == 32) return;
    pieces[count++] = {at, (bytes + 63) / 64};
    left += (bytes + 63) / 64;
  }

  bool empty() const { return !count; }

  // Asks for the first of `parts` parts of what is left.
  __attribute__((noinline)) void ask(int64_t parts) {
    int64_t now = (left + parts - 1) / parts;
    left -= now;
    for (; now; --now, pieces[next].at += 64) {
      while (!pieces[next].lines) ++next;
      __builtin_prefetch(pieces[next].at, 0, 2);
      --pieces[next].lines;
    }
  }
};

// A range of memory.
struct Bytes {
  const uint8_t *begin, *end;
};

// A panel of a weight, and the memory for its unpacked weights: kept_bytes(), or null for a tile of fewer than 8 tokens.
// The first tile of 8 asks for `ahead`, if that is not null, a few lines at a time. `next` is the panel that the thread reads
// after this one, or null where it stands behind this one or is not known.
struct Panel {
  const uint8_t *packed;
  uint8_t *kept;
  Ahead *ahead;
  const uint8_t *next;
};

// The sums of a panel's products with one term of TOKENS columns.
template <int TOKENS> struct Sums {
  Vf acc[TOKENS];
  // of a K type: those of the block in work, which the block's scale is still to multiply, and the products of the minima
  Vf part[TOKENS], minima[TOKENS];

  ALWAYS_INLINE Sums() {
#pragma GCC unroll 8
    for (int t = 0; t < TOKENS; ++t) acc[t] = part[t] = minima[t] = zero_f();
  }
};

// sums += (one group of 32 columns of a panel) * (one term of its TOKENS columns). line(q) gives the group's vector q of
// weights and is called in ascending order; d are its sub-blocks' scales, and m is the addend.
template <class F, int TOKENS, class LineOf>
INLINE void add_term(const LineOf &line, const Vf *d, const Vf *m, const Term &a, int64_t group, Sums<TOKENS> &sums) {
  const int8_t *q = a.q + group * 32 * TOKENS;
  if constexpr (F::SUB == 32) {
    Vi i[TOKENS];
    for (int t = 0; t < TOKENS; ++t)
      i[t] = F::OFFSET_LOG2 ? shl<F::OFFSET_LOG2>(set_i(a.sum32[group * TOKENS + t])) : zero_i();
    if constexpr (TOKENS <= 2) {  // with few tokens, one chain of 8 dependent additions would be the bottleneck
      Vi other[TOKENS];
      for (int t = 0; t < TOKENS; ++t) other[t] = zero_i();
#pragma GCC unroll 4
      for (int l = 0; l < 4; ++l)
#pragma GCC unroll 2
        for (int t = 0; t < TOKENS; ++t) {
          i[t] = dot4<F::BITS>(i[t], line(l), set_i(load32(q + (l * TOKENS + t) * 4)));
          other[t] = dot4<F::BITS>(other[t], line(l + 4), set_i(load32(q + ((l + 4) * TOKENS + t) * 4)));
        }
      for (int t = 0; t < TOKENS; ++t) i[t] = add(i[t], other[t]);
    } else {
#pragma GCC unroll 8
      for (int l = 0; l < 8; ++l) {
        const Vi w = line(l);
#pragma GCC unroll 8
        for (int t = 0; t < TOKENS; ++t) i[t] = dot4<F::BITS>(i[t], w, set_i(load32(q + (l * TOKENS + t) * 4)));
      }
    }
    if constexpr (is_wide<F>) {
      for (int t = 0; t < TOKENS; ++t) sums.part[t] = fma(to_float(i[t]), d[0], sums.part[t]);
      return;
    }
    for (int t = 0; t < TOKENS; ++t)
      sums.acc[t] = fma(mul(to_float(i[t]), d[0]), set_f(a.d[group * TOKENS + t]), sums.acc[t]);
    if constexpr (F::MINS)
      for (int t = 0; t < TOKENS; ++t) sums.acc[t] = fma(*m, set_f(a.fsum32[group * TOKENS + t]), sums.acc[t]);
  } else {
    Vf part[TOKENS];
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      Vi i[TOKENS];
      for (int t = 0; t < TOKENS; ++t)
        i[t] = F::OFFSET_LOG2 ? shl<F::OFFSET_LOG2>(set_i(a.sum16[(group * 2 + h) * TOKENS + t])) : zero_i();
#pragma GCC unroll 4
      for (int l = 4 * h; l < 4 * h + 4; ++l) {
        const Vi w = line(l);
#pragma GCC unroll 8
        for (int t = 0; t < TOKENS; ++t) i[t] = dot4<F::BITS>(i[t], w, set_i(load32(q + (l * TOKENS + t) * 4)));
      }
      for (int t = 0; t < TOKENS; ++t) {
        if constexpr (is_wide<F>)
          sums.part[t] = fma(to_float(i[t]), d[h], sums.part[t]);
        else
          part[t] = h ? fma(to_float(i[t]), d[1], part[t]) : mul(to_float(i[t]), d[0]);
      }
    }
    if constexpr (!is_wide<F>)
      for (int t = 0; t < TOKENS; ++t) sums.acc[t] = fma(part[t], set_f(a.d[group * TOKENS + t]), sums.acc[t]);
  }
}

// The pairs of sums that a type's minima are multiplied with, from those of a block on.
template <class F, int TOKENS> INLINE const int32_t *words_of(const Term &a, int64_t block) {
  return (F::SUB == 32 ? a.words32 : a.words16) + block * kMinima<F> * TOKENS;
}

// Ends a block of a K type: scales its sums, and adds the products of its minima, which stand from `minima` on, with the
// columns' sums; `m` is their scale.
template <class F, int TOKENS>
INLINE void end_block(const Vi *minima, const Vf *m, const Term &a, int64_t block, Sums<TOKENS> &sums) {
  if constexpr (is_wide<F>) {
#pragma GCC unroll 8
    for (int t = 0; t < TOKENS; ++t) {
      sums.acc[t] = fma(sums.part[t], set_f(a.d[block * 8 * TOKENS + t]), sums.acc[t]);
      sums.part[t] = zero_f();
    }
  }
  if constexpr (kMinima<F> > 0) {
    const int32_t *pairs = words_of<F, TOKENS>(a, block);
#pragma GCC unroll 8
    for (int t = 0; t < TOKENS; ++t) {
      Vi i = zero_i();
#pragma GCC unroll 8
      for (int k = 0; k < kMinima<F>; ++k) i = dot2_words(i, minima[k], set_i(pairs[k * TOKENS + t]));
      sums.minima[t] = fma(to_float(i), *m, sums.minima[t]);
    }
  }
}

// The tokens' units of their sums' pairs; term: 0, or 1 for the residual term.
template <class F> INLINE const float *steps_of(const TileHead &head, int term) {
  return F::SUB == 32 ? head.steps32[term] : head.steps16[term];
}

// The finished sum of token t of a term.
template <class F, int TOKENS> INLINE Vf sum_of(const Sums<TOKENS> &sums, const TileHead &head, int term, int t) {
  if constexpr (kMinima<F> > 0) return fma(sums.minima[t], set_f(steps_of<F>(head, term)[t]), sums.acc[t]);
  return sums.acc[t];
}

// As add_outliers for SIDE tokens from place `first` of the order on.
template <class F, int SIDE, int PANELS, class LineOf, class ScaleOf>
INLINE void add_outliers_of(const Acts &a, int first, const LineOf &line, const ScaleOf &scale, float *out) {
  const uint8_t *order = a.head->order + first;
  const Outlier *next[SIDE];
  Vf sums[SIDE * PANELS];
  for (int i = 0; i < SIDE; ++i) next[i] = a.outliers + order[i] * a.room;
  for (int i = 0; i < SIDE * PANELS; ++i) sums[i] = zero_f();
  for (int64_t k = 0, count = a.head->counts[first]; k < count; ++k)
#pragma GCC unroll 4
    for (int i = 0; i < SIDE; ++i) {
      const Outlier &o = next[i][k];
      const Vi start = F::OFFSET_LOG2 ? shl<F::OFFSET_LOG2>(set_i(o.sum)) : zero_i();
#pragma GCC unroll 3
      for (int p = 0; p < PANELS; ++p) {
        const Vi dot = dot4_at<F::BITS>(start, line(p, uint32_t(o.quad)), &o.q);
        Vf &sum = sums[i * PANELS + p];
        sum = fma(mul(to_float(dot), scale(p, uint32_t(o.quad))), set_f(o.d), sum);
      }
    }
  for (int i = 0; i < SIDE; ++i)
    for (int p = 0; p < PANELS; ++p) {
      float *to = out + 16 * (8 * p + order[i]);
      store_f(to, add(load_f(to), sums[i * PANELS + p]));
    }
}

// out[t] += the sum of token t's coarse terms, which are added one after the other, for each of PANELS panels, whose
// products are 128 values apart. line(p, quad) gives panel p's vector of weights of a quad, scale(p, quad) its sub-block's
// scale.
template <class F, int TOKENS, int PANELS = 1, class LineOf, class ScaleOf>
INLINE void add_outliers(const Acts &a, const LineOf &line, const ScaleOf &scale, float *out) {
  if constexpr (TOKENS == 8) {
    if (a.side() == 4) {
      for (int i = 0; i < 8; i += 4) add_outliers_of<F, 4, PANELS>(a, i, line, scale, out);
      return;
    }
  }
  for (int i = 0; i < TOKENS; i += 2) add_outliers_of<F, TOKENS == 1 ? 1 : 2, PANELS>(a, i, line, scale, out);
}

}  // namespace MRS_ISA
