// Micro-kernels: the product of one panel of 16 rows with one tile of TOKENS columns, one function for each storage type
// and number of tokens.
//
// A panel is unpacked for its first tile of 8 tokens, and kept so for the other tiles (Kept).
//
// Every output is the sum of two float32 accumulators, one for each int8 term, to which the groups of 32 columns are added
// in ascending order by the same instructions for every number of tokens. A token's result therefore does not depend on
// its neighbours.
#pragma once
#include "micro_kernel_few.h"

namespace MRS_ISA {

// The unpacked weights of one group of 32 columns, in the order in which they are read.
template <class F> struct Kept {
  static constexpr int SUBS = 32 / F::SUB;
  Vi lines[8];
  Vf scales[F::MINS ? 2 * SUBS : SUBS];  // the sub-blocks' scales, then their addends

  const Vf *d() const { return scales; }
  const Vf *m() const { return scales + SUBS; }
};

// out[t] += the residual or the coarse terms of each of PANELS panels, whose products are 128 values apart.
template <class F, int TOKENS, int PANELS = 1>
INLINE void add_second(const Kept<F> *const *kept, const Acts &a, int64_t groups, float *out) {
  if (!a.head->two_terms) {
    const auto line = [&](int p, uint32_t quad) { return load_i(&kept[p][quad / 8].lines[quad % 8]); };
    const auto scale = [&](int p, uint32_t quad) { return kept[p][quad / 8].d()[F::SUB == 32 ? 0 : quad % 8 / 4]; };
    add_outliers<F, TOKENS, PANELS>(a, line, scale, out);
    return;
  }
  for (int p = 0; p < PANELS; ++p, out += 128) {
    Vf acc[TOKENS];
    for (int t = 0; t < TOKENS; ++t) acc[t] = zero_f();
    const Kept<F> *of = kept[p];
    for (int64_t group = 0; group < groups; ++group, ++of)
      add_term<F, TOKENS>([&](int q) { return load_i(&of->lines[q]); }, of->d(), of->m(), a.residual, group, acc);
    for (int t = 0; t < TOKENS; ++t) store_f(out + 16 * t, add(load_f(out + 16 * t), acc[t]));
  }
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
  for (int t = 0; t < 8; ++t) store_f(out + 16 * t, acc[t]);
  const Kept<F> *of = (const Kept<F> *)panel.kept;
  add_second<F, 8>(&of, a, group, out);
}

// Whether a panel is unpacked before its first tile, not with it. With two sub-blocks a group the sums of 8 tokens and
// what unpacking needs are more than the registers hold.
template <class F> constexpr bool unpacks_first = F::SUB == 16;

// Unpacks the group n * INNER + J of a block.
template <class F, int J> INLINE void unpack_group(const uint8_t *quants, int n, const Scales &s, Kept<F> &kept) {
  constexpr int SUBS = Kept<F>::SUBS;
  const int sub = (n * F::INNER + J) * SUBS;
  for (int i = 0; i < SUBS; ++i) {
    kept.scales[i] = s.d[sub + i];
    if constexpr (F::MINS) kept.scales[SUBS + i] = s.m[sub + i];
  }
#pragma GCC unroll 8
  for (int q = 0; q < 8; ++q) store_i(&kept.lines[q], F::template line<J>(quants, n, q));
}

// Bytes before a block is unpacked at which it is asked for.
constexpr int kUnpackedAhead = 4096;

// Unpacks a panel for tiles of 8 tokens.
template <class F> void unpack(const Panel &panel, int64_t cols) {
  const panel_view view = view_of(F::type, cols);
  constexpr int bytes = layout_of(F::type).scales + layout_of(F::type).quants;  // of a block
  Kept<F> *kept = (Kept<F> *)panel.kept;
  for (int64_t b = 0; b < view.blocks; ++b) {
    const panel_block at = view.block(b);
    const uint8_t *quants = panel.packed + at.quants;
    for (int i = 0; i < bytes; i += 64) __builtin_prefetch(panel.packed + b * bytes + kUnpackedAhead + i);
    Scales s;
    F::unpack_scales(panel.packed + at.scales, quants, s);
    for (int n = 0; n < F::OUTER; ++n, kept += F::INNER) {
      unpack_group<F, 0>(quants, n, s, kept[0]);
      if constexpr (F::INNER > 1) unpack_group<F, 1>(quants, n, s, kept[1]);
      if constexpr (F::INNER > 2) {
        unpack_group<F, 2>(quants, n, s, kept[2]);
        unpack_group<F, 3>(quants, n, s, kept[3]);
      }
    }
  }
}

// As micro_kernel for a tile after the first, from the weights that this kept.
template <class F, int TOKENS> void micro_kernel_kept(const Panel &panel, int64_t cols, const Acts &a, float *out) {
  Vf acc[TOKENS];
  for (int t = 0; t < TOKENS; ++t) acc[t] = zero_f();
  const Kept<F> *kept = (const Kept<F> *)panel.kept;
  for (int64_t group = 0; group < cols / 32; ++group, ++kept)
    add_term<F, TOKENS>([&](int q) { return load_i(&kept->lines[q]); }, kept->d(), kept->m(), a.first, group, acc);
  for (int t = 0; t < TOKENS; ++t) store_f(out + 16 * t, acc[t]);
  const Kept<F> *of = (const Kept<F> *)panel.kept;
  add_second<F, TOKENS>(&of, a, cols / 32, out);
}

// Panels that micro_kernel_side multiplies side by side: as many as have room for their sums in the registers.
#if MRS_ISA_avx512vnni || MRS_ISA_avx512bf16
constexpr int kPanels = 3;
#else
constexpr int kPanels = 1;
#endif

// As add_term of PANELS panels, of which `kept[p]` has the group's weights, and the 4 tokens from `t` on of a tile of 8:
// acc[4 * p + i] of panel p and token t + i. A column is read once for all panels.
template <class F, int PANELS>
INLINE void add_term_side(const Kept<F> *const *kept, const Term &a, int64_t group, int t, Vf *acc) {
  constexpr int HALVES = 32 / F::SUB, COUNT = 4 * PANELS;
  const int8_t *q = a.q + group * 256 + 4 * t;
  Vf part[COUNT];
#pragma GCC unroll 2
  for (int h = 0; h < HALVES; ++h) {
    Vi sums[COUNT];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      Vi first = zero_i();
      if constexpr (F::OFFSET_LOG2 > 0)
        first = shl<F::OFFSET_LOG2>(set_i((HALVES == 1 ? a.sum32[group * 8 + t + i] : a.sum16[(group * 2 + h) * 8 + t + i])));
#pragma GCC unroll 3
      for (int p = 0; p < PANELS; ++p) sums[4 * p + i] = first;
    }
#pragma GCC unroll 8
    for (int l = h * (8 / HALVES); l < (h + 1) * (8 / HALVES); ++l) {
      Vi w[PANELS];
#pragma GCC unroll 3
      for (int p = 0; p < PANELS; ++p) w[p] = load_i(&kept[p][group].lines[l]);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const Vi x = set_i(load32(q + 32 * l + 4 * i));
#pragma GCC unroll 3
        for (int p = 0; p < PANELS; ++p) sums[4 * p + i] = dot4<F::BITS>(sums[4 * p + i], w[p], x);
      }
    }
#pragma GCC unroll 3
    for (int p = 0; p < PANELS; ++p) {
      const Vf d = kept[p][group].d()[h];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const Vf sum = to_float(sums[4 * p + i]);
        part[4 * p + i] = h ? fma(sum, d, part[4 * p + i]) : mul(sum, d);
      }
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const Vf d = set_f(a.d[group * 8 + t + i]);
#pragma GCC unroll 3
    for (int p = 0; p < PANELS; ++p) acc[4 * p + i] = fma(part[4 * p + i], d, acc[4 * p + i]);
  }
  if constexpr (F::MINS) {
#pragma GCC unroll 2
    for (int h = 0; h < HALVES; ++h)
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const Vf sum = set_f(HALVES == 1 ? a.fsum32[group * 8 + t + i] : a.fsum16[(group * 2 + h) * 8 + t + i]);
#pragma GCC unroll 3
        for (int p = 0; p < PANELS; ++p) acc[4 * p + i] = fma(kept[p][group].m()[h], sum, acc[4 * p + i]);
      }
  }
}

