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

// Weights that a thread begins to read at most while another one rounds.
constexpr int64_t kReadBytes = 256 << 10;
// Looks at a flag, some 10 us, after which a thread that waits for another gives way to it.
constexpr int kPatience = 256;

// The members of a projection, all of which multiply the same rows.
struct Members {
  // The tiles that a thread rounded for itself.
  struct Own {
    ThreadMemory memory;
    uint8_t *tiles = nullptr;
    uint64_t turn = 0;
  };

  Operand operands[4];
  int64_t ends[4];  // panels up to the end of each operand
  int count;
  int64_t rows, tile_bytes;
  uint8_t *scratch;
  float outlier_threshold;
  Needs needs = {};
  uint64_t turn = 0;  // not 0: each thread rounds all rows into memory of its own, once for each turn
  Own *caller = nullptr;  // not null: it rounds the row in the job, and the others read weights meanwhile
  alignas(64) mutable int32_t is_rounded = 0;
  alignas(64) const mrs_project *op = nullptr;
  const mrs_step *step = nullptr;

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

  // Lets the caller round its row when the others have joined the job: they read their first weights meanwhile, for memory
  // would have nothing to do.
  void round_in_job(const mrs_project &of, const mrs_step &in) { op = &of, step = &in, caller = &own(); }

  void round(int64_t i) const { prepare_rows(*op, *step, tile(i), op->members[0].weight->cols, needs); }

  // Called before a thread multiplies the panels of a segment: rounds its tiles, if it has tiles of its own.
  void prepare(const Segment &segment) const {
    if (caller && !__atomic_load_n(&is_rounded, __ATOMIC_ACQUIRE)) {
      if (caller != &own()) return read_until(is_rounded, segment);
      for (int64_t i = 0; i < num_tiles(); ++i) round(i);
      __atomic_store_n(&is_rounded, 1, __ATOMIC_RELEASE);
    }
    if (!turn || own().turn == turn) return;
    Own &mine = own();
    mine.turn = turn, mine.tiles = (uint8_t *)mine.memory.get(num_tiles() * tile_bytes);
    for (int64_t i = 0; i < num_tiles(); ++i) round(i);
  }

  // Reads weights of a segment in the order in which they are multiplied, until `flag` is set: as many as the second-level
  // cache has room for.
  void read_until(const int32_t &flag, const Segment &segment) const {
    const Operand &operand = at(segment.operand);
    const mrs_weight *const weights[] = {operand.weight, operand.second};
    const auto is_set = [&] { return __atomic_load_n(&flag, __ATOMIC_ACQUIRE); };
    int64_t room = kReadBytes;
    for (int64_t panel = segment.begin; panel < segment.end && room > 0; ++panel)
      for (const mrs_weight *w : weights) {
        if (!w || w->row_bytes) continue;
        const int64_t bytes = view_of(w->type, w->cols).bytes;
        const uint8_t *data = w->data + panel * bytes;
        for (int64_t i = 0; i < bytes; i += 64) {
          if (i % 512 == 0 && is_set()) return;
          *(const volatile uint8_t *)(data + i);
        }
        room -= bytes;
      }
    for (int turns = 0; !is_set(); ++turns) turns < kPatience ? relax() : (void)sched_yield();  // the caller may need this core
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
    const mrs_linear &next = op.members[(i + 1) % op.num_members];
    const int next_slot = work[(i + 1) / op.num_members % count].group.slot;
    // many rows find a in the caches
    const mrs_weight *next_a = next.deltas && members.rows <= Additions::kRows ? next.deltas[next_slot].a : nullptr;
    const auto plain = [&](int64_t tile) { return plain_rows(members.tile(tile), cols, members.needs); };
    deltas.shrink(
        op.members[m], m, w.group, plain(w.first / 8).stride,
        [&](int r) {
          const PlainRows of_tile = plain((w.first + r) / 8);
          return of_tile.x + (w.first + r) % 8 * of_tile.row;
        },
        [&](int r) { return deltas.row_of(op.logits_only, w.first + r); }, next_a ? next_a->data : nullptr);
  };
  const int64_t shrinks = count * op.num_members;
  // a smaller one takes less time than waking a thread
  if (shrinks * cols < 3072) {
    for (int64_t i = 0; i < shrinks; ++i) shrink(i);
  } else {
    parallel_for(pool, shrinks, [&](int64_t i) { shrink(i); });
  }
}

// Values of all rows below which they are rounded where the products are computed.
constexpr int64_t kFewValues = 16384;

void project(const mrs_op *self, const mrs_step *step, mrs_pool *pool) {
  const mrs_project &op = *(const mrs_project *)self;
  const int64_t cols = op.members[0].weight->cols, rows = op.logits_only ? step->num_logits : step->num_tokens;
  if (!rows) return;
  const Deltas deltas(*step, op.members, op.num_members, 1);
  Members members(op, rows, deltas.act);
  auto prepare = [&](int64_t i) { prepare_rows(op, *step, members.tile(i), cols, members.needs); };
  const int64_t span = members.span(pool), threads = mrs_pool_size(pool);
  // rounding few rows takes less time than waking a thread
  if (rows * cols >= kFewValues) {
    parallel_for(pool, members.num_tiles(), [&](int64_t i) { prepare(i); });
  } else if (!deltas.act && rows > 1 && threads > 1) {
    members.round_in_each_thread(op, *step);
  } else if (!deltas.act && threads > 1 && members.panels() > span * (threads - 1)) {  // the caller will have a turn
    members.round_in_job(op, *step);
  } else {
    for (int64_t i = 0; i < members.num_tiles(); ++i) prepare(i);
  }
  if (deltas.act) shrink_rows(op, deltas, members, pool);
  const bool streams = streams_values(rows * 16 * members.panels(), pool);
  gemm(members, span, members.blocks(pool), pool, ProjectEpilogue{op, deltas, rows, streams});
}

}  // namespace MRS_ISA
