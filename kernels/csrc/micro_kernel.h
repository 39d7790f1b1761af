// Micro-kernels: the product of one panel of 16 rows with one tile of TOKENS columns, one function for each storage type
// and number of tokens.
//
// A panel is unpacked for its first tile of 8 tokens, and kept so for the other tiles (Kept).
//
// Every output is the sum of two float32 accumulators, one for each int8 term, to which the groups of 32 columns, or the
// blocks of K types, are added in ascending order by the same instructions for every number of tokens. A token's result
// therefore does not depend on its neighbours.
#pragma once
#include "micro_kernel_few.h"
#include "micro_kernel_float.h"

namespace MRS_ISA {

// The unpacked weights of a group of 32 columns or of a K type's block, in the order in which they are read.
template <class F> struct Kept {
  static constexpr int SUBS = 32 / F::SUB, GROUPS = is_wide<F> ? 8 : 1;
  struct Group {
    Vi lines[8];
    Vf d[SUBS];
  };
  Group groups[GROUPS];
  Vf m[F::MINS ? 1 : 0];  // the addend, or the scale of the minima
  Vi minima[kMinima<F>];

  // Takes over the scales of the block that `s` was unpacked from.
  ALWAYS_INLINE void keep(const Scales &s) {
    if constexpr (F::MINS) m[0] = s.m;
#pragma GCC unroll 8
    for (int i = 0; i < kMinima<F>; ++i) minima[i] = s.minima[i];
#pragma GCC unroll 8
    for (int g = 0; g < GROUPS; ++g)
      for (int i = 0; i < SUBS; ++i) groups[g].d[i] = s.d[g * SUBS + i];
  }
};

// sums += all of an unpacked panel * one term.
template <class F, int TOKENS>
INLINE void add_kept(const Kept<F> *kept, const Term &a, int64_t cols, Sums<TOKENS> &sums) {
  constexpr int GROUPS = Kept<F>::GROUPS;
  for (int64_t b = 0; b < cols / 32 / GROUPS; ++b, ++kept) {
    for (int g = 0; g < GROUPS; ++g) {
      const typename Kept<F>::Group &group = kept->groups[g];
      add_term<F, TOKENS>([&](int q) { return load_i(&group.lines[q]); }, group.d, kept->m, a, b * GROUPS + g, sums);
    }
    end_block<F>(kept->minima, kept->m, a, b, sums);
  }
}

// out[t] += the residual or the coarse terms of each of PANELS panels, whose products are 128 values apart.
template <class F, int TOKENS, int PANELS = 1>
INLINE void add_second(const Kept<F> *const *kept, const Acts &a, int64_t cols, float *out) {
  if (!a.head->two_terms) {
    constexpr uint32_t GROUPS = Kept<F>::GROUPS;
    const auto group = [&](int p, uint32_t quad) -> const auto & { return kept[p][quad / 8 / GROUPS].groups[quad / 8 % GROUPS]; };
    const auto line = [&](int p, uint32_t quad) { return load_i(&group(p, quad).lines[quad % 8]); };
    const auto scale = [&](int p, uint32_t quad) { return group(p, quad).d[F::SUB == 32 ? 0 : quad % 8 / 4]; };
    add_outliers<F, TOKENS, PANELS>(a, cols, line, scale, out);
    return;
  }
  for (int p = 0; p < PANELS; ++p, out += 128) {
    Sums<TOKENS> sums;
    add_kept<F>(kept[p], a.residual, cols, sums);
    for (int t = 0; t < TOKENS; ++t)
      store_f(out + 16 * t, add(load_f(out + 16 * t), sum_of<F>(sums, *a.head, 1, t)));
  }
}

// As dot_group for the first term of 8 tokens, from one vector of weights at a time, which is kept: eight of them at once
// and the sums are more than the registers hold. Asks meanwhile for cache lines of the next panel, from `ahead` on, since
// the products take longer than reading them.
template <class F, int J>
INLINE void dot_group_first(const uint8_t *quants, int n, const Acts &a, int64_t first_group, Kept<F> &kept, const uint8_t *ahead,
                            Sums<8> &sums) {
  constexpr int lines = lines_of_group(F::type);
  const int g = n * F::INNER + J;
  typename Kept<F>::Group &group = kept.groups[g];
  const auto line = [&](int q) {
    const Vi w = F::template line<J>(quants, n, q);
    store_i(&group.lines[q], w);
    for (int i = q * lines / 8; i < (q + 1) * lines / 8; ++i) __builtin_prefetch(ahead + 64 * i, 0, 2);
    return w;
  };
  add_term<F, 8>(line, group.d, kept.m, a.first, first_group + g, sums);
}

// As micro_kernel for the first tile of 8 tokens, keeping the panel's unpacked weights.
template <class F> void micro_kernel_first(const Panel &panel, int64_t cols, const Acts &a, float *out) {
  constexpr int step = 64 * lines_of_group(F::type);
  const panel_view view = view_of(F::type, cols);
  Sums<8> sums;
  Kept<F> *kept = (Kept<F> *)panel.kept;
  const uint8_t *ahead = panel.packed + view.bytes;
  for (int64_t b = 0; b < view.blocks; ++b, ++kept) {
    const panel_block at = view.block(b);
    const uint8_t *quants = panel.packed + at.quants;
    const int64_t group = b * F::OUTER * F::INNER;
    if (__builtin_expect(panel.ahead != nullptr, false)) panel.ahead->ask(view.blocks - b);
    Scales s;
    F::unpack_scales(panel.packed + at.scales, quants, s);
    kept->keep(s);
    for (int n = 0; n < F::OUTER; ++n, ahead += F::INNER * step) {
      dot_group_first<F, 0>(quants, n, a, group, *kept, ahead, sums);
      if constexpr (F::INNER > 1) dot_group_first<F, 1>(quants, n, a, group, *kept, ahead + step, sums);
      if constexpr (F::INNER > 2) {
        dot_group_first<F, 2>(quants, n, a, group, *kept, ahead + 2 * step, sums);
        dot_group_first<F, 3>(quants, n, a, group, *kept, ahead + 3 * step, sums);
      }
    }
    end_block<F>(kept->minima, kept->m, a.first, b, sums);
  }
  for (int t = 0; t < 8; ++t) store_f(out + 16 * t, sum_of<F>(sums, *a.head, 0, t));
  const Kept<F> *of = (const Kept<F> *)panel.kept;
  add_second<F, 8>(&of, a, cols, out);
}

// Whether a panel is unpacked before its first tile, not with it. With two sub-blocks a group the sums of 8 tokens and
// what unpacking needs are more than the registers hold.
template <class F> constexpr bool unpacks_first = F::SUB == 16;

// Unpacks the group n * INNER + J of a block.
template <class F, int J> INLINE void unpack_group(const uint8_t *quants, int n, Kept<F> &kept) {
#pragma GCC unroll 8
  for (int q = 0; q < 8; ++q) store_i(&kept.groups[n * F::INNER + J].lines[q], F::template line<J>(quants, n, q));
}

// Bytes before a block is unpacked at which it is asked for.
constexpr int kUnpackedAhead = 4096;

// Unpacks a panel for tiles of 8 tokens.
template <class F> void unpack(const Panel &panel, int64_t cols) {
  const panel_view view = view_of(F::type, cols);
  constexpr int bytes = layout_of(F::type).scales + layout_of(F::type).quants;  // of a block
  Kept<F> *kept = (Kept<F> *)panel.kept;
  for (int64_t b = 0; b < view.blocks; ++b, ++kept) {
    const panel_block at = view.block(b);
    const uint8_t *quants = panel.packed + at.quants;
    for (int i = 0; i < bytes; i += 64) __builtin_prefetch(panel.packed + b * bytes + kUnpackedAhead + i);
    Scales s;
    F::unpack_scales(panel.packed + at.scales, quants, s);
    kept->keep(s);
    for (int n = 0; n < F::OUTER; ++n) {
      unpack_group<F, 0>(quants, n, *kept);
      if constexpr (F::INNER > 1) unpack_group<F, 1>(quants, n, *kept);
      if constexpr (F::INNER > 2) {
        unpack_group<F, 2>(quants, n, *kept);
        unpack_group<F, 3>(quants, n, *kept);
      }
    }
  }
}

// As micro_kernel for a tile after the first, from the weights that this kept.
template <class F, int TOKENS> void micro_kernel_kept(const Panel &panel, int64_t cols, const Acts &a, float *out) {
  Sums<TOKENS> sums;
  const Kept<F> *kept = (const Kept<F> *)panel.kept;
  add_kept<F>(kept, a.first, cols, sums);
  for (int t = 0; t < TOKENS; ++t) store_f(out + 16 * t, sum_of<F>(sums, *a.head, 0, t));
  add_second<F, TOKENS>(&kept, a, cols, out);
}

// Panels that micro_kernel_side multiplies side by side: as many as have room for their sums in the registers.
#if MRS_ISA_avx512vnni || MRS_ISA_avx512bf16
constexpr int kPanels = 3;
#else
constexpr int kPanels = 1;
#endif

// As add_term of PANELS panels and the 4 tokens from `t` on of a tile of TILE: sums[4 * p + i] of panel p and token t + i.
// add_dots(h, dots) adds the int8 products of the group's sub-block h to dots[4 * p + i], scale(p, h) gives its scale.
template <class F, int PANELS, int TILE = 8, class AddDots, class ScaleOf>
INLINE void add_dots_side(const AddDots &add_dots, const ScaleOf &scale, const Term &a, int64_t group, int t, Vf *sums) {
  constexpr int HALVES = 32 / F::SUB, COUNT = 4 * PANELS;
  Vf part[COUNT];
#pragma GCC unroll 2
  for (int h = 0; h < HALVES; ++h) {
    Vi dots[COUNT];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      Vi first = zero_i();
      if constexpr (F::OFFSET_LOG2 > 0)
        first = shl<F::OFFSET_LOG2>(set_i((HALVES == 1 ? a.sum32[group * TILE + t + i] : a.sum16[(group * 2 + h) * TILE + t + i])));
#pragma GCC unroll 3
      for (int p = 0; p < PANELS; ++p) dots[4 * p + i] = first;
    }
    add_dots(h, dots);
#pragma GCC unroll 3
    for (int p = 0; p < PANELS; ++p) {
      const Vf d = scale(p, h);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const Vf dot = to_float(dots[4 * p + i]);
        if constexpr (is_wide<F>)
          sums[4 * p + i] = fma(dot, d, sums[4 * p + i]);
        else
          part[4 * p + i] = h ? fma(dot, d, part[4 * p + i]) : mul(dot, d);
      }
    }
  }
  if constexpr (!is_wide<F>) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const Vf d = set_f(a.d[group * TILE + t + i]);
