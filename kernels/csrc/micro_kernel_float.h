// Micro-kernels for weights that are stored as floats: the products of panels side by side with one tile of TOKENS columns.
// An output is one sum, to which the columns, or pairs of them, are added in ascending order, whatever the tile or the
// panels beside it.
#pragma once
#include "activations.h"
#include "asks_ahead.h"
#include "micro_term.h"

namespace MRS_ISA {

typedef void (*micro_kernel_fn)(const Panel &panel, int64_t cols, const Acts &a, float *out);
typedef void (*micro_kernel_side_fn)(const uint8_t *panels, int64_t stride, int64_t cols, const Acts &a, Bytes wanted,
                                     float *out);

// Tokens of a tile whose sums are in registers at the same time.
#if MRS_ISA_avx512 || MRS_ISA_avx512vnni
constexpr int kTokensAtOnce = 8;
#else
constexpr int kTokensAtOnce = 4;
#endif

// A step adds one column.
template <int TYPE> struct Singles {
  static constexpr int COLUMNS = 1, BYTES = layout_of(TYPE).quants;  // of a step, and of its weights
  using Weights = Vf;
  INLINE const float *values(const Acts &a) { return a.x; }
  INLINE Vf weights(const uint8_t *at, bool) { return load_weight<TYPE>(at); }
  INLINE Vf spread(const float *x) { return set_f(*x); }
  INLINE Vf add(Vf sum, Vf w, Vf x) { return fma(w, x, sum); }
};

#if MRS_ISA_avx512bf16
// A step adds two columns of bfloat16.
struct Pairs {
  static constexpr int COLUMNS = 2, BYTES = 64;
  using Weights = Vi;
  INLINE const int32_t *values(const Acts &a) { return a.pairs; }
  INLINE Vi weights(const uint8_t *at, bool both) { return load_pairs(at, both); }
  INLINE Vi spread(const int32_t *x) { return set_i(*x); }
  INLINE Vf add(Vf sum, Vi w, Vi x) { return dot2(sum, w, x); }
};
#endif

// acc[TOKENS * p + t] += one step of panel p and token t. All loops are unrolled: with one that is not, the compiler stores
// every sum after every step.
template <class Step, int TOKENS, int PANELS, class Value>
INLINE void add_step(const uint8_t *panels, int64_t stride, const Value *x, bool whole, Vf *acc) {
  typename Step::Weights w[PANELS];
#pragma GCC unroll 3
  for (int p = 0; p < PANELS; ++p) w[p] = Step::weights(panels + p * stride, whole);
#pragma GCC unroll 8
  for (int t = 0; t < TOKENS; ++t) {
    const auto value = Step::spread(x + t);
#pragma GCC unroll 3
    for (int p = 0; p < PANELS; ++p) acc[TOKENS * p + t] = Step::add(acc[TOKENS * p + t], w[p], value);
  }
}

// Asks for what `panels` hold from byte `at` on; behind their `end`, for what the panels from `next` on hold.
template <int PANELS, int BYTES>
INLINE void ask_beside(const uint8_t *panels, int64_t stride, int64_t at, int64_t end, const uint8_t *next) {
  if (at >= end && !next) return;
  const uint8_t *from = at < end ? panels + at : next + (at - end);
#pragma GCC unroll 3
  for (int p = 0; p < PANELS; ++p)
    for (int i = 0; i < BYTES; i += 64) ask_for_line<kTimesAsked, 3>(from + p * stride + i);
}

// Bytes ahead of the columns of few tokens that are asked for.
constexpr int64_t kFloatsAhead = 2048;

// out: (PANELS, 8, 16) products of PANELS panels, `stride` bytes apart, with a tile. A column that is read serves all of
// them, and a weight all tokens. Asks meanwhile for the cache lines of `wanted`, the panels to come: evenly for 8 tokens;
// for fewer, whose products take less time than reading, a little ahead in every panel, since several streams from memory
// are slower than one.
template <class Step, int TOKENS, int PANELS>
void micro_kernel_float(const uint8_t *panels, int64_t stride, int64_t cols, const Acts &a, Bytes wanted, float *out) {
  constexpr int AT_ONCE = TOKENS < kTokensAtOnce ? TOKENS : kTokensAtOnce;
  constexpr int BLOCK = 4, BYTES = BLOCK * Step::BYTES;  // steps between two times of asking
  const int64_t whole = cols / Step::COLUMNS, blocks = whole / BLOCK;
  const int64_t lines = (wanted.end - wanted.begin + 63) / 64, asked = blocks ? (lines + blocks - 1) / blocks : 0;
  for (int first = 0; first < TOKENS; first += AT_ONCE) {
    Vf acc[PANELS * AT_ONCE];
#pragma GCC unroll 24
    for (int i = 0; i < PANELS * AT_ONCE; ++i) acc[i] = zero_f();
    const auto *x = Step::values(a) + first;
    const uint8_t *at = panels;
    for (int64_t b = 0; b < blocks; ++b, at += BYTES, x += BLOCK * TOKENS) {
      if (TOKENS < 8 && PANELS > 1)
        ask_beside<PANELS, BYTES>(panels, stride, b * BYTES + kFloatsAhead, blocks * BYTES, wanted.begin);
      for (int64_t i = 0; TOKENS == 8 && i < asked && wanted.begin < wanted.end; ++i, wanted.begin += 64)
        __builtin_prefetch(wanted.begin, 0, 2);
#pragma GCC unroll 2
      for (int i = 0; i < BLOCK; ++i)
        add_step<Step, AT_ONCE, PANELS>(at + i * Step::BYTES, stride, x + i * TOKENS, true, acc);
    }
    for (int64_t i = blocks * BLOCK * Step::COLUMNS; i < cols; i += Step::COLUMNS, at += Step::BYTES, x += TOKENS)
      add_step<Step, AT_ONCE, PANELS>(at, stride, x, i + Step::COLUMNS <= cols, acc);
#pragma GCC unroll 3
    for (int p = 0; p < PANELS; ++p)
#pragma GCC unroll 8
      for (int t = 0; t < AT_ONCE; ++t) store_f(out + 128 * p + 16 * (first + t), acc[AT_ONCE * p + t]);
  }
}

// The same for one panel.
template <class Step, int TOKENS> void micro_kernel_floats(const Panel &panel, int64_t cols, const Acts &a, float *out) {
  micro_kernel_float<Step, TOKENS, 1>(panel.packed, 0, cols, a, {nullptr, nullptr}, out);
}

template <class Step> INLINE micro_kernel_fn micro_kernel_of_floats(int tokens) {
  return tokens == 1   ? micro_kernel_floats<Step, 1>
         : tokens == 2 ? micro_kernel_floats<Step, 2>
         : tokens == 4 ? micro_kernel_floats<Step, 4>
                       : micro_kernel_floats<Step, 8>;
}

template <class Step, int PANELS> INLINE micro_kernel_side_fn micro_kernel_side_of_floats(int panels, int tokens) {
  if constexpr (PANELS > 1) {
    if (panels < PANELS) return micro_kernel_side_of_floats<Step, PANELS - 1>(panels, tokens);
    return tokens == 1   ? micro_kernel_float<Step, 1, PANELS>
           : tokens == 2 ? micro_kernel_float<Step, 2, PANELS>
           : tokens == 4 ? micro_kernel_float<Step, 4, PANELS>
                         : micro_kernel_float<Step, 8, PANELS>;
  }
  return nullptr;
}

}  // namespace MRS_ISA