// As micro_kernel_kept for PANELS panels and a tile of 8 tokens; unpacked weights and products of the panels stand `stride`
// bytes and 128 values apart. Asks for the cache lines of `wanted` meanwhile, since the products take longer than reading
// them.
template <class F, int PANELS>
void micro_kernel_side(const uint8_t *panels, int64_t stride, int64_t cols, const Acts &a, Bytes wanted, float *out) {
  constexpr int lines = (lines_of_group(F::type) * PANELS + 1) / 2;  // asked for during a group of 4 tokens
  const Kept<F> *kept[PANELS];
  for (int p = 0; p < PANELS; ++p) kept[p] = (const Kept<F> *)(panels + p * stride);
  const int64_t groups = cols / 32;
  for (int t = 0; t < 8; t += 4) {
    Vf acc[4 * PANELS];
#pragma GCC unroll 12
    for (int i = 0; i < 4 * PANELS; ++i) acc[i] = zero_f();
    for (int64_t group = 0; group < groups; ++group) {
      if (unpacks_first<F> && wanted.begin < wanted.end) {
#pragma GCC unroll 16
        for (int i = 0; i < lines; ++i) __builtin_prefetch(wanted.begin + 64 * i, 0, 2);
        wanted.begin += 64 * lines;
      }
      add_term_side<F, PANELS>(kept, a.first, group, t, acc);
    }
#pragma GCC unroll 3
    for (int p = 0; p < PANELS; ++p)
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) store_f(out + 128 * p + 16 * (t + i), acc[4 * p + i]);
  }
  add_second<F, 8, PANELS>(kept, a, groups, out);
}