#pragma GCC unroll 3
      for (int p = 0; p < PANELS; ++p) sums[4 * p + i] = fma(part[4 * p + i], d, sums[4 * p + i]);
    }
  }
}

// The same; line(p, q) gives panel p's vector q of the group's weights. A column is read once for all panels.
template <class F, int PANELS, int TILE = 8, class LineOf, class ScaleOf>
INLINE void add_term_side(const LineOf &line, const ScaleOf &scale, const Term &a, int64_t group, int t, Vf *sums) {
  constexpr int LINES = F::SUB / 4;
  const int8_t *q = a.q + group * 32 * TILE + 4 * t;
  const auto add_dots = [&](int h, Vi *dots) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int l = h * LINES; l < (h + 1) * LINES; ++l) {
      Vi w[PANELS];
#pragma GCC unroll 3
      for (int p = 0; p < PANELS; ++p) w[p] = line(p, l);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const Vi x = set_i(load32(q + 4 * TILE * l + 4 * i));
#pragma GCC unroll 3
        for (int p = 0; p < PANELS; ++p) dots[4 * p + i] = dot4<F::BITS>(dots[4 * p + i], w[p], x);
      }
    }
  };
  add_dots_side<F, PANELS, TILE>(add_dots, scale, a, group, t, sums);
}

