// Micro-kernels: the product of one panel of 16 rows with one tile of TOKENS columns, one function for each storage type
// and number of tokens.
//
// Every output is the sum of two float32 accumulators, one for each int8 term, to which the groups of 32 columns are added
// in ascending order by the same instructions for every number of tokens. A token's result therefore does not depend on
// its neighbours.
#pragma once
#include "activations.h"
#include "formats.h"

namespace MRS_ISA {

// acc[t] += (one group of 32 columns of a panel) * (one term of its TOKENS columns).
template <class F, int TOKENS> INLINE void add_term(const Vi *w, int sub, const Scales &s, const Term &a, int64_t group, Vf *acc) {
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
          i[t] = dot4<F::BITS>(i[t], w[l], set_i(load32(q + (l * TOKENS + t) * 4)));
          other[t] = dot4<F::BITS>(other[t], w[l + 4], set_i(load32(q + ((l + 4) * TOKENS + t) * 4)));
        }
      for (int t = 0; t < TOKENS; ++t) i[t] = add(i[t], other[t]);
    } else {
#pragma GCC unroll 8
      for (int l = 0; l < 8; ++l)
#pragma GCC unroll 8
        for (int t = 0; t < TOKENS; ++t) i[t] = dot4<F::BITS>(i[t], w[l], set_i(load32(q + (l * TOKENS + t) * 4)));
    }
    for (int t = 0; t < TOKENS; ++t) acc[t] = fma(mul(to_float(i[t]), s.d[sub]), set_f(a.d[group * TOKENS + t]), acc[t]);
    if constexpr (F::MINS)
      for (int t = 0; t < TOKENS; ++t) acc[t] = fma(s.m[sub], set_f(a.fsum32[group * TOKENS + t]), acc[t]);
  } else {
    Vf part[TOKENS];
    for (int h = 0; h < 2; ++h) {
      Vi i[TOKENS];
      for (int t = 0; t < TOKENS; ++t)
        i[t] = F::OFFSET_LOG2 ? shl<F::OFFSET_LOG2>(set_i(a.sum16[(group * 2 + h) * TOKENS + t])) : zero_i();
#pragma GCC unroll 4
      for (int l = 0; l < 4; ++l)
#pragma GCC unroll 8
        for (int t = 0; t < TOKENS; ++t)
          i[t] = dot4<F::BITS>(i[t], w[4 * h + l], set_i(load32(q + ((4 * h + l) * TOKENS + t) * 4)));
      for (int t = 0; t < TOKENS; ++t)
        part[t] = h ? fma(to_float(i[t]), s.d[sub + 1], part[t]) : mul(to_float(i[t]), s.d[sub]);
    }
    for (int t = 0; t < TOKENS; ++t) acc[t] = fma(part[t], set_f(a.d[group * TOKENS + t]), acc[t]);
    if constexpr (F::MINS)
      for (int h = 0; h < 2; ++h)
        for (int t = 0; t < TOKENS; ++t) acc[t] = fma(s.m[sub + h], set_f(a.fsum16[(group * 2 + h) * TOKENS + t]), acc[t]);
  }
}

template <class F, int TOKENS, int J>
INLINE void dot_group(const uint8_t *quants, int n, const Scales &s, const Acts &a, int64_t group, Vf *acc, Vf *acc_residual) {
  Vi w[8];
  F::template unpack_quants<J>(quants, n, w);
  const int sub = (n * F::INNER + J) * (32 / F::SUB);
  add_term<F, TOKENS>(w, sub, s, a.first, group, acc);
  if (a.two_term[group]) add_term<F, TOKENS>(w, sub, s, a.residual, group, acc_residual);
}

// sums[J * TOKENS + t] += vector q of group J * columns 4q.. of token t, for all groups from J on.
template <class F, int TOKENS, int J>
INLINE void dot_line(const uint8_t *quants, int n, int q, const Term &a, const Term &residual, bool two_term, int64_t group,
                     Vi *sums, Vi *residuals) {
  const Vi w = F::template line<J>(quants, n, q);
  const int64_t at = ((group + J) * 8 + q) * TOKENS * 4;
#pragma GCC unroll 2
  for (int t = 0; t < TOKENS; ++t) {
    sums[J * TOKENS + t] = dot4<F::BITS>(sums[J * TOKENS + t], w, set_i(load32(a.q + at + 4 * t)));
    if (two_term)
      residuals[J * TOKENS + t] = dot4<F::BITS>(residuals[J * TOKENS + t], w, set_i(load32(residual.q + at + 4 * t)));
  }
  if constexpr (J + 1 < F::INNER) dot_line<F, TOKENS, J + 1>(quants, n, q, a, residual, two_term, group, sums, residuals);
}

// The integers from which the sums of a group's sub-block start: minus the offset times the sum of the columns.
template <class F, int TOKENS> INLINE Vi first_sum(const Term &a, int64_t group, int h, int t) {
  if constexpr (!F::OFFSET_LOG2) return zero_i();
  const int32_t sum = F::SUB == 32 ? a.sum32[group * TOKENS + t] : a.sum16[(group * 2 + h) * TOKENS + t];
  return shl<F::OFFSET_LOG2>(set_i(sum));
}

