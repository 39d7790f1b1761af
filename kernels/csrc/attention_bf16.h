// Keys and values as bfloat16, and attention in products of pairs of them, which some processors have an instruction for.
//
// A block holds 16 tokens; for each KV head it stores K as (head_dim / 2, 16, 2) and V as (8, padded head_dim, 2): pairs of
// a key's values, and pairs of keys. Queries and weights are rounded to bfloat16 too.
#pragma once
#include "attention_rows.h"

namespace MRS_ISA {

// What is fetched while keys are multiplied, for blocks lie too far apart for the processor's own prefetching. The keys of the
// next chunk are fetched while values are multiplied: memory is never idle.
struct NextLines {
  const uint8_t *const *later;   // the keys of the next blocks
  const uint8_t *const *values;  // the values of these blocks
};

constexpr int kPairChunk = 256, kPairs = kBlock / 2;  // keys of a chunk, pairs of them in a block

// s[r][16 j ..) = scores of R rows against K * 16 keys. q: (pairs, kRows), from the first of the rows on.
template <int R, int K, bool IS_FIRST>
INLINE void score_pairs(const int32_t *q, const uint8_t *const *k, int pairs, float (*s)[kPairChunk], const NextLines &ahead) {
  Vf acc[R][K];
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < K; ++j) acc[r][j] = zero_f();
  for (int i = 0; i < pairs; ++i) {
    Vi key[K];
    for (int j = 0; j < K; ++j) {
      key[j] = load_i(k[j] + 64 * i);
      fetch_keys<IS_FIRST>(ahead.later[j] + 64 * i);
      fetch<IS_FIRST>(ahead.values[j] + 64 * i);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vi two = set_i(q[kRows * i + r]);
      for (int j = 0; j < K; ++j) acc[r][j] = dot2(acc[r][j], key[j], two);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < K; ++j) store_f(s[r] + 16 * j, acc[r][j]);
}

template <int R, bool IS_FIRST>
void score_pair_rows(const int32_t *q, const uint8_t *const *k, int pairs, float (*s)[kPairChunk], const NextLines &ahead) {
  if constexpr (R == 8) {
    score_pairs<8, 2, IS_FIRST>(q, k, pairs, s, ahead);
    score_pairs<8, 2, IS_FIRST>(q, k + 2, pairs, (float(*)[kPairChunk])(*s + 32), {ahead.later + 2, ahead.values + 2});
  } else {
    score_pairs<R, 4, IS_FIRST>(q, k, pairs, s, ahead);
  }
}

// o[r][column .. column + 16 V) = sum over the pairs of keys [first, last) of p[r] * v
// later: the blocks of as many keys behind the chunk, whose lines are fetched.
template <int R, int V, bool IS_FIRST>
INLINE void weigh_pairs(float *o, const uint16_t (*p)[kPairChunk], const uint8_t *const *v, const uint8_t *const *later,
                        int first, int last, int64_t wide, int64_t column) {
  Vf acc[R][V];
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < V; ++j) acc[r][j] = zero_f();
  for (int i = first; i < last;) {
    const int stop = i / kPairs * kPairs + kPairs < last ? i / kPairs * kPairs + kPairs : last;
    const int64_t offset = (i % kPairs * wide + column) * 4;
    const uint8_t *from = v[i / kPairs] + offset, *next = later[i / kPairs] + offset;
    for (; i < stop; ++i, from += wide * 4, next += wide * 4) {
      Vi value[V];
      for (int j = 0; j < V; ++j) {
        value[j] = load_i(from + 64 * j);
        fetch<IS_FIRST>(next + 64 * j);
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        int32_t two;
        std::memcpy(&two, p[r] + 2 * i, 4);
        for (int j = 0; j < V; ++j) acc[r][j] = dot2(acc[r][j], value[j], set_i(two));
      }
    }
  }
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < V; ++j) store_f(o + r * wide + column + 16 * j, acc[r][j]);
}