// The same, of unpacked panels: `kept[p]` has the group's weights.
template <class F, int PANELS>
INLINE void add_kept_side(const typename Kept<F>::Group *const *kept, const Term &a, int64_t group, int t, Vf *sums) {
  add_term_side<F, PANELS>([&](int p, int l) { return load_i(&kept[p]->lines[l]); }, [&](int p, int h) { return kept[p]->d[h]; },
                           a, group, t, sums);
}

// As end_block for PANELS panels and the 4 tokens from `t` on of a tile of TILE: `sums` are those of the block. Token i's
// finished sums with panel p stand at out + 128 * p + 16 * i, and those of its minima likewise. minimum(p, k) gives the block's
// minima, scale(p) what they are multiplied with.
template <class F, int PANELS, int TILE = 8, class MinimumOf, class ScaleOf>
INLINE void end_block_side(const MinimumOf &minimum, const ScaleOf &scale, const Term &a, int64_t block, int t, const Vf *sums,
                           float *out, float *minima) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const Vf d = set_f(a.d[block * 8 * TILE + t + i]);
#pragma GCC unroll 3
    for (int p = 0; p < PANELS; ++p) {
      float *to = out + 128 * p + 16 * i;
      store_f(to, fma(sums[4 * p + i], d, load_f(to)));
    }
  }
  if constexpr (kMinima<F> > 0) {
    const int32_t *pairs = words_of<F, TILE>(a, block) + t;
    Vi dots[4 * PANELS];
#pragma GCC unroll 12
    for (int i = 0; i < 4 * PANELS; ++i) dots[i] = zero_i();
#pragma GCC unroll 8
    for (int k = 0; k < kMinima<F>; ++k)
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const Vi x = set_i(pairs[TILE * k + i]);
#pragma GCC unroll 3
        for (int p = 0; p < PANELS; ++p) dots[4 * p + i] = dot2_words(dots[4 * p + i], minimum(p, k), x);
      }
