// A mixture of experts. Tokens are sorted by expert, so that each chosen expert is read once for all its tokens and the
// others not at all. Every token adds its experts in ascending order; its result therefore does not depend on its
// neighbours.
#pragma once
#include "activations.h"
#include "deltas.h"
#include "gemm.h"
#include "mrs.h"
#include "norm.h"
#include "pool.h"
#include "rounding.h"

namespace MRS_ISA {

// The parts of the op's int32 workspace. A pair is token * used + rank: a token and one of its experts.
struct Routes {
  int32_t *expert;      // (tokens * used) the expert of each pair, ascending within a token
  float *weight;        // (tokens * used) the weight of each pair
  int32_t *begin;       // (experts + 1) each expert's range in `order`
  int32_t *next;        // (experts + 1) scratch of the sort
  int32_t *first_tile;  // (experts + 1) each expert's range in `tiles`
  int32_t *order;       // (tokens * used) the pairs, sorted by expert
  int32_t *tiles;       // (tokens * used + experts) the begin of each tile in `order`; a tile's pairs share an expert
};

INLINE Routes routes_at(const mrs_moe &op, int64_t tokens) {
  const int64_t pairs = tokens * op.used;
  Routes r;
  int32_t *p = op.routes;
  r.expert = p, p += pairs;
  r.weight = (float *)p, p += pairs;
  r.begin = p, p += op.experts + 1;
  r.next = p, p += op.experts + 1;
  r.first_tile = p, p += op.experts + 1;
  r.order = p, p += pairs;
  r.tiles = p;
  return r;
}

// Chooses the `used` experts with the largest softmax over all experts (the lower index at a tie). Their weights are
// divided by their own sum, or by that of all experts.
INLINE void choose_experts(const float *logits, int experts, int used, bool normalize, int32_t *expert, float *weight) {
  float top = logits[0], total = 0, all = 0;
  for (int e = 1; e < experts; ++e) top = logits[e] > top ? logits[e] : top;
  float p[experts];
  for (int e = 0; e < experts; ++e) all += p[e] = std::exp(logits[e] - top);
  bool taken[experts];
  for (int e = 0; e < experts; ++e) taken[e] = false;
  for (int rank = 0; rank < used; ++rank) {
    int best = -1;
    for (int e = 0; e < experts; ++e)
      if (!taken[e] && (best < 0 || p[e] > p[best])) best = e;
    taken[best] = true;
    total += p[best];
  }
  if (!normalize) total = all;
  for (int e = 0, rank = 0; e < experts; ++e)
    if (taken[e]) expert[rank] = e, weight[rank] = p[e] / total, ++rank;
}

INLINE void route_token(const mrs_moe &op, int64_t t, const Deltas &deltas, const Routes &routes) {
  const mrs_weight &router = *op.router.weight;
  const int64_t cols = router.cols;
  float *normed = op.normed + t * cols;
  normalize(op.norm, op.x + t * cols, cols, normed);
  Acts a = {};
  a.x = normed;  // one column: the plain values are the tile
  const micro_kernel_fn micro_kernel = micro_kernel_of(router.type, 1, true, false);
  const Tile tile = {t, 1, 1, nullptr};
  const auto row = [&](int) { return t; };
  if (deltas.act) deltas.shrink_tile(op.router, 0, tile, PlainRows{normed, cols, 1}, row);
  float logits[(op.experts + 15) / 16 * 16];
  for (int64_t panel = 0; panel < (op.experts + 15) / 16; ++panel) {
    const int live = int(op.experts - panel * 16 < 16 ? op.experts - panel * 16 : 16);
    float *out = logits + 16 * panel;
    micro_kernel({router.data + panel * view_of(router.type, cols).bytes, nullptr, nullptr, nullptr}, cols, a, out);
    for (int e = 0; router.bias && e < live; ++e) out[e] += router.bias[panel * 16 + e];
    if (!deltas.act) continue;
    Vf value = load_f(out);
    deltas.expand(op.router, 0, panel, live, tile, &value, row);
    store_f(out, value);
  }
  choose_experts(logits, op.experts, op.used, op.normalize_weights, routes.expert + t * op.used, routes.weight + t * op.used);
}

INLINE void sort_by_expert(const mrs_moe &op, int64_t tokens, const Routes &routes) {
  const int64_t pairs = tokens * op.used;
  std::memset(routes.begin, 0, (op.experts + 1) * sizeof(int32_t));
  for (int64_t i = 0; i < pairs; ++i) ++routes.begin[routes.expert[i] + 1];
  for (int e = 0; e < op.experts; ++e) routes.begin[e + 1] += routes.begin[e];
  std::memcpy(routes.next, routes.begin, (op.experts + 1) * sizeof(int32_t));
  for (int64_t i = 0; i < pairs; ++i) routes.order[routes.next[routes.expert[i]]++] = int32_t(i);
  int32_t tiles = 0;
  for (int e = 0; e < op.experts; ++e) {
    routes.first_tile[e] = tiles;
    for (int32_t i = routes.begin[e]; i < routes.begin[e + 1]; i += 8) routes.tiles[tiles++] = i;
  }
  routes.first_tile[op.experts] = tiles;
}

// One weight of each expert, or two of the same shape, and the tiles of the pairs that chose it. Experts may be stored in
// different types.
struct Experts {
  const mrs_moe &op;
  const Routes &routes;
  const mrs_linear *first, *second;  // arrays of one for each expert; second: or null
  int64_t expert_panels, tile_bytes;
  float outlier_threshold;
  Needs needs = {};

