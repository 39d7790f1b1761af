// Query rows that attend together, and their running softmax.
#pragma once
#include "asks_ahead.h"
#include "mrs.h"
#include "norm.h"
#include <type_traits>

namespace MRS_ISA {

constexpr float kLog2e = 1.44269504f;
constexpr int kBlock = 16, kSub = 64, kRows = 32;

INLINE int64_t padded(int64_t head_dim) { return (head_dim + 15) / 16 * 16; }

INLINE float exp2_of(float x) {
  alignas(64) float t[16];
  store_f(t, exp2(set_f(x)));
  return t[0];
}

INLINE int within16(int n) { return n < 0 ? 0 : n > 16 ? 16 : n; }

// Caps a row's scores of the keys [from, to) of a chunk, multiples of 16; those of keys that it does not see, outside [begin,
// end), become minus infinity. Returns the largest.
INLINE float mask_scores(float *s, int from, int to, int begin, int end, float softcap) {
  const Vf none = set_f(-INFINITY);
  Vf high = none;
  for (int i = from; i < to; i += 16) {
    Vf x = none;
    if (i < end && i + 16 > begin) {
      x = load_f(s + i);
      if (softcap > 0) x = mul(soft_cap(x, softcap), set_f(kLog2e));
      if (i + 16 > end) x = first(x, end - i, none);
      if (i < begin) x = first(none, begin - i, x);
    }
    store_f(s + i, x);
    high = max(high, x);
  }
  return lane_max(high);
}

// The query rows of one KV head that are computed together: neighbouring tokens, and the query heads of the group.
struct QueryRows {
  int rows;
  const float *q[kRows];
  int32_t low[kRows], limit[kRows];  // a row attends to the keys [low, limit); both ascend

  int32_t end() const { return limit[rows - 1]; }

  // The rows [live, stop) that see one of the keys [from, until); false: none does. live: where the last search ended.
  bool seeing(int32_t from, int32_t until, int &live, int &stop) const {
    while (live < rows && limit[live] <= from) ++live;
    for (stop = rows; stop > live && low[stop - 1] >= until;) --stop;
    return stop > live;
  }
};

// Where the keys [start, end) of a chunk lie: the block of each 16, of those from `begin` on, which a row sees; earlier
// blocks may be freed. Before it and past the end stands a block that may be read, because its scores are not.
template <int BLOCKS> struct ChunkBlocks {
  int32_t block[BLOCKS];

  ChunkBlocks(const int32_t *table, int32_t start, int begin, int keys) {
    for (int j = 0; j < BLOCKS; ++j) {
      const int key = j * kBlock < begin || j * kBlock >= keys ? begin : j * kBlock;
      block[j] = table[(start + key) / kBlock];
    }
  }
};

// Fetches a line of values, or of keys that are multiplied later than those of the next blocks. IS_FIRST: for the first rows; the
// others would ask for the same lines again.
template <bool IS_FIRST> INLINE void fetch(const uint8_t *at) {
  if (!IS_FIRST) return;
  if (mrs_has_wide_l1)
    ask_for_line<1>(at);
  else
    ask_for_line(at);
}

// Fetches a line of keys of the next blocks: into the nearest cache if that has room for them beside these.
template <bool IS_FIRST> INLINE void fetch_keys(const uint8_t *at) {
  if (!IS_FIRST) return;
  if (mrs_has_wide_l1)
    __builtin_prefetch(at, 0, 3);
  else
    ask_for_line(at);
}

// The chunk that a thread computes behind another one: its keys are fetched meanwhile.
struct NextChunk {
  const int32_t *table = nullptr;  // null: there is none
  int head = 0;
  int32_t start = 0, end = 0;

  // The block of its j-th 16 keys, or `other` if it has none there.
  template <class Kv> const uint8_t *block(const Kv &kv, int j, const uint8_t *other) const {
    return table && start + j * kBlock < end ? kv.k(table[start / kBlock + j], head) : other;
  }
};

// Running softmax of rows over a range of keys.
struct Softmax {
  float *top, *sum;  // (rows)
  float *o;          // (rows, wide)
  int64_t wide;

