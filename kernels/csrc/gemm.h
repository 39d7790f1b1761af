// Products of packed weights with activations: panels times tiles -> epilogue.
//
// One driver serves dense weights (project.h) and experts (moe.h). Its operands name the weights and the tiles that each
// multiplies; its epilogue writes the products of one panel with one tile to their output.
#pragma once
#include "activations.h"
#include "deltas.h"
#include "micro_kernel_packed.h"
#include "micro_kernel_tiles.h"
#include "mrs.h"
#include "pack.h"
#include "pool.h"
#include "thread_memory.h"

namespace MRS_ISA {

// A weight, and a second one of the same shape whose products the epilogue gets as well, or null.
struct Operand {
  const mrs_weight *weight, *second;

  int64_t panels() const { return (weight->rows + 15) / 16; }
  // Rows of a panel that are not padding.
  int live_rows(int64_t panel) const { return int(weight->rows - panel * 16 < 16 ? weight->rows - panel * 16 : 16); }
};

// Panels [begin, end) of one operand, and the tiles that they multiply.
struct Segment {
  int operand;
  int64_t begin, end;
  Range tiles;
};

// The place of a tile among those of 8 that some panels are multiplied with; one of fewer tokens is counted if it is alone.
// The thread's next panels are likely to be `ahead` behind these.
struct Turn {
  int64_t tile, tiles, ahead;
};

// A weight's micro-kernels for the tiles of one operand: all are of 8 tokens, but for the last.
struct Products {
  const mrs_weight &weight;
  int64_t panel_bytes, kept;  // bytes of a panel, and of what its first tile leaves to the others
  bool plain;                 // plain numbers have no unpacked form
  bool direct;                // all tiles read the panels as they are packed
  unpack_fn unpack;           // leaves the unpacked weights before the first tile, or null where that does it
  micro_kernel_fn first, middle, last;
  micro_kernel_side_fn side[kPanels + 1] = {}, last_side[kPanels + 1] = {};  // for so many panels at once, or null

  Products(const mrs_weight &w, int first_tokens, int last_tokens, bool keeps, bool direct, bool paired)
      : weight(w),
        panel_bytes(view_of(w.type, w.cols).bytes),
        kept(keeps && !direct ? kept_bytes(w.type, w.cols) : 0),
        plain(kept_bytes(w.type, w.cols) == 0),
        direct(direct),
        unpack(kept ? unpack_of(w.type) : nullptr),
        first(micro_kernel_of(w.type, first_tokens, true, paired)),
        middle(micro_kernel_of(w.type, 8, false, paired)),
        last(micro_kernel_of(w.type, last_tokens, direct, paired)) {
    if (weight.row_bytes && plain) kept = panel_bytes;
    for (int panels = 1; direct && panels <= kPanels; ++panels) {
      side[panels] = micro_kernel_packed_of(w.type, panels, 8);
      last_side[panels] = micro_kernel_packed_of(w.type, panels, last_tokens);
    }
    for (int panels = 2; !direct && (keeps || plain) && panels <= kPanels; ++panels) {
      side[panels] = micro_kernel_side_of(w.type, panels, 8, paired);
      last_side[panels] = micro_kernel_side_of(w.type, panels, last_tokens, paired);
    }
  }

  // Bytes in which a panel that lies in its file's layout is packed for one tile.
  int64_t copied() const { return weight.row_bytes && !plain ? panel_bytes : 0; }

  // Whether something comes before a panel's first tile: unpacking, or packing plain numbers that lie in their file's layout.
  bool prepares() const { return unpack || (plain && weight.row_bytes); }

  // The micro-kernel that multiplies a tile with so many panels at once, or null.
  micro_kernel_side_fn side_of(int64_t panels, const Tile &tile, bool is_first) const {
    return !unpack && !plain && !direct && is_first ? nullptr : (tile.tokens == 8 ? side : last_side)[panels];
  }

  // A panel where it stands in memory, if that is not the file's layout.
  const uint8_t *stored(int64_t panel) const { return weight.data + panel * panel_bytes; }

  // A panel as micro-kernels read it. One in its file's layout is packed by its first tile: plain numbers to where they
  // are kept, others, whose unpacked weights are kept, to `copy`.
  ALWAYS_INLINE const uint8_t *packed(int64_t panel, bool is_first, uint8_t *unpacked, uint8_t *copy) const {
    if (__builtin_expect(!weight.row_bytes, true)) return stored(panel);
    uint8_t *to = plain ? unpacked : copy;
    if (is_first) pack_panel(&weight, panel, to);
    return to;
  }

