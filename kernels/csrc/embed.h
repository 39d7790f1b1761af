// Rows of a matrix as float32, exactly as the file's definition decodes them, and the step's rotary table.
#pragma once
#include "activations.h"
#include "deltas.h"
#include "formats.h"
#include "mrs.h"
#include "pack.h"
#include "pool.h"
#include "thread_memory.h"

namespace MRS_ISA {

struct UnpackRow {
  const uint8_t *panel;
  int64_t cols;
  int lane;
  float *out;

  template <class F, int J> void group(const uint8_t *quants, int n, const Scales &s, float *to) {
    constexpr int offset = F::OFFSET_LOG2 ? 1 << F::OFFSET_LOG2 : 0;
    for (int l = 0; l < 8; ++l) {
      alignas(64) uint8_t bytes[64];
      alignas(64) float d[16], m[16];
      int sub = (n * F::INNER + J) * (32 / F::SUB) + (F::SUB == 16 && l >= 4);
      store_i(bytes, F::template line<J>(quants, n, l));
      store_f(d, s.d[sub]);
      store_f(m, addend_of<F>(s, sub));
      for (int i = 0; i < 4; ++i) to[4 * l + i] = d[lane] * float(bytes[4 * lane + i] - offset) + m[lane];
    }
  }

  template <class F> void run() {
    const panel_view view = view_of(F::type, cols);
    const int block = layout_of(F::type).block;
    for (int64_t b = 0; b < view.blocks; ++b) {
      const panel_block at = view.block(b);
      const uint8_t *scales = panel + at.scales, *quants = panel + at.quants;
      Scales s;
      F::unpack_scales(scales, quants, s);
      float *to = out + b * block;
      for (int n = 0; n < F::OUTER; ++n, to += 32 * F::INNER) {
        group<F, 0>(quants, n, s, to);
        if constexpr (F::INNER > 1) group<F, 1>(quants, n, s, to + 32);
        if constexpr (F::INNER > 2) group<F, 2>(quants, n, s, to + 64), group<F, 3>(quants, n, s, to + 96);
      }
    }
  }

  template <int TYPE> void run_float() {
    for (int64_t k = 0; k < cols; ++k) {
      alignas(64) float values[16];
      store_f(values, load_weight<TYPE>(panel + k * layout_of(TYPE).quants));
      out[k] = values[lane];
    }
  }
};

// Unpacks a row of a matrix in the layout of its file, by way of a panel that has no other row.
INLINE void unpack_stored_row(const mrs_weight &weight, int64_t row, float *out) {
  static thread_local ThreadMemory memory;
  const int64_t at = weight.order ? weight.order[row] : row;
  const uint8_t *data = weight.data + at * weight.row_bytes;
  const mrs_weight one = {data, nullptr, weight.type, 1, weight.cols, weight.row_bytes, nullptr};
  uint8_t *panel = memory.get(view_of(weight.type, weight.cols).bytes);
  pack_panel(&one, 0, panel);
  visit_type(weight.type, UnpackRow{panel, weight.cols, 0, out});
}

void unpack_row(const mrs_weight *weight, int64_t row, float *out) {
  if (weight->row_bytes) return unpack_stored_row(*weight, row, out);
  const uint8_t *panel = weight->data + row / 16 * view_of(weight->type, weight->cols).bytes;
  visit_type(weight->type, UnpackRow{panel, weight->cols, int(row % 16), out});
}

INLINE void rotary_row(const mrs_rotary &r, int64_t token, int32_t position) {
  float *cosine = r.table + token * 2 * r.half, *sine = cosine + r.half;
  for (int i = 0; i < r.half; ++i) {
    double angle = float(position) * r.inv_freq[i];  // the product in float32, as models were trained
    cosine[i] = float(std::cos(angle)) * r.scale;
    sine[i] = float(std::sin(angle)) * r.scale;
  }
}

// Adds to an embedding row the products of b with the adapters' own rows of the token.
INLINE void embed_deltas(const mrs_linear &linear, const mrs_step &step, const Deltas &deltas, int64_t t, float *x) {
  if (!linear.deltas) return;
  const Deltas::Uses uses = deltas.uses_of(t);
  for (int64_t j = 0; j < uses.count; ++j) {
    const mrs_delta &delta = linear.deltas[step.use_slots[uses.first + j]];
    if (!delta.a) continue;
    float *u = deltas.u(0, uses, j);
    unpack_row(delta.a, step.tokens[t], u);
    const float factor = delta.scale * deltas.weight(linear, uses, j);
    for (int64_t k = 0; k < delta.b->cols; ++k) u[k] *= factor;
  }
  const Tile tile = {t, 1, 1, nullptr};
  for (int64_t panel = 0; panel * 16 < linear.weight->cols; ++panel) {
    const int live = int(linear.weight->cols - panel * 16 < 16 ? linear.weight->cols - panel * 16 : 16);
    Vf value = load_live(x + panel * 16, live);
    deltas.expand(linear, 0, panel, live, tile, &value, [&](int) { return t; });
    store_first(x + panel * 16, value, live);
  }
}

void embed(const mrs_op *self, const mrs_step *step, mrs_pool *pool) {
  const mrs_embed &op = *(const mrs_embed *)self;
  const int64_t cols = op.member.weight->cols, span = 16;
  const Deltas deltas(*step, &op.member, 1, 1);
  parallel_for(pool, (step->num_tokens + span - 1) / span, [&](int64_t chunk) {
    int64_t to = (chunk + 1) * span < step->num_tokens ? (chunk + 1) * span : step->num_tokens;
    for (int64_t t = chunk * span; t < to; ++t) {
      float *x = op.x + t * cols;
      unpack_row(op.member.weight, step->tokens[t], x);
      if (deltas.act) embed_deltas(op.member, *step, deltas, t, x);
      for (int64_t k = 0; op.scale != 1.0f && k < cols; ++k) x[k] *= op.scale;
      for (const mrs_rotary &r : op.rotary)
        if (r.half) rotary_row(r, t, step->positions[t]);
    }
  });
}

}  // namespace MRS_ISA