template <int R, bool IS_FIRST>
void weigh_pair_rows(float *o, const uint16_t (*p)[kPairChunk], const uint8_t *const *v, const uint8_t *const *later, int first,
                     int last, int64_t wide) {
  int64_t column = 0;
  if constexpr (R <= 4)
    for (; column + 64 <= wide; column += 64) weigh_pairs<R, 4, IS_FIRST>(o, p, v, later, first, last, wide, column);
  for (; column + 32 <= wide; column += 32) weigh_pairs<R, 2, IS_FIRST>(o, p, v, later, first, last, wide, column);
  for (; column < wide; column += 16) weigh_pairs<R, 1, IS_FIRST>(o, p, v, later, first, last, wide, column);
}

// to[2 i + odd] = from[i] for 16 values, and touches nothing between them: another thread may write there.
INLINE void store_every_second(uint16_t *to, const uint16_t *from, int odd) {
#if MRS_ISA_avx512 || MRS_ISA_avx512vnni
  const Vi lanes = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from));
  _mm512_mask_storeu_epi16(to, odd ? 0xaaaaaaaau : 0x55555555u, odd ? shl<16>(lanes) : lanes);
#else
  for (int i = 0; i < 16; ++i) to[2 * i + odd] = from[i];
#endif
}

struct Bf16Kv {
  static constexpr int chunk = kPairChunk, blocks = chunk / kBlock;
  static constexpr bool rotated = false;
  uint8_t *base;
  int64_t block_bytes, head_bytes, k_bytes, wide;
  int head_dim, pairs;

  explicit Bf16Kv(const mrs_attend &op)
      : base(op.kv), block_bytes(op.block_bytes), k_bytes((op.head_dim + 1) / 2 * 64), wide(padded(op.head_dim)),
        head_dim(op.head_dim), pairs((op.head_dim + 1) / 2) {
    head_bytes = k_bytes + wide * kBlock * 2;
  }

  uint8_t *k(int64_t block, int head) const { return base + block * block_bytes + head * head_bytes; }

  static void round_row(const float *x, int64_t n, uint16_t *out) {
    const Vf top = set_f(3.38953139e38f), bottom = set_f(-3.38953139e38f), zero = zero_f();
    for (int64_t i = 0; i < n; i += 32) {
      const Vf low = max(min(load_f(x + i), top), bottom);
      store_i(out + i, pack_bf16(low, i + 16 < n ? max(min(load_f(x + i + 16), top), bottom) : zero));
    }
  }

  // As FloatKv::write. The other value of a pair is multiplied with a weight of zero while it has no key: it must be a number.
  void write(int64_t block, int head, int offset, const float *key, const float *value, bool last) const {
    alignas(64) uint16_t stored[wide + 16];
    round_row(key, wide, stored);
    uint8_t *to = k(block, head);
    for (int i = 0; i < pairs; ++i) std::memcpy(to + i * 64 + offset * 4, stored + 2 * i, 4);
    round_row(value, wide, stored);
    uint16_t *line = (uint16_t *)(to + k_bytes) + offset / 2 * wide * 2;
    for (int d = 0; d < wide; d += 16) store_every_second(line + 2 * d, stored + d, offset % 2);
    if (last && offset % 2 == 0)
      for (int d = 0; d < wide; ++d) line[2 * d + 1] = 0;
  }

  int64_t query_items(int) const { return kRows * pairs; }

