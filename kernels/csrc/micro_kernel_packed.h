// Micro-kernels for few tiles of 4 or 8 tokens: they read panels as these are packed, a few side by side, and keep nothing.
//
// With one or two tiles, unpacking for each takes less time than storing what was unpacked. The sums are those of the other
// micro-kernels, to the last bit.
#pragma once
#include "asks_ahead.h"
#include "micro_kernel.h"

namespace MRS_ISA {

// Whether panels are multiplied with tiles of 8 tokens as they are packed: where unpacking takes one or two instructions a vector.
template <class F> constexpr bool is_read_packed = kPanels > 1 && F::SUB == 32 && !is_wide<F> && F::BITS != 5;

// sums[4 * p + i] = the product of panel p with one term of token t + i, for PANELS panels. ask() is called once a block.
template <class F, int PANELS, int TILE, class Ask>
INLINE void multiply_narrow(const uint8_t *const *packed, const panel_view &view, const Term &a, int t, const Ask &ask,
                            Vf *sums) {
#pragma GCC unroll 12
  for (int i = 0; i < 4 * PANELS; ++i) sums[i] = zero_f();
  for (int64_t b = 0; b < view.blocks; ++b) {
    const panel_block at = view.block(b);
    ask();
    add_term_side<F, PANELS, TILE>([&](int p, int l) { return F::template line<0>(packed[p] + at.quants, 0, l); },
                                   [&](int p, int h) { return F::scale(packed[p] + at.scales, packed[p] + at.quants, h); },
                                   a, b, t, sums);
    if constexpr (F::MINS) {
#pragma GCC unroll 3
      for (int p = 0; p < PANELS; ++p) {
        Scales s;
        F::unpack_scales(packed[p] + at.scales, packed[p] + at.quants, s);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) sums[4 * p + i] = fma(s.m, set_f(a.fsum32[TILE * b + t + i]), sums[4 * p + i]);
      }
    }
  }
}

// Adds the groups from J on of those of a wide type that share cache lines, as add_term_side.
template <class F, int PANELS, int TILE, int J = 0>
INLINE void add_groups(const uint8_t *const *quants, const Scales *scales, int n, const Term &a, int64_t group, int t, Vf *sums) {
  const auto scale = [&](int p, int h) { return scales[p].d[(n * F::INNER + J) * (32 / F::SUB) + h]; };
  add_term_side<F, PANELS, TILE>([&](int p, int l) { return F::template line<J>(quants[p], n, l); }, scale, a, group + J, t, sums);
  if constexpr (J + 1 < F::INNER) add_groups<F, PANELS, TILE, J + 1>(quants, scales, n, a, group, t, sums);
}

// The same for a wide type: out[128 * p + 16 * i] = the product of panel p with one term of token i of 4. term: its number.
template <class F, int PANELS, class Ask>
INLINE void multiply_wide(const uint8_t *const *packed, const panel_view &view, const Acts &a, int term, const Ask &ask, float *out) {
  const Term &of = term ? a.residual : a.first;
  BlockSums<F, PANELS, 4> finished(out);
  for (int64_t b = 0; b < view.blocks; ++b) {
    const panel_block at = view.block(b);
    const uint8_t *quants[PANELS];
    Scales scales[PANELS];
    for (int p = 0; p < PANELS; ++p) {
      quants[p] = packed[p] + at.quants;
      F::unpack_scales(packed[p] + at.scales, quants[p], scales[p]);
    }
    Vf sums[4 * PANELS];
#pragma GCC unroll 12
    for (int i = 0; i < 4 * PANELS; ++i) sums[i] = zero_f();
    for (int n = 0; n < F::OUTER; ++n) {
      ask();
      add_groups<F, PANELS, 4>(quants, scales, n, of, 8 * b + n * F::INNER, 0, sums);
    }
    end_block_side<F, PANELS, 4>([&](int p, int k) { return scales[p].minima[k]; }, [&](int p) { return scales[p].m; }, of, b, 0,
                                 sums, out, finished.minima);
  }
  finished.finish(a, term);
}