#pragma GCC unroll 3
    for (int p = 0; p < PANELS; ++p)
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        float *to = minima + 128 * p + 16 * i;
        store_f(to, fma(to_float(dots[4 * p + i]), scale(p), load_f(to)));
      }
  }
}

// The sums of a wide type's blocks for PANELS panels and TILE tokens: they are too many for the registers.
template <class F, int PANELS, int TILE = 8> struct BlockSums {
  float *out;
  alignas(64) float minima[kMinima<F> ? PANELS * 128 : 1];

  explicit BlockSums(float *out) : out(out) {
    for (int i = 0; i < PANELS * 128; i += 16) {
      store_f(out + i, zero_f());
      if constexpr (kMinima<F> > 0) store_f(minima + i, zero_f());
    }
  }

  // Adds the minima. term: 0 for the first one, 1 for the residual.
  ALWAYS_INLINE void finish(const Acts &a, int term) {
    if constexpr (kMinima<F> > 0)
      for (int p = 0; p < PANELS; ++p)
        for (int t = 0; t < TILE; ++t) {
          float *to = out + 128 * p + 16 * t;
          store_f(to, fma(load_f(minima + 128 * p + 16 * t), set_f(steps_of<F>(*a.head, term)[t]), load_f(to)));
        }
  }
};

