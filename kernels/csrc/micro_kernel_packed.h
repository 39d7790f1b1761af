// Micro-kernels for few tiles of 4 or 8 tokens: they read panels as these are packed, a few side by side, and keep nothing.
//
// With one or two tiles, unpacking for each takes less time than storing what was unpacked. The sums are those of the other
// micro-kernels, to the last bit.
#pragma once
#include "asks_ahead.h"
#include "micro_kernel.h"

namespace MRS_ISA {

// Whether there are micro-kernels for packed panels and tiles of 8 tokens: where unpacking takes few instructions a vector, for no
// bits lie by themselves.
template <class F> constexpr bool is_read_packed = kPanels > 1 && F::BITS % 2 == 0 && (F::SUB == 32 || is_wide<F>);

// Where micro-kernels ask for lines meanwhile: from `at` on, or nowhere.
struct Asking {
  const uint8_t *at;
};
struct NotAsking {};

// Asks for the part-th of PARTS parts of LINES cache lines, TIMES times in a row for each. The parts are spread over the
// products: of many lines at once most would not come.
template <int LINES, int PARTS, int TIMES> INLINE void ask_part(const Asking &ahead, int part) {
#pragma GCC unroll 16
  for (int i = part * LINES / PARTS; i < (part + 1) * LINES / PARTS; ++i) ask_for_line<TIMES>(ahead.at + 64 * i);
}
template <int, int, int> INLINE void ask_part(NotAsking, int) {}

INLINE Asking behind(const Asking &ahead, int lines) { return {ahead.at + 64 * lines}; }
INLINE NotAsking behind(NotAsking, int) { return {}; }

// Lines asked for while 4 of TILE tokens are multiplied with the groups of one n of PANELS panels: as many as these have, after
// all tokens.
template <class F, int PANELS, int TILE>
constexpr int kLinesAsked = ((layout_of(F::type).scales + layout_of(F::type).quants) * PANELS + 16 * TILE * F::OUTER - 1) /
                            (16 * TILE * F::OUTER);

// Adds the groups from J on of those that share cache lines, as add_term_side; scale(p, j) gives the scale of panel p's
// sub-block j. Asks for the lines from `ahead` on meanwhile.
template <class F, int PANELS, int TILE, int J = 0, class ScaleOf, class Ahead>
INLINE void add_groups(const uint8_t *const *quants, const ScaleOf &scale, int n, const Term &a, int64_t group, int t,
                       const Ahead &ahead, Vf *sums) {
  constexpr int halves = 32 / F::SUB;
  // of others the products are the bound
  constexpr int times = F::BITS >= 6 || (TILE == 4 && F::BITS > 2) ? kTimesAsked : 1;
  const auto line = [&](int p, int l) __attribute__((always_inline)) {
    if (p == 0) ask_part<kLinesAsked<F, PANELS, TILE>, 8 * F::INNER, times>(ahead, 8 * J + l);
    return F::template line<J>(quants[p], n, l);
  };
  const auto scale_of = [&](int p, int h) __attribute__((always_inline)) { return scale(p, (n * F::INNER + J) * halves + h); };
  add_term_side<F, PANELS, TILE>(line, scale_of, a, group + J, t, sums);
  if constexpr (J + 1 < F::INNER) add_groups<F, PANELS, TILE, J + 1>(quants, scale, n, a, group, t, ahead, sums);
}

// sums[4 * p + i] = the product of panel p with one term of token t + i, for PANELS panels. Returns where the next tokens go on
// asking for lines.
template <class F, int PANELS, int TILE, class Ahead>
INLINE Ahead multiply_narrow(const uint8_t *const *packed, const panel_view &view, const Term &a, int t, Ahead ahead,
                             Vf *sums) {
#pragma GCC unroll 12
  for (int i = 0; i < 4 * PANELS; ++i) sums[i] = zero_f();
  for (int64_t b = 0; b < view.blocks; ++b, ahead = behind(ahead, kLinesAsked<F, PANELS, TILE>)) {
    const panel_block at = view.block(b);
    const uint8_t *quants[PANELS];
#pragma GCC unroll 3
    for (int p = 0; p < PANELS; ++p) quants[p] = packed[p] + at.quants;
    const auto scale = [&](int p, int j) __attribute__((always_inline)) {
      return F::scale(packed[p] + at.scales, quants[p], j);
    };
    add_groups<F, PANELS, TILE>(quants, scale, 0, a, b, t, ahead, sums);
    if constexpr (F::MINS) {
#pragma GCC unroll 3
      for (int p = 0; p < PANELS; ++p) {
        Scales s;
        F::unpack_scales(packed[p] + at.scales, quants[p], s);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) sums[4 * p + i] = fma(s.m, set_f(a.fsum32[TILE * b + t + i]), sums[4 * p + i]);
      }
    }
  }
  return ahead;
}

