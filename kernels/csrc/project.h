// Projections of a step's rows: [norm ->] tiles of int8 -> what adapters add -> products of all members -> epilogue.
#pragma once
#include "activations.h"
#include "deltas.h"
#include "gemm.h"
#include "layout.h"
#include "mrs.h"
#include "norm.h"
#include "pool.h"
#include "rounding.h"
#include "thread_memory.h"

#include <sched.h>

namespace MRS_ISA {

// Rows of a step as an op reads them: eight of them at most, normed where it asks for that.
struct StepRows {
  const mrs_project &op;
  int64_t cols;
  const float *rows[8];
  Moments moments[8];

  StepRows(const mrs_project &op, const mrs_step &step, int64_t first, int count) : op(op), cols(op.members[0].weight->cols) {
    for (int t = 0; t < count; ++t) rows[t] = op.x + (op.logits_only ? step.logits_indices[first + t] : first + t) * cols;
    if (!is_normed()) return;
    int done = 0;
    for (; done + 4 <= count; done += 4) find_moments<4>(op.norm, rows + done, cols, moments + done);
    for (; done < count; ++done) find_moments<1>(op.norm, rows + done, cols, moments + done);
  }

  bool is_normed() const { return op.norm.kind != MRS_NORM_NONE; }

  // The values of row t: where it is normed, they are written to `normed`.
  const float *values(int t, float *normed) const {
    if (!is_normed()) return rows[t];
    normalize(op.norm, rows[t], cols, moments[t], normed);
    return normed;
  }
};

// Fills a tile with a step's rows.
INLINE void prepare_rows(const mrs_project &op, const mrs_step &step, const Tile &tile, Needs needs) {
  const StepRows rows(op, step, tile.first, tile.count);
  float normed[rows.cols];
  prepare_tile(tile, rows.cols, op.outlier_threshold, needs, [&](int t) { return rows.values(t, normed); });
}

// The products of a step's rows with the matrices a of their adapters. Each is that of one member and of rows with a common slot,
// which read a once: of up to four tiles, if their plain values stand row by row.
class Shrinks {
  struct Work {
    int64_t first;  // the group's rows are counted from here
    Deltas::Group group;
  };
  const mrs_project &op;
  const Deltas &deltas;
  const bool from_memory;  // a comes from memory; many rows find it in the caches
  const Work *work = nullptr;
  int64_t groups = 0;

 public:
  // at_once: rows that may be one product's.
  Shrinks(const mrs_project &op, const Deltas &deltas, int64_t rows, int64_t at_once)
      : op(op), deltas(deltas), from_memory(rows <= Additions::kRows) {
    static thread_local ThreadMemory memory;
    if (!deltas.act) return;
    Work *found = (Work *)memory.get(deltas.total * sizeof(Work));
    for (int64_t first = 0; first < rows; first += at_once) {
      const int count = int(rows - first < at_once ? rows - first : at_once);
      Deltas::Uses uses[32];
      for (int r = 0; r < count; ++r) uses[r] = deltas.uses_of(deltas.row_of(op.logits_only, first + r));
      deltas.for_groups(uses, count, [&](const Deltas::Group &group) { found[groups++] = {first, group}; });
    }
    work = found;
  }

  int64_t count() const { return groups * op.num_members; }

  // Computes the i-th. plain(tile) gives the plain values of a tile's rows.
  template <class PlainOf> void run(int64_t i, PlainOf &&plain) const {
    const int m = int(i % op.num_members);
    const Work &w = work[i / op.num_members];
    const mrs_linear &next = op.members[(i + 1) % op.num_members];
    const int next_slot = work[(i + 1) / op.num_members % groups].group.slot;
    const mrs_weight *next_a = next.deltas && from_memory ? next.deltas[next_slot].a : nullptr;
    deltas.shrink(
        op.members[m], m, w.group, plain(w.first / 8).stride,
        [&](int r) {
          const PlainRows of_tile = plain((w.first + r) / 8);
          return of_tile.x + (w.first + r) % 8 * of_tile.row;
        },
        [&](int r) { return deltas.row_of(op.logits_only, w.first + r); }, next_a ? next_a->data : nullptr);
  }
};

// Weights that a thread begins to read at most while another one rounds.
constexpr int64_t kReadBytes = 256 << 10;
// Looks at a flag, some 10 us, after which a thread that waits for another gives way to it.
constexpr int kPatience = 256;

// The members of a projection, all of which multiply the same rows.
struct Members {
  // What a thread made for itself: tiles, and plain rows.
  struct Own {
    ThreadMemory memory, plain_memory;
    uint8_t *tiles = nullptr;
    uint64_t turn = 0;
  };

