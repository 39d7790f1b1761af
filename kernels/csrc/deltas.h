// What adapters add to products, in two parts: shrink computes u = factor * (a x) of a tile's rows, expand adds b u to the
// products of one panel.
//
// A row's uses are added one after the other, and every sum in one order, by the same instructions for every number of
// rows. A row's result therefore does not depend on its neighbours.
#pragma once
#include "delta_products.h"
#include "micro_kernel.h"
#include "mrs.h"

namespace MRS_ISA {

INLINE Vf load_live(const float *p, int live) {
  if (live == 16) return load_f(p);
  alignas(64) float padded[16] = {0};
  std::memcpy(padded, p, live * sizeof(float));
  return load_f(padded);
}

// The plain values of a tile's rows: those of row t start at x + t * row and stand `stride` apart.
struct PlainRows {
  const float *x;
  int64_t row, stride;
};

INLINE PlainRows plain_rows(const Tile &tile, int64_t cols, Needs needs) {
  const float *x = acts_at(tile.base, cols, tile.tokens).x;
  return needs.rows ? PlainRows{x, cols, 1} : PlainRows{x, 1, tile.tokens};
}

// The uses of one op in one step. A row is a token, or for experts a pair token * used + rank.
struct Deltas {
  const mrs_step &step;
  int64_t used, total;  // total: uses of all rows
  bool act;             // some delta may act; where it is false the op takes the plain path
  int num_near = 0, near[16];  // slots that act on some row, for ask_for()

  // The rows' uses in step.use_slots from `first` on, and in u from `at` on.
  struct Uses {
    int64_t token, first, count, at;
  };

  Deltas(const mrs_step &step_, const mrs_linear *linears, int64_t count, int64_t used_)
      : step(step_), used(used_), total(step_.use_start ? step_.use_start[step_.num_tokens] * used_ : 0), act(false) {
    for (int64_t i = 0; step.use_start && i < count && !act; ++i)
      for (int slot = 0; linears[i].deltas && slot < step.num_slots; ++slot) act |= linears[i].deltas[slot].a != nullptr;
    if (act) find_near();
  }

  void find_near() {
    uint64_t seen = 0;
    for (int64_t i = 0; i < step.use_start[step.num_tokens] && num_near < 16; ++i) {
      const int slot = step.only_slot >= 0 ? step.only_slot : step.use_slots[i];
      if (slot < 64 && !(seen >> slot & 1)) seen |= uint64_t(1) << slot, near[num_near++] = slot;
      if (step.only_slot >= 0) return;
    }
  }

  // Adds parts of b that expand() reads for `panel` and those behind it, of `panels` that are passed in ascending order. A
  // panel's are a few cache lines of each slot, which no hardware prefetcher sees coming; memory gives more when the slots
  // take turns, each with the lines of as many panels as there are slots.
  void ask_for(const mrs_linear &linear, const Range &panels, int64_t panel, Ahead &ahead) const {
    const int64_t turn = (panel - panels.begin) % (num_near ? num_near : 1);
    const bool is_first = panel == panels.begin;
    for (int i = 0; linear.deltas && i < num_near; ++i) {
      const mrs_delta &delta = linear.deltas[near[i]];
      if (!delta.a || (i != turn && !is_first)) continue;
      const int64_t from = is_first ? panel : panel + 1, to = i == turn ? panel + num_near + 1 : panel + i + 1;
      const int64_t bytes = view_of(delta.b->type, delta.b->cols).bytes, count = (to < panels.end ? to : panels.end) - from;
      if (count > 0) ahead.add(delta.b->data + from * bytes, count * bytes);
    }
  }

  // The token of row `row` of an op's result.
  int64_t row_of(bool logits_only, int64_t row) const { return logits_only ? step.logits_indices[row] : row; }

  Uses uses_of(int64_t row) const {
    const int64_t token = row / used, first = step.use_start[token], count = step.use_start[token + 1] - first;
    return {token, first, count, first * used + row % used * count};
  }

