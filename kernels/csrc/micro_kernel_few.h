// Micro-kernels for a tile of 1, 2 or 4 tokens, whose products take less time than reading the panel.
#pragma once
#include "bytes_ahead.h"
#include "micro_term.h"

namespace MRS_ISA {

// Asks for the step-th of `steps` parts of the cache lines of INNER groups from `at` on, if that is not null.
template <class F> INLINE void ask_ahead(const uint8_t *at, int step, int steps) {
  constexpr mrs_layout layout = layout_of(F::type);
  constexpr int lines = (layout.scales + layout.quants + 64 * F::OUTER - 1) / (64 * F::OUTER);
  if (!at) return;
#pragma GCC unroll 32
  for (int i = step * lines / steps; i < (step + 1) * lines / steps; ++i) __builtin_prefetch(at + 64 * i);
}

template <class F, int TOKENS, int J>
INLINE void dot_group(const uint8_t *quants, int n, const Scales &s, const Acts &a, int64_t group, Vf *acc, Vf *acc_residual,
                      bool two_terms) {
  Vi w[8];
  for (int q = 0; q < 8; ++q) w[q] = F::template line<J>(quants, n, q);
  const auto line = [&](int q) { return w[q]; };
  const int sub = (n * F::INNER + J) * (32 / F::SUB);
  add_term<F, TOKENS>(line, s.d + sub, s.m + sub, a.first, group, acc);
  if (two_terms) add_term<F, TOKENS>(line, s.d + sub, s.m + sub, a.residual, group, acc_residual);
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

// acc[t] += (the INNER groups from `group` on) * (one term of their TOKENS columns), from their finished sums.
template <class F, int TOKENS>
INLINE void add_sums(const Vi *sums, const Vf *parts, int n, const Scales &s, const Term &a, int64_t first_group,
                     Vf *acc) {
  for (int j = 0; j < F::INNER; ++j) {
    const int64_t group = first_group + j;
    const int sub = (n * F::INNER + j) * (32 / F::SUB);
    for (int t = 0; t < TOKENS; ++t) {
      const Vf part = F::SUB == 32 ? mul(to_float(sums[j * TOKENS + t]), s.d[sub])
                                   : fma(to_float(sums[j * TOKENS + t]), s.d[sub + 1], parts[j * TOKENS + t]);
      acc[t] = fma(part, set_f(a.d[group * TOKENS + t]), acc[t]);
    }
    for (int h = 0; F::MINS && h < 32 / F::SUB; ++h)
      for (int t = 0; t < TOKENS; ++t) {
        const float sum = F::SUB == 32 ? a.fsum32[group * TOKENS + t] : a.fsum16[(group * 2 + h) * TOKENS + t];
        acc[t] = fma(s.m[sub + h], set_f(sum), acc[t]);
      }
  }
}

// As dot_group for the INNER groups that share cache lines, of which each is read once: a second pass over them would end
// the stream of the memory. The sums are those of dot_group, to the last bit. Asks for the lines from `ahead` on meanwhile:
// all of them at once would delay the lines that are read here.
template <class F, int TOKENS, bool RESIDUAL>
INLINE void dot_groups(const uint8_t *quants, int n, const Scales &s, const Acts &a, int64_t group, const uint8_t *ahead,
                       Vf *acc, Vf *acc_residual) {
  constexpr int COUNT = F::INNER * TOKENS, HALVES = 32 / F::SUB;
  Vi sums[COUNT], residuals[COUNT];
  Vf parts[COUNT], residual_parts[COUNT];
#pragma GCC unroll 2
  for (int h = 0; h < HALVES; ++h) {
    for (int j = 0; j < F::INNER; ++j)
      for (int t = 0; t < TOKENS; ++t) {
        sums[j * TOKENS + t] = first_sum<F, TOKENS>(a.first, group + j, h, t);
        if constexpr (RESIDUAL) residuals[j * TOKENS + t] = first_sum<F, TOKENS>(a.residual, group + j, h, t);
      }
#pragma GCC unroll 8
    for (int q = h * (8 / HALVES); q < (h + 1) * (8 / HALVES); ++q) {
      ask_ahead<F>(ahead, q, 8);
      dot_line<F, TOKENS, RESIDUAL, 0>(quants, n, q, a.first, a.residual, group, sums, residuals);
    }
    for (int i = 0; HALVES == 2 && h == 0 && i < COUNT; ++i) {
      const Vf d = s.d[(n * F::INNER + i / TOKENS) * HALVES];
      parts[i] = mul(to_float(sums[i]), d);
      if constexpr (RESIDUAL) residual_parts[i] = mul(to_float(residuals[i]), d);
    }
  }
  add_sums<F, TOKENS>(sums, parts, n, s, a.first, group, acc);
  if constexpr (RESIDUAL) add_sums<F, TOKENS>(residuals, residual_parts, n, s, a.residual, group, acc_residual);
}

// Vector q of any group of a block. All INNER groups are unpacked, which takes less time than a branch that is hard to foresee.
template <class F, int J = 0> INLINE Vi line_of(const uint8_t *quants, int group, int q) {
  const Vi w = F::template line<J>(quants, group / F::INNER, q);
  if constexpr (J + 1 == F::INNER) {
    return w;
  } else {
    const Vi next = line_of<F, J + 1>(quants, group, q), all = set_i(-(group % F::INNER == J));
    return select(all, w, next);
  }
}

// out: (TOKENS, 16) products of one panel with a tile of few tokens.
template <class F, int TOKENS> void micro_kernel(const Panel &panel, int64_t cols, const Acts &a, float *out) {
  const panel_view view = view_of(F::type, cols);
  Vf acc[TOKENS], acc_residual[TOKENS];  // two independent chains of additions
  for (int t = 0; t < TOKENS; ++t) acc[t] = acc_residual[t] = zero_f();
  const uint8_t *ahead = mrs_bytes_ahead ? panel.packed + mrs_bytes_ahead : nullptr;
  constexpr int bytes = layout_of(F::type).scales + layout_of(F::type).quants;  // of a block
  int64_t group = 0;
  int32_t two_terms = a.head->two_terms;
  for (int64_t b = 0; b < view.blocks; ++b) {
    const panel_block at = view.block(b);
    const uint8_t *scales = panel.packed + at.scales, *quants = panel.packed + at.quants;
    Scales s;
    F::unpack_scales(scales, quants, s);
    for (int n = 0; n < F::OUTER; ++n, group += F::INNER) {
      opaque(two_terms);  // one loop for both: gcc orders the reads of two loops otherwise, which ends their streams
      const uint8_t *wanted = ahead ? ahead + b * bytes + n * (bytes / F::OUTER) : nullptr;
      if constexpr (F::INNER > 1 && TOKENS <= 2) {
        if (two_terms)
          dot_groups<F, TOKENS, true>(quants, n, s, a, group, wanted, acc, acc_residual);
        else
          dot_groups<F, TOKENS, false>(quants, n, s, a, group, wanted, acc, acc_residual);
        continue;
      }
      ask_ahead<F>(wanted, 0, F::INNER);
      dot_group<F, TOKENS, 0>(quants, n, s, a, group, acc, acc_residual, two_terms);
      if constexpr (F::INNER > 1) {
        ask_ahead<F>(wanted, 1, F::INNER);
        dot_group<F, TOKENS, 1>(quants, n, s, a, group + 1, acc, acc_residual, two_terms);
      }
      if constexpr (F::INNER > 2) {
        ask_ahead<F>(wanted, 2, F::INNER);
        dot_group<F, TOKENS, 2>(quants, n, s, a, group + 2, acc, acc_residual, two_terms);
        ask_ahead<F>(wanted, 3, F::INNER);
        dot_group<F, TOKENS, 3>(quants, n, s, a, group + 3, acc, acc_residual, two_terms);
      }
    }
  }
  for (int t = 0; t < TOKENS; ++t) store_f(out + 16 * t, two_terms ? add(acc[t], acc_residual[t]) : acc[t]);
  if (!two_terms) {
    constexpr int groups = F::OUTER * F::INNER;
    const auto line = [&](int, uint32_t quad) {
      const int group = quad / 8 % groups;
      return line_of<F>(panel.packed + view.block(quad / 8 / groups).quants, group, quad % 8);
    };
    const auto scale = [&](int, uint32_t quad) {
      const panel_block at = view.block(quad / 8 / groups);
      return F::scale(panel.packed + at.scales, panel.packed + at.quants, quad % (8 * groups) / (F::SUB / 4));
    };
    add_outliers<F, TOKENS>(a, line, scale, out);
  }
}

}  // namespace MRS_ISA
