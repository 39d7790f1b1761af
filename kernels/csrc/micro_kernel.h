// Micro-kernels: the product of one panel of 16 rows with one tile of TOKENS columns, one function for each storage type
// and number of tokens.
//
// A panel's first tile of 8 tokens unpacks its weights and keeps them, so that the other tiles need not (Kept).
//
// Every output is the sum of two float32 accumulators, one for each int8 term, to which the groups of 32 columns are added
// in ascending order by the same instructions for every number of tokens. A token's result therefore does not depend on
// its neighbours.
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

// A panel of a weight, and the memory for its unpacked weights: kept_bytes(), or null for a tile of fewer than 8 tokens.
// The first tile of 8 asks for `ahead`, if that is not null, a few lines at a time.
struct Panel {
  const uint8_t *packed;
  uint8_t *kept;
  Ahead *ahead;
};

// acc[t] += (one group of 32 columns of a panel) * (one term of its TOKENS columns). line(q) gives the group's vector q of
// weights and is called in ascending order; d and m are its sub-blocks' scales and addends.
template <class F, int TOKENS, class LineOf>
INLINE void add_term(const LineOf &line, const Vf *d, const Vf *m, const Term &a, int64_t group, Vf *acc) {
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
    for (int t = 0; t < TOKENS; ++t) acc[t] = fma(mul(to_float(i[t]), d[0]), set_f(a.d[group * TOKENS + t]), acc[t]);
    if constexpr (F::MINS)
      for (int t = 0; t < TOKENS; ++t) acc[t] = fma(m[0], set_f(a.fsum32[group * TOKENS + t]), acc[t]);
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
      for (int t = 0; t < TOKENS; ++t)
        part[t] = h ? fma(to_float(i[t]), d[1], part[t]) : mul(to_float(i[t]), d[0]);
    }
    for (int t = 0; t < TOKENS; ++t) acc[t] = fma(part[t], set_f(a.d[group * TOKENS + t]), acc[t]);
    if constexpr (F::MINS)
      for (int h = 0; h < 2; ++h)
        for (int t = 0; t < TOKENS; ++t) acc[t] = fma(m[h], set_f(a.fsum16[(group * 2 + h) * TOKENS + t]), acc[t]);
  }
}

template <class F, int TOKENS, int J>
INLINE void dot_group(const uint8_t *quants, int n, const Scales &s, const Acts &a, int64_t group, Vf *acc, Vf *acc_residual) {
  Vi w[8];
  for (int q = 0; q < 8; ++q) w[q] = F::template line<J>(quants, n, q);
  const auto line = [&](int q) { return w[q]; };
  const int sub = (n * F::INNER + J) * (32 / F::SUB);
  add_term<F, TOKENS>(line, s.d + sub, s.m + sub, a.first, group, acc);
  if (a.two_term[group]) add_term<F, TOKENS>(line, s.d + sub, s.m + sub, a.residual, group, acc_residual);
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
    sums[J * TOKENS + t] = dot4<F::BITS>(sums[J * TOKENS + t], w, set_i(load32(a.q + at + 4 * t)));
    if constexpr (RESIDUAL)
      residuals[J * TOKENS + t] = dot4<F::BITS>(residuals[J * TOKENS + t], w, set_i(load32(residual.q + at + 4 * t)));
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
// the stream of the memory. The sums are those of dot_group, to the last bit. RESIDUAL: some group has the residual term.
template <class F, int TOKENS, bool RESIDUAL>
INLINE void dot_groups(const uint8_t *quants, int n, const Scales &s, const Acts &a, int64_t group, Vf *acc, Vf *acc_residual) {
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
    for (int q = h * (8 / HALVES); q < (h + 1) * (8 / HALVES); ++q)
      dot_line<F, TOKENS, RESIDUAL, 0>(quants, n, q, a.first, a.residual, group, sums, residuals);
    for (int i = 0; HALVES == 2 && h == 0 && i < COUNT; ++i) {
      const Vf d = s.d[(n * F::INNER + i / TOKENS) * HALVES];
      parts[i] = mul(to_float(sums[i]), d);
      if constexpr (RESIDUAL) residual_parts[i] = mul(to_float(residuals[i]), d);
    }
  }
  add_sums<F, TOKENS>(sums, parts, n, s, a.first, nullptr, group, acc);
  if constexpr (RESIDUAL) add_sums<F, TOKENS>(residuals, residual_parts, n, s, a.residual, a.two_term + group, group, acc_residual);
}

