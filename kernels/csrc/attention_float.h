// Keys and values as half precision (E = uint16_t) or float32 (E = float), and attention in float32.
//
// A block holds 16 tokens; for each KV head it stores K as (head_dim, 16) and V as (16, padded head_dim).
#pragma once
#include "attention_rows.h"

namespace MRS_ISA {

INLINE Vf load_kv(const uint16_t *p) { return load_f16(p); }
INLINE Vf load_kv(const float *p) { return load_f(p); }

INLINE void store_kv(const float *x, int64_t n, float *out) { std::memcpy(out, x, n * sizeof(float)); }
INLINE void store_kv(const float *x, int64_t n, uint16_t *out) {
  Vf top = set_f(65504.0f), bottom = set_f(-65504.0f);
  for (int64_t i = 0; i < n; i += 16) store_f16(out + i, max(min(load_f(x + i), top), bottom));
}

// Scores of R rows against K * 16 keys.
template <int R, int K, class E> INLINE void score(const float *const *q, const E *const *k, int head_dim, float *const *s) {
  Vf acc[R][K];
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < K; ++j) acc[r][j] = zero_f();
  for (int d = 0; d < head_dim; ++d) {
    Vf key[K];
    for (int j = 0; j < K; ++j) key[j] = load_kv(k[j] + d * kBlock);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
      for (int j = 0; j < K; ++j) acc[r][j] = fma(key[j], set_f(q[r][d]), acc[r][j]);
  }
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < K; ++j) store_f(s[r] + 16 * j, acc[r][j]);
}

// o[r][0 .. 16 V) += sum over keys from begin on of p[r][key] * v[key]
template <int R, int V, class E>
INLINE void weigh(float *const *o, const float *const *p, const E *const *v, int begin, int keys, int64_t wide, int64_t column) {
  Vf acc[R][V];
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < V; ++j) acc[r][j] = load_f(o[r] + column + 16 * j);
  for (int key = begin; key < keys; ++key) {
    const E *from = v[key / kBlock] + key % kBlock * wide + column;
    Vf value[V];
    for (int j = 0; j < V; ++j) value[j] = load_kv(from + 16 * j);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
      for (int j = 0; j < V; ++j) acc[r][j] = fma(value[j], set_f(p[r][key]), acc[r][j]);
  }
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < V; ++j) store_f(o[r] + column + 16 * j, acc[r][j]);
}

template <int R, class E> void score_rows(const float *const *q, const E *const *k, int head_dim, float *const *s) {
  if constexpr (R == 8) {
    score<8, 2>(q, k, head_dim, s);
    float *later[8];
    for (int r = 0; r < 8; ++r) later[r] = s[r] + 32;
    score<8, 2>(q, k + 2, head_dim, later);
  } else {
    score<R, 4>(q, k, head_dim, s);
  }
}

template <int R, class E>
void weigh_rows(float *const *o, const float *const *p, const E *const *v, int begin, int keys, int64_t wide) {
  int64_t column = 0;
  for (; column + 64 <= wide; column += 64) weigh<R, 4>(o, p, v, begin, keys, wide, column);
  for (; column + 32 <= wide; column += 32) weigh<R, 2>(o, p, v, begin, keys, wide, column);
  for (; column < wide; column += 16) weigh<R, 1>(o, p, v, begin, keys, wide, column);
}

template <class E> struct FloatKv {
  static constexpr int chunk = 512;
  static constexpr bool rotated = false;
  uint8_t *base;
  int64_t block_bytes, head_items, k_items, wide;
  int head_dim;

  explicit FloatKv(const mrs_attend &op)
      : base(op.kv), block_bytes(op.block_bytes), head_items((op.head_dim + padded(op.head_dim)) * kBlock),
        k_items(int64_t(op.head_dim) * kBlock), wide(padded(op.head_dim)), head_dim(op.head_dim) {}

  E *k(int64_t block, int head) const { return (E *)(base + block * block_bytes) + head * head_items; }
  E *v(int64_t block, int head) const { return k(block, head) + k_items; }

  // Stores a token's key and value, (wide) each with zeros past head_dim. `last`: the step has no token behind it in the
  // block.
  void write(int64_t block, int head, int offset, const float *key, const float *value, bool /*last*/) const {
    E stored[wide];
    store_kv(key, wide, stored);
    E *to = k(block, head);
    for (int d = 0; d < head_dim; ++d) to[d * kBlock + offset] = stored[d];
    store_kv(value, wide, v(block, head) + offset * wide);
  }

  // Floats of memory that `prepare` needs.
  int64_t query_items(int) const { return 0; }
  void prepare(const QueryRows &, float *) const {}

  // The softmax of the rows over their keys in [start, start + chunk). The rows' memory of `out` need not be cleared.
  void attend(const QueryRows &rows, const float *, const int32_t *table, int head, int32_t start, float softcap,
              const NextChunk &, Softmax &out) const {
    out.clear(rows.rows);
    const int32_t end = rows.end() < start + chunk ? rows.end() : start + chunk;
    alignas(64) float scores[kRows][kSub];
    int live = 0, stop;
    for (int32_t from = start; from < end; from += kSub) {
      const int keys = end - from < kSub ? end - from : kSub;
      if (!rows.seeing(from, from + keys, live, stop)) continue;
      const int begin = rows.low[live] > from ? rows.low[live] - from : 0;
      const ChunkBlocks<kSub / kBlock> blocks(table, from, begin, keys);
      const E *k[4], *v[4];
      for (int j = 0; j < 4; ++j) k[j] = this->k(blocks.block[j], head), v[j] = k[j] + k_items;
      float *s[kRows], *o[kRows];
      const float *p[kRows];
      for (int r = live; r < stop; ++r) p[r] = s[r] = scores[r], o[r] = out.o + r * wide;
      by_rows<8>(live, stop, [&](auto some, int r) { score_rows<some.rows>(rows.q + r, k, head_dim, s + r); });
      for (int r = live; r < stop; ++r) out.update(r, scores[r], rows.low[r] - from, rows.limit[r] - from, softcap);
      by_rows<4>(live, stop, [&](auto some, int r) { weigh_rows<some.rows>(o + r, p + r, v, begin, keys, wide); });
    }
  }
};

}  // namespace MRS_ISA