// As micro_kernel_kept for PANELS panels and a tile of 8 tokens; unpacked weights and products of the panels stand `stride`
// bytes and 128 values apart. Asks for the cache lines of `wanted` meanwhile, since the products take longer than reading
// them.
template <class F, int PANELS>
void micro_kernel_side(const uint8_t *panels, int64_t stride, int64_t cols, const Acts &a, Bytes wanted, float *out) {
  constexpr int lines = (lines_of_group(F::type) * PANELS + 1) / 2;  // asked for during a group of 4 tokens
  const Kept<F> *kept[PANELS];
  for (int p = 0; p < PANELS; ++p) kept[p] = (const Kept<F> *)(panels + p * stride);
  const auto ask = [&] {
    if (!unpacks_first<F> || wanted.begin >= wanted.end) return;
#pragma GCC unroll 16
    for (int i = 0; i < lines; ++i) __builtin_prefetch(wanted.begin + 64 * i, 0, 2);
    wanted.begin += 64 * lines;
  };
  if constexpr (is_wide<F>) {
    BlockSums<F, PANELS> finished(out);
    for (int64_t b = 0; b < cols / 256; ++b) {
      // the second four tokens find the block in the first-level cache
      for (int t = 0; t < 8; t += 4) {
        Vf sums[4 * PANELS];
#pragma GCC unroll 12
        for (int i = 0; i < 4 * PANELS; ++i) sums[i] = zero_f();
        for (int g = 0; g < 8; ++g) {
          const typename Kept<F>::Group *groups[PANELS];
#pragma GCC unroll 3
          for (int p = 0; p < PANELS; ++p) groups[p] = kept[p][b].groups + g;
          ask();
          add_kept_side<F, PANELS>(groups, a.first, b * 8 + g, t, sums);
        }
        end_block_side<F, PANELS>([&](int p, int k) { return kept[p][b].minima[k]; }, [&](int p) { return *kept[p][b].m; },
                                  a.first, b, t, sums, out + 16 * t, finished.minima + 16 * t);
      }
    }
    finished.finish(a, 0);
  } else {
    for (int t = 0; t < 8; t += 4) {
      Vf sums[4 * PANELS];
#pragma GCC unroll 12
      for (int i = 0; i < 4 * PANELS; ++i) sums[i] = zero_f();
      for (int64_t g = 0; g < cols / 32; ++g) {
        const typename Kept<F>::Group *groups[PANELS];
#pragma GCC unroll 3
        for (int p = 0; p < PANELS; ++p) groups[p] = kept[p][g].groups;
        ask();
        add_kept_side<F, PANELS>(groups, a.first, g, t, sums);
        if constexpr (F::MINS)
#pragma GCC unroll 4
          for (int i = 0; i < 4; ++i)
#pragma GCC unroll 3
            for (int p = 0; p < PANELS; ++p)
              sums[4 * p + i] = fma(*kept[p][g].m, set_f(a.first.fsum32[8 * g + t + i]), sums[4 * p + i]);
      }
#pragma GCC unroll 3
      for (int p = 0; p < PANELS; ++p)
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) store_f(out + 128 * p + 16 * (t + i), sums[4 * p + i]);
    }
  }
  add_second<F, 8, PANELS>(kept, a, cols, out);
}

typedef void (*unpack_fn)(const Panel &panel, int64_t cols);

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
  template <int TYPE> void run_float() { fn = micro_kernel_of_floats<Singles<TYPE>>(tokens); }
};

// The micro-kernel for a storage type and a tile's number of tokens: 1, 2, 4 or 8. A tile that is not the first of its
// panel follows one of 8 tokens. paired: see is_paired().
INLINE micro_kernel_fn micro_kernel_of(int type, int tokens, bool is_first, [[maybe_unused]] bool paired) {
#if MRS_ISA_avx512bf16
  if (paired) return micro_kernel_of_floats<Pairs>(tokens);
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

#if MRS_ISA_amx_int8
template <class F, int PANELS>
void micro_kernel_tiles(const uint8_t *panels, int64_t stride, int64_t cols, const Acts &a, Bytes wanted, float *out);
#endif

struct PickSide {
  int panels, tokens;
  micro_kernel_side_fn fn;
  template <class F> void run() {
#if MRS_ISA_amx_int8
    fn = panels == kPanels && tokens == 8 ? micro_kernel_tiles<F, kPanels> : nullptr;
#else
    if constexpr (kPanels > 1) fn = panels == kPanels && tokens == 8 ? micro_kernel_side<F, kPanels> : nullptr;
#endif
  }
  template <int TYPE> void run_float() { fn = micro_kernel_side_of_floats<Singles<TYPE>, kPanels>(panels, tokens); }
};

// The micro-kernel for 2 to kPanels panels and a tile's number of tokens, which is not their first unless unpack_of() has
// unpacked them or they hold plain numbers; null where there is none.
INLINE micro_kernel_side_fn micro_kernel_side_of(int type, int panels, int tokens, [[maybe_unused]] bool paired) {
#if MRS_ISA_avx512bf16
  if (paired) return micro_kernel_side_of_floats<Pairs, kPanels>(panels, tokens);
#endif
  PickSide pick = {panels, tokens, nullptr};
  visit_type(type, pick);
  return pick.fn;
}

struct KeptBytes {
  int64_t size = 0, groups = 1;
  template <class F> void run() { size = sizeof(Kept<F>), groups = Kept<F>::GROUPS; }
  template <int> void run_float() {}
};

// Bytes of a panel's unpacked weights; 0 for plain numbers, which are read as they are stored.
INLINE int64_t kept_bytes(int type, int64_t cols) {
  KeptBytes kept;
  visit_type(type, kept);
  return kept.size * (cols / 32 / kept.groups);
}

}  // namespace MRS_ISA