  Experts(const mrs_moe &op_, const Routes &routes_, const mrs_linear *first_, const mrs_linear *second_, bool adapted)
      : op(op_), routes(routes_), first(first_), second(second_), expert_panels(Operand{first_->weight, nullptr}.panels()),
        outlier_threshold(op_.outlier_threshold) {
    for (int e = 0; e < op.experts; ++e) {
      needs.add(first[e].weight->type, outlier_threshold);
      if (second) needs.add(second[e].weight->type, outlier_threshold);
    }
    needs.rows = adapted && !needs.floats;
    tile_bytes = bytes_of_tile(first->weight->cols, needs);
  }

  // Of all experts that have tokens.
  int64_t panels() const {
    int64_t count = 0;
    for (int e = 0; e < op.experts; ++e) count += has_tokens(e);
    return count * expert_panels;
  }
  bool has_tokens(int e) const { return routes.first_tile[e] < routes.first_tile[e + 1]; }
  Segment segment(int64_t from, int64_t to) const {
    int64_t before = 0;
    int e = 0;
    for (; !has_tokens(e) || from - before >= expert_panels; ++e) before += has_tokens(e) * expert_panels;
    return {e, from - before, (to < before + expert_panels ? to : before + expert_panels) - before,
            {routes.first_tile[e], routes.first_tile[e + 1]}};
  }
  Operand at(int e) const { return {first[e].weight, second ? second[e].weight : nullptr}; }
  int64_t num_tiles() const { return routes.first_tile[op.experts]; }
  void prepare(const Segment &) const {}  // all tiles were rounded before
  Tile tile(int64_t i) const {
    const int64_t first_pair = routes.tiles[i], e = routes.expert[routes.order[first_pair]];
    return tile_of(first_pair, routes.begin[e + 1] - first_pair, op.scratch + i * tile_bytes);
  }
};

// Writes the products of a pair to its row of `out` (tokens * used, rows).
struct PairEpilogue {
  const Experts &experts;
  const Deltas &deltas;
  int activation;
  float *out;
  bool streams;

  const PairEpilogue &of(const Segment &) const { return *this; }

  void ask_for(const Segment &segment, int64_t panel, Ahead &ahead) const {
    if (!deltas.act) return;
    const Range panels = {segment.begin, segment.end};
    deltas.ask_for(experts.first[segment.operand], panels, panel, ahead);
    if (experts.second) deltas.ask_for(experts.second[segment.operand], panels, panel, ahead);
  }

  ALWAYS_INLINE void ask_for_output(int, int64_t panel, const Tile &tile) const {
    const int64_t rows = experts.first->weight->rows;
    for (int t = 0; t < tile.count; ++t)
      __builtin_prefetch(out + experts.routes.order[tile.first + t] * rows + panel * 16, 1);
  }