  float *u(int member, const Uses &uses, int64_t j) const {
    return step.delta_scratch + (member * total + uses.at + j) * step.max_rank;
  }

  float weight(const mrs_linear &linear, const Uses &uses, int64_t j) const {
    const float weight = step.use_weights[uses.first + j];
    if (!step.scalings || linear.scaling_layer < 0) return weight;
    const int64_t layer = uses.token * step.scaling_layers + linear.scaling_layer;
    return weight * step.scalings[layer * step.num_slots + step.use_slots[uses.first + j]];
  }

  // Rows on which one slot acts as their use number j.
  struct Group {
    int64_t j;
    int slot, count, rows[32];
  };

  // Calls body(group) for every use of `count` rows, 32 at most; rows whose use number j is the same slot come together.
  template <class Body> void for_groups(const Uses *uses, int count, Body &&body) const {
    Group group;
    if (step.only_slot >= 0) {
      group.j = 0, group.slot = step.only_slot, group.count = count;
      for (int t = 0; t < count; ++t) group.rows[t] = t;
      return body(group);
    }
    int64_t most = 0;
    for (int t = 0; t < count; ++t) most = uses[t].count > most ? uses[t].count : most;
    for (int64_t j = 0; j < most; ++j) {
      unsigned left = 0;
      for (int t = 0; t < count; ++t) left |= unsigned(uses[t].count > j) << t;
      while (left) {
        group.j = j, group.slot = step.use_slots[uses[__builtin_ctz(left)].first + j], group.count = 0;
        for (unsigned rest = left; rest; rest &= rest - 1) {
          const int t = __builtin_ctz(rest);
          if (step.use_slots[uses[t].first + j] != group.slot) continue;
          group.rows[group.count++] = t;
          left &= ~(1u << t);
        }
        body(group);
      }
    }
  }

  // Computes u of a group of rows: x(r) gives the plain values of row r, `stride` apart, and row(r) its row of the op. Where a
  // comes from memory, `next` is what the thread is likely to read after it, else null.
  template <class RowOf, class XOf>
  void shrink(const mrs_linear &linear, int member, const Group &group, int64_t stride, XOf &&x, RowOf &&row,
              const uint8_t *next = nullptr) const {
    if (!linear.deltas || !linear.deltas[group.slot].a) return;
    const mrs_delta &delta = linear.deltas[group.slot];
    const float *from[32];
    for (int i = 0; i < group.count; ++i) from[i] = x(group.rows[i]);
    for (int64_t panel = 0; panel * 16 < delta.a->rows; ++panel) {
      const int live = int(delta.a->rows - panel * 16 < 16 ? delta.a->rows - panel * 16 : 16);
      Vf acc[32];
      for (int i = 0; i < group.count; ++i) acc[i] = zero_f();
      if (next && mrs_asks_ahead)
        add_product_ahead(*delta.a, panel, from, stride, acc, group.count, next);
      else
        add_product(*delta.a, panel, from, stride, acc, group.count);
      for (int i = 0; i < group.count; ++i) {
        const Uses of = uses_of(row(group.rows[i]));
        const Vf factor = set_f(delta.scale * weight(linear, of, group.j));
        store_first(u(member, of, group.j) + panel * 16, mul(acc[i], factor), live);
      }
    }
  }

  // Computes u of a tile's rows row(0 .. tile.count - 1).
  template <class RowOf>
  void shrink_tile(const mrs_linear &linear, int member, const Tile &tile, const PlainRows &plain, RowOf &&row) const {
    if (!linear.deltas) return;
    Uses uses[8];
    for (int t = 0; t < tile.count; ++t) uses[t] = uses_of(row(t));
    for_groups(uses, tile.count, [&](const Group &group) {
      shrink(linear, member, group, plain.stride, [&](int t) { return plain.x + t * plain.row; }, row);
    });
  }

