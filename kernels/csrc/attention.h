// Rotary embedding, writing the cache, and causal attention over the paged cache.
//
// Keys are visited in chunks that begin at absolute positions; a chunk has its own maximum and is merged into the row's
// softmax when it is done, in ascending order. A row's result is therefore the same however the prompt was cut, whichever
// sequences share the step, and whether its chunks are computed by one thread or by several.
#pragma once
#include "attention_bf16.h"
#include "attention_float.h"
#include "attention_int8.h"
#include "mrs.h"
#include "norm.h"
#include "pool.h"
#include <algorithm>

namespace MRS_ISA {

// Rotates the pairs (i, i + half) of one head and scales all of it. y may be x.
INLINE void rotate(const float *x, const float *cosine, const float *sine, int half, int head_dim, float scale, float *y) {
  int i = 0;
  const Vf factor = set_f(scale);
  for (; i + 16 <= half; i += 16) {
    const Vf a = load_f(x + i), b = load_f(x + i + half), c = load_f(cosine + i), s = load_f(sine + i);
    store_f(y + i, mul(sub(mul(a, c), mul(b, s)), factor));
    store_f(y + i + half, mul(add(mul(b, c), mul(a, s)), factor));
  }
  for (; i < half; ++i) {
    float a = x[i], b = x[i + half];
    y[i] = (a * cosine[i] - b * sine[i]) * scale;
    y[i + half] = (b * cosine[i] + a * sine[i]) * scale;
  }
  for (i = 2 * half; i < head_dim; ++i) y[i] = x[i] * scale;
}

template <class Kv> INLINE void write_token(const mrs_attend &op, const mrs_step &step, const Kv &kv, int64_t t) {
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
  float normed[wide];
  for (int h = 0; h < op.heads; ++h) {
    const float *from = q + h * D;
    if (op.q_norm && by_head) normalize(q_norm, from, D, normed), from = normed;
    rotate(from, cosine, sine, op.rotary_half, D, scale, q + h * D);
    if (Kv::rotated) hadamard(q + h * D, D);
  }
  const int32_t *slot = step.slot_mapping + int64_t(op.group) * step.max_tokens + t;
  const int64_t block = *slot / kBlock;
  const int offset = *slot % kBlock;
  const bool last = t + 1 == step.num_tokens || slot[1] != slot[0] + 1;
  float row[wide], padding[wide];
  for (int i = D; i < wide; ++i) row[i] = padding[i] = 0;
  for (int h = 0; h < op.kv_heads; ++h) {
    const float *from = keys + h * D;
    if (op.k_norm && by_head) normalize(k_norm, from, D, normed), from = normed;
    rotate(from, cosine, sine, op.rotary_half, D, 1.0f, row);
    const float *value = op.v + (t * op.kv_heads + h) * D;
    if (Kv::rotated || D < wide) std::memcpy(padding, value, D * sizeof(float)), value = padding;
    if constexpr (Kv::rotated) {
      hadamard(row, D), hadamard(padding, D);
      kv.write(block, h, offset, row, padding, last);
    } else {
      kv.write(block, h, offset, row, value, last);
    }
  }
}

// Query rows of one KV head: `count` tokens from `first`, `heads` query heads of its group from `head`.
struct QueryTile {
  int sequence, kv_head, head, heads;
  int64_t first, count;
  const int32_t *table;

  QueryRows rows(const mrs_attend &op, const mrs_step &step) const {
    QueryRows rows;
    rows.rows = int(count) * heads;
    for (int r = 0; r < rows.rows; ++r) {
      const int64_t token = first + r / heads;
      rows.q[r] = op.q + (token * op.heads + head + r % heads) * op.head_dim;
      rows.limit[r] = step.positions[token] + 1;
      rows.low[r] = op.window > 0 && rows.limit[r] > op.window ? rows.limit[r] - op.window : 0;
    }
    return rows;
  }

