// Keys of 9 bits and values of 8, with a half-precision scale for each 32 of them (16 at the end of a head), and attention in
// int8 products.
//
// Keys, values and queries are rotated by the same orthonormal transform, which spreads a head's outliers over its values;
// it changes no score, and results are rotated back. A block holds 16 tokens. For each KV head it stores
//   the upper 8 bits of K, (head_dim / 4, 16, 4), with an offset of 128;
//   for each 32 values (16, 4) bytes, whose bit 7 - i is the lowest of quad i of a key, the scales of 16 keys and of 16 values;
//   V, (groups, 4, 32, 4): four tokens' values of a column side by side.
// Queries and the weights of values have 16 bits, in two bytes; the lowest bits of keys are multiplied with the upper one.
#pragma once
#include "attention_rows.h"

namespace MRS_ISA {

constexpr int kGroup = 32, kByteChunk = 256, kByteBlocks = kByteChunk / kBlock;

// x = H x for each BLOCK of its n values, the largest power of two that divides n, with the Walsh-Hadamard matrix H, H H = 1.
// n: a multiple of 16.
INLINE void hadamard(float *x, int n) {
  const int block = n & -n;
  const Vf scale = set_f(1.0f / std::sqrt(float(block)));
  for (int i = 0; i < n; i += 16) store_f(x + i, butterfly<8>(butterfly<4>(butterfly<2>(butterfly<1>(load_f(x + i))))));
  for (int stride = 16; stride < block; stride *= 2)
    for (int i = 0; i < n; i += 16) {
      if (i & stride) continue;
      const Vf a = load_f(x + i), b = load_f(x + i + stride);
      store_f(x + i, add(a, b)), store_f(x + i + stride, sub(a, b));
    }
  for (int i = 0; i < n; i += 16) store_f(x + i, mul(load_f(x + i), scale));
}

INLINE Vf largest_of(const float *x, int n) {
  Vf high = zero_f();
  for (int i = 0; i < n; i += 16) high = max(high, abs(load_f(x + i)));
  return high;
}

// Smaller values count as zeros: the inverse of their step would be infinite.
constexpr float kLeastStep = 1e-34f;
INLINE float inverse_of(float largest, float most) { return largest > kLeastStep ? most / largest : 0.0f; }

// A group of a query as 16 bits: the high bytes of four values, then the low ones, for each row.
struct ByteQueries {
  int quads, groups;
  float *memory;  // (quads, kRows, 2) dwords; (groups, kRows) dwords: -128 times the sum; (groups, kRows) steps

  static int64_t items(int quads, int groups) { return int64_t(kRows) * 2 * (quads + groups); }
  int32_t *pair(int quad, int row) const { return (int32_t *)memory + (quad * kRows + row) * 2; }
  int32_t *offset(int group) const { return (int32_t *)memory + (quads * 2 + group) * kRows; }
  float *step(int group) const { return memory + (quads * 2 + groups + group) * kRows; }
};

// s[r][16 j ..) += scores of R rows against K * 16 keys over the group's `lines` of four values. rest[j]: the
// lowest bits of the keys, and behind them the scales.
template <int R, int K, bool IS_FIRST>
INLINE void score_bytes(const ByteQueries &q, int row, int group, int lines, const uint8_t *const *k, const uint8_t *const *rest,
                        float (*s)[kByteChunk], const uint8_t *const *later, const uint8_t *const *values) {
  const Vi top = set_i(int32_t(0x80808080));
  Vi high[R][K], low[R][K], bits[K];  // low: of low bytes, and 128 times of the lowest bits
#pragma GCC unroll 4
  for (int j = 0; j < K; ++j) bits[j] = load_i(rest[j]);
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < K; ++j) high[r][j] = zero_i(), low[r][j] = set_i(q.offset(group)[row + r]);
  int i = 0;
  do {
    const int64_t at = (group * (kGroup / 4) + i) * 64;
    Vi key[K];
#pragma GCC unroll 4
    for (int j = 0; j < K; ++j) {
      key[j] = load_i(k[j] + at);
      fetch_keys<IS_FIRST>(later[j] + at);
      fetch<IS_FIRST>(values[j] + at);
    }
    Vi lowest[K];
#pragma GCC unroll 4
    for (int j = 0; j < K; ++j) lowest[j] = and_(bits[j], top), bits[j] = shl<1>(bits[j]);
    const int32_t *pairs = q.pair(group * (kGroup / 4) + i, row);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const Vi first = set_i(pairs[2 * r]), second = set_i(pairs[2 * r + 1]);
#pragma GCC unroll 4
      for (int j = 0; j < K; ++j) {
        high[r][j] = dot4<8>(high[r][j], key[j], first);
        low[r][j] = dot4<8>(low[r][j], key[j], second);
        low[r][j] = dot4<8>(low[r][j], lowest[j], first);
      }
    }
  } while (++i < lines);