  // The rows' queries as pairs, (pairs, kRows).
  void prepare(const QueryRows &rows, float *memory) const {
    float padding[wide];
    const int64_t stride = (wide + 31) / 32 * 16;  // pairs of a rounded row
    alignas(64) int32_t rounded[8 * stride];
    for (int64_t i = head_dim; i < wide; ++i) padding[i] = 0;
    for (int first = 0; first < rows.rows; first += 8) {
      const int count = rows.rows - first < 8 ? rows.rows - first : 8;
      for (int r = 0; r < count; ++r) {
        const float *q = rows.q[first + r];
        if (head_dim < wide) std::memcpy(padding, q, head_dim * sizeof(float)), q = padding;
        round_row(q, wide, (uint16_t *)(rounded + r * stride));
      }
      int i = 0;
      for (; i + 8 <= pairs; i += 8) transpose8((const float *)rounded + i, stride, memory + i * kRows + first, kRows);
      for (; i < pairs; ++i)
        for (int r = 0; r < count; ++r) std::memcpy(memory + i * kRows + first + r, rounded + r * stride + i, 4);
    }
  }

  // The weights of a row for the keys [from, to) of the chunk, multiples of 32, of which it sees [begin, end); zero for the
  // others. Returns their sum; `top` becomes the largest score.
  static float weights_of(float *s, int from, int to, int begin, int end, float softcap, float &top, uint16_t *p) {
    top = mask_scores(s, from, to, begin, end, softcap);
    const Vf now = set_f(top);
    const Vi ones = set_i(0x3f803f80);
    Vf sum = zero_f();
    for (int i = from; i < to; i += 32) {
      const Vi two = pack_bf16(exp2_rough(sub(load_f(s + i), now)), exp2_rough(sub(load_f(s + i + 16), now)));
      store_i(p + i, two);
      sum = dot2(sum, two, ones);  // of the rounded weights: their errors then cancel in the average
    }
    return lane_sum(sum);
  }

  // As FloatKv::attend.
  void attend(const QueryRows &rows, const float *prepared, const int32_t *table, int head, int32_t start, float softcap,
              const NextChunk &next, Softmax &out) const {
    const int32_t end = rows.end() < start + chunk ? rows.end() : start + chunk;
    const int begin = rows.low[0] > start ? rows.low[0] - start : 0, keys = end - start;
    const int from = begin / 32 * 32, to = (keys + 31) / 32 * 32;
    const ChunkBlocks<blocks> found(table, start, begin, keys);
    const uint8_t *k[2 * blocks], *v[blocks];  // the keys of this chunk and of the next
    for (int j = 0; j < blocks; ++j) k[j] = this->k(found.block[j], head), v[j] = k[j] + k_bytes;
    for (int j = 0; j < blocks; ++j) k[blocks + j] = next.block(*this, j, k[0]);
    alignas(64) float scores[kRows][chunk];
    alignas(64) uint16_t weights[kRows][chunk];
    const int32_t *q = (const int32_t *)prepared;
    int live = 0, stop;
    for (int sub = begin / kSub * kSub; sub < keys; sub += kSub) {
      if (!rows.seeing(start + sub, start + sub + kSub, live, stop)) continue;
      const NextLines ahead = {k + sub / kBlock + 4, v + sub / kBlock};
      float(*s)[chunk] = (float(*)[chunk])(scores[0] + sub);
      const uint8_t *const *tiles = k + sub / kBlock;
      by_rows<8>(live, stop, [&](auto some, int r) {
        score_pair_rows<some.rows, some.is_first>(q + r, tiles, pairs, s + r, ahead);
      });
    }
    live = 0;
    if (!rows.seeing(start, end, live, stop)) return;
    for (int r = live; r < stop; ++r)
      out.sum[r] = weights_of(scores[r], from, to, rows.low[r] - start, rows.limit[r] - start, softcap, out.top[r], weights[r]);
    by_rows<8>(live, stop, [&](auto some, int r) {
      const int32_t low = rows.low[r] - start, limit = rows.limit[r + some.rows - 1] - start;
      const int first = low > 0 ? low / 2 : 0, last = (limit < keys ? limit + 1 : keys + 1) / 2;
      weigh_pair_rows<some.rows, some.is_first>(out.o + r * wide, weights + r, v, k + blocks, first, last, wide);
    });
  }
};

}  // namespace MRS_ISA