  Operand operands[4];
  int64_t ends[4];  // panels up to the end of each operand
  int count;
  int64_t rows, cols, tile_bytes;
  uint8_t *scratch;
  float outlier_threshold;
  Needs needs = {};
  uint64_t turn = 0;  // not 0: each thread rounds all rows into memory of its own, once for each turn
  Own *caller = nullptr;  // not null: it rounds the rows in the job
  alignas(64) mutable int64_t is_rounded = 0, num_shrunk = 0, next_shrink = 0;
  alignas(64) const mrs_project *op = nullptr;
  const mrs_step *step = nullptr;
  const Shrinks *shrinks = nullptr;

  Members(const mrs_project &op, int64_t rows_, bool adapted)
      : rows(rows_), cols(op.members[0].weight->cols), scratch(op.scratch), outlier_threshold(op.outlier_threshold) {
    const bool gated = op.epilogue == MRS_EPILOGUE_GATED;
    count = gated ? 1 : op.num_members;
    for (int m = 0; m < count; ++m) {
      operands[m] = {op.members[m].weight, gated ? op.members[1].weight : nullptr};
      ends[m] = (m ? ends[m - 1] : 0) + operands[m].panels();
    }
    for (int m = 0; m < op.num_members; ++m) needs.add(op.members[m].weight->type, outlier_threshold);
    needs.rows = adapted && !needs.floats;
    tile_bytes = bytes_of_tile(cols, needs);
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
  Tile tile(int64_t i) const { return tile_of(8 * i, rows - 8 * i, (turn ? own().tiles : scratch) + i * tile_bytes); }

  static Own &own() {
    static thread_local Own own;
    return own;
  }

  // Lets each thread round few rows for itself. The lines of tiles that one thread wrote take the others longer, and they
  // would have to wait for them.
  void round_in_each_thread(const mrs_project &of, const mrs_step &in) {
    static uint64_t turns = 0;
    op = &of, step = &in, turn = __atomic_add_fetch(&turns, 1, __ATOMIC_RELAXED);
  }

  // Lets the caller round the rows when the others have joined the job. Meanwhile these begin with the shrinks and read their
  // first weights, for memory would have nothing to do.
  void round_in_job(const mrs_project &of, const mrs_step &in, const Shrinks &and_shrinks) {
    op = &of, step = &in, shrinks = &and_shrinks, caller = &own();
  }

  void round(int64_t i) const { prepare_rows(*op, *step, tile(i), needs); }

  PlainRows plain(int64_t i) const { return plain_rows(tile(i), cols, needs); }

  // Called before a thread multiplies the panels of a segment: sees to it that all rows are rounded and all shrinks computed.
  void prepare(const Segment &segment) const {
    if (caller && !is_prepared()) {
      if (caller == &own()) {
        for (int64_t i = 0; i < num_tiles(); ++i) round(i);
        __atomic_store_n(&is_rounded, 1, __ATOMIC_RELEASE);
        shrink([&](int64_t i) { return plain(i); });
      } else {
        const float *rows = nullptr;
        shrink([&](int64_t i) {
          if (!rows) rows = own_rows();
          return PlainRows{rows + 8 * i * cols, cols, 1};
        });
      }
      read_until_prepared(segment);
    }
    if (!turn || own().turn == turn) return;
    Own &mine = own();
    mine.turn = turn, mine.tiles = (uint8_t *)mine.memory.get(num_tiles() * tile_bytes);
    for (int64_t i = 0; i < num_tiles(); ++i) round(i);
  }

  bool is_prepared() const {
    return __atomic_load_n(&is_rounded, __ATOMIC_ACQUIRE) && __atomic_load_n(&num_shrunk, __ATOMIC_ACQUIRE) == shrinks->count();
  }

  // Computes shrinks until each was begun by some thread. plain: see Shrinks::run.
  template <class PlainOf> void shrink(PlainOf &&plain) const {
    const int64_t count = shrinks->count();
    while (__atomic_load_n(&next_shrink, __ATOMIC_RELAXED) < count) {
      const int64_t i = __atomic_fetch_add(&next_shrink, 1, __ATOMIC_RELAXED);
      if (i >= count) return;
      shrinks->run(i, plain);
      __atomic_fetch_add(&num_shrunk, 1, __ATOMIC_RELEASE);
    }
  }

  // The plain values of all rows, for a thread that does not wait for the caller's.
  const float *own_rows() const {
    if (op->norm.kind == MRS_NORM_NONE && !op->logits_only) return op->x;
    float *all = (float *)own().plain_memory.get(rows * cols * sizeof(float));
    for (int64_t first = 0; first < rows; first += 8) {
      const int count = int(rows - first < 8 ? rows - first : 8);
      const StepRows of_step(*op, *step, first, count);
      for (int t = 0; t < count; ++t) {
        float *to = all + (first + t) * cols;
        const float *values = of_step.values(t, to);
        if (values != to) std::memcpy(to, values, cols * sizeof(float));
      }
    }
    return all;
  }

  // Reads weights of a segment in the order in which they are multiplied, until all is prepared: as many as the second-level
  // cache has room for.
  void read_until_prepared(const Segment &segment) const {
    const Operand &operand = at(segment.operand);
    const mrs_weight *const weights[] = {operand.weight, operand.second};
    int64_t room = kReadBytes;
    for (int64_t panel = segment.begin; panel < segment.end && room > 0; ++panel)
      for (const mrs_weight *w : weights) {
        if (!w || w->row_bytes) continue;
        const int64_t bytes = view_of(w->type, w->cols).bytes;
        const uint8_t *data = w->data + panel * bytes;
        for (int64_t i = 0; i < bytes; i += 64) {
          if (i % 512 == 0 && is_prepared()) return;
          *(const volatile uint8_t *)(data + i);
        }
        room -= bytes;
      }
    for (int turns = 0; !is_prepared(); ++turns)
      turns < kPatience ? relax() : (void)sched_yield();  // another thread may need this core
  }

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
    const int64_t threads = mrs_pool_size(pool), blocks = this->blocks(pool);
    if (rows <= 4) return equal_span(panels(), widest, threads);
    // Many rows pass over the panels often. A block's tiles, of which a thread has its own, are read again for each chunk.
    const int64_t room = 1 << 18, chunks = blocks > 1 ? 5 * threads / blocks : 4 * threads;
    const int64_t fit = room / widest > kPanels ? room / widest : kPanels, share = (panels() + chunks - 1) / chunks;
    const int64_t span = share < fit ? share : fit;
    const int64_t least = needs.floats || needs.pairs ? kPanels : span;
    return span < kPanels ? least : span / kPanels * kPanels;
  }
};

// The epilogue of a projection: store, add to the old value, act(first) * second, or act.
struct ProjectEpilogue {
  const mrs_project &op;
  const Deltas &deltas;
  int64_t rows;
  bool streams;
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
    // a thread that reads the weights once has no next segment
    const int64_t count = rows > 4 ? panels.end - panels.begin : 0;
    deltas.expand_columns(columns, 1 + gated(), panels, {panels.end, panels.end + count}, out, own.added);
    return own;
  }