  // Adds to values[t], the 16 products of a panel with row(t), all uses of these rows.
  template <class RowOf>
  void expand(const mrs_linear &linear, int member, int64_t panel, int live, const Tile &tile, Vf *values, RowOf &&row) const {
    if (!linear.deltas) return;
    if (step.only_slot >= 0) {
      const mrs_delta &delta = linear.deltas[step.only_slot];
      if (!delta.a) return;
      if (!delta.bias && !delta.row_factor) return expand_only(delta, member, panel, tile, values, row);
    }
    if (used == 1 && expand_each(linear, member, panel, tile, values, row)) return;
    Uses uses[8];
    for (int t = 0; t < tile.count; ++t) uses[t] = uses_of(row(t));
    for_groups(uses, tile.count, [&](const Group &group) {
      if (linear.deltas[group.slot].a) expand_group(linear, member, panel, live, uses, group, values);
    });
  }

  // As expand where every row has one use: u then has a row for each.
  template <class RowOf>
  void expand_only(const mrs_delta &delta, int member, int64_t panel, const Tile &tile, Vf *values, RowOf &&row) const {
    const float *of_member = step.delta_scratch + member * total * step.max_rank, *from[8];
    Vf acc[8];
    for (int t = 0; t < tile.count; ++t) from[t] = of_member + row(t) * step.max_rank, acc[t] = zero_f();
    add_product(*delta.b, panel, from, 1, acc, tile.count);
    for (int t = 0; t < tile.count; ++t) values[t] = add(values[t], acc[t]);
  }

  // As expand for rows of tokens with one use at most and deltas of products alone; returns whether they are such. The
  // panels of a step are many, so that looking for rows with the same slot takes longer than their products.
  template <class RowOf>
  bool expand_each(const mrs_linear &linear, int member, int64_t panel, const Tile &tile, Vf *values, RowOf &&row) const {
    const float *of_member = step.delta_scratch + member * total * step.max_rank, *from[8];
    const mrs_delta *deltas[8];
    for (int t = 0; t < tile.count; ++t) {
      const int64_t token = row(t), first = step.use_start[token], count = step.use_start[token + 1] - first;
      if (count > 1) return false;
      from[t] = of_member + first * step.max_rank;
      deltas[t] = count ? linear.deltas + step.use_slots[first] : nullptr;
      if (deltas[t] && (deltas[t]->bias || deltas[t]->row_factor)) return false;
    }
    for (int t = 0; t < tile.count; ++t) {
      if (!deltas[t] || !deltas[t]->a) continue;
      Vf sum = zero_f();
      add_product(*deltas[t]->b, panel, from + t, 1, &sum, 1);
      values[t] = add(values[t], sum);
    }
    return true;
  }

  // The uses of an op's rows that act on a matrix, row by row: column c is what deltas[c] adds, which has u[c].
  struct Columns {
    int count = 0;
    uint8_t ends[1 + Additions::kRows] = {};  // as those of Additions
    const mrs_delta *deltas[Additions::kColumns];
    const float *u[Additions::kColumns];
  };

  // Finds the columns of rows row(0 .. rows - 1) of tokens. Returns false, with an undefined result, where expand() has to
  // add them: for deltas that are more than products, and more uses than there is room for.
  template <class RowOf>
  bool find_columns(const mrs_linear &linear, int member, int rows, Columns &found, RowOf &&row) const {
    for (int t = 0; linear.deltas && t < rows; found.ends[++t] = uint8_t(found.count)) {
      const Uses uses = uses_of(row(t));
      for (int64_t j = 0; j < uses.count; ++j) {
        const mrs_delta &delta = linear.deltas[step.use_slots[uses.first + j]];
        if (!delta.a) continue;
        if (delta.bias || delta.row_factor || found.count == Additions::kColumns) return false;
        found.deltas[found.count] = &delta;
        found.u[found.count++] = u(member, uses, j);
      }
    }
    return true;
  }

  // The columns of a weight, those with the same b side by side.
  struct Groups {
    int count = 0;
    SameMatrix groups[Additions::kColumns];

