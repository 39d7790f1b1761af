// Products of matrices that are stored as floats with a few columns of numbers, of which deltas are made. Every sum is
// computed in one order, by the same instructions, for every number of columns.
#pragma once
#include "asks_ahead.h"
#include "micro_kernel.h"
#include "mrs.h"

namespace MRS_ISA {

// A range of indices.
struct Range {
  int64_t begin, end;
};

// Memory to be asked for while a matrix is read, as many bytes as are read: from `at` on, and from `next` on behind `end`.
struct AheadOfMatrix {
  const uint8_t *at, *end, *next;
};

// acc[i] += one panel (16 rows, count) * the column x[i][0], x[i][stride], ...; even and odd places are added apart, since
// few rows would wait for one chain of additions.
template <int TYPE, int ROWS, bool ASKS>
INLINE void add_panel(const uint8_t *panel, int64_t count, const float *const *x, int64_t stride, Vf *acc,
                      [[maybe_unused]] AheadOfMatrix ahead) {
  constexpr int bytes = layout_of(TYPE).quants;
  Vf even[ROWS], odd[ROWS];
  const float *at[ROWS];
  for (int i = 0; i < ROWS; ++i) even[i] = acc[i], odd[i] = zero_f(), at[i] = x[i];
  int64_t k = 0;
  for (; k + 2 <= count; k += 2) {
    if constexpr (ASKS) {
      const uint8_t *line = ahead.at + k * bytes;
      if (line >= ahead.end) line += ahead.next - ahead.end;
      for (int i = 0; i < 2 * bytes; i += 64) __builtin_prefetch(line + i);
    }
    const Vf w = load_weight<TYPE>(panel + k * bytes), v = load_weight<TYPE>(panel + (k + 1) * bytes);
#pragma GCC unroll 4
    for (int i = 0; i < ROWS; ++i) {
      even[i] = fma(w, set_f(at[i][k * stride]), even[i]);
      odd[i] = fma(v, set_f(at[i][(k + 1) * stride]), odd[i]);
    }
  }
  for (int i = 0; k < count && i < ROWS; ++i)
    even[i] = fma(load_weight<TYPE>(panel + k * bytes), set_f(at[i][k * stride]), even[i]);
  for (int i = 0; i < ROWS; ++i) acc[i] = add(even[i], odd[i]);
}

template <int TYPE, bool ASKS>
INLINE void add_panels(const mrs_weight &w, int64_t index, const float *const *x, int64_t stride, Vf *acc, int rows,
                       [[maybe_unused]] const uint8_t *next) {
  const int64_t count = w.cols, size = (count * layout_of(TYPE).quants + 63) / 64 * 64;  // view_of() without a division
  const uint8_t *panel = w.data + index * size;
  AheadOfMatrix ahead = {};
  int i = 0;
  if constexpr (ASKS) {
    ahead = {panel + kBytesAhead, w.data + (w.rows + 15) / 16 * size, next};
    if (rows >= 4) add_panel<TYPE, 4, true>(panel, count, x, stride, acc, ahead), i = 4;
  }
  for (; rows - i >= 4; i += 4) add_panel<TYPE, 4, false>(panel, count, x + i, stride, acc + i, ahead);
  for (; rows - i >= 2; i += 2) add_panel<TYPE, 2, ASKS>(panel, count, x + i, stride, acc + i, ahead);
  if (rows > i) add_panel<TYPE, 1, ASKS>(panel, count, x + i, stride, acc + i, ahead);
}

// acc[i] += panel `panel` of a matrix that is stored as floats * x[i].
static void add_product(const mrs_weight &w, int64_t panel, const float *const *x, int64_t stride, Vf *acc, int rows) {
  switch (w.type) {
    case MRS_F16: return add_panels<MRS_F16, false>(w, panel, x, stride, acc, rows, nullptr);
    case MRS_BF16: return add_panels<MRS_BF16, false>(w, panel, x, stride, acc, rows, nullptr);
    default: return add_panels<MRS_F32, false>(w, panel, x, stride, acc, rows, nullptr);
  }
}

// As add_product for a matrix that comes from memory, and `next` after it.
static void add_product_ahead(const mrs_weight &w, int64_t panel, const float *const *x, int64_t stride, Vf *acc, int rows,
                              const uint8_t *next) {
  switch (w.type) {
    case MRS_F16: return add_panels<MRS_F16, true>(w, panel, x, stride, acc, rows, next);
    case MRS_BF16: return add_panels<MRS_BF16, true>(w, panel, x, stride, acc, rows, next);
    default: return add_panels<MRS_F32, true>(w, panel, x, stride, acc, rows, next);
  }
}

// Lines of the matrices b that are asked for before they are read. In a wide first-level cache they have room.
INLINE int64_t lines_ahead() { return (mrs_has_wide_l1 ? kBytesAhead : kBytesAhead / 2) / 64; }

// Pieces of memory that will be read one after the other.
class Pieces {
  static constexpr int kMost = 64;  // those beyond them are read without notice
  struct Piece {
    const uint8_t *at;
    int64_t lines;
  };
  Piece pieces[kMost];
  int count = 0, next = 0;

