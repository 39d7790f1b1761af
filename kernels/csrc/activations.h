// Tiles of activations: rows of float32 rounded to int8 with one scale for each 32 columns, or for each 256 where K types
// read them: their products are then summed up over a block before they are scaled.
//
// Tokens are handled in tiles of TOKENS = 1, 2, 4 or 8. Rounding errors are in proportion to a group's largest value, and
// most of a row's error comes from few values that stand out, the outliers. A quad, four neighbouring columns, whose
// largest value is above a limit (a threshold times the average of the row's groups' largest values) has therefore an int8
// term of its own, the coarse term, and its remainder takes its place in the group. A threshold of 0 gives all groups a
// residual term instead, a second int8 value for the remainder of the first.
#pragma once
#include "formats.h"

namespace MRS_ISA {

// One int8 term of a tile, in the order in which the micro-kernels read it; TOKENS columns side by side.
struct Term {
  int8_t *q;       // (cols / 4, TOKENS, 4)
  float *d;        // (cols / 32, TOKENS)
  int32_t *sum32;  // (cols / 32, TOKENS) minus the sum of q
  int32_t *sum16;  // (cols / 16, TOKENS) minus the sum of q
  float *fsum32;   // (cols / 32, TOKENS) d * sum of q, with the coarse terms of these columns
  float *fsum16;   // (cols / 16, TOKENS)
  // For K types, which multiply them with their minima: fsum32 and fsum16 as int16 values in pairs, those of four neighbours as
  // 0 and 2, 1 and 3, in units of the tile's head.
  int32_t *words32;  // (cols / 64, TOKENS)
  int32_t *words16;  // (cols / 32, TOKENS)
};

// The coarse term of a token's quad.
struct Outlier {
  uint32_t place;  // 8 * (the quad's first column / 4) + the token
  int32_t q;       // four int8 values
  float d;
  int32_t sum;  // minus the sum of q

  uint32_t quad() const { return place / 8; }
  int token() const { return place % 8; }
};

// The beginning of a tile.
struct TileHead {
  int32_t two_terms;  // not zero: all groups have the residual term
  int32_t in_rows;    // not zero: all outliers of a token stand together, as if 256 columns were a whole row; for 8 tokens and types
                      // whose kernels do not go block by block
  float steps32[2][8], steps16[2][8];  // each token's units of its paired sums, of the first and of the residual term
};
static_assert(sizeof(TileHead) <= 192);

// The activations of a tile.
struct Acts {
  TileHead *head;
  Term first, residual;
  // In the place of `residual`, token by token in ascending order, those of strip i (layout.h) from starts[i] to starts[i + 1]. A
  // strip's weights are in the first-level cache when the sums of its block have been computed.
  Outlier *outliers;
  int32_t *starts;
  float *x;           // (cols, TOKENS) or (TOKENS, cols) the plain values, see Needs
  int32_t *pairs;     // (cols / 2, TOKENS) two columns as bfloat16; behind an odd last one stands a zero
};

INLINE bool is_float(int type) { return type == MRS_F32 || type == MRS_F16 || type == MRS_BF16; }

// Whether products multiply pairs of bfloat16: for weights that are stored so, where the instruction set has it and not
// all activations are wanted exact.
INLINE bool is_paired([[maybe_unused]] int type, [[maybe_unused]] float outlier_threshold) {
#if MRS_ISA_avx512bf16
  return type == MRS_BF16 && outlier_threshold > 0;
#else
  return false;
#endif
}

// The forms of its tiles that a product reads. The plain values stand as (cols, TOKENS) for weights that are stored as
// floats, else, where deltas alone read them, as (TOKENS, cols).
struct Needs {
  bool ints, floats, rows, pairs;
  bool wide;                          // one scale for 256 columns
  bool sum32, sum16, fsum32, fsum16;  // the sums of int8 terms
  bool words32, words16;              // the paired sums, made of the float ones

  template <class F> void run() {
    ints = true;
    if (F::OFFSET_LOG2) (F::SUB == 32 ? sum32 : sum16) = true;
    if (F::MINS) (F::SUB == 32 ? fsum32 : fsum16) = true;
    if (is_wide<F>) wide = true;
    if (kMinima<F>) (F::SUB == 32 ? words32 : words16) = true;
  }
  template <int> void run_float() { floats = true; }

  void add(int type, float outlier_threshold) {
    if (is_paired(type, outlier_threshold))
      pairs = true;
    else
      visit_type(type, *this);
  }
};

INLINE Term term_at(uint8_t *&p, int64_t groups, int tokens) {
  Term a;
  a.q = (int8_t *)p, p += groups * 32 * tokens;
  a.d = (float *)p, p += groups * 4 * tokens;
  a.sum32 = (int32_t *)p, p += groups * 4 * tokens;
  a.fsum32 = (float *)p, p += groups * 4 * tokens;
  a.sum16 = (int32_t *)p, p += groups * 8 * tokens;
  a.fsum16 = (float *)p, p += groups * 8 * tokens;
  a.words32 = (int32_t *)p, p += groups * 4 * tokens;
  a.words16 = (int32_t *)p, p += groups * 4 * tokens;
  return a;
}

INLINE Acts acts_at(uint8_t *base, int64_t cols, int tokens) {
  const int64_t groups = (cols + 31) / 32;
  Acts a;
  a.head = (TileHead *)base, base += 192;
  a.starts = (int32_t *)base, base += strip_bytes(cols);
  a.first = term_at(base, groups, tokens);
  a.outliers = (Outlier *)base;
  uint8_t *second = base;
  a.residual = term_at(second, groups, tokens);
  a.x = (float *)(base + groups * kOutlierBytes * tokens);
  a.pairs = (int32_t *)(a.x + cols * tokens);
  return a;
}

// Bytes of a tile of 8.
INLINE int64_t bytes_of_tile(int64_t cols, Needs needs) {
  const int64_t plain = needs.floats || needs.rows || needs.pairs ? 32 * cols : 0, pairs = needs.pairs ? 16 * (cols + 1) : 0;
  return (activation_bytes(cols) + plain + pairs + 63) / 64 * 64;
}

struct Tile {
  int64_t first;  // row of the first token
  int count;      // tokens that it holds
  int tokens;     // TOKENS of its micro-kernel: 1, 2, 4 or 8, of which those past `count` are zeros
  uint8_t *base;
};

INLINE Tile tile_of(int64_t first, int64_t left, uint8_t *base) {
  const int count = int(left < 8 ? left : 8);
  return {first, count, count > 4 ? 8 : count > 2 ? 4 : count, base};
}

}  // namespace MRS_ISA
