// Rotary embedding, writing the cache, and causal attention over the paged cache.
//
// A block of the cache holds 16 tokens; for each KV head it stores K as (head_dim, 16) and V as (16, padded head_dim), in
// half precision (E = uint16_t) or as float32 (E = float). Keys are visited in sub-chunks of 64 and chunks of 512 that
// begin at absolute positions; a chunk has its own running maximum and is merged into the row's when it is done. A row's
// result is therefore the same however the prompt was cut and whichever sequences share the step.
#pragma once
#include "mrs.h"
#include "norm.h"
#include "pool.h"

namespace MRS_ISA {

constexpr float kLog2e = 1.44269504f;
constexpr int kBlock = 16, kSub = 64, kChunk = 512, kRows = 32;

INLINE int64_t padded(int64_t head_dim) { return (head_dim + 15) / 16 * 16; }

template <class E> struct KvView {
  uint8_t *base;
  int64_t block_bytes, head_items, k_items;

  explicit KvView(const mrs_attend &op)
      : base(op.kv), block_bytes(op.block_bytes), head_items((op.head_dim + padded(op.head_dim)) * kBlock),
        k_items(int64_t(op.head_dim) * kBlock) {}
  E *k(int64_t block, int head) const { return (E *)(base + block * block_bytes) + head * head_items; }
  E *v(int64_t block, int head) const { return k(block, head) + k_items; }
};

INLINE Vf load_kv(const uint16_t *p) { return load_f16(p); }
INLINE Vf load_kv(const float *p) { return load_f(p); }

// Rotates the pairs (i, i + half) of one head and scales all of it.
INLINE void rotate(const float *x, const float *cosine, const float *sine, int half, int head_dim, float scale, float *y) {
  for (int i = 0; i < half; ++i) {
    float a = x[i], b = x[i + half];
    y[i] = (a * cosine[i] - b * sine[i]) * scale;
    y[i + half] = (b * cosine[i] + a * sine[i]) * scale;
  }
  for (int i = 2 * half; i < head_dim; ++i) y[i] = x[i] * scale;
}

INLINE void store_kv(const float *x, int64_t n, float *out) { std::memcpy(out, x, n * sizeof(float)); }
INLINE void store_kv(const float *x, int64_t n, uint16_t *out) {
  Vf top = set_f(65504.0f), bottom = set_f(-65504.0f);
  for (int64_t i = 0; i < n; i += 16) store_f16(out + i, max(min(load_f(x + i), top), bottom));
}

template <class E> INLINE void write_token(const mrs_attend &op, const mrs_step &step, const KvView<E> &kv, int64_t t) {
  const int D = op.head_dim, wide = int(padded(D));
  const float *cosine = op.rotary + t * 2 * op.rotary_half, *sine = cosine + op.rotary_half;
  float *q = op.q + t * op.heads * D;
  // scores are exponents of two; under a soft cap they become so after it
  float scale = op.softcap > 0 ? op.scale : op.scale * kLog2e;
  if (op.temperature_beta != 0)
    scale *= 1.0f + op.temperature_beta * std::log(1.0f + float(step.positions[t] / op.temperature_period));
  const mrs_norm q_norm = {op.q_norm, nullptr, op.norm_eps, MRS_NORM_RMS}, k_norm = {op.k_norm, nullptr, op.norm_eps, MRS_NORM_RMS};
  const bool by_head = !op.full_norms;
  float *keys = op.k + t * op.kv_heads * D;
  if (op.q_norm && !by_head) normalize(q_norm, q, op.heads * D, q);
  if (op.k_norm && !by_head) normalize(k_norm, keys, op.kv_heads * D, keys);
  float row[wide], normed[wide];
  for (int h = 0; h < op.heads; ++h) {
    const float *from = q + h * D;
    if (op.q_norm && by_head) normalize(q_norm, from, D, normed), from = normed;
    rotate(from, cosine, sine, op.rotary_half, D, scale, row);
    std::memcpy(q + h * D, row, D * sizeof(float));
  }
  const int32_t slot = step.slot_mapping[int64_t(op.group) * step.max_tokens + t];
  const int64_t block = slot / kBlock, offset = slot % kBlock;
  E stored[wide];
  for (int i = D; i < wide; ++i) row[i] = 0;
  for (int h = 0; h < op.kv_heads; ++h) {
    const float *from = keys + h * D;
    if (op.k_norm && by_head) normalize(k_norm, from, D, normed), from = normed;
    rotate(from, cosine, sine, op.rotary_half, D, 1.0f, row);
    store_kv(row, wide, stored);
    E *k = kv.k(block, h);
    for (int d = 0; d < D; ++d) k[d * kBlock + offset] = stored[d];
    std::memcpy(row, op.v + (t * op.kv_heads + h) * D, D * sizeof(float));
    store_kv(row, wide, kv.v(block, h) + offset * wide);
  }
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

INLINE float exp2_of(float x) {
  alignas(64) float t[16];
  store_f(t, exp2(set_f(x)));
  return t[0];
}

INLINE int within16(int n) { return n < 0 ? 0 : n > 16 ? 16 : n; }

// Running softmax of the rows of a tile over a range of keys.
struct Softmax {
  float top[kRows], sum[kRows];
  float *o;  // (rows, wide)
  int64_t wide;

  void clear(int rows) {
    for (int r = 0; r < rows; ++r) top[r] = -INFINITY, sum[r] = 0;
    std::memset(o, 0, rows * wide * sizeof(float));
  }

  void scale_row(int r, float factor) {
    if (factor == 1.0f) return;
    for (int64_t i = 0; i < wide; i += 16) store_f(o + r * wide + i, mul(load_f(o + r * wide + i), set_f(factor)));
  }

  // Turns the scores of the visible keys [begin, end) into weights and rescales the sum so far.
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

  void merge(int r, const Softmax &later) {
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

// Query rows of one KV head: `count` tokens from `first`, `heads` query heads of its group from `head`.
struct QueryTile {
  int sequence, kv_head, head, heads;
  int64_t first, count;
};

template <class E>
INLINE void attend_tile(const mrs_attend &op, const mrs_step &step, const KvView<E> &kv, const QueryTile &tile) {
  const int D = op.head_dim, rows = int(tile.count) * tile.heads;
  const int64_t wide = padded(D);
  const int32_t *table = step.block_tables + (int64_t(op.group) * step.max_seqs + tile.sequence) * step.max_blocks;
  const float *q[kRows];
  int32_t low[kRows], limit[kRows];  // a row attends to the keys [low, limit)
  for (int r = 0; r < rows; ++r) {
    int64_t token = tile.first + r / tile.heads;
    q[r] = op.q + (token * op.heads + tile.head + r % tile.heads) * D;
    limit[r] = step.positions[token] + 1;
    low[r] = op.window > 0 && limit[r] > op.window ? limit[r] - op.window : 0;
  }
  alignas(64) float scores[kRows][kSub];
  float total_o[kRows * wide], chunk_o[kRows * wide];
  Softmax total, chunk;
  total.o = total_o, chunk.o = chunk_o, total.wide = chunk.wide = wide;
  total.clear(rows);
  const int32_t end = limit[rows - 1];
  int live = 0;  // the first row that attends this far; positions ascend within a sequence
  for (int32_t start = low[0] / kChunk * kChunk; start < end; start += kChunk) {
    chunk.clear(rows);
    const int32_t chunk_end = end < start + kChunk ? end : start + kChunk;
    for (int32_t from = start; from < chunk_end; from += kSub) {
      const int keys = chunk_end - from < kSub ? chunk_end - from : kSub;
      while (limit[live] <= from) ++live;
      int stop = rows;  // the windows of the rows from here on begin after these keys
      while (stop > live && low[stop - 1] >= from + keys) --stop;
      if (stop == live) continue;
      const int begin = low[live] > from ? low[live] - from : 0;  // the first key in a window: earlier blocks may be freed
      const E *k[4], *v[4];
      for (int j = 0; j < 4; ++j) {  // before it and past the end any block will do, because its scores are not read
        const int key = j * kBlock < begin || j * kBlock >= keys ? begin : j * kBlock;
        int64_t block = table[(from + key) / kBlock];
        k[j] = kv.k(block, tile.kv_head), v[j] = kv.v(block, tile.kv_head);
      }
      float *s[kRows], *o[kRows];
      const float *p[kRows];
      for (int r = live; r < stop; ++r) p[r] = s[r] = scores[r], o[r] = chunk.o + r * wide;
      int r = live;
      for (; r + 8 <= stop; r += 8) score_rows<8>(q + r, k, D, s + r);
      for (; r + 4 <= stop; r += 4) score_rows<4>(q + r, k, D, s + r);
      if (stop - r == 3) score_rows<3>(q + r, k, D, s + r);
      if (stop - r == 2) score_rows<2>(q + r, k, D, s + r);
      if (stop - r == 1) score_rows<1>(q + r, k, D, s + r);
      for (r = live; r < stop; ++r) chunk.update(r, scores[r], low[r] - from, limit[r] - from, op.softcap);
      for (r = live; r + 4 <= stop; r += 4) weigh_rows<4>(o + r, p + r, v, begin, keys, wide);
      if (stop - r == 3) weigh_rows<3>(o + r, p + r, v, begin, keys, wide);
      if (stop - r == 2) weigh_rows<2>(o + r, p + r, v, begin, keys, wide);
      if (stop - r == 1) weigh_rows<1>(o + r, p + r, v, begin, keys, wide);
    }
    for (int r = 0; r < rows; ++r)
      if (limit[r] > start && low[r] < chunk_end) total.merge(r, chunk);
  }
  for (int r = 0; r < rows; ++r) {
    int64_t token = tile.first + r / tile.heads;
    float *out = op.out + (token * op.heads + tile.head + r % tile.heads) * D;
    for (int d = 0; d < D; ++d) out[d] = total.o[r * wide + d] / total.sum[r];
  }
}

template <class E> void attend_step(const mrs_attend &op, const mrs_step *step, mrs_pool *pool) {
  const KvView<E> kv(op);
  if (step->num_tokens < 8) {
    for (int64_t t = 0; t < step->num_tokens; ++t) write_token(op, *step, kv, t);
  } else {
    parallel_for(pool, (step->num_tokens + 7) / 8, [&](int64_t chunk) {
      for (int64_t t = chunk * 8; t < step->num_tokens && t < chunk * 8 + 8; ++t) write_token(op, *step, kv, t);
    });
  }
  const int group = op.heads / op.kv_heads, heads = group < kRows ? group : kRows, parts = (group + heads - 1) / heads;
  const int64_t span = kRows / heads;
  int64_t tasks = 0;
  for (int s = 0; s < step->num_seqs; ++s)
    tasks += (step->query_start_loc[s + 1] - step->query_start_loc[s] + span - 1) / span * op.kv_heads * parts;
  parallel_for(pool, tasks, [&](int64_t chunk) {
    int64_t task = tasks - 1 - chunk;  // the longest rows first, so that no thread begins one last
    int s = 0;
    for (int64_t n;; ++s, task -= n) {
      n = (step->query_start_loc[s + 1] - step->query_start_loc[s] + span - 1) / span * op.kv_heads * parts;
      if (task < n) break;
    }
    const int part = int(task % parts), kv_head = int(task / parts % op.kv_heads);
    const int64_t first = step->query_start_loc[s] + task / parts / op.kv_heads * span;
    const int64_t left = step->query_start_loc[s + 1] - first;
    const int begin = part * heads;
    attend_tile(op, *step, kv,
                {s, kv_head, kv_head * group + begin, group - begin < heads ? group - begin : heads, first,
                 left < span ? left : span});
  });
}

void attend(const mrs_op *self, const mrs_step *step, mrs_pool *pool) {
  const mrs_attend &op = *(const mrs_attend *)self;
  op.kv_f32 ? attend_step<float>(op, step, pool) : attend_step<uint16_t>(op, step, pool);
}

}  // namespace MRS_ISA
