// Packs rows as a file stores them into panels (layout.h). Packing moves bytes alone; all instruction sets give the same.
#pragma once
#include "formats.h"
#include "mrs.h"

#include <type_traits>

namespace MRS_ISA {

template <int N> using Distance = std::integral_constant<int, N>;

// One block of each of a panel's 16 rows, and its place in the panel.
struct RowBlocks {
  const uint8_t *rows[16];
  uint8_t *scales, *quants;

  // Writes COUNT dwords of each row, from byte `from` of the block on, to successive cache lines.
  template <int COUNT> ALWAYS_INLINE void lines(int from, uint8_t *to) const {
    static_assert(COUNT % 4 == 0);
    for (int i = 0; i < COUNT; i += 4) {
      Vi four[4];
      transpose4(rows, from + 4 * i, four);
      for (int q = 0; q < 4; ++q) store_i(to + 64 * (i + q), four[q]);
    }
  }

  // The same for bytes with a sign, which become unsigned with offset 128.
  ALWAYS_INLINE void signed_lines(int from, uint8_t *to) const {
    for (int i = 0; i < 8; i += 4) {
      Vi four[4];
      transpose4(rows, from + 4 * i, four);
      for (int q = 0; q < 4; ++q) store_i(to + 64 * (i + q), xor_(four[q], set_i(int32_t(0x80808080))));
    }
  }

  ALWAYS_INLINE void halves(int from, uint8_t *to) const {
    for (int row = 0; row < 16; ++row) std::memcpy(to + 2 * row, rows[row] + from, 2);
  }

  ALWAYS_INLINE void line(int from, uint8_t *to) const {
    for (int row = 0; row < 16; ++row) std::memcpy(to + 4 * row, rows[row] + from, 4);
  }

  // The fifth bits of 32 columns: bit 4g + i of a row's dword becomes bit g of its byte i.
  ALWAYS_INLINE void fifth_bits(int from, uint8_t *to) const {
    line(from, to);
    Vi x = load_i(to);
    const auto swap = [&](auto distance, int32_t mask) {
      const Vi t = and_(xor_(shr<distance>(x), x), set_i(mask));
      x = xor_(x, xor_(t, shl<distance>(t)));
    };
    // each exchanges two digits of the bits' binary numbers, until g stands behind i
    swap(Distance<14>(), 0x0000cccc), swap(Distance<7>(), 0x00aa00aa);
    swap(Distance<2>(), 0x0c0c0c0c), swap(Distance<1>(), 0x22222222);
    store_i(to, x);
  }

  // The first 16 bytes of a Q4_K or Q5_K block: two halves and 12 bytes of scales.
  ALWAYS_INLINE void k_header() const {
    Vi four[4];
    transpose4(rows, 0, four);
    store_i(scales, pack_words(four[0], shr<16>(four[0])));
    for (int q = 1; q < 4; ++q) store_i(scales + 64 * q, four[q]);
  }
};

template <int TYPE> ALWAYS_INLINE void pack_blocks(const RowBlocks &b) {
  if constexpr (TYPE == MRS_Q4_0) b.halves(0, b.scales), b.lines<4>(2, b.quants);
  if constexpr (TYPE == MRS_Q4_1) b.halves(0, b.scales), b.halves(2, b.scales + 32), b.lines<4>(4, b.quants);
  if constexpr (TYPE == MRS_Q5_0) b.halves(0, b.scales), b.fifth_bits(2, b.quants), b.lines<4>(6, b.quants + 64);
  if constexpr (TYPE == MRS_Q5_1) {
    b.halves(0, b.scales), b.halves(2, b.scales + 32);
    b.fifth_bits(4, b.quants), b.lines<4>(8, b.quants + 64);
  }
  if constexpr (TYPE == MRS_Q8_0) b.halves(0, b.scales), b.signed_lines(2, b.quants);
  if constexpr (TYPE == MRS_I8) b.line(0, b.scales), b.line(4, b.scales + 64), b.signed_lines(8, b.quants);
  if constexpr (TYPE == MRS_Q2_K) {
    b.halves(80, b.scales), b.halves(82, b.scales + 32);
    b.lines<4>(0, b.scales + 64), b.lines<16>(16, b.quants);
  }
  if constexpr (TYPE == MRS_Q3_K) {
    b.halves(108, b.scales);
    for (int q = 0; q < 3; ++q) b.line(96 + 4 * q, b.scales + 32 + 64 * q);
    b.lines<8>(0, b.quants), b.lines<16>(32, b.quants + 512);
  }
  if constexpr (TYPE == MRS_Q4_K) b.k_header(), b.lines<32>(16, b.quants);
  if constexpr (TYPE == MRS_Q5_K) b.k_header(), b.lines<8>(16, b.quants), b.lines<32>(48, b.quants + 512);
  if constexpr (TYPE == MRS_Q6_K) {
    b.halves(208, b.scales);
    Vi scales[4], high[4], low[4], low2[4];
    transpose4(b.rows, 192, scales);
    for (int q = 0; q < 4; ++q) store_i(b.quants + 64 * q, bytes_apart(scales[q]));
    for (int i = 0; i < 16; i += 4) {
      const int half = i / 8, first = i % 8;
      transpose4(b.rows, 128 + 32 * half + 4 * first, high);
      transpose4(b.rows, 64 * half + 4 * first, low);
      transpose4(b.rows, 64 * half + 32 + 4 * first, low2);
      for (int q = 0; q < 4; ++q) {
        uint8_t *lines = b.quants + 256 + 192 * (i + q);
        store_i(lines, high[q]), store_i(lines + 64, low[q]), store_i(lines + 128, low2[q]);
      }
    }
  }
}

// A panel of a weight that lies in its file's layout; see mrs_weight.
struct PackPanel {
  const mrs_weight &stored;
  int64_t panel;
  uint8_t *out;