  void ask_for(const Segment &segment, int64_t panel, Ahead &ahead) const {
    if (!deltas.act || added[0].is_known) return;
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
      added[0].add_to(panel, tile.first, tile.count, values);
      if (gated()) added[1].add_to(panel, tile.first, tile.count, second);
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
        store_line(out, accumulates ? add(load_f(out), values[t]) : values[t], streams);
      } else {
        alignas(64) float old[16] = {0};
        for (int j = 0; j < live && accumulates; ++j) old[j] = out[j];
        store_first(out, accumulates ? add(load_f(old), values[t]) : values[t], live);
      }
    }
  }
};

// Values of all rows below which they are rounded where the products are computed. Without adapters all values of one tile are:
// the other threads would wait for the one that rounds it, and then for its lines.
constexpr int64_t kFewValues = 16384;

void project(const mrs_op *self, const mrs_step *step, mrs_pool *pool) {
  const mrs_project &op = *(const mrs_project *)self;
  const int64_t rows = op.logits_only ? step->num_logits : step->num_tokens;
  if (!rows) return;
  const Deltas deltas(*step, op.members, op.num_members, 1);
  Members members(op, rows, deltas.act);
  const Shrinks shrinks(op, deltas, rows, members.needs.rows ? 32 : 8);  // a tile of floats has its own stride
  const auto prepare = [&](int64_t i) { prepare_rows(op, *step, members.tile(i), members.needs); };
  const auto shrink = [&](int64_t i) { shrinks.run(i, [&](int64_t tile) { return members.plain(tile); }); };
  const int64_t span = members.span(pool), threads = mrs_pool_size(pool);
  if (rows * members.cols >= kFewValues && (deltas.act || members.num_tiles() > 1)) {
    parallel_for(pool, members.num_tiles(), [&](int64_t i) { prepare(i); });
    parallel_for(pool, shrinks.count(), [&](int64_t i) { shrink(i); });
  } else if (!deltas.act && rows > 1 && threads > 1) {
    members.round_in_each_thread(op, *step);
  } else if (threads > 1 && members.panels() > span * (threads - 1)) {  // the caller will have a turn
    members.round_in_job(op, *step, shrinks);
  } else {
    for (int64_t i = 0; i < members.num_tiles(); ++i) prepare(i);
    for (int64_t i = 0; i < shrinks.count(); ++i) shrink(i);
  }
  const bool streams = streams_values(rows * 16 * members.panels(), pool);
  gemm(members, span, members.blocks(pool), pool, ProjectEpilogue{op, deltas, rows, streams});
}

}  // namespace MRS_ISA
