// What adapters add to products, in two parts: shrink computes u = factor * (a x) of a tile's rows, expand adds b u to the
// products of one panel.
//
// A row's uses are added one after the other, and each b u in ascending order of the rank, by the same instructions for
// every number of rows. A row's result therefore does not depend on its neighbours.
#pragma once
#include "micro_kernel.h"
#include "mrs.h"

namespace MRS_ISA {

// acc[i] += one panel of b (16 rows, rank) * u[i].
template <int TYPE, int COUNT> INLINE void add_panel(const uint8_t *panel, int64_t rank, const float *const *u, Vf *acc) {
  for (int64_t k = 0; k < rank; ++k) {
    Vf w = load_weight<TYPE>(panel + k * layout_of(TYPE).quants);
#pragma GCC unroll 8
    for (int i = 0; i < COUNT; ++i) acc[i] = fma(w, set_f(u[i][k]), acc[i]);
  }
}

template <int TYPE> INLINE void add_panel(const uint8_t *panel, int64_t rank, const float *const *u, Vf *acc, int count) {
  int i = 0;
  for (; count - i >= 4; i += 4) add_panel<TYPE, 4>(panel, rank, u + i, acc + i);
  for (; count - i >= 2; i += 2) add_panel<TYPE, 2>(panel, rank, u + i, acc + i);
  if (count > i) add_panel<TYPE, 1>(panel, rank, u + i, acc + i);
}

INLINE Vf load_live(const float *p, int live) {
  if (live == 16) return load_f(p);
  alignas(64) float padded[16] = {0};
  std::memcpy(padded, p, live * sizeof(float));
  return load_f(padded);
}

// The uses of one op in one step. A row is a token, or for experts a pair token * used + rank.
struct Deltas {
  const mrs_step &step;
  int64_t used;
  bool act;  // some delta may act; where it is false the op takes the plain path

  // The rows' uses in step.use_slots from `first` on, and in u from `at` on.
  struct Uses {
    int64_t token, first, count, at;
  };

  Deltas(const mrs_step &step_, const mrs_linear *linears, int64_t count, int64_t used_) : step(step_), used(used_), act(false) {
    for (int64_t i = 0; step.use_start && i < count && !act; ++i)
      for (int slot = 0; linears[i].deltas && slot < step.num_slots; ++slot) act |= linears[i].deltas[slot].a != nullptr;
  }

  // The token of row `row` of an op's result.
  int64_t row_of(bool logits_only, int64_t row) const { return logits_only ? step.logits_indices[row] : row; }

  Uses uses_of(int64_t row) const {
    const int64_t token = row / used, first = step.use_start[token], count = step.use_start[token + 1] - first;
    return {token, first, count, first * used + row % used * count};
  }

  float *u(int member, const Uses &uses, int64_t j) const {
    const int64_t total = step.use_start[step.num_tokens] * used;
    return step.delta_scratch + (member * total + uses.at + j) * step.max_rank;
  }

  float weight(const mrs_linear &linear, const Uses &uses, int64_t j) const {
    const float weight = step.use_weights[uses.first + j];
    if (!step.scalings || linear.scaling_layer < 0) return weight;
    const int64_t layer = uses.token * step.scaling_layers + linear.scaling_layer;
    return weight * step.scalings[layer * step.num_slots + step.use_slots[uses.first + j]];
  }

  // Computes u of the rows row(0 .. tile.count - 1) from their plain values.
  template <class RowOf> void shrink(const mrs_linear &linear, int member, const Tile &tile, const Acts &acts, RowOf &&row) const {
    if (!linear.deltas) return;
    bool done[step.num_slots];
    std::memset(done, 0, sizeof done);
    for (int t = 0; t < tile.count; ++t) {
      const Uses uses = uses_of(row(t));
      for (int64_t j = 0; j < uses.count; ++j) {
        const int slot = step.use_slots[uses.first + j];
        if (done[slot] || !linear.deltas[slot].a) continue;
        done[slot] = true;
        shrink_slot(linear, member, slot, tile, acts, row);
      }
    }
  }