  // The cache lines of panels to come that a tile asks for: the first one for all of the kPanels panels behind those from
  // `panel` on; of plain numbers, which need nothing before their first tile, each tile for its part.
  Bytes next(int64_t panel, const Tile &tile, const Turn &turn) const {
    if (turn.tile && (!plain || tile.tokens < 8)) return {nullptr, nullptr};
    return plain ? part_of(panel + turn.ahead, turn) : part_of(panel + kPanels, {0, 1, kPanels});
  }
  Bytes part_of(int64_t panel, const Turn &turn) const {
    const int64_t panels = (weight.rows + 15) / 16, to = panel + kPanels < panels ? panel + kPanels : panels;
    if (weight.row_bytes || panel >= to) return {nullptr, nullptr};
    const int64_t lines = (to - panel) * panel_bytes / 64;
    const uint8_t *data = weight.data + panel * panel_bytes;
    return {data + lines * turn.tile / turn.tiles * 64, data + lines * (turn.tile + 1) / turn.tiles * 64};
  }

  // Multiplies one panel with one tile: values[t] for the tile's tokens, with the bias.
  ALWAYS_INLINE void multiply(int64_t panel, const Tile &tile, micro_kernel_fn micro_kernel, const Panel &at,
                              Vf *values) const {
    alignas(64) float out[8 * 16];
    micro_kernel(at, weight.cols, acts_at(tile.base, weight.cols, tile.tokens), out);
    read(panel, tile, out, values);
  }

