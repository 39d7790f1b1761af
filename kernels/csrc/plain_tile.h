// The values of a tile for weights that are stored as floats: float32, or pairs of bfloat16, column by column.
#pragma once
#include "activations.h"
#include "thread_memory.h"

namespace MRS_ISA {

// Pairs of a row; behind an odd last value stands a zero.
constexpr int64_t pairs_of(int64_t cols) { return (cols + 1) / 2; }

// Rounds a row to pairs of bfloat16. Writes up to 15 more of zeros.
INLINE void round_pairs([[maybe_unused]] const float *x, [[maybe_unused]] int64_t cols, [[maybe_unused]] float *pairs) {
#if MRS_ISA_avx512bf16
  int64_t k = 0;
  for (; k + 32 <= cols; k += 32) store_i(pairs + k / 2, pack_bf16(load_f(x + k), load_f(x + k + 16)));
  if (k == cols) return;
  alignas(64) float last[32] = {0};
  std::memcpy(last, x + k, (cols - k) * sizeof(float));
  store_i(pairs + k / 2, pack_bf16(load_f(last), load_f(last + 16)));
#endif
}

// Writes `count` values of each of `tokens` rows, which are `stride` apart, column by column.
INLINE void interleave(const float *rows, int64_t stride, int64_t count, int tokens, float *out) {
  int64_t k = 0;
  for (; tokens == 8 && k + 8 <= count; k += 8) transpose8(rows + k, stride, out + 8 * k, 8);
  for (; k < count; ++k)
    for (int t = 0; t < tokens; ++t) std::memcpy(out + k * tokens + t, rows + t * stride + k, sizeof(float));
}

// Fills the plain values of a tile.
class PlainTile {
  const Tile &tile;
  const Acts &a;
  const int64_t cols, stride;
  const bool floats, pairs;
  float *rows, *paired;  // of all tokens, one behind the other

 public:
  PlainTile(const Tile &tile_, const Acts &a_, int64_t cols_, Needs needs)
      : tile(tile_), a(a_), cols(cols_), stride((pairs_of(cols) + 15) / 16 * 16), floats(needs.floats), pairs(needs.pairs) {
    static thread_local ThreadMemory memory;
    rows = (float *)memory.get(((floats ? cols : 0) + (pairs ? stride : 0)) * tile.tokens * sizeof(float));
    paired = rows + (floats ? cols * tile.tokens : 0);
  }

  // Takes the values of token t, which may change behind the call.
  void add(int t, const float *x) {
    if (floats) std::memcpy(rows + t * cols, x, cols * sizeof(float));
    if (pairs) round_pairs(x, cols, paired + t * stride);
  }

  // Writes all values when the tile's tokens have been added; those of the others are zeros.
  void finish() {
    const int64_t spare = tile.tokens - tile.count;
    if (floats) {
      std::memset(rows + tile.count * cols, 0, spare * cols * sizeof(float));
      interleave(rows, cols, cols, tile.tokens, a.x);
    }
    if (pairs) {
      std::memset(paired + tile.count * stride, 0, spare * stride * sizeof(float));
      interleave(paired, stride, pairs_of(cols), tile.tokens, (float *)a.pairs);
    }
  }
};

}  // namespace MRS_ISA