    // out: (panels, columns, 16)
    Groups(const Columns &columns, float *out) {
      for (uint64_t left = columns.count ? ~uint64_t(0) >> (64 - columns.count) : 0; left;) {
        const mrs_delta *delta = columns.deltas[__builtin_ctzll(left)];
        SameMatrix *group = nullptr;
        for (uint64_t rest = left; rest; rest &= rest - 1) {
          const int c = __builtin_ctzll(rest);
          if (columns.deltas[c] != delta) continue;
          left &= ~(uint64_t(1) << c);
          if (!group || group->count == SameMatrix::kMost) {
            const bool is_first = !group;
            group = groups + count++;
            group->b = delta->b, group->is_first = is_first, group->count = 0;
          }
          group->u[group->count] = columns.u[c], group->out[group->count++] = out + 16 * c;
        }
      }
    }

    void add_to(Pieces &pieces, const Range &panels) const {
      for (int g = 0; g < count; ++g) {
        const mrs_weight &b = *groups[g].b;
        const int64_t lines = view_of(b.type, b.cols).bytes / 64, all = (b.rows + 15) / 16;
        const int64_t end = panels.end < all ? panels.end : all;
        if (groups[g].is_first) pieces.add(b.data + panels.begin * lines * 64, (end - panels.begin) * lines);
      }
    }
  };

  // Computes the columns of one or two weights for some panels. `out` has room for each one's (panels, columns, 16). Each b
  // is read in one stream, which is faster than a few cache lines between panels of weights, for all rows that use it.
  // next: the panels for which the thread is likely to call this next, or none; the first of their lines are asked for.
  void expand_columns(const Columns *columns, int weights, const Range &panels, const Range &next, float *out,
                      Additions *made) const {
    static thread_local const uint8_t *announced;
    const int64_t size = (panels.end - panels.begin) * 16;
    const Groups groups[2] = {Groups(columns[0], out), Groups(columns[1], out + columns[0].count * size)};
    Pieces ahead, behind;
    for (int i = 0; i < weights; ++i) groups[i].add_to(ahead, panels);
    for (int i = 0; i < weights; ++i) groups[i].add_to(behind, next), groups[i].add_to(ahead, next);
    // a few lines of many matrices in turn, which no hardware prefetcher sees coming: asked for on every processor
    if (ahead.begin() == announced)
      ahead.skip(lines_ahead());
    else
      ahead.ask(lines_ahead());
    announced = behind.begin();
    for (int i = 0; i < weights; ++i) {
      for (const SameMatrix *group = groups[i].groups; group < groups[i].groups + groups[i].count; ++group)
        switch (group->b->type) {
          case MRS_F16: multiply_panels<MRS_F16>(*group, panels, 16 * columns[i].count, &ahead); break;
          case MRS_BF16: multiply_panels<MRS_BF16>(*group, panels, 16 * columns[i].count, &ahead); break;
          default: multiply_panels<MRS_F32>(*group, panels, 16 * columns[i].count, &ahead);
        }
      made[i] = {true, columns[i].count, {}, panels.begin, out + i * columns[0].count * size};
      std::memcpy(made[i].ends, columns[i].ends, sizeof columns[i].ends);
    }
  }

  void expand_group(const mrs_linear &linear, int member, int64_t panel, int live, const Uses *uses, const Group &group,
                    Vf *values) const {
    const mrs_delta &delta = linear.deltas[group.slot];
    const float *from[8];
    Vf acc[8];
    for (int i = 0; i < group.count; ++i) {
      const Uses &of = uses[group.rows[i]];
      from[i] = u(member, of, group.j);
      acc[i] = zero_f();
      if (delta.bias) acc[i] = mul(load_live(delta.bias + panel * 16, live), set_f(weight(linear, of, group.j)));
    }
    add_product(*delta.b, panel, from, 1, acc, group.count);
    for (int i = 0; i < group.count; ++i) {
      Vf &value = values[group.rows[i]];
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
