// Products of packed weights with activations: [norm ->] tiles of int8 -> panels times tiles -> epilogue.
//
// One driver serves dense weights and experts. Its operands name the weights and the tiles that each multiplies; its
// epilogue writes the products of one panel with one tile to their output.
#pragma once
#include "activations.h"
#include "deltas.h"
#include "micro_kernel.h"
#include "mrs.h"
#include "norm.h"
#include "pack.h"
#include "pool.h"
#include "rounding.h"
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
  unpack_fn unpack;           // leaves the unpacked weights before the first tile, or null where that does it
  micro_kernel_fn first, middle, last;
  micro_kernel_side_fn side[kPanels + 1] = {}, last_side[kPanels + 1] = {};  // for so many panels at once, or null

  Products(const mrs_weight &w, int first_tokens, int last_tokens, bool keeps, bool paired)
      : weight(w),
        panel_bytes(view_of(w.type, w.cols).bytes),
        kept(keeps ? kept_bytes(w.type, w.cols) : 0),
        plain(kept_bytes(w.type, w.cols) == 0),
        unpack(kept ? unpack_of(w.type) : nullptr),
        first(micro_kernel_of(w.type, first_tokens, true, paired)),
        middle(micro_kernel_of(w.type, 8, false, paired)),
        last(micro_kernel_of(w.type, last_tokens, false, paired)) {
    if (weight.row_bytes && plain) kept = panel_bytes;
    for (int panels = 2; (keeps || plain) && panels <= kPanels; ++panels) {
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
    return !unpack && !plain && is_first ? nullptr : (tile.tokens == 8 ? side : last_side)[panels];
  }

  // A panel as micro-kernels read it. One in its file's layout is packed by its first tile: plain numbers to where they
  // are kept, others, whose unpacked weights are kept, to `copy`.
  ALWAYS_INLINE const uint8_t *packed(int64_t panel, bool is_first, uint8_t *unpacked, uint8_t *copy) const {
    if (__builtin_expect(!weight.row_bytes, true)) return weight.data + panel * panel_bytes;
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
      const bool is_in_place = p.plain && !p.weight.row_bytes;
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

  // Multiplies one panel with a tile.
  ALWAYS_INLINE void multiply(int64_t panel, const Tile &tile, bool is_first, bool is_last, uint8_t *at, Ahead *ahead) const {
    const auto product = [&](const Products &p, uint8_t *unpacked, Ahead *asked, Vf *values) {
      const uint8_t *packed = p.packed(panel, is_first && !p.prepares(), unpacked, copy);
      p.multiply(panel, tile, is_first ? p.first : is_last ? p.last : p.middle, {packed, unpacked, asked}, values);
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
      if (p.unpack) p.unpack({packed, unpacked, nullptr}, p.weight.cols);
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
  const int first_tokens = operands.tile(tiles.begin).tokens, last_tokens = operands.tile(tiles.end - 1).tokens;
  const bool keeps = first_tokens == 8;
  const auto products_of = [&](const mrs_weight &w) {
    return Products(w, first_tokens, last_tokens, keeps, is_paired(w.type, operands.outlier_threshold));
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

// Multiplies every panel of every operand with the operand's tiles; a thread takes `span` panels at a time, and of each operand's
// tiles one of `blocks` equal parts. The blocks are parts of the job: a block's products are mostly computed by one thread.
//
// Operands has outlier_threshold; panels(), the number of panels of all operands; segment(from, to), the part of this range of panels that
// belongs to its first operand, with all of its tiles; at(operand) and tile(i). Epilogue is called as epilogue(operand,
// panel, live_rows, tile, values, second), where values[t] are 16 rows of the tile's token t, and second[t] those of the
// operand's second weight, if it has one; epilogue.of(segment) is the one for a segment's panels. For tiles of 8,
// epilogue.ask_for_output(operand, panel, tile) comes before that and asks for the lines that the epilogue will write; for a
// first tile whose panels are multiplied one by one, epilogue.ask_for(segment, panel, ahead) adds to `ahead` what it will read.
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
      multiply_segment(operands, segment, epilogue.of(segment));
      at += segment.end - segment.begin;
    }
  });
}

// The members of a projection, all of which multiply the same rows.
struct Members {
  Operand operands[4];
  int64_t ends[4];  // panels up to the end of each operand
  int count;
  int64_t rows, tile_bytes;
  uint8_t *scratch;
  float outlier_threshold;
  Needs needs = {};

  Members(const mrs_project &op, int64_t rows_, bool adapted)
      : rows(rows_), scratch(op.scratch), outlier_threshold(op.outlier_threshold) {
    const bool gated = op.epilogue == MRS_EPILOGUE_GATED;
    count = gated ? 1 : op.num_members;
    for (int m = 0; m < count; ++m) {
      operands[m] = {op.members[m].weight, gated ? op.members[1].weight : nullptr};
      ends[m] = (m ? ends[m - 1] : 0) + operands[m].panels();
    }
    for (int m = 0; m < op.num_members; ++m) needs.add(op.members[m].weight->type, outlier_threshold);
    needs.rows = adapted && !needs.floats;
    tile_bytes = bytes_of_tile(op.members[0].weight->cols, needs);
  }

  int64_t panels() const { return ends[count - 1]; }
  Segment segment(int64_t from, int64_t to) const {
    int m = 0;
    while (from >= ends[m]) ++m;
    const int64_t before = m ? ends[m - 1] : 0;
    return {m, from - before, (to < ends[m] ? to : ends[m]) - before, {0, num_tiles()}};
  }
  const Operand &at(int m) const { return operands[m]; }
  int64_t num_tiles() const { return (rows + 7) / 8; }
  Tile tile(int64_t i) const { return tile_of(8 * i, rows - 8 * i, scratch + i * tile_bytes); }

  // Blocks of tiles. A thread that rounds rows and multiplies them with all weights keeps them in its caches; in turn it
  // unpacks all weights, which takes as long as a tile's products.
  int64_t blocks(mrs_pool *pool) const {
    const int64_t fit = num_tiles() / kBlockTiles, threads = mrs_pool_size(pool);
    return fit < 2 ? 1 : fit < threads ? fit : threads;
  }

  // Panels that a thread takes at a time: they stay in the second-level cache while all tiles are multiplied with them.
  int64_t span(mrs_pool *pool) const {
    int64_t widest = 0;
    for (int m = 0; m < count; ++m) {
      const Operand &o = operands[m];
      const int64_t bytes = view_of(o.weight->type, o.weight->cols).bytes * (o.second ? 2 : 1);
      widest = bytes > widest ? bytes : widest;
    }
    // Few rows only read the panels: every new chunk begins a stream from memory anew. Many rows pass over them often. A
    // block's tiles, of which a thread has its own, are read again for each chunk.
    const bool is_read_once = rows <= 4;
    const int64_t room = is_read_once ? 1 << 21 : 1 << 18, threads = mrs_pool_size(pool), blocks = this->blocks(pool);
    const int64_t chunks = is_read_once ? threads : blocks > 1 ? 5 * threads / blocks : 4 * threads;
    const int64_t fit = room / widest > kPanels ? room / widest : kPanels, share = (panels() + chunks - 1) / chunks;
    const int64_t span = share < fit ? share : fit;
    if (is_read_once) return span;
    const int64_t least = needs.floats || needs.pairs ? kPanels : span;
    return span < kPanels ? least : span / kPanels * kPanels;
  }
};

// The epilogue of a projection: store, add to the old value, act(first) * second, or act.
struct ProjectEpilogue {
  const mrs_project &op;
  const Deltas &deltas;
  int64_t rows;
  Additions added[2] = {};  // to the panels of one segment, for each weight, if they are known before the products

  bool gated() const { return op.epilogue == MRS_EPILOGUE_GATED; }

  // The epilogue of a segment's panels. For few rows it knows what adapters add to all of them.
  ProjectEpilogue of(const Segment &segment) const {
    static thread_local ThreadMemory memory;
    if (!deltas.act || rows > Additions::kRows) return *this;
    const Range panels = {segment.begin, segment.end};
    const auto row = [&](int t) { return deltas.row_of(op.logits_only, t); };
    Deltas::Columns columns[2];
    for (int i = 0; i < 1 + gated(); ++i) {
      const int member = segment.operand + i;
      if (!deltas.find_columns(op.members[member], member, int(rows), columns[i], row)) return *this;
    }
    const int64_t size = (panels.end - panels.begin) * 16;
    float *out = (float *)memory.get((columns[0].count + columns[1].count) * size * sizeof(float));
    ProjectEpilogue own = *this;
    own.added[0] = deltas.expand_columns(columns[0], panels, out);
    if (gated()) own.added[1] = deltas.expand_columns(columns[1], panels, out + columns[0].count * size);
    return own;
  }

  void ask_for(const Segment &segment, int64_t panel, Ahead &ahead) const {
    if (!deltas.act) return;
    deltas.ask_for(op.members[segment.operand], {segment.begin, segment.end}, panel, ahead);
    if (gated()) deltas.ask_for(op.members[1], {segment.begin, segment.end}, panel, ahead);
  }

  // Asks for the lines that a panel's products with a tile will be written to: each token's are far apart.
  ALWAYS_INLINE void ask_for_output(int member, int64_t panel, const Tile &tile) const {
    const int64_t rows = op.members[member].weight->rows;
    for (int t = 0; t < tile.count; ++t) __builtin_prefetch(op.outs[member] + (tile.first + t) * rows + panel * 16, 1);
  }

  ALWAYS_INLINE void operator()(int member, int64_t panel, int live, const Tile &tile, Vf *values, Vf *second) const {
    if (added[0].is_known) {
      added[0].add_to(panel, tile.count, values);
      if (gated()) added[1].add_to(panel, tile.count, second);
    } else if (deltas.act) {
      const auto row = [&](int t) { return deltas.row_of(op.logits_only, tile.first + t); };
      deltas.expand(op.members[member], member, panel, live, tile, values, row);
      if (gated()) deltas.expand(op.members[1], 1, panel, live, tile, second, row);
    }
    const bool accumulates = op.epilogue == MRS_EPILOGUE_ADD;
    for (int t = 0; gated() && t < tile.count; ++t)
      values[t] = mul(activate(op.activation, values[t]), second[t]);
    for (int t = 0; op.epilogue == MRS_EPILOGUE_ACTIVATE && t < tile.count; ++t)
      values[t] = activate(op.activation, values[t]);
    for (int t = 0; op.scale != 1.0f && t < tile.count; ++t) values[t] = mul(values[t], set_f(op.scale));
    for (int t = 0; op.softcap > 0 && t < tile.count; ++t) values[t] = soft_cap(values[t], op.softcap);
    const int64_t rows = op.members[member].weight->rows;
    for (int t = 0; t < tile.count; ++t) {
      float *out = op.outs[member] + (tile.first + t) * rows + panel * 16;
      if (live == 16) {
        store_f(out, accumulates ? add(load_f(out), values[t]) : values[t]);
      } else {
        alignas(64) float old[16] = {0};
        for (int j = 0; j < live && accumulates; ++j) old[j] = out[j];
        store_first(out, accumulates ? add(load_f(old), values[t]) : values[t], live);
      }
    }
  }
};

// Fills a tile with a step's rows, normed on the way where the op asks for it.
INLINE void prepare_rows(const mrs_project &op, const mrs_step &step, const Tile &tile, int64_t cols, Needs needs) {
  const float *rows[8];
  for (int t = 0; t < tile.count; ++t) {
    const int64_t row = tile.first + t;
    rows[t] = op.x + (op.logits_only ? step.logits_indices[row] : row) * cols;
  }
  if (op.norm.kind == MRS_NORM_NONE) {
    prepare_tile(tile, cols, op.outlier_threshold, needs, [&](int t) { return rows[t]; });
    return;
  }
  Moments moments[8];
  int done = 0;
  for (; done + 4 <= tile.count; done += 4) find_moments<4>(op.norm, rows + done, cols, moments + done);
  for (; done < tile.count; ++done) find_moments<1>(op.norm, rows + done, cols, moments + done);
  float normed[cols];
  prepare_tile(tile, cols, op.outlier_threshold, needs, [&](int t) -> const float * {
    normalize(op.norm, rows[t], cols, moments[t], normed);
    return normed;
  });
}

// Computes u of all rows: a thread takes a member and rows with a common slot, up to four tiles of them, and reads a once.
INLINE void shrink_rows(const mrs_project &op, const Deltas &deltas, const Members &members, mrs_pool *pool) {
  struct Work {
    int64_t first;  // the group's rows are counted from here
    Deltas::Group group;
  };
  static thread_local ThreadMemory memory;
  Work *work = (Work *)memory.get(deltas.total * sizeof(Work));
  const int64_t cols = op.members[0].weight->cols, most = members.needs.rows ? 32 : 8;  // a tile of floats has its own stride
  int64_t count = 0;
  for (int64_t first = 0; first < members.rows; first += most) {
    const int rows = int(members.rows - first < most ? members.rows - first : most);
    Deltas::Uses uses[32];
    for (int r = 0; r < rows; ++r) uses[r] = deltas.uses_of(deltas.row_of(op.logits_only, first + r));
    deltas.for_groups(uses, rows, [&](const Deltas::Group &group) { work[count++] = {first, group}; });
  }
  const auto shrink = [&](int64_t i) {
    const int m = int(i % op.num_members);
    const Work &w = work[i / op.num_members];
    const auto plain = [&](int64_t tile) { return plain_rows(members.tile(tile), cols, members.needs); };
    deltas.shrink(
        op.members[m], m, w.group, plain(w.first / 8).stride,
        [&](int r) {
          const PlainRows of_tile = plain((w.first + r) / 8);
          return of_tile.x + (w.first + r) % 8 * of_tile.row;
        },
        [&](int r) { return deltas.row_of(op.logits_only, w.first + r); });
  };
  const int64_t shrinks = count * op.num_members;
  // a smaller one takes less time than waking a thread
  if (shrinks * cols < 3072) {
    for (int64_t i = 0; i < shrinks; ++i) shrink(i);
  } else {
    parallel_for(pool, shrinks, [&](int64_t i) { shrink(i); });
  }
}

void project(const mrs_op *self, const mrs_step *step, mrs_pool *pool) {
  const mrs_project &op = *(const mrs_project *)self;
  const int64_t cols = op.members[0].weight->cols, rows = op.logits_only ? step->num_logits : step->num_tokens;
  if (!rows) return;
  const Deltas deltas(*step, op.members, op.num_members, 1);
  const Members members(op, rows, deltas.act);
  auto prepare = [&](int64_t i) { prepare_rows(op, *step, members.tile(i), cols, members.needs); };
  // quantizing one token takes less time than waking a thread
  if (rows * cols < 16384) {
    for (int64_t i = 0; i < members.num_tiles(); ++i) prepare(i);
  } else {
    parallel_for(pool, members.num_tiles(), [&](int64_t i) { prepare(i); });
  }
  if (deltas.act) shrink_rows(op, deltas, members, pool);
  gemm(members, members.span(pool), members.blocks(pool), pool, ProjectEpilogue{op, deltas, rows});
}

}  // namespace MRS_ISA