  void store(const mrs_attend &op, int rows, const Softmax &total, bool rotated) const {
    for (int r = 0; r < rows; ++r) {
      const int64_t token = first + r / heads;
      float *out = op.out + (token * op.heads + head + r % heads) * op.head_dim;
      const Vf sum = set_f(total.sum[r]);
      for (int d = 0; d < op.head_dim; d += 16) {
        const Vf weighed = div(load_f(total.o + r * total.wide + d), sum);
        if (d + 16 <= op.head_dim)
          store_f(out + d, weighed);
        else
          store_first(out + d, weighed, op.head_dim - d);
      }
      if (rotated) hadamard(out, op.head_dim);
    }
  }
};

INLINE void merge_chunk(const QueryRows &rows, int32_t start, int32_t end, Softmax &total, const Softmax &chunk) {
  for (int r = 0; r < rows.rows; ++r)
    if (rows.limit[r] > start && rows.low[r] < end) total.merge(r, chunk);
}

// Chunks of keys that the second-level cache has room for.
constexpr int64_t kNearChunks = 2;

// The tiles of a step. Those of long sequences are cut into pieces of some chunks, so that threads share them; the results
// of these chunks wait in the op's scratch until all are there.
template <class Kv> struct Tiles {
  const mrs_attend &op;
  const mrs_step &step;
  const Kv kv;
  int group, heads, parts;
  int64_t span, slot_items;

  Tiles(const mrs_attend &op, const mrs_step &step, int threads) : op(op), step(step), kv(op) {
    group = op.heads / op.kv_heads, heads = group < kRows ? group : kRows, parts = (group + heads - 1) / heads;
    span = kRows / heads;
    slot_items = Softmax::items(kRows, kv.wide);
    share_evenly(threads);
  }

  // Lets fewer tokens share a tile if each thread then has as many tiles: where tiles are few and their keys near.
  void share_evenly(int threads) {
    const auto uneven = [&] {
      int64_t tiles = 0;
      for (int s = 0; s < step.num_seqs; ++s) tiles += of_sequence(s);
      return tiles < 4 * threads && tiles % threads;
    };
    if (step.num_tokens > kRows || !uneven()) return;
    int64_t most = 0;
    for (int s = 0; s < step.num_seqs; ++s) {
      const int64_t tokens = step.query_start_loc[s + 1] - step.query_start_loc[s];
      if (chunks(s) > kNearChunks) return;
      most = tokens > most ? tokens : most;
    }
    const int64_t whole = span;
    for (int64_t pieces = most / whole + 1; pieces <= most && uneven(); ++pieces) span = (most + pieces - 1) / pieces;
    if (uneven()) span = whole;
  }

  int64_t of_sequence(int s) const {
    return (step.query_start_loc[s + 1] - step.query_start_loc[s] + span - 1) / span * op.kv_heads * parts;
  }

  int32_t first_chunk(int s) const {
    const int32_t limit = step.positions[step.query_start_loc[s]] + 1;
    return op.window > 0 && limit > op.window ? (limit - op.window) / Kv::chunk : 0;
  }

  // Chunks that the sequence's tokens see.
  int64_t chunks(int s) const {
    if (step.query_start_loc[s + 1] == step.query_start_loc[s]) return 0;
    return step.positions[step.query_start_loc[s + 1] - 1] / Kv::chunk + 1 - first_chunk(s);
  }

  QueryTile tile(int s, int64_t index) const {
    const int part = int(index % parts), kv_head = int(index / parts % op.kv_heads), begin = part * heads;
    const int64_t first = step.query_start_loc[s] + index / parts / op.kv_heads * span;
    const int64_t left = step.query_start_loc[s + 1] - first;
    const int32_t *table = step.block_tables + (int64_t(op.group) * step.max_seqs + s) * step.max_blocks;
    return {s, kv_head, kv_head * group + begin, group - begin < heads ? group - begin : heads, first,
            left < span ? left : span, table};
  }

  int32_t first_of(const QueryTile &tile) const {
    const int32_t limit = step.positions[tile.first] + 1;
    return op.window > 0 && limit > op.window ? (limit - op.window) / Kv::chunk * Kv::chunk : 0;
  }

  // The chunk of a tile that begins at `start`, as the one that comes next.
  NextChunk next_of(const QueryTile &tile, int32_t start) const {
    return {tile.table, tile.kv_head, start, step.positions[tile.first + tile.count - 1] + 1};
  }

  // Computes a whole tile. next: the chunk behind it, of another tile.
  void attend(const QueryTile &tile, const NextChunk &next) const {
    const QueryRows rows = tile.rows(op, step);
    float prepared[kv.query_items(rows.rows) + 1], memory[2 * Softmax::items(rows.rows, kv.wide)];
    kv.prepare(rows, prepared);
    Softmax total(memory, rows.rows, kv.wide), chunk(memory + Softmax::items(rows.rows, kv.wide), rows.rows, kv.wide);
    int32_t start = first_of(tile);
    const bool alone = rows.low[rows.rows - 1] < start + Kv::chunk;  // all rows see the first chunk
    if (!alone) total.clear(rows.rows);
    for (bool first = alone; start < rows.end(); start += Kv::chunk, first = false) {
      const int32_t later = start + Kv::chunk;
      const NextChunk behind = later < rows.end() ? next_of(tile, later) : next;
      kv.attend(rows, prepared, tile.table, tile.kv_head, start, op.softcap, behind, first ? total : chunk);
      if (!first) merge_chunk(rows, start, later, total, chunk);
    }
    tile.store(op, rows.rows, total, Kv::rotated);
  }

  // Computes `count` chunks of a tile, each into a slot of its own. next: the chunk behind them.
  void attend_piece(const QueryTile &tile, int64_t chunk, int64_t count, const NextChunk &next, float *slots) const {
    const QueryRows rows = tile.rows(op, step);
    float prepared[kv.query_items(rows.rows) + 1];
    kv.prepare(rows, prepared);
    for (int64_t c = 0; c < count; ++c) {
      const int32_t start = int32_t(chunk + c) * Kv::chunk;
      if (start >= rows.end() || start + Kv::chunk <= rows.low[0]) continue;
      Softmax softmax(slots + c * slot_items, rows.rows, kv.wide);
      const NextChunk behind = c + 1 < count && start + Kv::chunk < rows.end() ? next_of(tile, start + Kv::chunk) : next;
      kv.attend(rows, prepared, tile.table, tile.kv_head, start, op.softcap, behind, softmax);
    }
  }

  // Merges the pieces of a tile.
  void finish(const QueryTile &tile, int32_t first, int64_t chunks, float *slots) const {
    const QueryRows rows = tile.rows(op, step);
    float memory[Softmax::items(rows.rows, kv.wide)];
    Softmax total(memory, rows.rows, kv.wide);
    total.clear(rows.rows);
    for (int64_t c = 0; c < chunks; ++c) {
      const int32_t start = int32_t(first + c) * Kv::chunk;
      merge_chunk(rows, start, start + Kv::chunk, total, Softmax(slots + c * slot_items, rows.rows, kv.wide));
    }
    tile.store(op, rows.rows, total, Kv::rotated);
  }
};

// The tasks of a step: for each sequence its tiles, or the pieces of these.
template <class Kv> struct Tasks {
  int64_t count = 0, cut = 0, run;  // tasks, tiles that are cut, chunks of a piece
  int64_t *begin, *slot;            // (num_seqs + 1) a sequence's first task; (num_seqs) its first slot, -1: it is not cut

  // memory: 2 num_seqs + 1 items
  Tasks(const Tiles<Kv> &tiles, int threads, int64_t *memory) : begin(memory), slot(memory + tiles.step.num_seqs + 1) {
    const int seqs = tiles.step.num_seqs;
    int64_t work = 0, room = threads > 1 ? tiles.op.scratch_bytes / int64_t(sizeof(float)) / tiles.slot_items : 0;
    for (int s = 0; s < seqs; ++s) work += tiles.of_sequence(s) * tiles.chunks(s);
    run = work / (8 * threads) > 2 ? work / (8 * threads) : 2;
    for (int s = 0; s < seqs; ++s) {
      const int64_t tiles_of = tiles.of_sequence(s), chunks = tiles.chunks(s), slots = tiles_of * chunks;
      const bool cuts = chunks > run && slots <= room;
      begin[s] = count, slot[s] = cuts ? tiles.op.scratch_bytes / int64_t(sizeof(float)) / tiles.slot_items - room : -1;
      count += cuts ? tiles_of * pieces(chunks) : tiles_of;
      if (cuts) room -= slots, cut += tiles_of;
    }
    begin[seqs] = count;
  }

  int64_t pieces(int64_t chunks) const { return (chunks + run - 1) / run; }
};

// A whole tile, or `count` chunks of one from `first` on, whose results go to slots from `slot` on.
struct Task {
  QueryTile tile;
  int64_t first, count, slot;  // count 0: the whole tile
};

template <class Kv> Task task_at(const Tiles<Kv> &tiles, const Tasks<Kv> &tasks, int64_t task) {
  int s = 0;
  while (tasks.begin[s + 1] <= task) ++s;
  const int64_t index = task - tasks.begin[s];
  if (tasks.slot[s] < 0) return {tiles.tile(s, index), 0, 0, -1};
  const int64_t chunks = tiles.chunks(s), pieces = tasks.pieces(chunks), first = index % pieces * tasks.run;
  const int64_t left = chunks - first, slot = tasks.slot[s] + index / pieces * chunks + first;
  return {tiles.tile(s, index / pieces), tiles.first_chunk(s) + first, left < tasks.run ? left : tasks.run, slot};
}

template <class Kv> void attend_tiles(const Tiles<Kv> &tiles, mrs_pool *pool) {
  int64_t memory[2 * tiles.step.num_seqs + 1];
  const Tasks<Kv> tasks(tiles, mrs_pool_size(pool), memory);
  float *scratch = (float *)tiles.op.scratch;
  parallel_for(pool, tasks.count, [&](int64_t turn) {
    const mrs_part part = mrs_part_of(pool, tasks.count, turn);
    const int64_t index = part.begin + part.end - 1 - turn;  // the longest rows first, so that no thread begins one last
    const Task task = task_at(tiles, tasks, index);
    NextChunk next;
    if (index > part.begin) {
      const Task behind = task_at(tiles, tasks, index - 1);
      next = tiles.next_of(behind.tile, behind.count ? int32_t(behind.first) * Kv::chunk : tiles.first_of(behind.tile));
    }
    if (task.count == 0) return tiles.attend(task.tile, next);
    tiles.attend_piece(task.tile, task.first, task.count, next, scratch + task.slot * tiles.slot_items);
  });
  if (!tasks.cut) return;
  parallel_for(pool, tasks.cut, [&](int64_t index) {
    int s = 0;
    for (;; ++s) {
      if (tasks.slot[s] < 0) continue;
      if (index < tiles.of_sequence(s)) break;
      index -= tiles.of_sequence(s);
    }
    const int64_t chunks = tiles.chunks(s);
    tiles.finish(tiles.tile(s, index), tiles.first_chunk(s), chunks, scratch + (tasks.slot[s] + index * chunks) * tiles.slot_items);
  });
}

template <class Kv> void attend_step(const mrs_attend &op, const mrs_step *step, mrs_pool *pool) {
  const Tiles<Kv> tiles(op, *step, mrs_pool_size(pool));
  const int64_t tokens = step->num_tokens, threads = mrs_pool_size(pool);
  if (tokens < 4) {  // with four and more, sharing them was measured to take less time, or as much (docs/log.md)
    for (int64_t t = 0; t < tokens; ++t) write_token(op, *step, tiles.kv, t);
  } else {
    const int64_t share = std::min<int64_t>((tokens + threads - 1) / threads, 8);
    parallel_for(pool, (tokens + share - 1) / share, [&](int64_t turn) {
      for (int64_t t = turn * share; t < tokens && t < turn * share + share; ++t) write_token(op, *step, tiles.kv, t);
    });
  }
  attend_tiles(tiles, pool);
}

void attend(const mrs_op *self, const mrs_step *step, mrs_pool *pool) {
  const mrs_attend &op = *(const mrs_attend *)self;
  if (op.kv_type == MRS_KV_F32) attend_step<FloatKv<float>>(op, step, pool);
  if (op.kv_type == MRS_KV_F16) attend_step<FloatKv<uint16_t>>(op, step, pool);
  if (op.kv_type == MRS_KV_BF16) attend_step<Bf16Kv>(op, step, pool);
  if (op.kv_type == MRS_KV_Q8_0) attend_step<ByteKv>(op, step, pool);
}

}  // namespace MRS_ISA