#pragma GCC unroll 4
  for (int j = 0; j < K; ++j) {
    const Vf scale = load_f16((const uint16_t *)(rest[j] + 64));
    fetch_keys<IS_FIRST>(later[j] + (rest[j] - k[j]));
    fetch_keys<IS_FIRST>(later[j] + (rest[j] - k[j]) + 64);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const Vf sum = mul(to_float(add(shl<8>(high[r][j]), low[r][j])), scale);
      float *to = s[r] + 16 * j;
      store_f(to, fma(sum, set_f(q.step(group)[row + r]), group ? load_f(to) : zero_f()));
    }
  }
}

// o[r][0 .. 16 V) = factor[r] * the sum over the quads of keys [first, last) of p * v. p: high and low bytes.
// later: the blocks of as many keys behind the chunk, whose lines are fetched.
template <int R, int V, bool IS_FIRST>
INLINE void weigh_bytes(float *o, const uint8_t (*high)[kByteChunk], const uint8_t (*low)[kByteChunk], const float *factor,
                        const uint8_t *const *v, const uint8_t *const *later, int64_t at, int first, int last, int64_t wide) {
  Vi top[R][V], rest[R][V];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < V; ++j) top[r][j] = rest[r][j] = zero_i();
  for (int i = first; i < last;) {
    const int stop = i / 4 * 4 + 4 < last ? i / 4 * 4 + 4 : last;
    const int64_t offset = at + i % 4 * 64 * V;
    const uint8_t *from = v[i / 4] + offset, *next = later[i / 4] + offset;
    for (; i < stop; ++i, from += 64 * V, next += 64 * V) {
      Vi value[V];
#pragma GCC unroll 4
      for (int j = 0; j < V; ++j) {
        value[j] = load_i(from + 64 * j);
        fetch<IS_FIRST>(next + 64 * j);
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        int32_t a, b;
        std::memcpy(&a, high[r] + 4 * i, 4), std::memcpy(&b, low[r] + 4 * i, 4);
        const Vi upper = set_i(a), lower = set_i(b);
#pragma GCC unroll 4
        for (int j = 0; j < V; ++j) top[r][j] = dot4<8>(top[r][j], upper, value[j]), rest[r][j] = dot4<8>(rest[r][j], lower, value[j]);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < V; ++j)
      store_f(o + r * wide + 16 * j, mul(to_float(add(shl<8>(top[r][j]), rest[r][j])), set_f(factor[r])));
}

struct ByteKv {
  static constexpr int chunk = kByteChunk, blocks = kByteBlocks;
  static constexpr bool rotated = true;
  uint8_t *base;
  int64_t block_bytes, head_bytes, k_bytes, v_at, wide;
  int head_dim, quads, groups;

  explicit ByteKv(const mrs_attend &op)
      : base(op.kv), block_bytes(op.block_bytes), k_bytes(op.head_dim * kBlock), wide(op.head_dim), head_dim(op.head_dim),
        quads(op.head_dim / 4), groups((op.head_dim + kGroup - 1) / kGroup) {
    v_at = k_bytes + groups * 128;
    head_bytes = v_at + op.head_dim * kBlock;
  }

  uint8_t *k(int64_t block, int head) const { return base + block * block_bytes + head * head_bytes; }
  int width(int group) const { return head_dim - group * kGroup < kGroup ? head_dim - group * kGroup : kGroup; }

  // Rounds n values to whole numbers up to `most`, and returns their scale.
  static uint16_t round_group(float *x, int n, float most, int32_t *out) {
    const Vf top = set_f(65504.0f * 127.0f), bottom = set_f(-65504.0f * 127.0f);
    for (int i = 0; i < n; i += 16) store_f(x + i, max(min(load_f(x + i), top), bottom));
    const float largest = lane_max(largest_of(x, n));
    const Vf inverse = set_f(inverse_of(largest, most));
    for (int i = 0; i < n; i += 16) store_i(out + i, to_int(mul(load_f(x + i), inverse)));
    return float_to_half(largest / most);
  }

  // As FloatKv::write.
  void write(int64_t block, int head, int offset, float *key, float *value, bool /*last*/) const {
    alignas(64) int32_t words[kGroup];
    uint8_t *to = k(block, head);
    for (int g = 0; g < groups; ++g) {
      const int n = width(g);
      uint8_t *rest = to + k_bytes + g * 128;
      uint16_t *scales = (uint16_t *)(rest + 64);
      scales[offset] = round_group(key + g * kGroup, n, 255.0f, words);
      uint8_t *lines = to + g * kGroup * kBlock + offset * 4, bits[4] = {0, 0, 0, 0};
      for (int i = 0; i < n; ++i) {
        const int word = words[i] + 256;
        lines[i / 4 * 64 + i % 4] = uint8_t(word >> 1);
        bits[i % 4] |= uint8_t((word & 1) << (7 - i / 4));
      }
      std::memcpy(rest + offset * 4, bits, 4);
      scales[kBlock + offset] = round_group(value + g * kGroup, n, 127.0f, words);
      uint8_t *columns = to + v_at + (g * kGroup * kBlock + offset / 4 * n * 4) + offset % 4;
      for (int i = 0; i < n; ++i) columns[4 * i] = uint8_t(words[i]);
    }
  }

  int64_t query_items(int) const { return ByteQueries::items(quads, groups); }
  ByteQueries queries(float *memory) const { return {quads, groups, memory}; }

  // Rounds the rows' queries to 16 bits.
  void prepare(const QueryRows &rows, float *memory) const {
    const ByteQueries to = queries(memory);
    alignas(64) int32_t words[kGroup];
    for (int r = 0; r < rows.rows; ++r) {
      for (int g = 0; g < groups; ++g) {
        const float *x = rows.q[r] + g * kGroup;
        const int n = width(g);
        const float largest = lane_max(largest_of(x, n));
        const Vf inverse = set_f(inverse_of(largest, 32512.0f));  // 127 * 256
        for (int i = 0; i < n; i += 16) store_i(words + i, to_int(mul(load_f(x + i), inverse)));
        int32_t sum = 0;
        for (int i = 0; i < n; i += 4) {
          uint32_t high = 0, low = 0;
          for (int j = 0; j < 4; ++j) {
            const int32_t upper = (words[i + j] + 128) >> 8;
            sum += words[i + j];
            high |= uint32_t(upper & 0xff) << (8 * j), low |= uint32_t(words[i + j] & 0xff) << (8 * j);
          }
          int32_t *pair = to.pair(g * (kGroup / 4) + i / 4, r);
          std::memcpy(pair, &high, 4), std::memcpy(pair + 1, &low, 4);
        }
        to.offset(g)[r] = -128 * sum;
        to.step(g)[r] = largest > kLeastStep ? largest / 16256.0f : 0.0f;  // twice: sums are of half keys
      }
    }
  }

  // Turns a row's scores of the keys [from, to) of the chunk, multiples of 16, into weights; zero for those that it does not
  // see, outside [begin, end). Returns their sum; `top` becomes the largest score.
  static float weights_of(float *s, int from, int to, int begin, int end, float softcap, float &top) {
    top = mask_scores(s, from, to, begin, end, softcap);
    const Vf now = set_f(top);
    Vf sum = zero_f();
    for (int i = from; i < to; i += 16) {
      const Vf x = exp2_rough(sub(load_f(s + i), now));
      store_f(s + i, x);
      sum = add(sum, x);
    }
    return lane_sum(sum);
  }

  // Rounds weights times the scales of values to 16 bits. Returns the step.
  static float round_weights(const float *p, const float *scales, int from, int to, uint8_t *high, uint8_t *low) {
    Vf largest = zero_f();
    for (int i = from; i < to; i += 16) largest = max(largest, mul(load_f(p + i), load_f(scales + i)));
    const float most = lane_max(largest);
    const Vf inverse = set_f(inverse_of(most, 65280.0f));
    for (int i = from; i < to; i += 16) {
      const Vi w = to_int(mul(mul(load_f(p + i), load_f(scales + i)), inverse));
      store_low_bytes(high + i, shr<8>(w));
      store_low_bytes(low + i, w);
    }
    return most > kLeastStep ? most / 65280.0f : 0.0f;
  }

  void score(const QueryRows &rows, const ByteQueries &q, const uint8_t *const *k, int32_t start, int begin, int keys,
             float (*scores)[kByteChunk]) const {
    const uint8_t *values[4], *rest[4];
    int live = 0, stop;
    for (int sub = begin / kSub * kSub; sub < keys; sub += kSub) {
      if (!rows.seeing(start + sub, start + sub + kSub, live, stop)) continue;
      const uint8_t *const *tiles = k + sub / kBlock;
      for (int j = 0; j < 4; ++j) values[j] = tiles[j] + v_at;
      for (int g = 0; g < groups; ++g) {
        for (int j = 0; j < 4; ++j) rest[j] = tiles[j] + k_bytes + g * 128;
        by_rows<4>(live, stop, [&](auto some, int r) {
          constexpr int K = some.rows >= 2 ? 2 : 4;
          for (int j = 0; j < 4; j += K)
            score_bytes<some.rows, K, some.is_first>(q, r, g, width(g) / 4, tiles + j, rest + j,
                                    (float(*)[kByteChunk])(scores[r] + sub + 16 * j), tiles + 4 + j, values + j);
        });
      }
    }
  }

  // As FloatKv::attend.
  void attend(const QueryRows &rows, const float *prepared, const int32_t *table, int head, int32_t start, float softcap,
              const NextChunk &next, Softmax &out) const {
    const int32_t end = rows.end() < start + chunk ? rows.end() : start + chunk;
    const int begin = rows.low[0] > start ? rows.low[0] - start : 0, keys = end - start;
    const int from = begin / 16 * 16, to = (keys + 15) / 16 * 16;
    const ChunkBlocks<blocks> found(table, start, begin, keys);
    const uint8_t *k[2 * blocks], *v[2 * blocks];  // of this chunk and of the next
    for (int j = 0; j < blocks; ++j) k[j] = this->k(found.block[j], head);
    for (int j = 0; j < blocks; ++j) k[blocks + j] = next.block(*this, j, k[0]);
    for (int j = 0; j < 2 * blocks; ++j) v[j] = j < blocks ? k[j] + v_at : k[j];
    alignas(64) float scores[kRows][chunk];
    score(rows, queries(const_cast<float *>(prepared)), k, start, begin, keys, scores);
    int live = 0, stop;
    if (!rows.seeing(start, end, live, stop)) return;
    for (int r = live; r < stop; ++r)
      out.sum[r] = weights_of(scores[r], from, to, rows.low[r] - start, rows.limit[r] - start, softcap, out.top[r]);
    alignas(64) uint8_t high[kRows][chunk], low[kRows][chunk];
    alignas(64) float scales[chunk];
    float factor[kRows];
    for (int g = 0; g < groups; ++g) {
      // what lies outside of the rows' keys may be anything, and must be a number
      for (int i = from; i < to; i += 16) {
        const Vf scale = load_f16((const uint16_t *)(k[i / 16] + k_bytes + g * 128 + 64) + kBlock);
        store_f(scales + i, first(first(zero_f(), within16(begin - i), scale), within16(keys - i), zero_f()));
      }
      for (int r = live; r < stop; ++r) factor[r] = round_weights(scores[r], scales, from, to, high[r], low[r]);
      by_rows<4>(live, stop, [&](auto some, int r) {
        const int32_t least = rows.low[r] - start, limit = rows.limit[r + some.rows - 1] - start;
        const int first = least > 0 ? least / 4 : 0, last = ((limit < keys ? limit : keys) + 3) / 4;
        const int64_t at = g * kGroup * kBlock;
        float *o = out.o + r * wide + g * kGroup;
        if (width(g) == kGroup)
          weigh_bytes<some.rows, 2, some.is_first>(o, high + r, low + r, factor + r, v, v + blocks, at, first, last, wide);
        if (width(g) < kGroup)
          weigh_bytes<some.rows, 1, some.is_first>(o, high + r, low + r, factor + r, v, v + blocks, at, first, last, wide);
      });
    }
  }
};

}  // namespace MRS_ISA