  // values[t] = the products `out` of one panel with the tile's tokens, with the bias.
  ALWAYS_INLINE void read(int64_t panel, const Tile &tile, const float *out, Vf *values) const {
    alignas(64) float bias[16] = {0};
    for (int64_t r = panel * 16; weight.bias && r < weight.rows && r < panel * 16 + 16; ++r)
      bias[r - panel * 16] = weight.bias[r];
    for (int t = 0; t < tile.count; ++t) {
      values[t] = load_f(out + 16 * t);
      if (weight.bias) values[t] = add(values[t], load_f(bias));
    }
  }
};

// Unpacked weights that stay in the second-level cache beside a tile and the panels to come.
constexpr int64_t kKeptBytes = 416 << 10;
// Tiles with which kPanels panels at a time are multiplied: more of them would come from beyond the cache for each panel.
constexpr int64_t kNearTiles = 4;
// Panels that few tokens multiply one after another before the epilogue gets their products. The stream from memory pauses for
// the epilogue; beside large panels a run of 32 takes less time than each by itself, beside small ones more (docs/log.md).
constexpr int64_t kRun = 32;
INLINE int64_t run_of(int64_t panel_bytes) { return panel_bytes < (mrs_has_wide_l1 ? 24 : 16) << 10 ? 1 : kRun; }
// Whether `count` values that a job computes are stored past the caches: threads are far from each other, and the values are few
// enough to be read before they would have left the caches anyway.
INLINE bool streams_values(int64_t count, const mrs_pool *pool) { return count <= 1 << 18 && mrs_pool_is_far(pool); }
// Tiles of a block at least, see Members::blocks().
constexpr int64_t kBlockTiles = 16;

// A segment's products in work: its operand's weights and the memory for panels that are unpacked.
template <class Operands, class Epilogue> struct SegmentProducts {
  const Operands &operands;
  const Segment &segment;
  const Epilogue &epilogue;
  const Operand operand;
  const Products &first, &second;  // second: of a gated operand
  int64_t kept;                    // bytes from one unpacked panel to the next
  uint8_t *copy;                   // memory for a panel that is packed

  bool gated() const { return operand.second; }

  // Multiplies panels [panel, to), which stand unpacked from `at` on, with a tile, as many as there are side by side.
  // Returns how many.
  ALWAYS_INLINE int64_t multiply_side(int64_t panel, int64_t to, const Tile &tile, const Turn &turn, uint8_t *at) const {
    const int64_t from = panel;
    const Acts acts = acts_at(tile.base, first.weight.cols, tile.tokens);
    const auto products = [&](const Products &p, micro_kernel_side_fn fn, uint8_t *unpacked, float *out) {
      const bool is_in_place = p.direct || (p.plain && !p.weight.row_bytes);
      fn(is_in_place ? p.weight.data + panel * p.panel_bytes : unpacked, is_in_place ? p.panel_bytes : kept, p.weight.cols,
         acts, p.next(panel, tile, turn), out);
    };
    while (panel < to) {
      const int64_t count = to - panel < kPanels ? to - panel : kPanels;
      const micro_kernel_side_fn side = first.side_of(count, tile, turn.tile == 0);
      const micro_kernel_side_fn second_side = gated() ? second.side_of(count, tile, turn.tile == 0) : side;
      if (!side || !second_side) break;
      alignas(64) float out[kPanels * 128], second_out[kPanels * 128];
      for (int p = 0; tile.tokens == 8 && p < count; ++p) epilogue.ask_for_output(segment.operand, panel + p, tile);
      products(first, side, at, out);
      if (gated()) products(second, second_side, at + first.kept, second_out);
      for (int p = 0; p < count; ++p) {
        Vf values[8], others[8];
        first.read(panel + p, tile, out + 128 * p, values);
        if (gated()) second.read(panel + p, tile, second_out + 128 * p, others);
        epilogue(segment.operand, panel + p, operand.live_rows(panel + p), tile, values, others);
      }
      panel += count, at += count * kept;
    }
    return panel - from;
  }

  // Multiplies all panels, which lie packed, with a tile of fewer than 8 tokens: it is the only one, and they are read once.
  ALWAYS_INLINE void multiply_once(const Tile &tile) const {
    alignas(64) float out[kRun * 4 * 16], second_out[kRun * 4 * 16];
    const Acts acts = acts_at(tile.base, first.weight.cols, tile.tokens);
    const int64_t size = tile.tokens * 16, run = run_of(first.panel_bytes);
    for (int64_t from = segment.begin; from < segment.end; from += run) {
      const int64_t to = from + run < segment.end ? from + run : segment.end;
      for (int64_t panel = from; panel < to; ++panel) {
        const int64_t at = (panel - from) * size;
        const uint8_t *other = gated() ? second.stored(panel) : nullptr;
        first.first({first.stored(panel), nullptr, nullptr, other}, first.weight.cols, acts, out + at);
        if (gated()) second.first({other, nullptr, nullptr, first.stored(panel + 1)}, first.weight.cols, acts, second_out + at);
      }
      for (int64_t panel = from; panel < to; ++panel) {
        const int64_t at = (panel - from) * size;
        Vf values[8], others[8];
        first.read(panel, tile, out + at, values);
        if (gated()) second.read(panel, tile, second_out + at, others);
        epilogue(segment.operand, panel, operand.live_rows(panel), tile, values, others);
      }
    }
  }

  // Multiplies one panel with a tile.
  ALWAYS_INLINE void multiply(int64_t panel, const Tile &tile, bool is_first, bool is_last, uint8_t *at, Ahead *ahead) const {
    const auto product = [&](const Products &p, uint8_t *unpacked, Ahead *asked, Vf *values) {
      const uint8_t *packed = p.packed(panel, is_first && !p.prepares(), unpacked, copy);
      p.multiply(panel, tile, is_first ? p.first : is_last ? p.last : p.middle, {packed, unpacked, asked, nullptr}, values);
    };
    if (tile.tokens == 8) epilogue.ask_for_output(segment.operand, panel, tile);
    Vf values[8], others[8];
    product(first, at, ahead, values);
    if (gated()) product(second, at + first.kept, nullptr, others);
    epilogue(segment.operand, panel, operand.live_rows(panel), tile, values, others);
  }

  // Unpacks or packs one panel, where that comes before its first tile.
  ALWAYS_INLINE void prepare(int64_t panel, uint8_t *at) const {
    const auto prepare_one = [&](const Products &p, uint8_t *unpacked) {
      if (!p.prepares()) return;
      const uint8_t *packed = p.packed(panel, true, unpacked, copy);
      if (p.unpack) p.unpack({packed, unpacked, nullptr, nullptr}, p.weight.cols);
    };
    prepare_one(first, at);
    if (gated()) prepare_one(second, at + first.kept);
  }
};

// Multiplies a segment's panels with its tiles, a few panels at a time: what is unpacked for the first
// tile serves the others.
template <class Operands, class Epilogue>
INLINE void multiply_segment(const Operands &operands, const Segment &segment, const Epilogue &epilogue) {
  static thread_local ThreadMemory memory;
  const Operand operand = operands.at(segment.operand);
  const Range tiles = segment.tiles;
  if (tiles.begin == tiles.end) return;
  const Tile first_tile = operands.tile(tiles.begin);
  const int first_tokens = first_tile.tokens, last_tokens = operands.tile(tiles.end - 1).tokens;
  const bool keeps = first_tokens == 8;
  const auto is_direct = [&](const mrs_weight *w) {
    if (!w) return true;
    if (w->row_bytes || !micro_kernel_packed_of(w->type, kPanels, first_tokens)) return false;
    if (!keeps) return has_few_side_by_side(w->type, w->cols);
    return is_multiplied_packed(w->type, tiles.end - tiles.begin, acts_at(first_tile.base, w->cols, 8));
  };
  const bool direct = is_direct(operand.weight) && is_direct(operand.second);
  const auto products_of = [&](const mrs_weight &w) {
    return Products(w, first_tokens, last_tokens, keeps, direct, is_paired(w.type, operands.outlier_threshold));
  };
  const Products first = products_of(*operand.weight);
  const Products second = products_of(operand.second ? *operand.second : *operand.weight);
  const int64_t kept = first.kept + (operand.second ? second.kept : 0);

  const int64_t count = segment.end - segment.begin;
  const int64_t read = kept ? kept : first.panel_bytes + (operand.second ? second.panel_bytes : 0);  // a panel, as tiles read it
  const int64_t fit = read * kPanels < kKeptBytes ? kKeptBytes / read / kPanels * kPanels : kPanels;
  const int64_t most = tiles.end - tiles.begin <= kNearTiles ? kPanels : fit;
  const int64_t groups = (count + most - 1) / most, equal = (count + groups - 1) / groups;
  const int64_t step = (equal + kPanels - 1) / kPanels * kPanels;
  const int64_t first_copy = first.copied(), second_copy = operand.second ? second.copied() : 0;
  const int64_t copied = first_copy > second_copy ? first_copy : second_copy;
  uint8_t *unpacked = kept + copied ? memory.get(step * kept + copied) : nullptr;
  const SegmentProducts<Operands, Epilogue> products = {operands, segment, epilogue, operand, first, second, kept,
                                                        unpacked + step * kept};
  const bool is_packed = !copied && !first.plain && !second.plain;
  if (!keeps && !direct && is_packed) return products.multiply_once(first_tile);
  const int64_t whole = tiles.end - tiles.begin - (keeps && last_tokens < 8);
  for (int64_t from = segment.begin; from < segment.end; from += step) {
    const int64_t to = from + step < segment.end ? from + step : segment.end;
    for (int64_t i = tiles.begin; i < tiles.end; ++i) {
      const Tile tile = operands.tile(i);
      const Turn turn = {i - tiles.begin, whole, to - from};
      const bool is_first = i == tiles.begin, asks = keeps && is_first;
      for (int64_t panel = from; (first.prepares() || second.prepares()) && is_first && panel < to; ++panel)
        products.prepare(panel, unpacked + (panel - from) * kept);
      int64_t panel = from + products.multiply_side(from, to, tile, turn, unpacked);
      for (; panel < to; ++panel) {
        Ahead ahead;
        if (asks) epilogue.ask_for(segment, panel, ahead);
        products.multiply(panel, tile, is_first, i + 1 == tiles.end, unpacked + (panel - from) * kept,
                          ahead.empty() ? nullptr : &ahead);
      }
    }
  }
}

// Panels that a thread takes at a time where each is read once: equal turns of at most 1 MB. Every turn begins a stream from
// memory anew, and a thread that has no more of them waits for the others.
INLINE int64_t equal_span(int64_t panels, int64_t panel_bytes, int64_t threads) {
  const int64_t fit = (1 << 20) / panel_bytes > kPanels ? (1 << 20) / panel_bytes : kPanels;
  const int64_t share = (panels + threads - 1) / threads, turns = (share + fit - 1) / fit;
  return (share + turns - 1) / turns;
}

// Multiplies every panel of every operand with the operand's tiles; a thread takes `span` panels at a time, and of each operand's
// tiles one of `blocks` equal parts. The blocks are parts of the job: a block's products are mostly computed by one thread.
//
// Operands has outlier_threshold; panels(), the number of panels of all operands; segment(from, to), the part of this range of
// panels that belongs to its first operand, with all of its tiles; at(operand) and tile(i); and prepare(segment), which each
// thread calls before it reads a tile or asks for the segment's epilogue. Epilogue is called as epilogue(operand, panel,
// live_rows, tile, values, second), where values[t] are 16 rows of the tile's token t, and second[t] those of the operand's
// second weight, if it has one; epilogue.of(segment) is the one for a segment's panels. For tiles of 8,
// epilogue.ask_for_output(operand, panel, tile) comes before that and asks for the lines that the epilogue will write; for a
// first tile whose panels are multiplied one by one, epilogue.ask_for(segment, panel, ahead) adds to `ahead` what it will read.
// epilogue.streams: it uses store_line() with that.
template <class Operands, class Epilogue>
INLINE void gemm(const Operands &operands, int64_t span, int64_t blocks, mrs_pool *pool, const Epilogue &epilogue) {
  const int64_t total = operands.panels(), chunks = (total + span - 1) / span;
  parallel_for(pool, blocks * chunks, [&](int64_t turn) {
    const int64_t block = turn / chunks, chunk = turn % chunks;
    const int64_t end = (chunk + 1) * span < total ? (chunk + 1) * span : total;
    for (int64_t at = chunk * span; at < end;) {
      Segment segment = operands.segment(at, end);
      const int64_t first = segment.tiles.begin, tiles = segment.tiles.end - first;
      segment.tiles = {first + block * tiles / blocks, first + (block + 1) * tiles / blocks};
      operands.prepare(segment);
      multiply_segment(operands, segment, epilogue.of(segment));
      at += segment.end - segment.begin;
    }
    if (epilogue.streams) end_streaming();
  });
}

}  // namespace MRS_ISA