// All loops over tokens are unrolled here: with one that is not, the compiler stores every sum after every column.
template <int TYPE, int TOKENS> void micro_kernel_float(const Panel &panel, int64_t cols, const Acts &a, float *out) {
  constexpr int bytes = layout_of(TYPE).quants;
  Vf acc[TOKENS];
#pragma GCC unroll 8
  for (int t = 0; t < TOKENS; ++t) acc[t] = zero_f();
  for (int64_t k = 0; k < cols; ++k) {
    Vf w = load_weight<TYPE>(panel.packed + k * bytes);
#pragma GCC unroll 8
    for (int t = 0; t < TOKENS; ++t) acc[t] = fma(w, set_f(a.x[k * TOKENS + t]), acc[t]);
  }
#pragma GCC unroll 8
  for (int t = 0; t < TOKENS; ++t) store_f(out + 16 * t, acc[t]);
}

#if MRS_ISA_avx512bf16
// As micro_kernel_float for bfloat16 weights and activations. Even and odd pairs are added apart: the instruction takes
// longer than eight tokens keep it busy.
template <int TOKENS> void micro_kernel_pairs(const Panel &panel, int64_t cols, const Acts &a, float *out) {
  Vf even[TOKENS], odd[TOKENS];
#pragma GCC unroll 8
  for (int t = 0; t < TOKENS; ++t) even[t] = odd[t] = zero_f();
  const uint8_t *weights = panel.packed;
  const int32_t *pairs = a.pairs;
  const int64_t count = cols / 2;
  int64_t i = 0;
  for (; i + 2 <= count; i += 2, weights += 128, pairs += 2 * TOKENS) {
    const Vi first = load_pairs(weights, true), second = load_pairs(weights + 64, true);
#pragma GCC unroll 8
    for (int t = 0; t < TOKENS; ++t) even[t] = dot2(even[t], first, set_i(pairs[t]));
#pragma GCC unroll 8
    for (int t = 0; t < TOKENS; ++t) odd[t] = dot2(odd[t], second, set_i(pairs[TOKENS + t]));
  }
  for (; i < (cols + 1) / 2; ++i, weights += 64, pairs += TOKENS) {
    const Vi last = load_pairs(weights, i < count);
#pragma GCC unroll 8
    for (int t = 0; t < TOKENS; ++t) even[t] = dot2(even[t], last, set_i(pairs[t]));
  }
#pragma GCC unroll 8
  for (int t = 0; t < TOKENS; ++t) store_f(out + 16 * t, add(even[t], odd[t]));
}
#endif

typedef void (*micro_kernel_fn)(const Panel &panel, int64_t cols, const Acts &a, float *out);
typedef void (*unpack_fn)(const Panel &panel, int64_t cols);
typedef void (*micro_kernel_side_fn)(const uint8_t *panels, int64_t stride, int64_t cols, const Acts &a, Bytes wanted, float *out);

struct PickMicroKernel {
  int tokens;
  bool is_first;
  micro_kernel_fn fn;
  template <class F> static micro_kernel_fn pick_first() {
    if constexpr (unpacks_first<F>)
      return micro_kernel_kept<F, 8>;
    else
      return micro_kernel_first<F>;
  }
  template <class F> void run() {
    if (is_first)
      fn = tokens == 1   ? micro_kernel<F, 1>
           : tokens == 2 ? micro_kernel<F, 2>
           : tokens == 4 ? micro_kernel<F, 4>
                         : pick_first<F>();
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
// panel follows one of 8 tokens. paired: see is_paired().
INLINE micro_kernel_fn micro_kernel_of(int type, int tokens, bool is_first, [[maybe_unused]] bool paired) {
#if MRS_ISA_avx512bf16
  if (paired)
    return tokens == 1   ? micro_kernel_pairs<1>
           : tokens == 2 ? micro_kernel_pairs<2>
           : tokens == 4 ? micro_kernel_pairs<4>
                         : micro_kernel_pairs<8>;
#endif
  PickMicroKernel pick = {tokens, is_first, nullptr};
  visit_type(type, pick);
  return pick.fn;
}

struct PickUnpack {
  unpack_fn fn = nullptr;
  template <class F> void run() {
    if constexpr (unpacks_first<F>) fn = unpack<F>;
  }
  template <int> void run_float() {}
};

// What unpacks panels of a storage type before their first tile, or null where that does it.
INLINE unpack_fn unpack_of(int type) {
  PickUnpack pick;
  visit_type(type, pick);
  return pick.fn;
}

struct PickSide {
  micro_kernel_side_fn fn = nullptr;
  template <class F> void run() {
    if constexpr (kPanels > 1) fn = micro_kernel_side<F, kPanels>;
  }
  template <int> void run_float() {}
};

// The micro-kernel for kPanels panels and a tile of 8 that is not their first, or null where there is none.
INLINE micro_kernel_side_fn micro_kernel_side_of(int type) {
  PickSide pick;
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
