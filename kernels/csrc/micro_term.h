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

// A coarse term's product with a panel, whose vector of weights of the quad is `line` and whose sub-block's scale is `scale`, plus
// `sum`.
template <class F> INLINE Vf add_outlier(const Outlier &o, Vi line, Vf scale, Vf sum) {
  const Vi start = F::OFFSET_LOG2 ? shl<F::OFFSET_LOG2>(set_i(o.sum)) : zero_i();
  return fma(mul(to_float(dot4_at<F::BITS>(start, line, &o.q)), scale), set_f(o.d), sum);
}

// The sums of the coarse terms of TOKENS columns for PANELS panels, each token's added one after the other. line(p, quad) gives
// panel p's vector of weights of a quad, scale(p, quad) its sub-block's scale.
template <class F, int TOKENS, int PANELS = 1> struct OutlierSums {
  alignas(64) float sums[PANELS * TOKENS * 16];

  ALWAYS_INLINE OutlierSums() {
    for (int i = 0; i < PANELS * TOKENS; ++i) store_f(sums + 16 * i, zero_f());
  }

  // Adds those of the strips [from, to). Tokens change too often for sums in registers: where they do is hard to foresee.
  template <class LineOf, class ScaleOf>
  ALWAYS_INLINE void add_strips(const Acts &a, int64_t from, int64_t to, const LineOf &line, const ScaleOf &scale) {
    for (int32_t i = a.starts[from], end = a.starts[to]; i < end; ++i) {
      const Outlier &o = a.outliers[i];
      float *of_token = sums + 16 * (TOKENS == 1 ? 0 : o.token());
#pragma GCC unroll 3
      for (int p = 0; p < PANELS; ++p) {
        float *sum = of_token + 16 * TOKENS * p;
        store_f(sum, add_outlier<F>(o, line(p, o.quad()), scale(p, o.quad()), load_f(sum)));
      }
    }
  }

  // Adds the strip of the tokens from `t` on in the block-th 256 columns.
  template <class LineOf, class ScaleOf>
  ALWAYS_INLINE void add_strip(const Acts &a, int64_t block, int t, const LineOf &line, const ScaleOf &scale) {
    const int64_t strip = strip_of(block, TOKENS, t);
    add_strips(a, strip, strip + 1, line, scale);
  }

  // Adds the sums to the panels' products, which stand 128 values apart.
  ALWAYS_INLINE void add_to(float *out) const {
    for (int p = 0; p < PANELS; ++p)
      for (int t = 0; t < TOKENS; ++t) {
        float *to = out + 16 * (8 * p + t);
        store_f(to, add(load_f(to), load_f(sums + 16 * (TOKENS * p + t))));
      }
  }
};

// out[128 * p + 16 * t] += the sum of token t's coarse terms for panel p of PANELS, as OutlierSums.
template <class F, int TOKENS, int PANELS = 1, class LineOf, class ScaleOf>
INLINE void add_outliers(const Acts &a, int64_t cols, const LineOf &line, const ScaleOf &scale, float *out) {
  if (!a.head->in_rows) {
    OutlierSums<F, TOKENS, PANELS> sums;
    sums.add_strips(a, 0, num_strips(cols, TOKENS), line, scale);
    return sums.add_to(out);
  }
  const Outlier *next = a.outliers, *const end = next + a.starts[num_strips(cols, TOKENS)];
  while (next < end) {
    const int t = next->token();
    Vf sums[PANELS];
    for (int p = 0; p < PANELS; ++p) sums[p] = zero_f();
    do {
#pragma GCC unroll 3
      for (int p = 0; p < PANELS; ++p) sums[p] = add_outlier<F>(*next, line(p, next->quad()), scale(p, next->quad()), sums[p]);
    } while (++next < end && next->token() == t);
    for (int p = 0; p < PANELS; ++p) {
      float *to = out + 16 * (8 * p + t);
      store_f(to, add(load_f(to), sums[p]));
    }
  }
}

}  // namespace MRS_ISA