  template <bool ASKS> ALWAYS_INLINE void pass(int64_t lines) {
    for (; next < count; ++next) {
      Piece &piece = pieces[next];
      const int64_t now = lines < piece.lines ? lines : piece.lines;
      for (int64_t i = 0; ASKS && i < now; ++i)
        if (mrs_has_wide_l1)
          __builtin_prefetch(piece.at + 64 * i);
        else
          ask_for_line(piece.at + 64 * i);
      piece.at += 64 * now, piece.lines -= now, lines -= now;
      if (piece.lines) return;
    }
  }

 public:
  void add(const uint8_t *at, int64_t lines) {
    if (count < kMost && lines > 0) pieces[count++] = {at, lines};
  }
  const uint8_t *begin() const { return count ? pieces[0].at : nullptr; }
  // Asks for the next lines.
  ALWAYS_INLINE void ask(int64_t lines) { pass<true>(lines); }
  // Takes the next lines as asked for.
  void skip(int64_t lines) { pass<false>(lines); }
};

// Columns that are multiplied with the same matrix: out[i][n * stride] = panel n of some panels * u[i], 16 values each.
struct SameMatrix {
  static constexpr int kMost = 4;  // columns whose sums stand in registers side by side
  const mrs_weight *b;
  bool is_first;  // of those with this matrix
  int count;
  const float *u[kMost];
  float *out[kMost];
};

// Asks meanwhile for as many lines of `ahead` as the panels have, unless that is null.
template <int TYPE, int COLUMNS>
INLINE void multiply_panels(const SameMatrix &same, int from, const Range &panels, int64_t stride, Pieces *ahead) {
  const int64_t count = same.b->cols, size = (count * layout_of(TYPE).quants + 63) / 64 * 64;
  const uint8_t *panel = same.b->data + panels.begin * size;
  for (int64_t n = 0; n < panels.end - panels.begin; ++n, panel += size) {
    if (ahead) ahead->ask(size / 64);
    Vf sums[COLUMNS];
    for (int i = 0; i < COLUMNS; ++i) sums[i] = zero_f();
    add_panel<TYPE, COLUMNS, false>(panel, count, same.u + from, 1, sums, {});
    for (int i = 0; i < COLUMNS; ++i) store_f(same.out[from + i] + n * stride, sums[i]);
  }
}

template <int TYPE>
INLINE void multiply_panels(const SameMatrix &same, const Range &panels, int64_t stride, Pieces *ahead) {
  if (!same.is_first) ahead = nullptr;
  if (same.count == 4) return multiply_panels<TYPE, 4>(same, 0, panels, stride, ahead);
  if (same.count >= 2) multiply_panels<TYPE, 2>(same, 0, panels, stride, ahead);
  if (same.count & 1) multiply_panels<TYPE, 1>(same, same.count - 1, panels, stride, same.count == 1 ? ahead : nullptr);
}

// What deltas add to panels of a matrix for an op's rows: (panels, columns, 16), with a column for each use of a row. A row's
// columns stand together, in the order of its uses.
struct Additions {
  static constexpr int kRows = 64, kColumns = 64;
  bool is_known = false;
  int columns = 0;
  uint8_t ends[1 + kRows] = {};   // of the columns of each row, behind a 0
  int64_t begin = 0;              // the first panel
  const float *values = nullptr;

  // Adds to products[t], those of a panel with row `first` + t, the columns of that row.
  ALWAYS_INLINE void add_to(int64_t panel, int64_t first, int rows, Vf *products) const {
    const float *of_panel = values + (panel - begin) * columns * 16;
    for (int t = 0; t < rows; ++t)
      for (int c = ends[first + t]; c < ends[first + t + 1]; ++c) products[t] = add(products[t], load_f(of_panel + c * 16));
  }
};

}  // namespace MRS_ISA