// out: (TOKENS, 16) products of one panel with a tile of few tokens.
template <class F, int TOKENS> void micro_kernel(const Panel &panel, int64_t cols, const Acts &a, float *out) {
  const panel_view view = view_of(F::type, cols);
  Vf acc[TOKENS], acc_residual[TOKENS];  // two independent chains of additions
  for (int t = 0; t < TOKENS; ++t) acc[t] = acc_residual[t] = zero_f();
  int64_t group = 0;
  for (int64_t b = 0; b < view.blocks; ++b) {
    const panel_block at = view.block(b);
    const uint8_t *scales = panel.packed + at.scales, *quants = panel.packed + at.quants;
    Scales s;
    F::unpack_scales(scales, quants, s);
    for (int n = 0; n < F::OUTER; ++n, group += F::INNER) {
      if constexpr (F::INNER > 1 && TOKENS <= 2) {
        bool two_term = false;
        for (int j = 0; j < F::INNER; ++j) two_term |= a.two_term[group + j] != 0;
        if (two_term)
          dot_groups<F, TOKENS, true>(quants, n, s, a, group, acc, acc_residual);
        else
          dot_groups<F, TOKENS, false>(quants, n, s, a, group, acc, acc_residual);
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

// The unpacked weights of one group of 32 columns, in the order in which they are read.
template <class F> struct Kept {
  static constexpr int SUBS = 32 / F::SUB;
  Vi lines[8];
  Vf scales[F::MINS ? 2 * SUBS : SUBS];  // the sub-blocks' scales, then their addends

  const Vf *d() const { return scales; }
  const Vf *m() const { return scales + SUBS; }
};

// out[t] += the residual terms of a panel. A pass of its own: the few groups that have the term would take registers from
// all.
template <class F, int TOKENS>
INLINE void add_residuals(const Kept<F> *kept, const Acts &a, int64_t groups, const Vf *first, float *out) {
  Vf acc[TOKENS];
  for (int t = 0; t < TOKENS; ++t) store_f(out + 16 * t, first[t]), acc[t] = zero_f();
  for (int64_t group = 0; group < groups; ++group, ++kept)
    if (a.two_term[group])
      add_term<F, TOKENS>([&](int q) { return load_i(&kept->lines[q]); }, kept->d(), kept->m(), a.residual, group, acc);
  for (int t = 0; t < TOKENS; ++t) store_f(out + 16 * t, add(load_f(out + 16 * t), acc[t]));
}

// As dot_group for the first term of 8 tokens, from one vector of weights at a time, which is kept: eight of them at once
// and the sums are more than the registers hold. Asks meanwhile for cache lines of the next panel, from `ahead` on, since
// the products take longer than reading them.
template <class F, int J>
INLINE void dot_group_first(const uint8_t *quants, int n, const Scales &s, const Acts &a, int64_t group, Kept<F> &kept,
                            const uint8_t *ahead, Vf *acc) {
  constexpr int SUBS = Kept<F>::SUBS, lines = lines_of_group(F::type);
  const int sub = (n * F::INNER + J) * SUBS;
  for (int i = 0; i < SUBS; ++i) {
    kept.scales[i] = s.d[sub + i];
    if constexpr (F::MINS) kept.scales[SUBS + i] = s.m[sub + i];
  }
  const auto line = [&](int q) {
    const Vi w = F::template line<J>(quants, n, q);
    store_i(&kept.lines[q], w);
    for (int i = q * lines / 8; i < (q + 1) * lines / 8; ++i) __builtin_prefetch(ahead + 64 * i, 0, 2);
    return w;
  };
  add_term<F, 8>(line, kept.d(), kept.m(), a.first, group, acc);
}

// As micro_kernel for the first tile of 8 tokens, keeping the panel's unpacked weights.
template <class F> void micro_kernel_first(const Panel &panel, int64_t cols, const Acts &a, float *out) {
  constexpr int step = 64 * lines_of_group(F::type);
  const panel_view view = view_of(F::type, cols);
  Vf acc[8];
  for (int t = 0; t < 8; ++t) acc[t] = zero_f();
  Kept<F> *kept = (Kept<F> *)panel.kept;
  int64_t group = 0;
  const uint8_t *ahead = panel.packed + view.bytes;
  for (int64_t b = 0; b < view.blocks; ++b) {
    const panel_block at = view.block(b);
    const uint8_t *quants = panel.packed + at.quants;
    if (__builtin_expect(panel.ahead != nullptr, false)) panel.ahead->ask(view.blocks - b);
    Scales s;
    F::unpack_scales(panel.packed + at.scales, quants, s);
    for (int n = 0; n < F::OUTER; ++n, group += F::INNER, kept += F::INNER, ahead += F::INNER * step) {
      dot_group_first<F, 0>(quants, n, s, a, group, kept[0], ahead, acc);
      if constexpr (F::INNER > 1) dot_group_first<F, 1>(quants, n, s, a, group + 1, kept[1], ahead + step, acc);
      if constexpr (F::INNER > 2) {
        dot_group_first<F, 2>(quants, n, s, a, group + 2, kept[2], ahead + 2 * step, acc);
        dot_group_first<F, 3>(quants, n, s, a, group + 3, kept[3], ahead + 3 * step, acc);
      }
    }
  }
  add_residuals<F, 8>((const Kept<F> *)panel.kept, a, group, acc, out);
}

// As micro_kernel for a tile after the first, from the weights that this kept.
template <class F, int TOKENS> void micro_kernel_kept(const Panel &panel, int64_t cols, const Acts &a, float *out) {
  Vf acc[TOKENS];
  for (int t = 0; t < TOKENS; ++t) acc[t] = zero_f();
  const Kept<F> *kept = (const Kept<F> *)panel.kept;
  for (int64_t group = 0; group < cols / 32; ++group, ++kept)
    add_term<F, TOKENS>([&](int q) { return load_i(&kept->lines[q]); }, kept->d(), kept->m(), a.first, group, acc);
  add_residuals<F, TOKENS>((const Kept<F> *)panel.kept, a, cols / 32, acc, out);
}

template <int TYPE, int TOKENS> void micro_kernel_float(const Panel &panel, int64_t cols, const Acts &a, float *out) {
  constexpr int bytes = layout_of(TYPE).quants;
  Vf acc[TOKENS];
  for (int t = 0; t < TOKENS; ++t) acc[t] = zero_f();
  for (int64_t k = 0; k < cols; ++k) {
    Vf w = load_weight<TYPE>(panel.packed + k * bytes);
#pragma GCC unroll 8
    for (int t = 0; t < TOKENS; ++t) acc[t] = fma(w, set_f(a.x[k * TOKENS + t]), acc[t]);
  }
  for (int t = 0; t < TOKENS; ++t) store_f(out + 16 * t, acc[t]);
}

typedef void (*micro_kernel_fn)(const Panel &panel, int64_t cols, const Acts &a, float *out);

struct PickMicroKernel {
  int tokens;
  bool is_first;
  micro_kernel_fn fn;
  template <class F> void run() {
    if (is_first)
      fn = tokens == 1   ? micro_kernel<F, 1>
           : tokens == 2 ? micro_kernel<F, 2>
           : tokens == 4 ? micro_kernel<F, 4>
                         : micro_kernel_first<F>;
    else
      fn = tokens == 1   ? micro_kernel_kept<F, 1>
           : tokens == 2 ? micro_kernel_kept<F, 2>
           : tokens == 4 ? micro_kernel_kept<F, 4>
                         : micro_kernel_kept<F, 8>;
  }
  template <int TYPE> void run_float() {
    fn = tokens == 1   ? micro_kernel_float<TYPE, 1>
         : tokens == 2 ? micro_kernel_float<TYPE, 2>
         : tokens == 4 ? micro_kernel_float<TYPE, 4>
                       : micro_kernel_float<TYPE, 8>;
  }
};

// The micro-kernel for a storage type and a tile's number of tokens: 1, 2, 4 or 8. A tile that is not the first of its
// panel follows one of 8 tokens.
INLINE micro_kernel_fn micro_kernel_of(int type, int tokens, bool is_first) {
  PickMicroKernel pick = {tokens, is_first, nullptr};
  visit_type(type, pick);
  return pick.fn;
}

struct KeptBytes {
  int64_t of_group = 0;
  template <class F> void run() { of_group = sizeof(Kept<F>); }
  template <int> void run_float() {}
};

// Bytes of a panel's unpacked weights; 0 for plain numbers, which are read as they are stored.
INLINE int64_t kept_bytes(int type, int64_t cols) {
  KeptBytes kept;
  visit_type(type, kept);
  return kept.of_group * (cols / 32);
}

}  // namespace MRS_ISA
