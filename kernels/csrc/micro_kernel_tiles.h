// The micro-kernel of Intel's AMX: unpacked panels times a tile of 8 tokens, by the tile instructions (amx_tiles.h).
//
// The weights of a sub-block are a register's content as they stand unpacked: SUB / 4 rows of 16 times four bytes. The
// tokens' columns are transposed first, from quads of all tokens to a row for each. The int32 sums are exact and all else
// comes in the order of micro_kernel_side, hence the same bits.
#pragma once
#include "amx_tiles.h"
#include "micro_kernel.h"

#if MRS_ISA_amx_int8
#include <utility>

namespace MRS_ISA {

// Groups of 32 columns whose products are computed before they are scaled: those of a K type's block.
constexpr int kTileGroups = 8;

// Sub-block h of a group's columns times that of each panel, to the registers from FIRST on.
template <int FIRST, class F, int... P>
INLINE void multiply_tiles(const int8_t *columns, const typename Kept<F>::Group *const *groups, int h,
                           std::integer_sequence<int, P...>) {
  load_tile<6>(columns + h * F::SUB, 32);
  ((zero_tile<FIRST + P>(), load_tile<7>(groups[P]->lines + h * (F::SUB / 4), 64), dot_tiles<FIRST + P, 6, 7>()), ...);
}
template <int FIRST, int... P> INLINE void store_tiles(int32_t *dots, std::integer_sequence<int, P...>) {
  (store_tile<FIRST + P>(dots + 128 * P, 64), ...);
}

// dots[((s * PANELS + p) * 8 + t) * 16] and behind = the products of panel p's sub-block s, counted from group `from` on,
// and token t. Two sub-blocks are in work at a time: a product takes longer than the next may begin.
template <class F, int PANELS>
INLINE void multiply_groups(const Kept<F> *const *kept, const Term &a, int64_t from, int groups, int32_t *dots) {
  constexpr int HALVES = 32 / F::SUB, GROUPS = Kept<F>::GROUPS;
  constexpr auto panels = std::make_integer_sequence<int, PANELS>();
  static_assert(2 * PANELS <= 6, "the registers 6 and 7 hold columns and weights");
  alignas(64) int8_t columns[kTileGroups * 256];
  for (int g = 0; g < groups; ++g)
    transpose8((const float *)(a.q + (from + g) * 256), 8, (float *)(columns + 256 * g), 8);
  const auto multiply = [&](auto first, int s) {
    const typename Kept<F>::Group *at[PANELS];
    const int64_t g = from + s / HALVES;
    for (int p = 0; p < PANELS; ++p) at[p] = kept[p][g / GROUPS].groups + g % GROUPS;
    multiply_tiles<decltype(first)::value, F>(columns + s / HALVES * 256, at, s % HALVES, panels);
  };
  const int count = groups * HALVES;
  for (int s = 0; s < count; s += 2) {
    multiply(std::integral_constant<int, 0>(), s);
    if (s + 1 < count) multiply(std::integral_constant<int, PANELS>(), s + 1);
    store_tiles<0>(dots + s * PANELS * 128, panels);
    if (s + 1 < count) store_tiles<PANELS>(dots + (s + 1) * PANELS * 128, panels);
  }
}

// As micro_kernel_side, whose parameters these are.
template <class F, int PANELS>
void micro_kernel_tiles(const uint8_t *panels, int64_t stride, int64_t cols, const Acts &a, Bytes wanted, float *out) {
  constexpr int HALVES = 32 / F::SUB, GROUPS = Kept<F>::GROUPS, lines = (lines_of_group(F::type) * PANELS + 1) / 2;
  alignas(64) int32_t dots[kTileGroups * HALVES * PANELS * 128];
  alignas(64) float minima[kMinima<F> ? PANELS * 128 : 1];
  const Kept<F> *kept[PANELS];
  for (int p = 0; p < PANELS; ++p) kept[p] = (const Kept<F> *)(panels + p * stride);
  for (int i = 0; i < PANELS * 128; i += 16) {
    store_f(out + i, zero_f());
    if constexpr (kMinima<F> > 0) store_f(minima + i, zero_f());
  }
  set_tile_shapes_for(F::SUB);
  for (int64_t from = 0; from < cols / 32; from += kTileGroups) {
    const int count = int(cols / 32 - from < kTileGroups ? cols / 32 - from : kTileGroups);
    multiply_groups<F, PANELS>(kept, a.first, from, count, dots);
    for (int t = 0; t < 8; t += 4) {
      Vf sums[4 * PANELS];
#pragma GCC unroll 12
      for (int i = 0; i < 4 * PANELS; ++i) sums[i] = is_wide<F> ? zero_f() : load_f(out + 128 * (i / 4) + 16 * (t + i % 4));
      for (int g = 0; g < count; ++g) {
        for (int i = 0; unpacks_first<F> && wanted.begin < wanted.end && i < lines; ++i, wanted.begin += 64)
          __builtin_prefetch(wanted.begin, 0, 2);
        const auto at = [&](int p) -> const Kept<F> & { return kept[p][(from + g) / GROUPS]; };
        const auto add_dots = [&](int h, Vi *to) __attribute__((always_inline)) {
          const int32_t *of = dots + ((g * HALVES + h) * PANELS * 8 + t) * 16;
#pragma GCC unroll 12
          for (int i = 0; i < 4 * PANELS; ++i) to[i] = add(to[i], load_i(of + 128 * (i / 4) + 16 * (i % 4)));
        };
        const auto scale = [&](int p, int h) { return at(p).groups[g % GROUPS].d[h]; };
        add_dots_side<F, PANELS>(add_dots, scale, a.first, from + g, t, sums);
        if constexpr (F::MINS && !is_wide<F>)
#pragma GCC unroll 12
          for (int i = 0; i < 4 * PANELS; ++i)
            sums[i] = fma(*at(i / 4).m, set_f(a.first.fsum32[8 * (from + g) + t + i % 4]), sums[i]);
      }
      if constexpr (is_wide<F>) {
        const Kept<F> *at[PANELS];
        for (int p = 0; p < PANELS; ++p) at[p] = kept[p] + from / GROUPS;
        end_block_side<F, PANELS>([&](int p, int k) { return at[p]->minima[k]; }, [&](int p) { return *at[p]->m; }, a.first,
                                  from / GROUPS, t, sums, out + 16 * t, minima + 16 * t);
      } else {
#pragma GCC unroll 12
        for (int i = 0; i < 4 * PANELS; ++i) store_f(out + 128 * (i / 4) + 16 * (t + i % 4), sums[i]);
      }
    }
  }
  release_tiles();  // the system saves them no longer when it switches threads
  if constexpr (kMinima<F> > 0)
    for (int i = 0; i < 8 * PANELS; ++i)
      store_f(out + 16 * i, fma(load_f(minima + 16 * i), set_f(steps_of<F>(*a.head, 0)[i % 8]), load_f(out + 16 * i)));
  add_second<F, 8, PANELS>(kept, a, cols, out);
}

}  // namespace MRS_ISA
#endif