  static int64_t items(int64_t rows, int64_t wide) { return rows * (wide + 2); }

  // In memory of items(rows, wide) floats.
  Softmax(float *memory, int64_t rows, int64_t wide) : top(memory + rows * wide), sum(top + rows), o(memory), wide(wide) {}

  void clear(int rows) {
    for (int r = 0; r < rows; ++r) top[r] = -INFINITY, sum[r] = 0;
    std::memset(o, 0, rows * wide * sizeof(float));
  }

  void scale_row(int r, float factor) {
    if (factor == 1.0f) return;
    for (int64_t i = 0; i < wide; i += 16) store_f(o + r * wide + i, mul(load_f(o + r * wide + i), set_f(factor)));
  }

  // Turns the scores of the visible keys [begin, end) of 64 into weights and rescales the sum so far.
  void update(int r, float *s, int begin, int end, float softcap) {
    const Vf none = set_f(-INFINITY);
    Vf x[4], high = none;
    for (int j = 0; j < 4; ++j) {
      x[j] = load_f(s + 16 * j);
      if (softcap > 0) x[j] = mul(soft_cap(x[j], softcap), set_f(kLog2e));
      x[j] = first(x[j], within16(end - 16 * j), none);
      if (begin > 16 * j) x[j] = first(none, within16(begin - 16 * j), x[j]);
      high = max(high, x[j]);
    }
    float now = lane_max(high);
    if (top[r] > now) now = top[r];
    for (int j = 0; j < 4; ++j) store_f(s + 16 * j, x[j] = exp2(sub(x[j], set_f(now))));
    float factor = now == top[r] ? 1.0f : exp2_of(top[r] - now);
    sum[r] = sum[r] * factor + lane_sum(add(add(x[0], x[1]), add(x[2], x[3])));
    scale_row(r, factor);
    top[r] = now;
  }

  // Adds the softmax over later keys. The first that a row sees becomes its softmax as it is.
  void merge(int r, const Softmax &later) {
    if (top[r] == -INFINITY) {
      top[r] = later.top[r], sum[r] = later.sum[r];
      for (int64_t i = 0; i < wide; i += 16) store_f(o + r * wide + i, load_f(later.o + r * wide + i));
      return;
    }
    float now = top[r] > later.top[r] ? top[r] : later.top[r];
    float mine = top[r] == now ? 1.0f : exp2_of(top[r] - now), theirs = later.top[r] == now ? 1.0f : exp2_of(later.top[r] - now);
    sum[r] = sum[r] * mine + later.sum[r] * theirs;
    scale_row(r, mine);
    for (int64_t i = 0; i < wide; i += 16) {
      float *at = o + r * wide + i;
      store_f(at, fma(load_f(later.o + r * wide + i), set_f(theirs), load_f(at)));
    }
    top[r] = now;
  }
};

// Rows that are computed at once: how many, and whether they are the first.
template <int ROWS, bool IS_FIRST> struct SomeRows {
  static constexpr int rows = ROWS;
  static constexpr bool is_first = IS_FIRST;
};

// Calls f(SomeRows, r) for the rows from r on that make up [live, stop): as many as MOST at once.
template <int MOST, class F> INLINE void by_rows(int live, int stop, F &&f) {
  int r = live;
  const auto call = [&](auto rows) __attribute__((always_inline)) {
    if (r == live)
      f(SomeRows<rows.value, true>(), r);
    else
      f(SomeRows<rows.value, false>(), r);
  };
  if constexpr (MOST >= 8)
    for (; r + 8 <= stop; r += 8) call(std::integral_constant<int, 8>());
  for (; r + 4 <= stop; r += 4) call(std::integral_constant<int, 4>());
  if (stop - r == 3) call(std::integral_constant<int, 3>());
  if (stop - r == 2) call(std::integral_constant<int, 2>());
  if (stop - r == 1) call(std::integral_constant<int, 1>());
}

}  // namespace MRS_ISA