// acc[t] += (the INNER groups from `group` on) * (one term of their TOKENS columns), from their finished sums.
template <class F, int TOKENS>
INLINE void add_sums(const Vi *sums, const Vf *parts, int n, const Scales &s, const Term &a, const uint8_t *wanted,
                     int64_t first_group, Vf *acc) {
  for (int j = 0; j < F::INNER; ++j) {
    const int64_t group = first_group + j;
    if (wanted && !wanted[j]) continue;
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
// the stream of the memory. The sums are those of dot_group, to the last bit.
template <class F, int TOKENS>
INLINE void dot_groups(const uint8_t *quants, int n, const Scales &s, const Acts &a, int64_t group, Vf *acc, Vf *acc_residual) {
  constexpr int COUNT = F::INNER * TOKENS, HALVES = 32 / F::SUB;
  bool two_term = false;
  for (int j = 0; j < F::INNER; ++j) two_term |= a.two_term[group + j] != 0;
  Vi sums[COUNT], residuals[COUNT];
  Vf parts[COUNT], residual_parts[COUNT];
#pragma GCC unroll 2
  for (int h = 0; h < HALVES; ++h) {
    for (int j = 0; j < F::INNER; ++j)
      for (int t = 0; t < TOKENS; ++t) {
        sums[j * TOKENS + t] = first_sum<F, TOKENS>(a.first, group + j, h, t);
        residuals[j * TOKENS + t] = two_term ? first_sum<F, TOKENS>(a.residual, group + j, h, t) : zero_i();
      }
#pragma GCC unroll 8
    for (int q = h * (8 / HALVES); q < (h + 1) * (8 / HALVES); ++q)
      dot_line<F, TOKENS, 0>(quants, n, q, a.first, a.residual, two_term, group, sums, residuals);
    for (int i = 0; HALVES == 2 && h == 0 && i < COUNT; ++i) {
      const Vf d = s.d[(n * F::INNER + i / TOKENS) * HALVES];
      parts[i] = mul(to_float(sums[i]), d);
      residual_parts[i] = mul(to_float(residuals[i]), d);
    }
  }
  add_sums<F, TOKENS>(sums, parts, n, s, a.first, nullptr, group, acc);
  if (two_term) add_sums<F, TOKENS>(residuals, residual_parts, n, s, a.residual, a.two_term + group, group, acc_residual);
}

// out: (TOKENS, 16) products of one panel with a tile.
template <class F, int TOKENS> void micro_kernel(const uint8_t *panel, int64_t cols, const Acts &a, float *out) {
  const panel_view view = view_of(F::type, cols);
  const int64_t blocks = cols / layout_of(F::type).block;
  Vf acc[TOKENS], acc_residual[TOKENS];  // two independent chains of additions
  for (int t = 0; t < TOKENS; ++t) acc[t] = acc_residual[t] = zero_f();
  int64_t group = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    const uint8_t *scales = panel + b * view.scales_step, *quants = panel + view.quants_start + b * view.quants_step;
    Scales s;
    F::unpack_scales(scales, quants, s);
    for (int n = 0; n < F::OUTER; ++n, group += F::INNER) {
      if constexpr (F::INNER > 1 && TOKENS <= 2) {
        dot_groups<F, TOKENS>(quants, n, s, a, group, acc, acc_residual);
        continue;
      }
      dot_group<F, TOKENS, 0>(quants, n, s, a, group, acc, acc_residual);
      if constexpr (F::INNER > 1) dot_group<F, TOKENS, 1>(quants, n, s, a, group + 1, acc, acc_residual);
      if constexpr (F::INNER > 2) {
        dot_group<F, TOKENS, 2>(quants, n, s, a, group + 2, acc, acc_residual);
        dot_group<F, TOKENS, 3>(quants, n, s, a, group + 3, acc, acc_residual);
      }
    }
  }
  for (int t = 0; t < TOKENS; ++t) store_f(out + 16 * t, add(acc[t], acc_residual[t]));
}

template <int TYPE, int TOKENS> void micro_kernel_float(const uint8_t *panel, int64_t cols, const Acts &a, float *out) {
  constexpr int bytes = layout_of(TYPE).quants;
  Vf acc[TOKENS];
  for (int t = 0; t < TOKENS; ++t) acc[t] = zero_f();
  for (int64_t k = 0; k < cols; ++k) {
    Vf w = load_weight<TYPE>(panel + k * bytes);
#pragma GCC unroll 8
    for (int t = 0; t < TOKENS; ++t) acc[t] = fma(w, set_f(a.x[k * TOKENS + t]), acc[t]);
  }
  for (int t = 0; t < TOKENS; ++t) store_f(out + 16 * t, acc[t]);
}

typedef void (*micro_kernel_fn)(const uint8_t *panel, int64_t cols, const Acts &a, float *out);

struct PickMicroKernel {
  int tokens;
  micro_kernel_fn fn;
  template <class F> void run() {
    fn = tokens == 1   ? micro_kernel<F, 1>
         : tokens == 2 ? micro_kernel<F, 2>
         : tokens == 4 ? micro_kernel<F, 4>
                       : micro_kernel<F, 8>;
  }
  template <int TYPE> void run_float() {
    fn = tokens == 1   ? micro_kernel_float<TYPE, 1>
         : tokens == 2 ? micro_kernel_float<TYPE, 2>
         : tokens == 4 ? micro_kernel_float<TYPE, 4>
                       : micro_kernel_float<TYPE, 8>;
  }
};

// The micro-kernel for a storage type and a tile's number of tokens: 1, 2, 4 or 8.
INLINE micro_kernel_fn micro_kernel_of(int type, int tokens) {
  PickMicroKernel pick = {tokens, nullptr};
  visit_type(type, pick);
  return pick.fn;
}

}  // namespace MRS_ISA
