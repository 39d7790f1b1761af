// Micro-kernels for few tiles of 8 tokens: they read panels as these are packed, a few side by side, and keep nothing.
//
// With one or two tiles, unpacking for each takes less time than storing what was unpacked. The sums are those of the other
// micro-kernels, to the last bit.
#pragma once
#include "micro_kernel.h"

namespace MRS_ISA {

// Whether panels of a type are multiplied as they are packed: where unpacking takes one or two instructions a vector.
template <class F> constexpr bool is_read_packed = kPanels > 1 && F::SUB == 32 && !is_wide<F> && F::BITS != 5;

// sums[4 * p + i] = the product of panel p with one term of token t + i, for PANELS panels. ask() is called once a block.
template <class F, int PANELS, class Ask>
INLINE void multiply_packed(const uint8_t *const *packed, const panel_view &view, const Term &a, int t, const Ask &ask,
                            Vf *sums) {
#pragma GCC unroll 12
  for (int i = 0; i < 4 * PANELS; ++i) sums[i] = zero_f();
  for (int64_t b = 0; b < view.blocks; ++b) {
    const panel_block at = view.block(b);
    ask();
    add_term_side<F, PANELS>([&](int p, int l) { return F::template line<0>(packed[p] + at.quants, 0, l); },
                             [&](int p, int h) { return F::scale(packed[p] + at.scales, packed[p] + at.quants, h); }, a, b, t,
                             sums);
    if constexpr (F::MINS) {
#pragma GCC unroll 3
      for (int p = 0; p < PANELS; ++p) {
        Scales s;
        F::unpack_scales(packed[p] + at.scales, packed[p] + at.quants, s);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) sums[4 * p + i] = fma(s.m, set_f(a.fsum32[8 * b + t + i]), sums[4 * p + i]);
      }
    }
  }
}

// As micro_kernel_side, from panels that stand packed `stride` bytes apart.
template <class F, int PANELS>
void micro_kernel_packed(const uint8_t *panels, int64_t stride, int64_t cols, const Acts &a, Bytes wanted, float *out) {
  constexpr int lines = (lines_of_group(F::type) * PANELS + 1) / 2;  // asked for during a block of 4 tokens
  const panel_view view = view_of(F::type, cols);
  const uint8_t *packed[PANELS];
  for (int p = 0; p < PANELS; ++p) packed[p] = panels + p * stride;
  const auto ask = [&] {
    if (wanted.begin >= wanted.end) return;
#pragma GCC unroll 32
    for (int i = 0; i < lines; ++i) __builtin_prefetch(wanted.begin + 64 * i, 0, 2);
    wanted.begin += 64 * lines;
  };
  for (int t = 0; t < 8; t += 4) {
    Vf sums[4 * PANELS];
    multiply_packed<F, PANELS>(packed, view, a.first, t, ask, sums);
#pragma GCC unroll 3
    for (int p = 0; p < PANELS; ++p)
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) store_f(out + 128 * p + 16 * (t + i), sums[4 * p + i]);
  }
  if (!a.head->two_terms) {
    const auto line = [&](int p, uint32_t quad) {
      return F::template line<0>(packed[p] + view.block(quad / 8).quants, 0, quad % 8);
    };
    const auto scale = [&](int p, uint32_t quad) {
      const panel_block at = view.block(quad / 8);
      return F::scale(packed[p] + at.scales, packed[p] + at.quants, 0);
    };
    add_outliers<F, 8, PANELS>(a, line, scale, out);
    return;
  }
  for (int t = 0; t < 8; t += 4) {
    Vf sums[4 * PANELS];
    multiply_packed<F, PANELS>(packed, view, a.residual, t, [] {}, sums);
#pragma GCC unroll 3
    for (int p = 0; p < PANELS; ++p)
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        float *to = out + 128 * p + 16 * (t + i);
        store_f(to, add(load_f(to), sums[4 * p + i]));
      }
  }
}

struct PickPacked {
  int panels;
  micro_kernel_side_fn fn = nullptr;
  template <class F> void run() {
    if constexpr (is_read_packed<F>)
      fn = panels == 1 ? micro_kernel_packed<F, 1> : panels == 2 ? micro_kernel_packed<F, 2> : micro_kernel_packed<F, kPanels>;
  }
  template <int> void run_float() {}
};

// The micro-kernel for 1 to kPanels packed panels and a tile of 8 tokens, or null where there is none.
INLINE micro_kernel_side_fn micro_kernel_packed_of(int type, int panels) {
  PickPacked pick = {panels};
  visit_type(type, pick);
  return pick.fn;
}

}  // namespace MRS_ISA