  ALWAYS_INLINE void operator()(int expert, int64_t panel, int live, const Tile &tile, Vf *values, Vf *second) const {
    const bool gated = experts.second != nullptr;  // act(first) * second
    const int32_t *pairs = experts.routes.order + tile.first;
    if (deltas.act) {
      const auto row = [&](int t) { return int64_t(pairs[t]); };
      deltas.expand(experts.first[expert], 0, panel, live, tile, values, row);
      if (gated) deltas.expand(experts.second[expert], 1, panel, live, tile, second, row);
    }
    const int64_t rows = experts.first->weight->rows;
    for (int t = 0; t < tile.count; ++t) {
      Vf value = gated ? mul(activate(activation, values[t]), second[t]) : values[t];
      float *to = out + pairs[t] * rows + panel * 16;
      if (live == 16)
        store_line(to, value, streams);
      else
        store_first(to, value, live);
    }
  }
};

// Computes the products of all pairs; row(pair) gives the input.
template <class RowOf>
INLINE void expert_products(const Experts &experts, const Deltas &deltas, float *out, mrs_pool *pool, RowOf &&row) {
  const mrs_moe &op = experts.op;
  const Routes &routes = experts.routes;
  const int64_t cols = experts.first->weight->cols;
  parallel_for(pool, experts.num_tiles(), [&](int64_t i) {
    const Tile tile = experts.tile(i);
    const int32_t *pairs = routes.order + tile.first;
    prepare_tile(tile, cols, op.outlier_threshold, experts.needs, [&](int t) { return row(pairs[t]); });
    if (!deltas.act) return;
    const PlainRows plain = plain_rows(tile, cols, experts.needs);
    const int expert = routes.expert[pairs[0]];
    const auto pair = [&](int t) { return int64_t(pairs[t]); };
    deltas.shrink_tile(experts.first[expert], 0, tile, plain, pair);
    if (experts.second) deltas.shrink_tile(experts.second[expert], 1, tile, plain, pair);
  });
  const int64_t bytes = view_of(experts.first->weight->type, cols).bytes * (experts.second ? 2 : 1);
  const int64_t part = experts.expert_panels / 8 > 0 ? experts.expert_panels / 8 : 1;
  const int64_t even = equal_span(experts.panels(), bytes, mrs_pool_size(pool));
  const int64_t pairs = routes.begin[op.experts], rows = experts.first->weight->rows;
  const bool is_read_once = pairs <= 4 * op.used;
  const PairEpilogue epilogue = {experts, deltas, op.activation, out, streams_values(pairs * rows, pool)};
  gemm(experts, is_read_once ? even : part, 1, pool, epilogue);
}

void moe(const mrs_op *self, const mrs_step *step, mrs_pool *pool) {
  const mrs_moe &op = *(const mrs_moe *)self;
  const int64_t tokens = step->num_tokens, cols = op.router.weight->cols, ffn = op.gate->weight->rows;
  if (!tokens) return;
  const Routes routes = routes_at(op, tokens);
  const Deltas router(*step, &op.router, 1, 1), down(*step, op.down, op.experts, op.used);
  Deltas inputs(*step, op.gate, op.experts, op.used);
  inputs.act |= Deltas(*step, op.up, op.experts, op.used).act;
  parallel_for(pool, tokens, [&](int64_t t) { route_token(op, t, router, routes); });
  sort_by_expert(op, tokens, routes);
  expert_products(Experts(op, routes, op.gate, op.up, inputs.act), inputs, op.hidden, pool,
                  [&](int64_t pair) { return op.normed + pair / op.used * cols; });
  expert_products(Experts(op, routes, op.down, nullptr, down.act), down, op.outputs, pool,
                  [&](int64_t pair) { return op.hidden + pair * ffn; });
  parallel_for(pool, tokens, [&](int64_t t) {
    float *x = op.x + t * cols;
    for (int64_t k = 0; k < cols; ++k) {
      float sum = 0;
      for (int rank = 0; rank < op.used; ++rank)
        sum += routes.weight[t * op.used + rank] * op.outputs[(t * op.used + rank) * cols + k];
      x[k] += op.scale != 1.0f ? op.scale * sum : sum;
    }
  });
}

}  // namespace MRS_ISA
