// The tile instructions of Intel's AMX for int8: each thread has eight registers of up to 16 rows of 64 bytes.
//
// With MRS_EMULATE_TILES they are plain C++ after the pseudo code of Intel's manual, which ends the program where the
// processor would fault. Such a build tests the kernels on other processors.
#pragma once
#include "isa.h"

#if MRS_ISA_amx_int8
#if MRS_EMULATE_TILES
#include <cstdlib>
#endif

namespace MRS_ISA {

// What LDTILECFG reads: for each register the number of its rows and of a row's bytes.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileShapes) == 64);

#if MRS_EMULATE_TILES
struct EmulatedTiles {
  TileShapes shapes;  // of palette 0 while none are set
  uint8_t data[8][16][64];
};
inline thread_local EmulatedTiles emulated_tiles = {{0}, {}};

INLINE void must(bool is_valid) {
  if (!is_valid) std::abort();
}
INLINE bool has_shape(int i) {
  const TileShapes &s = emulated_tiles.shapes;
  return s.palette == 1 && s.rows[i] > 0 && s.row_bytes[i] > 0;
}
INLINE void set_tile_shapes(const TileShapes &shapes) {
  must(shapes.palette == 1 && shapes.start_row == 0);
  for (int i = 0; i < 16; ++i)
    must(shapes.row_bytes[i] <= 64 && shapes.rows[i] <= 16 && !shapes.row_bytes[i] == !shapes.rows[i] && (i < 8 || !shapes.rows[i]));
  emulated_tiles = {shapes, {}};
}
INLINE void release_tiles() { emulated_tiles = {{0}, {}}; }
template <int I> INLINE void zero_tile() {
  must(has_shape(I));
  std::memset(emulated_tiles.data[I], 0, sizeof emulated_tiles.data[I]);
}
// Rows that stand `stride` bytes apart.
template <int I> INLINE void load_tile(const void *from, int64_t stride) {
  zero_tile<I>();
  const TileShapes &s = emulated_tiles.shapes;
  for (int row = 0; row < s.rows[I]; ++row)
    std::memcpy(emulated_tiles.data[I][row], (const uint8_t *)from + row * stride, s.row_bytes[I]);
}
template <int I> INLINE void store_tile(void *to, int64_t stride) {
  must(has_shape(I));
  const TileShapes &s = emulated_tiles.shapes;
  for (int row = 0; row < s.rows[I]; ++row)
    std::memcpy((uint8_t *)to + row * stride, emulated_tiles.data[I][row], s.row_bytes[I]);
}
// C += A * B: rows of signed bytes times unsigned ones, of which B's rows have four of each column.
template <int C, int A, int B> INLINE void dot_tiles() {
  static_assert(C != A && C != B && A != B);
  must(has_shape(C) && has_shape(A) && has_shape(B));
  EmulatedTiles &e = emulated_tiles;
  const TileShapes &s = e.shapes;
  must(s.row_bytes[C] % 4 == 0 && s.row_bytes[A] % 4 == 0 && s.row_bytes[B] % 4 == 0 && s.rows[C] == s.rows[A] &&
       s.row_bytes[A] / 4 == s.rows[B] && s.row_bytes[C] == s.row_bytes[B]);
  for (int m = 0; m < s.rows[A]; ++m)
    for (int n = 0; n < s.row_bytes[C] / 4; ++n) {
      int32_t sum;
      std::memcpy(&sum, e.data[C][m] + 4 * n, 4);
      for (int k = 0; k < s.row_bytes[A]; ++k) sum += int8_t(e.data[A][m][k]) * e.data[B][k / 4][4 * n + k % 4];
      std::memcpy(e.data[C][m] + 4 * n, &sum, 4);
    }
}
#else
// Written as assembly: gcc 12's intrinsics take no template parameter, and do not say that they read memory.
INLINE void set_tile_shapes(const TileShapes &shapes) { asm volatile("ldtilecfg %0" : : "m"(shapes)); }
INLINE void release_tiles() { asm volatile("tilerelease"); }
template <int I> INLINE void zero_tile() { asm volatile("tilezero %%tmm%c0" : : "i"(I)); }
template <int I> INLINE void load_tile(const void *from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(I) : "memory");
}
template <int I> INLINE void store_tile(void *to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(I) : "memory");
}
template <int C, int A, int B> INLINE void dot_tiles() {
  asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}
#endif

// Sets registers 0 to 5 to sums of 8 tokens and 16 rows, 6 to so many columns of the tokens, and 7 to those of the weights.
INLINE void set_tile_shapes_for(int cols) {
  TileShapes shapes;
  for (int i = 0; i < 8; ++i) shapes.rows[i] = 8, shapes.row_bytes[i] = 64;
  shapes.row_bytes[6] = uint16_t(cols), shapes.rows[7] = uint8_t(cols / 4);
  set_tile_shapes(shapes);
}

// Whether one product has the sums that it must have. It faults where the processor or its system lacks tiles.
bool multiplies_tiles() {
  int8_t columns[8][32];
  uint8_t weights[8][64];
  int32_t sums[8][16];
  for (int k = 0; k < 32; ++k) {
    for (int t = 0; t < 8; ++t) columns[t][k] = int8_t(t * 37 + k * 91 - 128);
    for (int row = 0; row < 16; ++row) weights[k / 4][4 * row + k % 4] = uint8_t(row * 53 + k * 29);
  }
  set_tile_shapes_for(32);
  zero_tile<5>(), load_tile<6>(columns, 32), load_tile<7>(weights, 64);
  dot_tiles<5, 6, 7>(), store_tile<5>(sums, 64), release_tiles();
  for (int t = 0; t < 8; ++t)
    for (int row = 0; row < 16; ++row) {
      int32_t sum = 0;
      for (int k = 0; k < 32; ++k) sum += columns[t][k] * weights[k / 4][4 * row + k % 4];
      if (sum != sums[t][row]) return false;
    }
  return true;
}

}  // namespace MRS_ISA
#endif