// The same for a wide type and all tokens: out[128 * p + 16 * i] = the product of panel p with one term of token i, to which the
// coarse terms are added. term: its number. The second four tokens find the block in the first-level cache, and its scales unpacked.
template <class F, int PANELS, int TILE, class Ahead>
INLINE void multiply_wide(const uint8_t *const *packed, const panel_view &view, const Acts &a, int term, Ahead ahead,
                          float *out) {
  const Term &of = term ? a.residual : a.first;
  BlockSums<F, PANELS, TILE> finished(out);
  OutlierSums<F, TILE, PANELS> outliers;
  for (int64_t b = 0; b < view.blocks; ++b) {
    const panel_block at = view.block(b);
    const uint8_t *quants[PANELS];
    Scales scales[PANELS];
    for (int p = 0; p < PANELS; ++p) {
      quants[p] = packed[p] + at.quants;
      F::unpack_scales(packed[p] + at.scales, quants[p], scales[p]);
    }
    const auto scale = [&](int p, int j) { return scales[p].d[j]; };
    for (int t = 0; t < TILE; t += 4) {
      Vf sums[4 * PANELS];
#pragma GCC unroll 12
      for (int i = 0; i < 4 * PANELS; ++i) sums[i] = zero_f();
      for (int n = 0; n < F::OUTER; ++n, ahead = behind(ahead, kLinesAsked<F, PANELS, TILE>))
        add_groups<F, PANELS, TILE>(quants, scale, n, of, 8 * b + n * F::INNER, t, ahead, sums);
      end_block_side<F, PANELS, TILE>([&](int p, int k) { return scales[p].minima[k]; }, [&](int p) { return scales[p].m; }, of, b,
                                      t, sums, out + 16 * t, finished.minima + 16 * t);
      outliers.add_strip(a, b, t, [&](int p, uint32_t quad) { return line_of<F>(quants[p], quad / 8 % 8, quad % 8); },
                         [&](int p, uint32_t quad) { return scale(p, quad % 64 / (F::SUB / 4)); });
    }
  }
  finished.finish(a, term);
  outliers.add_to(out);
}

// The same for one term of all tokens.
template <class F, int PANELS, int TILE, class Ahead>
INLINE void multiply_packed(const uint8_t *const *packed, const panel_view &view, const Acts &a, int term, Ahead ahead,
                            float *out) {
  if constexpr (is_wide<F>) {
    multiply_wide<F, PANELS, TILE>(packed, view, a, term, ahead, out);
  } else {
    for (int t = 0; t < TILE; t += 4) {
      Vf sums[4 * PANELS];
      ahead = multiply_narrow<F, PANELS, TILE>(packed, view, term ? a.residual : a.first, t, ahead, sums);
#pragma GCC unroll 3
      for (int p = 0; p < PANELS; ++p)
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) store_f(out + 128 * p + 16 * (t + i), sums[4 * p + i]);
    }
    const auto panel = [&](int p) { return Panel{packed[p], nullptr, nullptr, nullptr}; };
    add_outliers<F, TILE, PANELS>(a, 32 * view.blocks, [&](int p, uint32_t quad) { return line_of_quad<F>(panel(p), view, quad); },
                                  [&](int p, uint32_t quad) { return scale_of_quad<F>(panel(p), view, quad); }, out);
  }
}

// As micro_kernel_side, from panels that stand packed `stride` bytes apart.
template <class F, int PANELS, int TILE>
void micro_kernel_packed(const uint8_t *panels, int64_t stride, int64_t cols, const Acts &a, Bytes wanted, float *out) {
  const panel_view view = view_of(F::type, cols);
  const uint8_t *packed[PANELS];
  for (int p = 0; p < PANELS; ++p) packed[p] = panels + p * stride;
  // without a branch between the products: where nothing is wanted, what is in the cache is asked for
  const Asking ahead = {wanted.begin < wanted.end ? wanted.begin : panels};
  multiply_packed<F, PANELS, TILE>(packed, view, a, 0, ahead, out);
  if (!a.head->two_terms) return;
  alignas(64) float residual[PANELS * 128];
  multiply_packed<F, PANELS, TILE>(packed, view, a, 1, NotAsking(), residual);
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

// Whether `tiles` tiles of 8 tokens, of which `first` is the first, are multiplied with packed panels, if their type has
// micro-kernels for that: of K types where that was measured, and two tiles of two terms take longer so (docs/log.md).
INLINE bool is_multiplied_packed(int type, int64_t tiles, const Acts &first) {
  Needs needs = {};
  visit_type(type, needs);
  if (!needs.wide) return tiles <= 2;
  return !mrs_has_wide_l1 && tiles <= (first.head->two_terms ? 1 : 2);
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
