// Micro-kernels for a tile of 1, 2 or 4 tokens, whose products take less time than reading the panel.
#pragma once
#include "asks_ahead.h"
#include "micro_term.h"

namespace MRS_ISA {

// Asks for the step-th of `steps` parts of the cache lines of INNER groups from `at` on, if that is not null. One or two
// tokens are so fast that the lines are read before they leave the first-level cache, and need not pass through the second.
template <class F, int TOKENS> INLINE void ask_ahead(const uint8_t *at, int step, int steps) {
  constexpr mrs_layout layout = layout_of(F::type);
  constexpr int lines = (layout.scales + layout.quants + 64 * F::OUTER - 1) / (64 * F::OUTER);
  if (!at) return;
#pragma GCC unroll 32
  for (int i = step * lines / steps; i < (step + 1) * lines / steps; ++i) __builtin_prefetch(at + 64 * i, 0, TOKENS <= 2 ? 0 : 3);
}

// Lines with which the processor's own prefetcher begins a stream. 32 and more make it slower than none (docs/log.md).
constexpr int kFirstLines = 8;
// Bytes before a panel's end at which one that stands elsewhere is asked for.
constexpr int kBytesBeforeNext = 2048;

INLINE void ask_for_stream(const uint8_t *at) {
  for (int i = 0; i < kFirstLines; ++i) __builtin_prefetch(at + 64 * i, 0, 2);
}

// Asks for the page behind the one that begins in [at, at + bytes), if one begins there. The processor's own prefetcher stays
// within a page; the first lines let it begin the next one while this one is multiplied.
INLINE void ask_for_page(const uint8_t *at, int bytes) {
  constexpr uintptr_t size = 4096;
  const uintptr_t from = (uintptr_t)at, to = from + bytes;
  if (from / size != to / size) ask_for_stream((const uint8_t *)(to / size * size + size));
}

// Asks for what a block of a K type multiplies: the weights of a long panel drive it out of the first-level cache before the next
// panel comes to it.
template <class F, int TOKENS> INLINE void ask_for_columns(const Term &a, int64_t block) {
  const int8_t *q = a.q + block * 256 * TOKENS;
#pragma GCC unroll 8
  for (int i = 0; i < 4 * TOKENS; ++i) __builtin_prefetch(q + 64 * i, 0, 3);
  if constexpr (kMinima<F> > 0) __builtin_prefetch(words_of<F, TOKENS>(a, block), 0, 3);
}

template <class F, int TOKENS, int J>
INLINE void dot_group(const uint8_t *quants, int n, const Scales &s, const Acts &a, int64_t group, Sums<TOKENS> &sums,
                      Sums<TOKENS> &residual, bool two_terms) {
  Vi w[8];
  for (int q = 0; q < 8; ++q) w[q] = F::template line<J>(quants, n, q);
  const auto line = [&](int q) { return w[q]; };
  const int sub = (n * F::INNER + J) * (32 / F::SUB);
  add_term<F, TOKENS>(line, s.d + sub, &s.m, a.first, group, sums);
  if (two_terms) add_term<F, TOKENS>(line, s.d + sub, &s.m, a.residual, group, residual);
}

// sums[J * TOKENS + t] += vector q of group J * columns 4q.. of token t, for all groups from J on; RESIDUAL: likewise
// `residuals`, of the residual term.
template <class F, int TOKENS, bool RESIDUAL, int J>
INLINE void dot_line(const uint8_t *quants, int n, int q, const Term &a, const Term &residual, int64_t group, Vi *sums,
                     Vi *residuals) {
  const Vi w = F::template line<J>(quants, n, q);
  const int64_t at = ((group + J) * 8 + q) * TOKENS * 4;
#pragma GCC unroll 2
  for (int t = 0; t < TOKENS; ++t) {
    sums[J * TOKENS + t] = dot4_at<F::BITS>(sums[J * TOKENS + t], w, a.q + at + 4 * t);
    if constexpr (RESIDUAL)
      residuals[J * TOKENS + t] = dot4_at<F::BITS>(residuals[J * TOKENS + t], w, residual.q + at + 4 * t);
  }
  if constexpr (J + 1 < F::INNER) dot_line<F, TOKENS, RESIDUAL, J + 1>(quants, n, q, a, residual, group, sums, residuals);
}

// The integers from which the sums of a group's sub-block start: minus the offset times the sum of the columns.
template <class F, int TOKENS> INLINE Vi first_sum(const Term &a, int64_t group, int h, int t) {
  if constexpr (!F::OFFSET_LOG2) return zero_i();
  const int32_t sum = F::SUB == 32 ? a.sum32[group * TOKENS + t] : a.sum16[(group * 2 + h) * TOKENS + t];
  return shl<F::OFFSET_LOG2>(set_i(sum));
}

// As dot_group for the INNER groups of a K type that share cache lines, of which each is read once: a second pass over them
// would end the stream of the memory. The sums are those of dot_group, to the last bit, where a group's halves are added
// one after the other. Asks for the lines from `ahead` on meanwhile: all of them at once would delay the lines that are
// read here.
template <class F, int TOKENS, bool RESIDUAL>
INLINE void dot_groups(const uint8_t *quants, int n, const Scales &s, const Acts &a, int64_t group, const uint8_t *ahead,
                       Sums<TOKENS> &total, Sums<TOKENS> &residual_total) {
  constexpr int COUNT = F::INNER * TOKENS, HALVES = 32 / F::SUB;
  Vi sums[HALVES][COUNT], residuals[HALVES][COUNT];
#pragma GCC unroll 2
  for (int h = 0; h < HALVES; ++h) {
    for (int j = 0; j < F::INNER; ++j)
      for (int t = 0; t < TOKENS; ++t) {
        sums[h][j * TOKENS + t] = first_sum<F, TOKENS>(a.first, group + j, h, t);
        if constexpr (RESIDUAL) residuals[h][j * TOKENS + t] = first_sum<F, TOKENS>(a.residual, group + j, h, t);
      }
#pragma GCC unroll 8
    for (int q = h * (8 / HALVES); q < (h + 1) * (8 / HALVES); ++q) {
      ask_ahead<F, TOKENS>(ahead, q, 8);
      dot_line<F, TOKENS, RESIDUAL, 0>(quants, n, q, a.first, a.residual, group, sums[h], residuals[h]);
    }
  }
  for (int j = 0; j < F::INNER; ++j)
    for (int h = 0; h < HALVES; ++h)
      for (int t = 0; t < TOKENS; ++t) {
        const Vf d = s.d[(n * F::INNER + j) * HALVES + h];
        total.part[t] = fma(to_float(sums[h][j * TOKENS + t]), d, total.part[t]);
        if constexpr (RESIDUAL)
          residual_total.part[t] = fma(to_float(residuals[h][j * TOKENS + t]), d, residual_total.part[t]);
      }
}

// Vector q of any group of a block, without a branch that is hard to foresee.
template <class F> INLINE Vi line_of(const uint8_t *quants, int group, int q) {
  if constexpr (F::INNER == 1)
    return F::template line<0>(quants, group, q);
  else
    return F::line(quants, group / F::INNER, group % F::INNER, q);
}

template <class F> constexpr int kQuads = F::OUTER * F::INNER * 8;  // of a block

// The weights of a quad of columns, and the scale of its sub-block.
template <class F> INLINE Vi line_of_quad(const Panel &panel, const panel_view &view, uint32_t quad) {
  const int in_block = quad % kQuads<F>;
  return line_of<F>(panel.packed + view.block(quad / kQuads<F>).quants, in_block / 8, in_block % 8);
}
template <class F> INLINE Vf scale_of_quad(const Panel &panel, const panel_view &view, uint32_t quad) {
  const panel_block at = view.block(quad / kQuads<F>);
  return F::scale(panel.packed + at.scales, panel.packed + at.quants, quad % kQuads<F> / (F::SUB / 4));
}

// The number of the 256 columns that a block lies in, and whether they end with it, of `blocks`.
template <class F> INLINE int64_t strip_block(int64_t block) { return is_wide<F> ? block : block / 8; }
template <class F> INLINE bool ends_strip(int64_t block, int64_t blocks) {
  return is_wide<F> || block % 8 == 7 || block + 1 == blocks;
}

// out: (TOKENS, 16) products of one panel with a tile of few tokens.
template <class F, int TOKENS> void micro_kernel(const Panel &panel, int64_t cols, const Acts &a, float *out) {
  const panel_view view = view_of(F::type, cols);
  Sums<TOKENS> sums, residual;  // two independent chains of additions
  const uint8_t *ahead = mrs_asks_ahead ? panel.packed + (TOKENS <= 2 ? 6 << 10 : kBytesAhead) : nullptr;
  constexpr int bytes = layout_of(F::type).scales + layout_of(F::type).quants;  // of a block
  const int64_t last_blocks = kBytesBeforeNext / bytes + 1, from_end = view.blocks - last_blocks;
  const int64_t near_end = !panel.next ? -1 : from_end > 0 ? from_end : 0;
  int64_t group = 0;
  int32_t two_terms = a.head->two_terms;
  OutlierSums<F, TOKENS> outliers;
  for (int64_t b = 0; b < view.blocks; ++b) {
    const panel_block at = view.block(b);
    const uint8_t *scales = panel.packed + at.scales, *quants = panel.packed + at.quants;
    if (!ahead) {
      ask_for_page(panel.packed + b * bytes, bytes);
      if (b == near_end) ask_for_stream(panel.next);
    }
    if constexpr (TOKENS <= 2 && is_wide<F>) ask_for_columns<F, TOKENS>(a.first, b + 1);
    Scales s;
    F::unpack_scales(scales, quants, s);
    for (int n = 0; n < F::OUTER; ++n, group += F::INNER) {
      opaque(two_terms);  // one loop for both: gcc orders the reads of two loops otherwise, which ends their streams
      const uint8_t *wanted = ahead ? ahead + b * bytes + n * (bytes / F::OUTER) : nullptr;
      if constexpr (F::INNER > 1 && TOKENS <= 2) {
        if (two_terms)
          dot_groups<F, TOKENS, true>(quants, n, s, a, group, wanted, sums, residual);
        else
          dot_groups<F, TOKENS, false>(quants, n, s, a, group, wanted, sums, residual);
        continue;
      }
      ask_ahead<F, TOKENS>(wanted, 0, F::INNER);
      dot_group<F, TOKENS, 0>(quants, n, s, a, group, sums, residual, two_terms);
      if constexpr (F::INNER > 1) {
        ask_ahead<F, TOKENS>(wanted, 1, F::INNER);
        dot_group<F, TOKENS, 1>(quants, n, s, a, group + 1, sums, residual, two_terms);
      }
      if constexpr (F::INNER > 2) {
        ask_ahead<F, TOKENS>(wanted, 2, F::INNER);
        dot_group<F, TOKENS, 2>(quants, n, s, a, group + 2, sums, residual, two_terms);
        ask_ahead<F, TOKENS>(wanted, 3, F::INNER);
        dot_group<F, TOKENS, 3>(quants, n, s, a, group + 3, sums, residual, two_terms);
      }
    }
    end_block<F>(s.minima, &s.m, a.first, b, sums);
    if (two_terms) end_block<F>(s.minima, &s.m, a.residual, b, residual);
    if (ends_strip<F>(b, view.blocks))
      outliers.add_strip(a, strip_block<F>(b), 0, [&](int, uint32_t quad) { return line_of_quad<F>(panel, view, quad); },
                         [&](int, uint32_t quad) { return scale_of_quad<F>(panel, view, quad); });
  }
  for (int t = 0; t < TOKENS; ++t) {
    const Vf sum = sum_of<F>(sums, *a.head, 0, t);
    store_f(out + 16 * t, two_terms ? add(sum, sum_of<F>(residual, *a.head, 1, t)) : sum);
  }
  if (!two_terms) outliers.add_to(out);
}

}  // namespace MRS_ISA