  template <class RowOf>
  void shrink_slot(const mrs_linear &linear, int member, int slot, const Tile &tile, const Acts &acts, RowOf &&row) const {
    const mrs_delta &delta = linear.deltas[slot];
    const micro_kernel_fn micro_kernel = micro_kernel_of(delta.a->type, tile.tokens);
    for (int64_t panel = 0; panel * 16 < delta.a->rows; ++panel) {
      alignas(64) float out[8 * 16];
      micro_kernel(delta.a->data + panel * view_of(delta.a->type, delta.a->cols).bytes, delta.a->cols, acts, out);
      const int live = int(delta.a->rows - panel * 16 < 16 ? delta.a->rows - panel * 16 : 16);
      for (int t = 0; t < tile.count; ++t) {
        const Uses uses = uses_of(row(t));
        for (int64_t j = 0; j < uses.count; ++j) {
          if (step.use_slots[uses.first + j] != slot) continue;
          const Vf factor = set_f(delta.scale * weight(linear, uses, j));
          store_first(u(member, uses, j) + panel * 16, mul(load_f(out + 16 * t), factor), live);
        }
      }
    }
  }

  // Adds to values[t], the 16 products of a panel with row(t), all uses of these rows.
  template <class RowOf>
  void expand(const mrs_linear &linear, int member, int64_t panel, int live, const Tile &tile, Vf *values, RowOf &&row) const {
    if (!linear.deltas) return;
    Uses uses[8];
    int64_t most = 0;
    for (int t = 0; t < tile.count; ++t) {
      uses[t] = uses_of(row(t));
      most = uses[t].count > most ? uses[t].count : most;
    }
    for (int64_t j = 0; j < most; ++j) {
      unsigned left = 0;
      for (int t = 0; t < tile.count; ++t) left |= unsigned(uses[t].count > j) << t;
      while (left) {  // rows with the same slot share the reading of b
        const int slot = step.use_slots[uses[__builtin_ctz(left)].first + j];
        int rows[8], count = 0;
        for (unsigned rest = left; rest; rest &= rest - 1) {
          const int t = __builtin_ctz(rest);
          if (step.use_slots[uses[t].first + j] != slot) continue;
          rows[count++] = t;
          left &= ~(1u << t);
        }
        if (linear.deltas[slot].a) expand_slot(linear, member, slot, panel, live, uses, j, rows, count, values);
      }
    }
  }

  void expand_slot(const mrs_linear &linear, int member, int slot, int64_t panel, int live, const Uses *uses, int64_t j,
                   const int *rows, int count, Vf *values) const {
    const mrs_delta &delta = linear.deltas[slot];
    const float *from[8];
    Vf acc[8];
    for (int i = 0; i < count; ++i) {
      from[i] = u(member, uses[rows[i]], j);
      acc[i] = zero_f();
      if (delta.bias) acc[i] = mul(load_live(delta.bias + panel * 16, live), set_f(weight(linear, uses[rows[i]], j)));
    }
    const uint8_t *b = delta.b->data + panel * view_of(delta.b->type, delta.b->cols).bytes;
    switch (delta.b->type) {
      case MRS_F16: add_panel<MRS_F16>(b, delta.b->cols, from, acc, count); break;
      case MRS_BF16: add_panel<MRS_BF16>(b, delta.b->cols, from, acc, count); break;
      default: add_panel<MRS_F32>(b, delta.b->cols, from, acc, count);
    }
    for (int i = 0; i < count; ++i) {
      Vf &value = values[rows[i]];
      if (!delta.row_factor) {
        value = add(value, acc[i]);
        continue;
      }
      const float *bias = linear.weight->bias;
      const Vf own = bias ? load_live(bias + panel * 16, live) : zero_f();
      value = fma(load_live(delta.row_factor + panel * 16, live), add(sub(value, own), acc[i]), own);
    }
  }
};

}  // namespace MRS_ISA