  // The rows from byte `offset` on, those of padding as zeros.
  ALWAYS_INLINE void rows_at(int64_t offset, const uint8_t **rows) const {
    alignas(64) static const uint8_t kZeros[256] = {0};
    for (int64_t r = 0; r < 16; ++r) {
      const int64_t row = panel * 16 + r;
      if (row >= stored.rows) {
        rows[r] = kZeros;
      } else {
        rows[r] = stored.data + (stored.order ? stored.order[row] : row) * stored.row_bytes + offset;
      }
    }
  }

  template <class F> void run() const {
    constexpr mrs_layout layout = layout_of(F::type);
    constexpr int ahead = (16 * layout.file_bytes + 63) / 64;
    const panel_view view = view_of(F::type, stored.cols);
    // rows of the panel behind this one, which is read next: 16 rows at once are more streams than the processor foresees
    const uint8_t *next = stored.data + (panel + 1) * 16 * stored.row_bytes;
    const uint8_t *bases[16];
    rows_at(0, bases);
    RowBlocks b;
    for (int64_t i = 0; i < view.blocks; ++i, next += 16 * layout.file_bytes) {
      for (int r = 0; r < 16; ++r) b.rows[r] = panel * 16 + r < stored.rows ? bases[r] + i * layout.file_bytes : bases[r];
      const panel_block at = view.block(i);
      b.scales = out + at.scales, b.quants = out + at.quants;
      for (int line = 0; line < ahead; ++line) __builtin_prefetch(next + 64 * line, 0, 2);
      pack_blocks<F::type>(b);
    }
  }

  template <int TYPE> void run_float() const {
    constexpr int bytes = layout_of(TYPE).file_bytes, columns = 16 / bytes;
    const uint8_t *rows[16];
    rows_at(0, rows);
    int64_t k = 0;
    for (; k + columns <= stored.cols && panel * 16 + 16 <= stored.rows; k += columns) {
      Vi four[4];
      transpose4(rows, k * bytes, four);
      for (int q = 0; q < 4; ++q)
        store_i(out + 16 * bytes * k + 64 * q, bytes == 2 ? pack_words(four[q], shr<16>(four[q])) : four[q]);
    }
    for (; k < stored.cols; ++k)
      for (int r = 0; r < 16; ++r)
        std::memcpy(out + 16 * bytes * k + bytes * r, rows[r] + (panel * 16 + r < stored.rows ? k * bytes : 0), bytes);
  }
};

void pack_panel(const mrs_weight *stored, int64_t panel, uint8_t *out) {
  visit_type(stored->type, PackPanel{*stored, panel, out});
}

}  // namespace MRS_ISA