// The same for one term of all tokens.
template <class F, int PANELS, int TILE, class Ask>
INLINE void multiply_packed(const uint8_t *const *packed, const panel_view &view, const Acts &a, int term, const Ask &ask,
                            float *out) {
  if constexpr (is_wide<F>) {
    multiply_wide<F, PANELS>(packed, view, a, term, ask, out);
  } else {
    for (int t = 0; t < TILE; t += 4) {
      Vf sums[4 * PANELS];
      multiply_narrow<F, PANELS, TILE>(packed, view, term ? a.residual : a.first, t, ask, sums);
#pragma GCC unroll 3
      for (int p = 0; p < PANELS; ++p)
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) store_f(out + 128 * p + 16 * (t + i), sums[4 * p + i]);
    }
  }
}

// As micro_kernel_side, from panels that stand packed `stride` bytes apart. Wide types: for tiles of 4.
template <class F, int PANELS, int TILE>
void micro_kernel_packed(const uint8_t *panels, int64_t stride, int64_t cols, const Acts &a, Bytes wanted, float *out) {
  constexpr int passes = TILE / 4, lines = (lines_of_group(F::type) * F::INNER * PANELS + passes - 1) / passes;  // asked for at a time
  const panel_view view = view_of(F::type, cols);
  const uint8_t *packed[PANELS];
  for (int p = 0; p < PANELS; ++p) packed[p] = panels + p * stride;
  const auto ask = [&] {
    if (wanted.begin >= wanted.end) return;
#pragma GCC unroll 32
    for (int i = 0; i < lines; ++i) __builtin_prefetch(wanted.begin + 64 * i, 0, 2);
    wanted.begin += 64 * lines;
  };
  multiply_packed<F, PANELS, TILE>(packed, view, a, 0, ask, out);
  if (!a.head->two_terms) {
    const auto panel = [&](int p) { return Panel{packed[p], nullptr, nullptr, nullptr}; };
    add_outliers<F, TILE, PANELS>(a, [&](int p, uint32_t quad) { return line_of_quad<F>(panel(p), view, quad); },
                                  [&](int p, uint32_t quad) { return scale_of_quad<F>(panel(p), view, quad); }, out);
    return;
  }
  alignas(64) float residual[PANELS * 128];
  multiply_packed<F, PANELS, TILE>(packed, view, a, 1, [] {}, residual);
  for (int p = 0; p < PANELS; ++p)
    for (int t = 0; t < TILE; ++t) {
      float *to = out + 128 * p + 16 * t;
      store_f(to, add(load_f(to), load_f(residual + 128 * p + 16 * t)));
    }
}

struct PickPacked {
  int panels, tokens;
  micro_kernel_side_fn fn = nullptr;
  template <class F> void run() {
    if constexpr (kPanels > 1)
      if (panels == kPanels && tokens == 4) fn = micro_kernel_packed<F, kPanels, 4>;
    if constexpr (is_read_packed<F>)
      if (tokens == 8)
        fn = panels == 1   ? micro_kernel_packed<F, 1, 8>
             : panels == 2 ? micro_kernel_packed<F, 2, 8>
                           : micro_kernel_packed<F, kPanels, 8>;
  }
  template <int> void run_float() {}
};

// The micro-kernel for packed panels and a tile of 8 tokens, or of 4 for kPanels of them; null where there is none.
INLINE micro_kernel_side_fn micro_kernel_packed_of(int type, int panels, int tokens) {
  PickPacked pick = {panels, tokens};
  visit_type(type, pick);
  return pick.fn;
}

// Bytes of a panel from which on 4 tokens alone gain by kPanels of them side by side, if its type is unpacked in few instructions.
constexpr int64_t kSmallPanel = 16 << 10;

// Whether 4 tokens that nothing follows are multiplied with kPanels packed panels at a time. Memory bounds them where lines are
// asked for ahead, and with small panels of types that are no K types: one stream serves it (docs/log.md).
INLINE bool has_few_side_by_side(int type, int64_t cols) {
  if (mrs_asks_ahead) return false;
  Needs needs = {};
  visit_type(type, needs);
  return needs.wide || view_of(type, cols).bytes >= kSmallPanel;
}

}  // namespace MRS_ISA
